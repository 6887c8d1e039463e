"""FlightData, the message in which rows travel: bytes of the wire <-> messages of Arrow IPC.

Field 1 is a descriptor, 2 the IPC message's metadata, 3 what the application adds, and 1000 the
message's body. Bodies are large: they are cut and passed on without a copy where one can be spared.
https://github.com/apache/arrow/blob/main/format/Flight.proto
"""

import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.types as pat

from duckmesh.errors import ErrorCode, Invalid
from flight_server import messages
from flight_server.messages import DecodeError
from grpc_transport.calls import Part
from grpc_transport.messages import Message, joined, size_of

_DESCRIPTOR: Final = 1
_HEADER: Final = 2
_APP_METADATA: Final = 3
_BODY: Final = 1000
_KNOWN: Final = frozenset({_DESCRIPTOR, _HEADER, _APP_METADATA, _BODY})
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_VARINT: Final = 0
_HEADER_TAG: Final = b"\x12"
_BODY_TAG: Final = b"\xc2\x3e"
_PUT_RESULT_TAG: Final = b"\x0a"
_CONTINUATION: Final = b"\xff\xff\xff\xff"
_IPC_PREFIX: Final = struct.Struct("<4si")
_ALIGNMENT: Final = 8
_SMALL_BYTES: Final = 64 * 1024
_parsed: Final = messages.session("FlightData").FromString
_GATHERED_FROM_BYTES: Final = 64 * 1024
"""A batch of so many bytes is sent as the buffers it has; a smaller one is put together."""


class FlightData(NamedTuple):
    """One message. An empty header says that it has no rows and no schema."""

    header: bytes = b""
    body: Message = ()
    app_metadata: bytes | None = None
    descriptor: bytes | None = None

    def encapsulated(self) -> bytes:
        """The IPC message as a stream has it, in one piece; its body is aligned."""
        return b"".join([*self.metadata_parts(), *self.body])

    def metadata_parts(self) -> tuple[bytes, bytes]:
        """What a stream has before the body: how long the metadata is, and the metadata."""
        padding = -len(self.header) % _ALIGNMENT
        header = self.header + bytes(padding) if padding else self.header
        return _IPC_PREFIX.pack(_CONTINUATION, len(header)), header


def read(message: Message) -> FlightData:
    """The message that these bytes are. Raises Invalid (INVALID_PAYLOAD)."""
    try:
        if len(message) == 1 and len(message[0]) <= _SMALL_BYTES:
            return _read_small(message[0])
        try:
            return _read(message)
        except _Split:
            # What stands before the body nearly always comes at once.
            return _read([joined(message)])
    except (DecodeError, IndexError, _Split, struct.error):
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD, "the stream is not valid Arrow Flight: nothing was taken"
        ) from None


def _read_small(message: Part) -> FlightData:
    """By the library, which copies the body: of a small one that is the cheapest."""
    found = _parsed(message)
    return FlightData(
        found.data_header,
        [found.data_body],
        found.app_metadata if found.HasField("app_metadata") else None,
        found.flight_descriptor if found.HasField("flight_descriptor") else None,
    )


class _Split(Exception):
    """A field other than the body does not lie in the first piece."""


def _read(message: Message) -> FlightData:
    if not message:
        return FlightData()
    first = memoryview(message[0])
    rest = message[1:]
    fields: dict[int, memoryview] = {}
    body: Message = ()
    at, end = 0, len(first)
    while at < end:
        tag, at = _varint(first, at)
        number, kind = tag >> 3, tag & 7
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(first, at)
            if at + length <= end:
                # No other is kept: a message may have millions of them.
                if number in _KNOWN:
                    fields[number] = first[at : at + length]
            elif number == _BODY and at + length == end + size_of(rest):
                body = [first[at:], *rest]
                break
            else:
                raise _Split
            at += length
        elif kind == _VARINT:
            _, at = _varint(first, at)
        else:
            at += _FIXED_BYTES[kind] if kind in _FIXED_BYTES else end + 1
    if at > end or (rest and not body):
        raise _Split
    if not body and (whole := fields.get(_BODY)) is not None:
        body = [whole]
    metadata, descriptor = fields.get(_APP_METADATA), fields.get(_DESCRIPTOR)
    return FlightData(
        bytes(fields.get(_HEADER, b"")),
        body,
        None if metadata is None else bytes(metadata),
        None if descriptor is None else bytes(descriptor),
    )


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Split
        octet = data[at]
        at += 1
        value |= (octet & 127) << shift
        if octet < 128:
            return value, at
        shift += 7


