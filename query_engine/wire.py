"""What travels between the serving process and a worker, over local sockets.

A *channel* carries one query at a time. The serving process asks: four bytes of length, a kind, a
pickle. The worker answers: a kind; for rows an Arrow IPC stream to its end marker; and last a
trailer, JSON behind its length, with what went wrong or nothing. The whole of a small answer is
sent at once, with the length of its stream in front: each end wakes up once for it.

Pickles go in one direction only: a worker runs what a tenant wrote, so that nothing it sends is
taken for more than data.
"""

import io
import json
import logging
import pickle
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

import duckmesh.errors
from duckmesh.errors import Corrupt, DuckMeshError, ErrorCode, Internal
from query_engine.question import Description, Question
from query_engine.relations import Relation
from query_engine.stream import message_bytes

SOCKET_BUFFER_BYTES: Final = 4 * 2**20
"""A whole batch fits: the worker computes the next one while this one is read."""

SMALL_BYTES: Final = 32 * 2**10
"""Rows up to this size travel with everything else of their answer."""

_WHOLE_MAX_BYTES: Final = 64 * 2**20
_TRAILER_MAX_BYTES: Final = 2**20
_READ_AHEAD_BYTES: Final = 64 * 2**10
_BUFFERS_PER_SEND: Final = 512
_SO_SNDBUFFORCE: Final = 32
_LOOK_UP: Final = struct.pack("@ll", 0, 100_000)
"""How often one who waits for an answer looks whether it is still wanted: every 0.1 s."""

_HEAD: Final = struct.Struct("=IB")
_LENGTH: Final = struct.Struct("=I")
_WHOLE_HEAD: Final = struct.Struct("=BI")
_NOTHING_WRONG: Final = _LENGTH.pack(0)


_log = logging.getLogger(__name__)


class Ask(IntEnum):
    """What a request wants."""

    RUN = 1
    DESCRIBE = 2


class Reply(IntEnum):
    """How an answer begins. All end with a trailer."""

    ROWS = 1
    DESCRIPTION = 2
    FAILURE = 3
    WHOLE = 4
    """All rows, and no error."""


class Lost(Exception):
    """The other process has ended, or no longer says what was agreed."""


def channel() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel, the second with room for what the worker sends."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _LOOK_UP)
    try:
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)
    except OSError:
        # Without the right to pass the system's limit: it gives as much as it allows.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ours, theirs


# --- questions -----------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Arrow travels as Arrow IPC, which is much smaller than its own pickles, and quicker."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, pa.Schema):
            return _schema, (value.serialize().to_pybytes(),)
        if isinstance(value, pa.Table):
            return _table, (_stream_of(value),)
        if isinstance(value, pa.RecordBatch):
            return _batch, (_stream_of(value),)
        if isinstance(value, Relation):
            parts = {each.name: getattr(value, each.name) for each in fields(value)}
            return _relation, (parts | {"files": value.file_texts, "newer": value.newer_texts},)
        if isinstance(value, Path):
            return Path, (str(value),)
        return NotImplemented


