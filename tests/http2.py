"""HTTP/2 as frames, and a client made of them: what no client library would send, too."""

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpack import Decoder

from grpc_transport import frames
from grpc_transport.calls import Call
from grpc_transport.connection import Connection
from grpc_transport.frame_reader import FRAME_BYTES
from grpc_transport.frames import ACK, END_HEADERS, END_STREAM, Fault, Kind
from grpc_transport.header_blocks import block_of
from grpc_transport.messages import PREFIX

REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.Service/Method"),
    (":authority", "127.0.0.1"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)
SETTINGS = frames.settings({})
SETTINGS_ACK = frames.frame(Kind.SETTINGS, ACK, 0)


@dataclass(frozen=True)
class Frame:
    """One frame as it lies in the bytes."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def number(self) -> int:
        """What a WINDOW_UPDATE or a RST_STREAM says."""
        return frames.read_u32(self.payload)

    @property
    def ends(self) -> bool:
        return bool(self.flags & END_STREAM)


def read_frames(content: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames, and the bytes that are left."""
    found: list[Frame] = []
    at = 0
    while len(content) - at >= frames.HEAD_BYTES:
        high, low, kind, flags, stream_id = frames.HEAD.unpack_from(content, at)
        stop = at + frames.HEAD_BYTES + (high << 8 | low)
        if stop > len(content):
            break
        payload = bytes(content[at + frames.HEAD_BYTES : stop])
        found.append(Frame(kind, flags, stream_id, payload))
        at = stop
    return found, bytes(content[at:])


def message(content: bytes, *, compressed: bool = False) -> bytes:
    """A message of gRPC with its prefix."""
    return PREFIX.pack(compressed, len(content)) + content


def headers(
    stream_id: int, *more: tuple[str, str | bytes], ends: bool = False, method: str = "Method"
) -> bytes:
    """The HEADERS of a call, in one frame."""
    flags = END_HEADERS | (END_STREAM if ends else 0)
    path = f"/a.Service/{method}"
    fields = [(name, path if name == ":path" else value) for name, value in REQUEST]
    return frames.frame(Kind.HEADERS, flags, stream_id, block_of([*fields, *more]))


def data(stream_id: int, content: bytes, *, ends: bool = False) -> bytes:
    """DATA in as few frames as a server takes."""
    pieces = [content[at : at + FRAME_BYTES] for at in range(0, len(content), FRAME_BYTES)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frames.frame(Kind.DATA, END_STREAM if ends and n == last else 0, stream_id, piece)
        for n, piece in enumerate(pieces)
    )


def ping(content: bytes = b"12345678") -> bytes:
    return frames.frame(Kind.PING, 0, 0, content)


class Wire:
    """What a socket is to a connection: it keeps what goes out, as far as it has room."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.room: int | None = None
        """How many bytes more it takes; None for any number."""
        self.is_broken = False
        self.asked = 0
        """How often it was asked to tell when it has room."""

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        if self.is_broken:
            raise BrokenPipeError
        offered = b"".join(buffers)
        taken = offered if self.room is None else offered[: self.room]
        if self.room is not None:
            self.room -= len(taken)
        self.content += taken
        return len(taken)

    def wants_to_write(self) -> None:
        self.asked += 1


class Peer:
    """A client of one Connection, on the thread that moves bytes."""

    def __init__(
        self,
        arrived: Callable[[Call], None] = lambda _: None,
        *,
        settings: bytes | None = SETTINGS,
        now: Callable[[], float] = time.monotonic,
        lets_in: bool = True,
    ) -> None:
        """With `settings` None it has not said anything yet."""
        self._lets_in = lets_in
        self.wire = Wire()
        self.calls: list[Call] = []
        self.goes_on = True
        self._service = arrived
        self._decoder = Decoder()
        self._next_id = 1
        self.connection = Connection(self.wire, self._arrived, now)
        self.connection.writable()
        if settings is not None:
            assert self.say(frames.PREFACE, settings)
            self.heard()

    def _arrived(self, call: Call) -> None:
        self.calls.append(call)
        if self._lets_in:
            call.let_in()
        self._service(call)

    def say(self, *content: bytes) -> bool:
        """Send bytes; whether the connection goes on."""
        self.goes_on = self.connection.received(b"".join(content))
        return self.goes_on

    def call(self, *more: tuple[str, str | bytes], ends: bool = False) -> Call:
        """Open one more call."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        assert self.say(headers(stream_id, *more, ends=ends))
        return self.calls[-1]

    def leave(self, call: Call) -> None:
        """What a client sends that cancels its call."""
        assert self.say(frames.reset(call.stream_id, Fault.CANCEL))

    def heard(self) -> list[Frame]:
        """What the server has said since this was asked last."""
        found, rest = read_frames(bytes(self.wire.content))
        self.wire.content = bytearray(rest)
        return found

    def fields_of(self, frame: Frame) -> list[tuple[str, str]]:
        """What a header block in one frame says."""
        assert frame.flags & END_HEADERS
        return self.decoded(frame.payload)

    def decoded(self, block: bytes) -> list[tuple[str, str]]:
        return [(str(each[0]), str(each[1])) for each in self._decoder.decode(block)]


def go_away(frame: Frame) -> tuple[int, Fault, str]:
    """The last stream, the fault and the reason that a GOAWAY says."""
    assert frame.kind == Kind.GOAWAY
    last_id, fault = struct.unpack_from(">II", frame.payload)
    return last_id, Fault(fault), frame.payload[8:].decode()
