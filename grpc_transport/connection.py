"""One connection of HTTP/2: frames in, calls out of them, and their answers back into frames.

`received` runs on the thread that moves bytes, everything else on any. Lock order: a connection's
lock is the innermost; nothing that is not of this package runs under it.
https://www.rfc-editor.org/rfc/rfc9113
"""

import itertools
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from grpc_transport import frames
from grpc_transport.calls import Call, Field, Gone, Part
from grpc_transport.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
    STREAM_MASK,
    WINDOW_MAX,
    WITH_PRIORITY,
    ConnectionFault,
    Fault,
    Kind,
    Setting,
    StreamFault,
)
from grpc_transport.header_blocks import HeaderReader, block_of, percent_encoded
from grpc_transport.messages import ENCODINGS, PREFIX, Message, Refused, size_of
from grpc_transport.status import Status

CALLS_MAX: Final = 4096
"""Of one connection at once."""

WINDOW_BYTES: Final = 2 * 2**20
"""So much of a call comes before its handler has taken any of it, and so much again."""

CONNECTION_WINDOW_BYTES: Final = 64 * 2**20
FRAME_BYTES: Final = 2**20
"""The largest frame that is asked for."""

SENT_AHEAD_BYTES: Final = 4 * 2**20
"""So much of an answer waits for the client before its handler does."""

_SMALL_BYTES: Final = 16 * 1024
"""Up to this size a frame is put together: one buffer costs less than several."""

_BUFFERS_PER_SEND: Final = 256
_ANSWERS_MAX_BYTES: Final = 2**20
"""Of answers to pings and settings, beside what calls send: more is asked for by no client."""

_BLOCK_MAX_BYTES: Final = 64 * 1024
_CLOSED_KEPT: Final = 512
_PRIORITY_BYTES: Final = 5
_PING_BYTES: Final = 8
_PRIORITY: Final = struct.Struct(">IB")

_HEAD_FIELDS: Final[tuple[Field, ...]] = (
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-accept-encoding", ENCODINGS),
)
_PLAIN_HEAD: Final = block_of(_HEAD_FIELDS)
_PLAIN_END: Final = block_of([("grpc-status", "0")])

HELLO: Final = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: CALLS_MAX,
        Setting.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
        Setting.MAX_FRAME_SIZE: FRAME_BYTES,
        Setting.MAX_HEADER_LIST_SIZE: 32 * 1024,
    }
) + frames.window_update(0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW)
"""What the server says first."""


class Wire(Protocol):
    """The socket under a connection. None of its calls blocks."""

    def send(self, buffers: Sequence[Part]) -> int:
        """How many bytes went out; 0 when none can now. Raises OSError."""

    def wants_to_write(self) -> None:
        """Have `Connection.writable` called when more can go out. From any thread."""