def _stream_of(rows: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    return bytes(sink.getvalue().to_pybytes())


def _schema(content: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(content))


def _table(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def _batch(content: bytes) -> pa.RecordBatch:
    return pa.ipc.open_stream(content).read_next_batch()


def _relation(parts: dict[str, Any]) -> Relation:
    # The files stay texts: a thousand Paths take milliseconds, and only their texts are asked for.
    return Relation(**parts)


def pickled(value: object) -> bytes:
    """Any plain value or question, for a worker of ours."""
    sink = io.BytesIO()
    _Pickler(sink, protocol=5).dump(value)
    return sink.getvalue()


def send_question(to: socket.socket, ask: Ask, question: Question) -> None:
    """Raises Lost when nobody reads any more."""
    content = pickled(question)
    try:
        to.sendall(_HEAD.pack(len(content), ask) + content)
    except OSError as error:
        raise Lost from error


def receive_question(source: "Source") -> tuple[Ask, Question]:
    """The next question; blocks until there is one. Raises Lost at the end."""
    length, ask = _HEAD.unpack(source.take(_HEAD.size))
    # From the process that started this one, over a socket that nobody else has.
    question = pickle.loads(source.take(length))  # noqa: S301
    return Ask(ask), question


# --- answers -------------------------------------------------------------------------------------


class Sink(io.RawIOBase):
    """Gathers what is written, and sends it without a copy at `send`."""

    def __init__(self, to: socket.socket) -> None:
        super().__init__()
        self._to = to
        self._parts: list[memoryview] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        part = memoryview(content)
        if part.nbytes:
            self._parts.append(part)
        return part.nbytes

    def send(self) -> None:
        """Blocks while the reader is slow. Raises Lost when nobody reads any more."""
        parts, self._parts = self._parts, []
        first = 0
        while first < len(parts):
            try:
                sent = self._to.sendmsg(parts[first : first + _BUFFERS_PER_SEND])
            except OSError as error:
                raise Lost from error
            while first < len(parts) and sent >= parts[first].nbytes:
                sent -= parts[first].nbytes
                first += 1
            if sent:
                parts[first] = parts[first][sent:]


class Source:
    """Reads a channel: what is small through a buffer, what is large straight into Arrow's memory.

    It is the file that pyarrow reads an IPC stream from. The GIL is free while it waits.
    """

    closed = False

    def __init__(self, from_: socket.socket) -> None:
        self.check: Callable[[], None] = _wait_on
        """Called now and then during a wait; what it raises ends the wait."""
        self._from = from_
        self._buffer = memoryview(bytearray(_READ_AHEAD_BYTES))
        self._at = 0
        self._end = 0
        self.received = 0
        """Bytes handed out so far."""

    def take(self, length: int) -> bytes:
        """Exactly so many bytes. Raises Lost when they do not come."""
        self.received += length
        if length <= self._end - self._at:
            taken = bytes(self._buffer[self._at : self._at + length])
            self._at += length
            return taken
        content = bytearray(length)
        self._fill(memoryview(content))
        return bytes(content)

    def read_buffer(self, length: int) -> pa.Buffer:
        """What pyarrow calls: the bytes as a buffer of its own memory."""
        if length <= self._end - self._at:
            return pa.py_buffer(self.take(length))
        self.received += length
        memory = pa.allocate_buffer(length)
        self._fill(memoryview(memory).cast("B"))
        return memory

    def read(self, length: int) -> bytes:
        return self.take(length)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing: the channel outlives the stream in it."""

    def _fill(self, into: memoryview) -> None:
        have = self._end - self._at
        into[:have] = self._buffer[self._at : self._end]
        self._at = self._end = 0
        while have < len(into):
            missing = len(into) - have
            if missing >= _READ_AHEAD_BYTES:
                have += self._receive(into[have:])
                continue
            self._end = self._receive(self._buffer)
            self._at = min(self._end, missing)
            into[have : have + self._at] = self._buffer[: self._at]
            have += self._at

    def _receive(self, into: memoryview) -> int:
        flags = socket.MSG_WAITALL if len(into) > _READ_AHEAD_BYTES else 0
        while True:
            try:
                got = self._from.recv_into(into, 0, flags)
            except BlockingIOError:
                self.check()
                continue
            except OSError as error:
                raise Lost from error
            if got == 0:
                raise Lost
            return got


def _wait_on() -> None:
    """Nothing ends the wait but an answer."""


def write_description(sink: Sink, description: Description) -> None:
    sink.write(bytes([Reply.DESCRIPTION]))
    for schema in (description.result_schema, description.parameter_schema):
        content = schema.serialize()
        sink.write(_LENGTH.pack(content.size))
        sink.write(content)


def read_description(source: Source) -> Description:
    def schema() -> pa.Schema:
        (length,) = _LENGTH.unpack(source.take(4))
        return _arrow(lambda: pa.ipc.read_schema(pa.py_buffer(source.take(length))))

    return Description(schema(), schema(), is_query=True)


def read_reply(source: Source) -> Reply:
    """How the answer begins. Raises Lost."""
    try:
        return Reply(source.take(1)[0])
    except ValueError as error:
        raise Lost from error


def open_rows(source: Source) -> pa.RecordBatchReader:
    """The stream that follows Reply.ROWS. Raises Lost."""
    return _arrow(lambda: pa.ipc.open_stream(pa.PythonFile(source, mode="r")))


def first_rows(
    next_batch: Callable[[], pa.RecordBatch | None],
) -> tuple[list[pa.RecordBatch], bool]:
    """The first rows, and whether they are all. After a small batch the next one is waited for.

    It is likely the last: DuckDB fills its batches. A query that gives a few rows, and the next
    ones much later, is heard of later.
    """
    first = next_batch()
    if first is None:
        return [], True
    if message_bytes(first) > SMALL_BYTES:
        return [first], False
    second = next_batch()
    return ([first], True) if second is None else ([first, second], False)


def write_whole(sink: Sink, schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> None:
    """A small answer; its trailer must follow."""
    content = pa.BufferOutputStream()
    with pa.ipc.new_stream(content, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    stream = content.getvalue()
    sink.write(_WHOLE_HEAD.pack(Reply.WHOLE, stream.size))
    sink.write(stream)


def open_whole(source: Source) -> pa.RecordBatchReader:
    """The stream that follows Reply.WHOLE, received already. Raises Lost."""
    (length,) = _LENGTH.unpack(source.take(_LENGTH.size))
    if length > _WHOLE_MAX_BYTES:
        raise Lost
    content = source.take(length)
    return _arrow(lambda: pa.ipc.open_stream(pa.py_buffer(content)))


def read_batch(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    """The next batch, with its buffers within its message; None at the end. Raises Lost."""
    try:
        batch = reader.read_next_batch()
        # Offsets that lead outside of the message would have us send our own memory.
        batch.validate()
    except StopIteration:
        return None
    except (pa.ArrowException, OSError, ValueError) as error:
        _log.warning("what a worker sent cannot be read", exc_info=True)
        raise Lost from error
    return batch


def write_trailer(sink: Sink, error: DuckMeshError | None, *, retire: bool) -> None:
    """`retire` when the worker should take no further question."""
    if error is None and not retire:
        sink.write(_NOTHING_WRONG)
        return
    told = {"error": None if error is None else _told(error), "retire": retire}
    content = json.dumps(told, default=str).encode()
    sink.write(_LENGTH.pack(len(content)))
    sink.write(content)


def read_trailer(source: Source) -> tuple[DuckMeshError | None, bool]:
    """What went wrong, as it is to be raised, and whether the worker retires. Raises Lost."""
    (length,) = _LENGTH.unpack(source.take(4))
    if length == 0:
        return None, False
    if length > _TRAILER_MAX_BYTES:
        raise Lost
    try:
        told = json.loads(source.take(length))
        error = None if told["error"] is None else _heard(told["error"])
        return error, told["retire"] is True
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Lost from error


def _told(error: DuckMeshError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "code": error.code.value,
        "message": error.message,
        "context": error.context,
    }


def _heard(told: dict[str, Any]) -> DuckMeshError:
    kind = getattr(duckmesh.errors, told["kind"])
    if not (isinstance(kind, type) and issubclass(kind, DuckMeshError)):
        raise TypeError(told["kind"])
    if issubclass(kind, Internal):
        return Internal()
    if issubclass(kind, Corrupt):
        return Corrupt(told["message"], **told["context"])
    return kind(ErrorCode(told["code"]), told["message"], **told["context"])


def _arrow(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Lost from error