def _length(number: int) -> bytes:
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def put_result(app_metadata: bytes) -> bytes:
    """A PutResult, or the Result of an action: both hold bytes in their first field."""
    return _PUT_RESULT_TAG + _length(len(app_metadata)) + app_metadata


# ---- Rows that go out


class Encoder:
    """The messages of one stream of rows: its schema, then its batches."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._has_dictionaries = has_dictionaries(schema)
        self._gathered = _Gathered()
        self._writer: Any = pa.ipc.new_stream(self._gathered, schema)
        self._schema_left = True
        """The writer has not written it: it does before its first batch."""

    def schema(self) -> list[Part]:
        """The message that begins the stream."""
        return _parts(memoryview(self._schema.serialize()))

    def rows(self, batch: pa.RecordBatch) -> Iterator[list[Part]]:
        """The messages of one batch: one, and its dictionaries before it."""
        if self._has_dictionaries:
            yield from self._with_dictionaries(batch)
        elif batch.nbytes < _GATHERED_FROM_BYTES:
            yield _parts(memoryview(batch.serialize()))
        else:
            yield _gathered_parts(self._written(batch))

    def _with_dictionaries(self, batch: pa.RecordBatch) -> Iterator[list[Part]]:
        content = pa.py_buffer(b"".join(self._written(batch)))
        for message in pa.ipc.MessageReader.open_stream(content):
            yield _parts_of(memoryview(message.metadata), [memoryview(message.body)])

    def _written(self, batch: pa.RecordBatch) -> list[memoryview]:
        self._writer.write_batch(batch)
        pieces = self._gathered.taken()
        if self._schema_left:
            self._schema_left = False
            return _after(pieces, self._schema.serialize().size)
        return pieces


def _after(pieces: list[memoryview], size: int) -> list[memoryview]:
    """The pieces without the first bytes, which went out already."""
    while size:
        first = pieces.pop(0)
        if len(first) > size:
            pieces.insert(0, first[size:])
        size -= min(size, len(first))
    return pieces


def has_dictionaries(schema: pa.Schema) -> bool:
    """Whether a column is encoded by a dictionary, at any depth: that travels apart from it."""
    return any(_has_dictionary(each.type) for each in schema)


def _has_dictionary(kind: pa.DataType) -> bool:
    if pat.is_dictionary(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    return any(_has_dictionary(kind.field(at).type) for at in range(kind.num_fields))


def _parts(encapsulated: memoryview) -> list[Part]:
    """The parts of a FlightData of an IPC message that lies in one piece."""
    _, length = _IPC_PREFIX.unpack_from(encapsulated)
    at = _IPC_PREFIX.size
    return _parts_of(encapsulated[at : at + length], [encapsulated[at + length :]])


def _gathered_parts(pieces: Sequence[memoryview]) -> list[Part]:
    """The same of one that was written piece by piece: prefix and metadata, then its buffers."""
    before = b""
    for number, piece in enumerate(pieces):
        before += piece
        if len(before) >= _IPC_PREFIX.size:
            _, length = _IPC_PREFIX.unpack_from(before)
            end = _IPC_PREFIX.size + length
            if len(before) >= end:
                header, rest = before[_IPC_PREFIX.size : end], before[end:]
                body = [memoryview(rest), *pieces[number + 1 :]]
                return _parts_of(memoryview(header), [each for each in body if len(each)])
    raise AssertionError("an IPC message has metadata")


def _parts_of(header: memoryview, body: Sequence[memoryview]) -> list[Part]:
    size = sum(map(len, body))
    start = _HEADER_TAG + _length(len(header)) + header
    # Every message of rows has a body, if an empty one: Go's reader wants the field.
    return [start + _BODY_TAG + _length(size), *body]


class _Gathered(io.RawIOBase):
    """Takes what Arrow writes, without a copy of what is large."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[memoryview] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        piece = memoryview(content).cast("B")
        if piece.nbytes:
            self._pieces.append(piece)
        return piece.nbytes

    def taken(self) -> list[memoryview]:
        pieces, self._pieces = self._pieces, []
        return pieces
