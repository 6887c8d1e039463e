"""What goes out on a connection: frames in their order, as far as the client's windows reach.

https://www.rfc-editor.org/rfc/rfc9113#section-5.2
"""

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Protocol

from grpc_transport import frames
from grpc_transport.calls import Call, Field, Gone, Part
from grpc_transport.frames import END_HEADERS, END_STREAM, ConnectionFault, Fault, Kind, Setting
from grpc_transport.header_blocks import block_of, percent_encoded
from grpc_transport.messages import ENCODINGS
from grpc_transport.status import Status

SENT_AHEAD_BYTES: Final = 4 * 2**20
"""So much of an answer waits for the client before its handler does."""

LEFT_MAX_BYTES: Final = 64 * 2**20
"""So much waits for the client of calls that nobody works for any more; then it begins no other."""

_CHOKED_BYTES: Final = 16 * 2**20
_CHOKED_BUFFERS: Final = 16 * 1024
"""Many small ones take more memory than they have bytes."""

_FRAME_BYTES_MAX: Final = 2**20
_SMALL_BYTES: Final = 16 * 1024
"""Up to this size frames are put together: one buffer costs less than several."""

_BUFFERS_PER_SEND: Final = 256
_ANSWERS_MAX_BYTES: Final = 2**20
"""Of answers to pings and settings, beside what calls send: more is asked for by no client."""

_CALLS_WALKED_MAX: Final = 100_000
"""By the settings that come in one read: each that moves the windows goes through all calls."""

_HEAD_FIELDS: Final[tuple[Field, ...]] = (
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-accept-encoding", ENCODINGS),
)
_PLAIN_HEAD: Final = block_of(_HEAD_FIELDS)
ENDED_WELL: Final[Sequence[Field]] = (("grpc-status", "0"),)
"""The trailers of a call without an error."""

_PLAIN_END: Final = block_of(ENDED_WELL)


class Wire(Protocol):
    """The socket under a connection. None of its calls blocks."""

    def send(self, buffers: Sequence[Part]) -> int:
        """How many bytes went out; 0 when none can now. Raises OSError."""

    def wants_to_write(self) -> None:
        """Have `Connection.writable` called when more can go out. From any thread."""


