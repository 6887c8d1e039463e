"""The rows of a DoPut as they come: a descriptor, a schema, then batches."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid
from flight_server import flight_data
from flight_server.flight_data import FlightData
from flight_server.ipc_metadata import batch_head
from grpc_transport.calls import Call, Part
from grpc_transport.messages import Message, joined


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one message brings: rows, what its sender says beside them, or both."""

    data: pa.RecordBatch | None
    app_metadata: bytes | None


class RowsIn:
    """Reads one DoPut, on one thread. Blocks for what has not come; raises Gone with its sender."""

    def __init__(self, rpc: Call, first: FlightData) -> None:
        self._rpc = rpc
        self._source = _Source(rpc, first)
        self._reader: Any = None

    @classmethod
    def begin(cls, rpc: Call) -> "RowsIn | None":
        """Read the first message, which has the descriptor; None when there is none."""
        message = rpc.read()
        return None if message is None else cls(rpc, flight_data.read(message))

    @property
    def descriptor(self) -> bytes | None:
        """The serialized FlightDescriptor of the first message."""
        return self._source.first.descriptor

    @property
    def schema(self) -> pa.Schema:
        """The schema, which comes first. Raises Arrow's errors for what is none."""
        return self._opened().schema

    def read_chunk(self) -> Chunk:
        """The next message. Raises StopIteration at the end, and Arrow's errors."""
        reader = self._opened()
        source = self._source
        if not source.next_message():
            raise StopIteration
        if not source.current.header:
            return Chunk(None, source.current.app_metadata)
        batch = reader.read_next_batch()
        source.check_taken()
        return Chunk(batch, source.current.app_metadata)

    def _opened(self) -> Any:
        if self._reader is None:
            if not self._source.current.header:
                raise pa.ArrowInvalid("the first message has no schema")
            self._reader = pa.ipc.open_stream(pa.PythonFile(self._source, mode="r"))
        return self._reader


class _Source:
    """The file that Arrow reads the stream from. No read crosses the end of a message."""

    closed = False

    def __init__(self, rpc: Call, first: FlightData) -> None:
        self._rpc = rpc
        self.first = self.current = first
        self._parts: deque[Part] = deque()
        self._put(first)

    def next_message(self) -> bool:
        """Go on to the next message, when the current one is taken; whether there is one."""
        if self._parts:
            return True
        message: Message | None = self._rpc.read()
        if message is None:
            return False
        self.current = _checked(flight_data.read(message))
        self._put(self.current)
        return True

    def check_taken(self) -> None:
        """Raise Invalid when a message holds more than it says."""
        if self._parts:
            raise Invalid(
                ErrorCode.INVALID_PAYLOAD,
                "the body of a message is longer than it says: nothing was taken",
            )

    def read_buffer(self, length: int) -> pa.Buffer:
        """What Arrow calls: exactly so many bytes, or none at the end."""
        return pa.py_buffer(self.read(length))

    def read(self, length: int) -> Part:
        if not length:
            return b""
        # Between a dictionary and its batch there may be messages that bring no rows.
        while not self._parts:
            if not self.next_message():
                return b""
        part = self._parts[0]
        if len(part) == length:
            return self._parts.popleft()
        if len(part) > length:
            view = memoryview(part)
            self._parts[0] = view[length:]
            return view[:length]
        # All of it in one copy: a body that came in several frames.
        taken: list[Part] = []
        while length:
            if not self._parts:
                raise pa.ArrowInvalid("a message is shorter than it says")
            part = self._parts.popleft()
            if len(part) > length:
                view = memoryview(part)
                self._parts.appendleft(view[length:])
                part = view[:length]
            taken.append(part)
            length -= len(part)
        return b"".join(taken)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing: the call outlives the stream in it."""

    def _put(self, data: FlightData) -> None:
        if data.header:
            self._parts = deque(data.metadata_parts())
            self._parts.extend(part for part in data.body if len(part))


def _checked(data: FlightData) -> FlightData:
    """The message, if Arrow may make its rows: it asks for the memory before it looks at them.

    Raises Invalid (PAYLOAD_TOO_LARGE), and ValueError for what contradicts itself.
    """
    head = batch_head(data.header) if data.header else None
    if head is None:
        return data
    if head.is_compressed and len(data.body) > 1:
        # In one piece the lengths are found in it, and Arrow takes it so without another copy.
        data = data._replace(body=[joined(data.body)])
    head.check_size(data.body)
    return data


class ResultsOut:
    """Answers a DoPut: each write is one PutResult."""

    def __init__(self, rpc: Call) -> None:
        self._rpc = rpc

    def write(self, app_metadata: bytes) -> None:
        """Blocks while its reader is slow. Raises Gone."""
        self._rpc.send([flight_data.put_result(app_metadata)])
