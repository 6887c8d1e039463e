"""The frames of HTTP/2: their numbers, and how one is written.

https://www.rfc-editor.org/rfc/rfc9113
"""

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client's connection begins with."""

HEAD: Final = struct.Struct(">HBBBI")
"""The head of a frame: length (16 high bits, 8 low bits), kind, flags, stream."""
HEAD_BYTES: Final = 9
STREAM_MASK: Final = 0x7FFFFFFF
"""The highest bit of a stream's number is reserved, and so is that of an increment."""

DEFAULT_WINDOW: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
FRAME_BYTES_MIN: Final = 16_384
"""What every peer takes in one frame."""
FRAME_BYTES_MAX: Final = 2**24 - 1

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

_SETTING: Final = struct.Struct(">HI")
_U32: Final = struct.Struct(">I")


class Kind(IntEnum):
    """The kinds of frames. Others are passed over."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """The settings that are heeded or sent."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Fault(IntEnum):
    """Why a stream or a connection ends, as RST_STREAM and GOAWAY say it."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """What the peer sent cannot be followed any further: the connection ends."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault
        self.why = why


class StreamFault(Exception):
    """One stream of the peer's is wrong, and ends; the connection goes on."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault
        self.why = why


def frame(kind: Kind, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream_id) + payload


def head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The head of a frame whose payload follows."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a frame in their order. Raises ConnectionFault."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a SETTINGS frame is cut short")
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def reset(stream_id: int, fault: Fault) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream_id, _U32.pack(fault))


def go_away(last_stream_id: int, fault: Fault, why: str = "") -> bytes:
    payload = _U32.pack(last_stream_id) + _U32.pack(fault) + why.encode()
    return frame(Kind.GOAWAY, 0, 0, payload)


def read_u32(payload: bytes) -> int:
    """The number that a WINDOW_UPDATE or RST_STREAM frame holds. Raises ConnectionFault."""
    if len(payload) != _U32.size:
        raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a frame of four bytes has another length")
    (number,) = _U32.unpack(payload)
    return int(number)


def unpadded(payload: bytes) -> bytes:
    """A padded payload without its padding. Raises ConnectionFault."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Fault.PROTOCOL_ERROR, "a frame has more padding than it has bytes")
    return payload[1 : len(payload) - payload[0]]