class Outgoing:
    """Used under the lock of its connection alone."""

    def __init__(
        self, wire: Wire, hello: bytes, lock: threading.Lock, ended: Callable[[Call], None]
    ) -> None:
        """`hello` is sent first. `ended` is told of each call whose last frame is under way."""
        self._wire = wire
        self._ended = ended
        self._room = threading.Condition(lock)
        self._waiting = 0
        self._outbox: deque[Part] = deque([hello])
        self._outbox_bytes = len(hello)
        self._answers_bytes = 0
        self._stuck = False
        self._closed = False
        self._window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.FRAME_BYTES_MIN
        self._blocked: OrderedDict[int, Call] = OrderedDict()
        """Calls that the window of the connection holds up, and not their own."""
        self._left_bytes = 0
        self._walked = 0
        self.call_window = frames.DEFAULT_WINDOW
        """Of a call that begins."""
        self.corked = False
        """Whether what is put waits for more."""

    @property
    def is_empty(self) -> bool:
        return not self._outbox

    @property
    def is_choked(self) -> bool:
        """Whether the client takes so little that nothing more of it should be read."""
        return self._outbox_bytes > _CHOKED_BYTES or len(self._outbox) > _CHOKED_BUFFERS

    @property
    def is_overfull(self) -> bool:
        """Whether the client leaves so much untaken of what it asked for that it asks no more."""
        return self._left_bytes > LEFT_MAX_BYTES

    @property
    def is_far_ahead(self) -> bool:
        """Whether so much waits that nothing more should be waited for."""
        return self._outbox_bytes > SENT_AHEAD_BYTES // 2

    def close(self) -> None:
        """Nothing goes out any more, and nobody waits for it."""
        self._closed = True
        self._outbox.clear()
        self._outbox_bytes = 0
        self._blocked.clear()
        self._room.notify_all()

    def begin_read(self) -> None:
        """Frames of the client's follow."""
        self.corked = True
        self._walked = 0

    def uncork(self) -> None:
        """All that came in one read was looked at: what it led to goes out together."""
        self.corked = False
        self.flush()

    def unstick(self) -> None:
        """The socket takes bytes again."""
        self._stuck = False
        self.flush()

    # ---- What the client's frames change

    def widen(self, increment: int) -> None:
        """The window of the connection grows. Raises ConnectionFault."""
        self._window += increment
        if self._window > frames.WINDOW_MAX:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "the window is too large")
        self._pump_blocked()

    def widen_call(self, call: Call, increment: int) -> bool:
        """The window of a call grows; False when it is too large then."""
        call.window += increment
        if call.window > frames.WINDOW_MAX:
            return False
        if call.pending_bytes:
            self.pump(call)
            self.let_go_on()
        return True

    def heed(self, settings: Iterable[tuple[int, int]], calls: Collection[Call]) -> None:
        """Settings of the client's. Raises ConnectionFault."""
        before = self.call_window
        # The last of each: a frame of thousands must not cost thousands of rounds.
        for number, value in dict(settings).items():
            self._heed(number, value, calls)
        # Before what they let through: the client goes by them from here on.
        self.answer(frames.frame(Kind.SETTINGS, frames.ACK, 0))
        if self.call_window > before:
            for call in [each for each in calls if each.pending_bytes]:
                self.pump(call)
        self.let_go_on()

    def _heed(self, number: int, value: int, calls: Collection[Call]) -> None:
        match number:
            case Setting.ENABLE_PUSH if value > 1:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
            case Setting.INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_MAX:
                    raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "a window is too large")
                grown, self.call_window = value - self.call_window, value
                self._walked += len(calls) if grown else 0
                if self._walked > _CALLS_WALKED_MAX:
                    raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "settings change and change")
                for call in calls if grown else ():
                    call.window += grown
                    if call.window > frames.WINDOW_MAX:
                        raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "a window is too large")
            case Setting.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_MIN <= value <= frames.FRAME_BYTES_MAX:
                    raise ConnectionFault(Fault.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self._frame_bytes = min(value, _FRAME_BYTES_MAX)

    # ---- Frames

    def put(self, content: bytes) -> None:
        self._outbox.append(content)
        self._outbox_bytes += len(content)

    def answer(self, content: bytes) -> None:
        """Something that the client has asked for by a frame, and may ask for again and again."""
        self._answers_bytes += len(content)
        if self._answers_bytes > _ANSWERS_MAX_BYTES:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "answers are asked for and not taken")
        self.put(content)

    def send_head(self, call: Call) -> None:
        if not call.head_sent:
            call.head_sent = True
            block = (
                block_of([*_HEAD_FIELDS, *call.headers_out.items()])
                if call.headers_out
                else _PLAIN_HEAD
            )
            self._put_block(call.stream_id, block, 0)

    def finish(self, call: Call, fields: Sequence[Field]) -> None:
        """The last frame of a call, behind what is pending of it; `fields` are its trailers."""
        if call.head_sent and fields is ENDED_WELL:
            call.pending_end = _PLAIN_END
        elif call.head_sent:
            call.pending_end = block_of(fields)
        else:
            call.pending_end = block_of([*_HEAD_FIELDS, *call.headers_out.items(), *fields])
        call.head_sent = True
        self._left_bytes += call.pending_bytes
        self.pump(call)

    def drop(self, call: Call) -> None:
        """Nothing more of a call goes out."""
        call.pending.clear()
        if call.pending_end is not None:
            self._left_bytes -= call.pending_bytes
        call.pending_bytes = 0
        self._blocked.pop(call.stream_id, None)

    def _put_block(self, stream_id: int, block: bytes, flags: int) -> None:
        room = self._frame_bytes
        if len(block) <= room:
            self.put(frames.frame(Kind.HEADERS, flags | END_HEADERS, stream_id, block))
            return
        self.put(frames.frame(Kind.HEADERS, flags, stream_id, block[:room]))
        for at in range(room, len(block), room):
            last = END_HEADERS if at + room >= len(block) else 0
            self.put(frames.frame(Kind.CONTINUATION, last, stream_id, block[at : at + room]))

    def queue(self, call: Call, prefix: bytes, parts: Sequence[Part], size: int) -> None:
        if (
            size <= _SMALL_BYTES
            and size <= self._window
            and size <= call.window
            and not call.pending
        ):
            call.window -= size
            self._window -= size
            self.put(frames.head(size, Kind.DATA, 0, call.stream_id) + prefix + b"".join(parts))
            return
        call.pending.append(prefix)
        call.pending.extend(memoryview(part).cast("B") for part in parts if len(part))
        call.pending_bytes += size
        self.pump(call)

    def pump(self, call: Call) -> None:
        """Move what is pending out, as far as the windows reach."""
        while call.pending_bytes:
            size = min(call.pending_bytes, call.window, self._window, self._frame_bytes)
            if size <= 0:
                if call.window > 0:
                    self._blocked[call.stream_id] = call
                else:
                    self._blocked.pop(call.stream_id, None)
                return
            call.window -= size
            self._window -= size
            call.pending_bytes -= size
            if call.pending_end is not None:
                self._left_bytes -= size
            self.put(frames.head(size, Kind.DATA, 0, call.stream_id))
            self._outbox_bytes += size
            _move(call.pending, self._outbox, size)
        self._blocked.pop(call.stream_id, None)
        if call.pending_end is not None and not call.ended:
            call.ended = True
            self._put_block(call.stream_id, call.pending_end, END_STREAM)
            if not call.half_closed:
                # The client need not send the rest: nobody reads it.
                self.put(frames.reset(call.stream_id, Fault.NO_ERROR))
            self._ended(call)

    def _pump_blocked(self) -> None:
        # Each in its turn, and the first of now last the next time. What is pumped takes all that
        # the window has, or leaves.
        while self._blocked and self._window > 0:
            call = next(iter(self._blocked.values()))
            self.pump(call)
            if call.stream_id in self._blocked:
                self._blocked.move_to_end(call.stream_id)
        self.let_go_on()

    def flush(self) -> None:
        if not self._outbox or self.corked or self._stuck or self._closed:
            return
        if len(self._outbox) > 1 and self._outbox_bytes <= _SMALL_BYTES:
            together = b"".join(self._outbox)
            self._outbox.clear()
            self._outbox.append(together)
        try:
            while self._outbox and not self._stuck:
                self._send_some()
        except OSError:
            # The thread that reads finds the socket ended, and says so to all.
            self._outbox.clear()
            self._outbox_bytes = 0
        if not self._outbox:
            self._answers_bytes = 0
        self.let_go_on()

    def _send_some(self) -> None:
        outbox = self._outbox
        first = outbox[0]
        buffers = [first] if len(outbox) == 1 else [*itertools.islice(outbox, _BUFFERS_PER_SEND)]
        sent = self._wire.send(buffers)
        if not sent:
            self._stuck = True
            self._wire.wants_to_write()
            return
        self._outbox_bytes -= sent
        for buffer in buffers:
            if sent < len(buffer):
                if sent:
                    outbox[0] = memoryview(buffer)[sent:]
                return
            sent -= len(buffer)
            outbox.popleft()

    def wait_for_room(self, call: Call) -> None:
        """Wait until little is ahead of what the call sends next. Raises Gone."""
        while call.pending_bytes + self._outbox_bytes > SENT_AHEAD_BYTES:
            self.flush()
            if call.pending_bytes + self._outbox_bytes <= SENT_AHEAD_BYTES:
                break
            self._waiting += 1
            self._room.wait()
            self._waiting -= 1
            if call.cancelled or call.pending_end is not None or self._closed:
                # With its end under way, too: it was ended meanwhile, and nothing may follow.
                raise Gone

    def let_go_on(self) -> None:
        if self._waiting:
            self._room.notify_all()


def status_fields(status: Status, why: str) -> list[Field]:
    """The trailers that tell how a call ended."""
    fields: list[Field] = [("grpc-status", str(int(status)))]
    if why:
        fields.append(("grpc-message", percent_encoded(why)))
    return fields


def _move(source: deque[Part], target: deque[Part], size: int) -> None:
    """Move the first bytes, without a copy."""
    while size:
        part = source[0]
        if len(part) <= size:
            target.append(part)
            size -= len(part)
            source.popleft()
        else:
            view = memoryview(part)
            target.append(view[:size])
            source[0] = view[size:]
            return
