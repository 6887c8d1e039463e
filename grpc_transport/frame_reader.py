"""Frames out of the bytes of a connection, and whole header blocks out of frames.

https://www.rfc-editor.org/rfc/rfc9113#section-4
"""

import struct
from typing import Final, Protocol

from grpc_transport import frames
from grpc_transport.frames import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    STREAM_MASK,
    WITH_PRIORITY,
    ConnectionFault,
    Fault,
    Kind,
    StreamFault,
)

FRAME_BYTES: Final = frames.FRAME_BYTES_MIN
"""The largest frame that is taken, as every peer expects it."""

BLOCK_MAX_BYTES: Final = 64 * 1024
_FRAMES_PER_BLOCK: Final = 64

# Looked up here, and not for each frame.
_HEAD_BYTES: Final = frames.HEAD_BYTES
_DATA: Final = int(Kind.DATA)
_read_head: Final = frames.HEAD.unpack_from
_PRIORITY_BYTES: Final = 5
_PRIORITY: Final = struct.Struct(">IB")
_OF_STREAMS: Final = frozenset(
    {Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.CONTINUATION}
)
_OF_CONNECTION: Final = frozenset({Kind.SETTINGS, Kind.PING, Kind.GOAWAY})


class Receiver(Protocol):
    """Who is told of frames. Each of these raises ConnectionFault."""

    def data(  # noqa: PLR0917 - each frame passes here, and names and objects cost
        self, stream_id: int, content: bytes, at: int, end: int, flags: int, counted: int
    ) -> None:
        """Bytes of a stream where they lie: `content[at:end]`.

        `counted` of them count against its windows, padding with them.
        """

    def block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block."""

    def frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any other frame."""

    def fault_of_stream(self, stream_id: int, fault: StreamFault) -> None:
        """A frame that only its own stream suffers from."""


class FrameReader:
    """Reads what one peer sends, in its order. Keeps less than a frame, and one header block."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._rest = b""
        self._preface_left = True
        self._greeted = False
        self._block: tuple[int, int, list[bytes], int] | None = None
        self._data_of: tuple[int, int] = (0, 0)
        self._data_left = 0

    @property
    def is_greeted(self) -> bool:
        """Whether the preface and the first settings have come."""
        return self._greeted

    def read(self, data: bytes) -> None:
        """Tell the receiver of every frame that these bytes make whole. Raises ConnectionFault."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        if self._preface_left:
            at = self._read_preface(data)
        if self._data_left:
            at = self._read_data(data, at, end)
        while end - at >= _HEAD_BYTES:
            high, low, kind, flags, stream_id = _read_head(data, at)
            length = high << 8 | low
            if length > FRAME_BYTES:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a frame is larger than was agreed")
            stream_id &= STREAM_MASK
            stop = at + _HEAD_BYTES + length
            if kind == _DATA and not flags & PADDED:
                if self._block is not None or not self._greeted or not stream_id:
                    self._check(kind, stream_id)
                at += _HEAD_BYTES
                if stop > end:
                    self._data_of, self._data_left = (stream_id, flags), length
                    at = self._read_data(data, at, end)
                else:
                    self._receiver.data(stream_id, data, at, stop, flags, length)
                    at = stop
            elif stop > end:
                break
            else:
                self._check(kind, stream_id)
                self._read_frame(kind, flags, stream_id, data[at + _HEAD_BYTES : stop])
                at = stop
        if at < end:
            self._rest = data[at:]

    def _read_preface(self, data: bytes) -> int:
        """Where the frames begin; the end of what is here while the preface is not whole."""
        length = min(len(data), len(frames.PREFACE))
        if data[:length] != frames.PREFACE[:length]:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
        if length < len(frames.PREFACE):
            self._rest = data
            return length
        self._preface_left = False
        return length

    def _read_data(self, data: bytes, at: int, end: int) -> int:
        """Take what has come of a DATA frame: the rest of it is not waited for."""
        stream_id, flags = self._data_of
        stop = min(end, at + self._data_left)
        if stop > at:
            self._data_left -= stop - at
            flags = flags & ~END_STREAM if self._data_left else flags
            self._receiver.data(stream_id, data, at, stop, flags, stop - at)
        return stop

    def _check(self, kind: int, stream_id: int) -> None:
        """Raise ConnectionFault for a frame that may not come here."""
        if self._block is not None and kind != Kind.CONTINUATION:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a header block is interrupted")
        if not self._greeted:
            if kind != Kind.SETTINGS:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "SETTINGS come first")
            self._greeted = True
        if (kind in _OF_STREAMS and not stream_id) or (kind in _OF_CONNECTION and stream_id):
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a frame is of the wrong stream")

    def _read_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        match kind:
            case Kind.HEADERS:
                self._headers(stream_id, flags, payload)
            case Kind.CONTINUATION:
                self._continuation(stream_id, flags, payload)
            case Kind.DATA:
                content = frames.unpadded(payload)
                self._receiver.data(stream_id, content, 0, len(content), flags, len(payload))
            case Kind.PRIORITY:
                self._priority(stream_id, payload)
            case _:
                self._receiver.frame(kind, flags, stream_id, payload)

    def _headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = frames.unpadded(payload)
        if flags & WITH_PRIORITY:
            self._check_priority(stream_id, payload)
            payload = payload[_PRIORITY_BYTES:]
        if flags & END_HEADERS:
            self._receiver.block(stream_id, flags, payload)
        else:
            self._block = (stream_id, flags, [payload], len(payload))

    def _continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a CONTINUATION continues nothing")
        first_flags, parts, size = self._block[1], self._block[2], self._block[3] + len(payload)
        # Frames count as well: empty ones could come for ever.
        if size > BLOCK_MAX_BYTES or len(parts) > _FRAMES_PER_BLOCK:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "a header block is too large")
        parts.append(payload)
        self._block = (stream_id, first_flags, parts, size)
        if flags & END_HEADERS:
            self._block = None
            self._receiver.block(stream_id, first_flags, b"".join(parts))

    def _priority(self, stream_id: int, payload: bytes) -> None:
        if len(payload) == _PRIORITY_BYTES:
            self._check_priority(stream_id, payload)
            return
        fault = StreamFault(Fault.FRAME_SIZE_ERROR, "a PRIORITY has five bytes")
        self._receiver.fault_of_stream(stream_id, fault)

    def _check_priority(self, stream_id: int, payload: bytes) -> None:
        if len(payload) < _PRIORITY_BYTES:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a priority has five bytes")
        # Nothing is made of it: RFC 9113 gave priorities up.
        if _PRIORITY.unpack_from(payload)[0] & STREAM_MASK == stream_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a stream depends on itself")
