"""One connection of HTTP/2: frames in, calls out of them, and their answers back into frames.

`received` runs on the thread that moves bytes, everything else on any. Lock order: a connection's
lock is the innermost; nothing that is not of this package runs under it.
https://www.rfc-editor.org/rfc/rfc9113
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from grpc_transport import frames
from grpc_transport.calls import MET_BYTES, Call, Field, Gone, Part
from grpc_transport.frame_reader import FRAME_BYTES, FrameReader
from grpc_transport.frames import (
    ACK,
    END_STREAM,
    STREAM_MASK,
    ConnectionFault,
    Fault,
    Kind,
    Setting,
    StreamFault,
)
from grpc_transport.header_blocks import HEADERS_MAX_BYTES, HeaderReader
from grpc_transport.messages import PREFIX, Message, Refused, size_of
from grpc_transport.outgoing import ENDED_WELL, Outgoing, Wire, status_fields
from grpc_transport.status import Status

CALLS_MAX: Final = 4096
"""Of one connection at once."""

WINDOW_BYTES: Final = 2 * 2**20
"""So much of a call comes before its handler has taken any of it, and so much again."""

CONNECTION_WINDOW_BYTES: Final = 64 * 2**20
HELD_MAX_BYTES: Final = 32 * 2**20
"""So much is kept of all calls of a connection that nobody has let in; then it sends no more."""

_CALL_DUE_BYTES: Final = WINDOW_BYTES // 2
_CONNECTION_DUE_BYTES: Final = CONNECTION_WINDOW_BYTES // 2
"""So much has come, and the client is told that it may send as much again."""

_MESSAGE_BYTES: Final = 128
_PIECE_BYTES: Final = 64
"""What each of the pieces of a message takes beside its bytes."""

_CLOSED_KEPT: Final = 512
_PING_BYTES: Final = 8

HELLO: Final = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: CALLS_MAX,
        Setting.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
        Setting.MAX_FRAME_SIZE: FRAME_BYTES,
        Setting.MAX_HEADER_LIST_SIZE: HEADERS_MAX_BYTES,
    }
) + frames.window_update(0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW)
"""What the server says first."""

_log = logging.getLogger(__name__)


class Connection:
    """What one client and this server say to each other."""

    def __init__(
        self,
        wire: Wire,
        arrived: Callable[[Call], None],
        now: Callable[[], float],
        in_turn: Callable[[Callable[[], None]], None] = lambda act: act(),
    ) -> None:
        """`arrived` is told of each new call, on the thread that moves bytes.

        `in_turn` runs an act when nothing else moves bytes.
        """
        self._arrived = arrived
        self._in_turn = in_turn
        self._now = now
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._closed_ids: OrderedDict[int, bool] = OrderedDict()
        """Streams that ended of late, and whether more of them may be under way."""
        self._last_id = 0
        self._closed = False
        self._leaving = False
        self._frames = FrameReader(_Receiver(self))
        self._headers = HeaderReader()
        self._due = 0
        self._held_bytes = 0
        self._allowance = CONNECTION_WINDOW_BYTES
        self._out = Outgoing(wire, HELLO, self._lock, self._forget)
        self._events: list[Callable[[], None]] = []
        """What is to be done once the lock is free."""

    # ---- On the thread that moves bytes

    def received(self, data: bytes) -> bool:
        """Take what came in; whether the connection goes on."""
        out = self._out
        with self._lock:
            out.begin_read()
            goes_on = self._read(data)
            events = self._events
            if not events:
                out.uncork()
                return goes_on
            self._events = []
        failures: list[Exception] = []
        while events:
            for event in events:
                try:
                    event()
                except Exception as failure:  # noqa: BLE001 - raised below
                    # What else came is told first: who waits for it is waited for by nobody.
                    failures.append(failure)
            with self._lock:
                events, self._events = self._events, []
                if not events:
                    out.uncork()
        if failures:
            raise failures[0]
        return goes_on

    def end_silent(self, begun_before: float) -> None:
        """End the calls that have not said a word since then. Nobody works for one of them."""
        with self._lock:
            silent = [
                call
                for call in self._calls.values()
                if call.begun_at < begun_before and not (call.has_spoken or call.is_let_in)
            ]
        for call in silent:
            self.give_up(call, "the call has not sent a message")

    def writable(self) -> None:
        """Send on what waits."""
        with self._lock:
            self._out.unstick()

    def leave(self) -> None:
        """Tell the client to begin nothing more here."""
        with self._lock:
            if not self._leaving:
                self._leaving = True
                self._out.put(frames.go_away(self._last_id, Fault.NO_ERROR))
                self._out.flush()

    @property
    def has_begun(self) -> bool:
        """Whether the client has said who it is, as far as HTTP/2 has it."""
        return self._frames.is_greeted

    @property
    def is_choked(self) -> bool:
        """Whether the client should not be read until it has taken some of what it is sent."""
        return self._out.is_choked

    @property
    def is_quiet(self) -> bool:
        """Whether no call is under way, and all is sent."""
        with self._lock:
            return not self._calls and self._out.is_empty

    def lost(self) -> None:
        """The socket has ended: so has every call."""
        with self._lock:
            self._closed = True
            for call in list(self._calls.values()):
                self._cancelled(call)
            self._calls.clear()
            self._out.close()
            events, self._events = self._events, []
        for event in events:
            _run_safely(event)

    def give_up(self, call: Call, why: str = "the deadline of the call has passed") -> None:
        """Its time is over: who works for it stops, and its client is told by the status."""
        with self._lock:
            if call.pending_end is None and not call.cancelled:
                self._out.finish(call, status_fields(Status.DEADLINE_EXCEEDED, why))
            self._out.flush()
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
        # What is not here yet is told when it comes.
        if not call.inbox:
            return None
        with self._lock:
            return self._next_message(call) if call.inbox else None

    def let_in(self, call: Call, message_max_bytes: int) -> None:
        with self._lock:
            if call.is_let_in or call.cancelled or self._closed:
                return
            call.is_let_in = True
            self._hold_no_more(call)
            try:
                call.assembly.limit(message_max_bytes)
                if call.due >= _CALL_DUE_BYTES:
                    self._give_back(call)
            except Refused as refused:
                self._refuse(call, refused)
            self._out.flush()
            is_over = call.cancelled
        if is_over:
            self.cancel(call)

    def put_back(self, call: Call, messages: Sequence[Message]) -> None:
        with self._lock:
            call.inbox.extendleft(reversed(messages))
            call.inbox_bytes += sum(map(_kept_bytes, messages))

    def flush(self) -> None:
        with self._lock:
            self._out.flush()

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
            if call.cancelled or call.pending_end is not None or self._closed:
                if waits:
                    raise Gone
                return
            if waits:
                self._out.wait_for_room(call)
            self._out.send_head(call)
            self._out.queue(call, PREFIX.pack(0, size), parts, size + PREFIX.size)
            if not more or self._out.is_far_ahead:
                self._out.flush()

    def finish(self, call: Call, status: Status, why: str, trailers: Iterable[Field] = ()) -> None:
        with self._lock:
            if call.pending_end is not None or call.cancelled or self._closed:
                return
            if status is Status.OK and not why and not trailers:
                self._out.finish(call, ENDED_WELL)
            else:
                self._out.finish(call, [*status_fields(status, why), *trailers])
            if call.ended:
                call.on_cancelled = []
            self._out.flush()

    def cancel(self, call: Call) -> None:
        # In turn: who follows the call is told on no other thread's account.
        self._in_turn(partial(self._cancel, call))

    def _cancel(self, call: Call) -> None:
        with self._lock:
            if call.stream_id in self._calls:
                self._out.put(frames.reset(call.stream_id, Fault.CANCEL))
                self._forget(call)
                self._out.flush()
            self._cancelled(call)
            events, self._events = self._events, []
        for event in events:
            _run_safely(event)

    # ---- What comes in. Under the lock.

    def _read(self, data: bytes) -> bool:
        try:
            self._frames.read(data)
        except ConnectionFault as fault:
            self._out.put(frames.go_away(self._last_id, fault.fault, fault.why))
            return False
        return not self._closed

    def take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        match kind:
            case Kind.WINDOW_UPDATE:
                self._window_update(stream_id, frames.read_u32(payload) & STREAM_MASK)
            case Kind.RST_STREAM:
                frames.read_u32(payload)
                self._reset(stream_id)
            case Kind.SETTINGS:
                self._settings(flags, payload)
            case Kind.PING:
                self._ping(flags, payload)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "clients promise nothing")
            case _:
                # GOAWAY: the client begins nothing more, and what it began goes on. Other kinds
                # are for others.
                pass

    def take_block(self, stream_id: int, flags: int, block: bytes) -> None:
        call = self._calls.get(stream_id)
        try:
            if call is not None:
                self._end_of_request(call, flags, block)
            elif stream_id in self._closed_ids:
                if not self._closed_ids[stream_id]:
                    raise ConnectionFault(Fault.STREAM_CLOSED, "HEADERS of a stream that has ended")
                self._headers.skip(block)
            elif stream_id <= self._last_id or not stream_id & 1:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "a stream's number is out of order")
            else:
                self._new_call(stream_id, flags, block)
        except StreamFault as fault:
            self.fail(stream_id, fault)
        except Refused as refused:
            self._refuse(self._calls[stream_id], refused)

    def _end_of_request(self, call: Call, flags: int, block: bytes) -> None:
        if call.half_closed:
            self._headers.skip(block)
            raise StreamFault(Fault.STREAM_CLOSED, "HEADERS after the end of a request")
        self._headers.trailers(block)
        if not flags & END_STREAM:
            raise StreamFault(
                Fault.PROTOCOL_ERROR, "a second header block does not end the request"
            )
        self._half_close(call)

    def _new_call(self, stream_id: int, flags: int, block: bytes) -> None:
        self._last_id = stream_id
        request = self._headers.read(block)
        if self._leaving or len(self._calls) >= CALLS_MAX or self._out.is_overfull:
            raise StreamFault(Fault.REFUSED_STREAM, "no more calls here")
        now = self._now()
        call = Call(
            self,
            stream_id,
            request,
            window=self._out.call_window,
            allowance=WINDOW_BYTES,
            begun_at=now,
        )
        if request.timeout_seconds is not None:
            call.deadline = now + request.timeout_seconds
        self._calls[stream_id] = call
        # First: what else comes with it finds the service's follower, or lies there already.
        self._events.append(lambda: self._arrived(call))
        if flags & END_STREAM:
            self._half_close(call)

    def take_data(  # noqa: PLR0917 - see Receiver
        self, stream_id: int, content: bytes, at: int, end: int, flags: int, counted: int
    ) -> None:
        self._allowance -= counted
        self._due += counted
        if self._allowance < 0:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "more DATA than the window lets in")
        if self._due >= _CONNECTION_DUE_BYTES:
            self._give_back_to_all()
        call = self._calls.get(stream_id)
        if call is None:
            self._stray_data(stream_id)
            return
        try:
            if counted or call.half_closed:
                self._add_data(call, content, at, end, counted)
            if flags & END_STREAM:
                self._half_close(call)
        except StreamFault as fault:
            self.fail(stream_id, fault)
        except Refused as refused:
            self._refuse(call, refused)

    def _add_data(self, call: Call, content: bytes, at: int, end: int, counted: int) -> None:
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
        messages = call.assembly.take(content, at, end)
        for message in messages:
            call.has_spoken = True
            call.inbox.append(message)
            call.inbox_bytes += _kept_bytes(message)
        if not call.is_let_in:
            kept = end - at + _PIECE_BYTES
            call.held_bytes += kept
            self._held_bytes += kept
        if call.due >= _CALL_DUE_BYTES:
            self._give_back(call)
        if messages or (not call.is_let_in and call.is_to_be_met):
            self._tell(call)

    def _stray_data(self, stream_id: int) -> None:
        if stream_id > self._last_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "DATA of a stream that was not opened")
        if not self._closed_ids.get(stream_id, False):
            self._out.put(frames.reset(stream_id, Fault.STREAM_CLOSED))

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
        """Let the client send on, once much is due, unless too much waits to be taken."""
        if call.half_closed or call.inbox_bytes > WINDOW_BYTES:
            return
        if not call.is_let_in and call.held_bytes > MET_BYTES:
            return
        call.allowance += call.due
        self._out.put(frames.window_update(call.stream_id, call.due))
        call.due = 0

    def _give_back_to_all(self) -> None:
        # Whoever takes it: one call that nobody reads must not hold up the others. What is kept of
        # those that are not let in yet does: they are let in, or refused, in a moment.
        if self._due >= _CONNECTION_DUE_BYTES and self._held_bytes <= HELD_MAX_BYTES:
            self._allowance += self._due
            self._out.put(frames.window_update(0, self._due))
            self._due = 0

    def _hold_no_more(self, call: Call) -> None:
        if call.held_bytes:
            self._held_bytes -= call.held_bytes
            call.held_bytes = 0
            self._give_back_to_all()

    def _next_message(self, call: Call) -> Message:
        message = call.inbox.popleft()
        call.inbox_bytes -= _kept_bytes(message)
        if call.due >= _CALL_DUE_BYTES and not (call.cancelled or call.ended or self._closed):
            self._give_back(call)
            self._out.flush()
        return message

    def _reset(self, stream_id: int) -> None:
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
        self._out.heed(frames.read_settings(payload), self._calls.values())

    def _window_update(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            if not increment:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "an increment of nothing")
            self._out.widen(increment)
            return
        if stream_id > self._last_id:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "WINDOW_UPDATE of a stream never opened")
        call = self._calls.get(stream_id)
        if call is None:
            return
        if not increment:
            self.fail(stream_id, StreamFault(Fault.PROTOCOL_ERROR, "an increment of nothing"))
        elif not self._out.widen_call(call, increment):
            self.fail(stream_id, StreamFault(Fault.FLOW_CONTROL_ERROR, "a window is too large"))

    def _ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != _PING_BYTES:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a PING has eight bytes")
        if not flags & ACK:
            self._out.answer(frames.frame(Kind.PING, ACK, 0, payload))

    # ---- Ends of calls. Under the lock.

    def fail(self, stream_id: int, fault: StreamFault) -> None:
        """The client broke the rules in this stream."""
        self._out.put(frames.reset(stream_id, fault.fault))
        call = self._calls.get(stream_id)
        if call is not None:
            self._forget(call)
            self._cancelled(call)
        elif stream_id <= self._last_id:
            self._note_closed(stream_id, more_comes=True)

    def _refuse(self, call: Call, refused: Refused) -> None:
        """What the client sends cannot be read as gRPC: the status says so."""
        if call.pending_end is None:
            self._out.drop(call)
            self._out.finish(call, status_fields(refused.status, refused.why))
            self._cancelled(call)

    def _cancelled(self, call: Call) -> None:
        """Whoever works for it is told once the lock is free."""
        if call.cancelled:
            return
        call.cancelled = True
        call.inbox.clear()
        self._events += [partial(_run_safely, act) for act in call.on_cancelled]
        call.on_cancelled = []
        if call.follower is not None:
            self._tell_follower(call)
        if call.arrived is not None:
            call.arrived.notify_all()
        self._out.let_go_on()

    def _forget(self, call: Call) -> None:
        """It has come to its end: nothing is kept of it."""
        self._out.drop(call)
        self._hold_no_more(call)
        del self._calls[call.stream_id]
        self._note_closed(call.stream_id, more_comes=not call.half_closed)

    def _note_closed(self, stream_id: int, *, more_comes: bool) -> None:
        """What is under way to it yet is passed over; once the client has ended it, nothing is."""
        self._closed_ids[stream_id] = more_comes
        if len(self._closed_ids) > _CLOSED_KEPT:
            self._closed_ids.popitem(last=False)


class _Receiver:
    """What the frames of a connection are told to."""

    def __init__(self, connection: Connection) -> None:
        self.data = connection.take_data
        self.block = connection.take_block
        self.frame = connection.take_frame
        self.fault_of_stream = connection.fail


def _kept_bytes(message: Message) -> int:
    """What a message counts that waits to be taken: an empty one takes memory, too."""
    return size_of(message) + _MESSAGE_BYTES


def _run_safely(act: Callable[[], None]) -> None:
    try:
        act()
    except Exception:  # noqa: BLE001 - logged
        # One act's failure must not keep the others from theirs.
        _log.exception("an act at the end of a call failed")