class Connection:
    """What one client and this server say to each other."""

    def __init__(
        self, wire: Wire, arrived: Callable[[Call], None], now: Callable[[], float]
    ) -> None:
        """`arrived` is told of each new call, on the thread that moves bytes."""
        self._wire = wire
        self._arrived = arrived
        self._now = now
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting = 0
        self._calls: dict[int, Call] = {}
        self._closed_ids: OrderedDict[int, bool] = OrderedDict()
        self._last_id = 0
        self._closed = False
        self._leaving = False
        # What comes in.
        self._rest = b""
        self._preface_left = len(frames.PREFACE)
        self._greeted = False
        self._reader = HeaderReader()
        self._block: tuple[int, int, list[bytes], int] | None = None
        self._data_of: tuple[int, int] | None = None
        self._data_left = 0
        self._due = 0
        self._allowance = CONNECTION_WINDOW_BYTES
        # What goes out.
        self._outbox: deque[Part] = deque([HELLO])
        self._outbox_bytes = len(HELLO)
        self._answers_bytes = 0
        self._corked = False
        self._stuck = False
        self._window = frames.DEFAULT_WINDOW
        self._call_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.FRAME_BYTES_MIN
        self._blocked: OrderedDict[int, Call] = OrderedDict()
        # What is to be done once the lock is free.
        self._events: list[Callable[[], None]] = []

    # ---- On the thread that moves bytes

    def received(self, data: bytes) -> bool:
        """Take what came in; whether the connection goes on."""
        with self._lock:
            self._corked = True
            goes_on = self._read_all(data)
            events, self._events = self._events, []
        try:
            while events:
                for event in events:
                    event()
                with self._lock:
                    events, self._events = self._events, []
        finally:
            with self._lock:
                self._corked = False
                self._flush()
        return goes_on

    def writable(self) -> None:
        """Send on what waits."""
        with self._lock:
            self._stuck = False
            self._flush()

    def leave(self) -> None:
        """Tell the client to begin nothing more here."""
        with self._lock:
            if not self._leaving:
                self._leaving = True
                self._put(frames.go_away(self._last_id, Fault.NO_ERROR))
                self._flush()

    @property
    def is_quiet(self) -> bool:
        """Whether no call is under way, and all is sent."""
        with self._lock:
            return not self._calls and not self._outbox

    def lost(self) -> None:
        """The socket has ended: so has every call."""
        with self._lock:
            self._closed = True
            self._outbox.clear()
            self._outbox_bytes = 0
            for call in list(self._calls.values()):
                self._cancelled(call)
            self._calls.clear()
            self._blocked.clear()
            events, self._events = self._events, []
            self._room.notify_all()
        for event in events:
            event()

    def give_up(self, call: Call) -> None:
        """Its deadline has passed: who works for it stops, and its client is told by the status."""
        self.finish(call, Status.DEADLINE_EXCEEDED, "the deadline of the call has passed")
        self.cancel(call)

    # ---- Of calls, on any thread

    def read(self, call: Call) -> Message | None:
        with self._lock:
            while not call.inbox:
                if call.cancelled or self._closed:
                    raise Gone
                if call.half_closed:
                    return None
                if call.arrived is None:
                    call.arrived = threading.Condition(self._lock)
                call.arrived.wait()
            return self._next_message(call)

    def take(self, call: Call) -> Message | None:
        with self._lock:
            return self._next_message(call) if call.inbox else None

    def put_back(self, call: Call, messages: Sequence[Message]) -> None:
        with self._lock:
            call.inbox.extendleft(reversed(messages))
            call.inbox_bytes += sum(map(size_of, messages))

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def watch(self, call: Call, act: Callable[[], None]) -> bool:
        """Whether the caller is still there; `act` runs when it leaves."""
        with self._lock:
            if call.cancelled or self._closed:
                return False
            call.on_cancelled.append(act)
            return True

    def send(self, call: Call, parts: Sequence[Part], *, more: bool, waits: bool) -> None:
        size = size_of(parts)
        with self._lock:
            if call.cancelled or call.ended or self._closed:
                if waits:
                    raise Gone
                return
            self._send_head(call)
            self._queue(call, PREFIX.pack(0, size), parts, size + PREFIX.size)
            if not more or self._outbox_bytes > SENT_AHEAD_BYTES // 2:
                self._flush()
            if waits:
                self._wait_for_room(call)

    def finish(self, call: Call, status: Status, why: str, trailers: Iterable[Field] = ()) -> None:
        with self._lock:
            if call.ended or call.pending_end is not None:
                return
            if call.cancelled or self._closed:
                call.ended = True
                return
            plain = status is Status.OK and not call.trailers_out and not trailers
            if plain and call.head_sent:
                block = _PLAIN_END
            else:
                fields: list[Field] = (
                    [] if call.head_sent else [*_HEAD_FIELDS, *call.headers_out.items()]
                )
                fields.append(("grpc-status", str(int(status))))
                if why:
                    fields.append(("grpc-message", percent_encoded(why)))
                block = block_of([*fields, *call.trailers_out, *trailers])
            call.head_sent = True
            call.pending_end = block
            self._pump(call)
            self._flush()

    def cancel(self, call: Call) -> None:
        with self._lock:
            if call.stream_id in self._calls:
                self._put(frames.reset(call.stream_id, Fault.CANCEL))
                self._forget(call)
                self._flush()
            self._cancelled(call)
            events, self._events = self._events, []
        for event in events:
            event()

    # ---- Frames that come in. Under the lock.

    def _read_all(self, data: bytes) -> bool:
        try:
            if self._preface_left:
                data = self._read_preface(data)
            self._read_frames(data)
        except ConnectionFault as fault:
            self._put(frames.go_away(self._last_id, fault.fault, fault.why))
            return False
        return not self._closed

    def _read_preface(self, data: bytes) -> bytes:
        data = self._rest + data
        self._rest = b""
        length = min(len(data), len(frames.PREFACE))
        if data[:length] != frames.PREFACE[:length]:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
        if length < len(frames.PREFACE):
            self._rest = data
            return b""
        self._preface_left = 0
        return data[length:]

    def _read_frames(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        while True:
            if self._data_left:
                at = self._read_data(data, at, end)
                if self._data_left:
                    return
            if end - at < frames.HEAD_BYTES:
                break
            high, low, kind, flags, stream_id = frames.HEAD.unpack_from(data, at)
            length = high << 8 | low
            stream_id &= STREAM_MASK
            if length > FRAME_BYTES:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a frame is larger than was agreed")
            if kind == Kind.DATA and not flags & PADDED and self._greeted and self._block is None:
                self._begin_data(stream_id, flags, length)
                at += frames.HEAD_BYTES
                if not length:
                    self._data(stream_id, flags, b"", 0, 0, 0)
                continue
            stop = at + frames.HEAD_BYTES + length
            if stop > end:
                break
            self._frame(kind, flags, stream_id, data[at + frames.HEAD_BYTES : stop])
            at = stop
        if at < end:
            self._rest = data[at:]

    def _begin_data(self, stream_id: int, flags: int, length: int) -> None:
        if not stream_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "DATA of no stream")
        self._data_of = (stream_id, flags)
        self._data_left = length

    def _read_data(self, data: bytes, at: int, end: int) -> int:
        """Take what has come of a DATA frame: a large one is not waited for."""
        assert self._data_of is not None  # noqa: S101 - _begin_data saw to it
        stream_id, flags = self._data_of
        stop = min(end, at + self._data_left)
        if stop > at:
            self._data_left -= stop - at
            flags = flags & ~END_STREAM if self._data_left else flags
            self._data(stream_id, flags, data, at, stop, stop - at)
        return stop

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != Kind.CONTINUATION:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a header block is interrupted")
        if not self._greeted and kind != Kind.SETTINGS:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "SETTINGS come first")
        if (kind in _OF_STREAMS and not stream_id) or (kind in _OF_CONNECTION and stream_id):
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a frame is of the wrong stream")
        match kind:
            case Kind.HEADERS:
                self._headers(stream_id, flags, payload)
            case Kind.CONTINUATION:
                self._continuation(stream_id, flags, payload)
            case Kind.WINDOW_UPDATE:
                self._window_update(stream_id, frames.read_u32(payload) & STREAM_MASK)
            case Kind.DATA:
                content = frames.unpadded(payload) if flags & PADDED else payload
                self._data(stream_id, flags, content, 0, len(content), len(payload))
            case Kind.RST_STREAM:
                self._reset(stream_id, frames.read_u32(payload))
            case Kind.SETTINGS:
                self._settings(flags, payload)
            case Kind.PING:
                self._ping(flags, payload)
            case Kind.PRIORITY:
                self._priority(stream_id, payload)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "clients promise nothing")
            case _:
                # GOAWAY: the client begins nothing more, and what it began goes on. Other kinds
                # are for others.
                pass

    def _headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = frames.unpadded(payload)
        if flags & WITH_PRIORITY:
            self._check_priority(stream_id, payload)
            payload = payload[_PRIORITY_BYTES:]
        if len(payload) > _BLOCK_MAX_BYTES:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a header block is too large")
        if flags & END_HEADERS:
            self._whole_block(stream_id, flags, payload)
        else:
            self._block = (stream_id, flags, [payload], len(payload))

    def _continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a CONTINUATION continues nothing")
        first_flags, parts, size = self._block[1], self._block[2], self._block[3] + len(payload)
        # Frames count as well: empty ones could come for ever.
        if size > _BLOCK_MAX_BYTES or len(parts) > _BLOCK_MAX_BYTES // 1024:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "a header block is too large")
        parts.append(payload)
        self._block = (stream_id, first_flags, parts, size)
        if flags & END_HEADERS:
            self._block = None
            self._whole_block(stream_id, first_flags, b"".join(parts))

    def _whole_block(self, stream_id: int, flags: int, block: bytes) -> None:
        call = self._calls.get(stream_id)
        try:
            if call is not None:
                self._end_of_request(call, flags, block)
            elif stream_id in self._closed_ids:
                if not self._closed_ids[stream_id]:
                    raise ConnectionFault(Fault.STREAM_CLOSED, "HEADERS of a stream that has ended")
                self._reader.skip(block)
            elif stream_id <= self._last_id or not stream_id & 1:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "a stream's number is out of order")
            else:
                self._new_call(stream_id, flags, block)
        except StreamFault as fault:
            self._fail(stream_id, fault)
        except Refused as refused:
            self._refuse(self._calls[stream_id], refused)

    def _end_of_request(self, call: Call, flags: int, block: bytes) -> None:
        if call.half_closed:
            self._reader.skip(block)
            raise StreamFault(Fault.STREAM_CLOSED, "HEADERS after the end of a request")
        self._reader.trailers(block)
        if not flags & END_STREAM:
            raise StreamFault(
                Fault.PROTOCOL_ERROR, "a second header block does not end the request"
            )
        self._half_close(call)

    def _new_call(self, stream_id: int, flags: int, block: bytes) -> None:
        self._last_id = stream_id
        request = self._reader.read(block)
        if self._leaving or len(self._calls) >= CALLS_MAX:
            raise StreamFault(Fault.REFUSED_STREAM, "no more calls here")
        call = Call(self, stream_id, request, window=self._call_window, allowance=WINDOW_BYTES)
        if request.timeout_seconds is not None:
            call.deadline = self._now() + request.timeout_seconds
        self._calls[stream_id] = call
        # First: what else comes with it finds the service's follower, or lies there already.
        self._events.append(lambda: self._arrived(call))
        if flags & END_STREAM:
            self._half_close(call)

    def _data(
        self, stream_id: int, flags: int, data: bytes, at: int, end: int, counted: int
    ) -> None:
        self._allowance -= counted
        self._due += counted
        if self._allowance < 0:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "more DATA than the window lets in")
        if self._due >= CONNECTION_WINDOW_BYTES // 2:
            # At once, whoever takes it: one call that nobody reads must not hold up the others.
            self._allowance += self._due
            self._put(frames.window_update(0, self._due))
            self._due = 0
        call = self._calls.get(stream_id)
        if call is None:
            self._stray_data(stream_id)
            return
        try:
            self._take_data(call, data, at, end, counted)
            if flags & END_STREAM:
                self._half_close(call)
        except StreamFault as fault:
            self._fail(stream_id, fault)
        except Refused as refused:
            self._refuse(call, refused)

    def _take_data(self, call: Call, data: bytes, at: int, end: int, counted: int) -> None:
        if call.half_closed:
            raise StreamFault(Fault.STREAM_CLOSED, "DATA after the end of a request")
        call.allowance -= counted
        call.due += counted
        if call.allowance < 0:
            raise StreamFault(Fault.FLOW_CONTROL_ERROR, "more DATA than the window lets in")
        if call.content_left is not None:
            call.content_left -= end - at
            if call.content_left < 0:
                raise StreamFault(Fault.PROTOCOL_ERROR, "more DATA than content-length says")
        messages = call.assembly.take(data, at, end)
        for message in messages:
            call.inbox.append(message)
            call.inbox_bytes += size_of(message)
        self._give_back(call)
        if messages:
            self._tell(call)

    def _stray_data(self, stream_id: int) -> None:
        if stream_id > self._last_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "DATA of a stream that was not opened")
        if not self._closed_ids.get(stream_id, False):
            self._put(frames.reset(stream_id, Fault.STREAM_CLOSED))

    def _half_close(self, call: Call) -> None:
        if call.content_left:
            raise StreamFault(Fault.PROTOCOL_ERROR, "less DATA than content-length says")
        call.half_closed = True
        if not call.assembly.is_between:
            raise Refused(Status.INTERNAL, "the last message is cut short")
        self._tell(call)

    def _tell(self, call: Call) -> None:
        """Something has come: let who waits for it know."""
        if call.follower is not None:
            self._tell_follower(call)
        elif call.arrived is not None:
            call.arrived.notify()

    def _tell_follower(self, call: Call) -> None:
        # Once for all that comes together.
        if not call.told:
            call.told = True
            self._events.append(call.tell)

    def _give_back(self, call: Call) -> None:
        """Let the client send on, unless too much waits to be taken."""
        if call.half_closed or call.due < WINDOW_BYTES // 2 or call.inbox_bytes > WINDOW_BYTES:
            return
        call.allowance += call.due
        self._put(frames.window_update(call.stream_id, call.due))
        call.due = 0

    def _next_message(self, call: Call) -> Message:
        message = call.inbox.popleft()
        call.inbox_bytes -= size_of(message)
        if call.due >= WINDOW_BYTES // 2 and not (call.cancelled or call.ended or self._closed):
            self._give_back(call)
            self._flush()
        return message

    def _reset(self, stream_id: int, code: int) -> None:
        if stream_id > self._last_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "RST_STREAM of a stream never opened")
        call = self._calls.get(stream_id)
        if call is not None:
            call.half_closed = True
            self._forget(call)
            self._cancelled(call)

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            if payload:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "an acknowledgement holds settings")
            return
        self._greeted = True
        for number, value in frames.read_settings(payload):
            self._heed(number, value)
        self._answer(frames.frame(Kind.SETTINGS, ACK, 0))

    def _heed(self, number: int, value: int) -> None:
        match number:
            case Setting.ENABLE_PUSH if value > 1:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
            case Setting.INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "a window is too large")
                for call in self._calls.values():
                    self._widen(call, value - self._call_window)
                self._call_window = value
                self._pump_blocked()
            case Setting.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_MIN <= value <= frames.FRAME_BYTES_MAX:
                    raise ConnectionFault(Fault.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self._frame_bytes = min(value, FRAME_BYTES)

    def _widen(self, call: Call, increment: int) -> None:
        call.window += increment
        if call.window > WINDOW_MAX:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "a window is too large")

    def _window_update(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            if not increment:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "an increment of nothing")
            self._window += increment
            if self._window > WINDOW_MAX:
                raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "the window is too large")
            self._pump_blocked()
            return
        if stream_id > self._last_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "WINDOW_UPDATE of a stream never opened")
        call = self._calls.get(stream_id)
        if call is None:
            return
        if not increment:
            self._fail(stream_id, StreamFault(Fault.PROTOCOL_ERROR, "an increment of nothing"))
            return
        call.window += increment
        if call.window > WINDOW_MAX:
            self._fail(stream_id, StreamFault(Fault.FLOW_CONTROL_ERROR, "a window is too large"))
            return
        if stream_id in self._blocked:
            self._pump(call)
            self._let_go_on()

    def _ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != _PING_BYTES:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a PING has eight bytes")
        if not flags & ACK:
            self._answer(frames.frame(Kind.PING, ACK, 0, payload))

    def _priority(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != _PRIORITY_BYTES:
            fault = StreamFault(Fault.FRAME_SIZE_ERROR, "a PRIORITY has five bytes")
            self._fail(stream_id, fault)
            return
        self._check_priority(stream_id, payload)

    def _check_priority(self, stream_id: int, payload: bytes) -> None:
        if len(payload) < _PRIORITY_BYTES:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a priority has five bytes")
        # Nothing is made of it: RFC 9113 gave priorities up.
        if _PRIORITY.unpack_from(payload)[0] & STREAM_MASK == stream_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a stream depends on itself")

    # ---- Ends of calls. Under the lock.

    def _fail(self, stream_id: int, fault: StreamFault) -> None:
        """The client broke the rules in this stream."""
        self._put(frames.reset(stream_id, fault.fault))
        call = self._calls.get(stream_id)
        if call is not None:
            self._forget(call)
            self._cancelled(call)
        else:
            self._note_closed(stream_id, more_comes=True)

    def _refuse(self, call: Call, refused: Refused) -> None:
        """What the client sends cannot be read as gRPC: the status says so."""
        if call.ended:
            return
        fields: list[Field] = [] if call.head_sent else [*_HEAD_FIELDS]
        fields += [
            ("grpc-status", str(int(refused.status))),
            ("grpc-message", percent_encoded(refused.why)),
        ]
        call.pending.clear()
        call.pending_bytes = 0
        call.pending_end = block_of(fields)
        self._pump(call)
        self._cancelled(call)

    def _cancelled(self, call: Call) -> None:
        """Whoever works for it is told once the lock is free."""
        if call.cancelled:
            return
        call.cancelled = True
        call.inbox.clear()
        self._events += call.on_cancelled
        call.on_cancelled = []
        if call.follower is not None:
            self._tell_follower(call)
        if call.arrived is not None:
            call.arrived.notify_all()
        self._let_go_on()

    def _forget(self, call: Call) -> None:
        call.pending.clear()
        call.pending_bytes = 0
        self._blocked.pop(call.stream_id, None)
        del self._calls[call.stream_id]
        self._note_closed(call.stream_id, more_comes=not call.half_closed)

    def _note_closed(self, stream_id: int, *, more_comes: bool) -> None:
        """What is under way to it yet is passed over; once the client has ended it, nothing is."""
        self._closed_ids[stream_id] = more_comes
        if len(self._closed_ids) > _CLOSED_KEPT:
            self._closed_ids.popitem(last=False)

    # ---- Frames that go out. Under the lock.

    def _put(self, content: bytes) -> None:
        self._outbox.append(content)
        self._outbox_bytes += len(content)

    def _answer(self, content: bytes) -> None:
        """Something that the client has asked for by a frame, and may ask for again and again."""
        self._answers_bytes += len(content)
        if self._answers_bytes > _ANSWERS_MAX_BYTES:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "answers are asked for and not taken")
        self._put(content)

    def _send_head(self, call: Call) -> None:
        if not call.head_sent:
            call.head_sent = True
            block = (
                block_of([*_HEAD_FIELDS, *call.headers_out.items()])
                if call.headers_out
                else _PLAIN_HEAD
            )
            self._put_block(call.stream_id, block, 0)

    def _put_block(self, stream_id: int, block: bytes, flags: int) -> None:
        room = self._frame_bytes
        if len(block) <= room:
            self._put(frames.frame(Kind.HEADERS, flags | END_HEADERS, stream_id, block))
            return
        self._put(frames.frame(Kind.HEADERS, flags, stream_id, block[:room]))
        for at in range(room, len(block), room):
            last = END_HEADERS if at + room >= len(block) else 0
            self._put(frames.frame(Kind.CONTINUATION, last, stream_id, block[at : at + room]))

    def _queue(self, call: Call, prefix: bytes, parts: Sequence[Part], size: int) -> None:
        if (
            size <= _SMALL_BYTES
            and size <= self._window
            and size <= call.window
            and not call.pending
        ):
            call.window -= size
            self._window -= size
            self._put(frames.head(size, Kind.DATA, 0, call.stream_id) + prefix + b"".join(parts))
            return
        call.pending.append(prefix)
        call.pending.extend(memoryview(part).cast("B") for part in parts if len(part))
        call.pending_bytes += size
        self._pump(call)

    def _pump(self, call: Call) -> None:
        """Move what is pending out, as far as the windows reach."""
        while call.pending_bytes:
            size = min(call.pending_bytes, call.window, self._window, self._frame_bytes)
            if size <= 0:
                self._blocked[call.stream_id] = call
                return
            call.window -= size
            self._window -= size
            call.pending_bytes -= size
            self._put(frames.head(size, Kind.DATA, 0, call.stream_id))
            self._outbox_bytes += size
            _move(call.pending, self._outbox, size)
        self._blocked.pop(call.stream_id, None)
        if call.pending_end is not None and not call.ended:
            call.ended = True
            self._put_block(call.stream_id, call.pending_end, END_STREAM)
            call.on_cancelled = []
            if not call.half_closed:
                # The client need not send the rest: nobody reads it.
                self._put(frames.reset(call.stream_id, Fault.NO_ERROR))
            self._forget(call)

    def _pump_blocked(self) -> None:
        # Each in its turn, and the first of now last the next time.
        for call in list(self._blocked.values()):
            if self._window <= 0:
                break
            self._pump(call)
            if call.stream_id in self._blocked:
                self._blocked.move_to_end(call.stream_id)
        self._let_go_on()

    def _flush(self) -> None:
        if self._corked or self._stuck or self._closed:
            return
        outbox = self._outbox
        while outbox:
            buffers = list(itertools.islice(outbox, _BUFFERS_PER_SEND))
            try:
                sent = self._wire.send(buffers)
            except OSError:
                # The other thread finds the socket ended, and says so to all.
                outbox.clear()
                self._outbox_bytes = 0
                return
            if not sent:
                self._stuck = True
                self._wire.wants_to_write()
                break
            self._outbox_bytes -= sent
            for buffer in buffers:
                if sent < len(buffer):
                    if sent:
                        outbox[0] = memoryview(buffer)[sent:]
                    break
                sent -= len(buffer)
                outbox.popleft()
        if not outbox:
            self._answers_bytes = 0
        self._let_go_on()

    def _wait_for_room(self, call: Call) -> None:
        while call.pending_bytes + self._outbox_bytes > SENT_AHEAD_BYTES:
            if call.cancelled or self._closed:
                raise Gone
            self._waiting += 1
            self._room.wait()
            self._waiting -= 1

    def _let_go_on(self) -> None:
        if self._waiting:
            self._room.notify_all()


_OF_STREAMS: Final = frozenset(
    {Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.CONTINUATION}
)
_OF_CONNECTION: Final = frozenset({Kind.SETTINGS, Kind.PING, Kind.GOAWAY})


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
