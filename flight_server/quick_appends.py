"""Small batches of append streams, accepted on the thread that moves bytes.

A thread of its own costs a small write several times what the write costs. So a stream is begun
here, and each batch is checked by what memory knows, handed to the bus, and answered when its group
is durable. Whatever is not the plain good case goes to a thread, from where it stands: a batch that
is refused, a table or a caller to be looked up, a session, rows that are many. What is said of them
is said there alone.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson
import pyarrow as pa
import structlog
from pyarrow import flight

from duckmesh import tracing
from duckmesh.errors import Conflict, DuckMeshError, Invalid, Overloaded
from flight_server import flight_data
from flight_server.authenticate import Authentication
from flight_server.boundary import judged
from flight_server.calls import Place, shutting_down
from flight_server.counts import CallCount
from flight_server.flight_data import FlightData, has_dictionaries
from flight_server.headers import read_options, traceparent_of
from flight_server.ingest import accepted_fields, failure_json, key_of_batch, table_of_path
from flight_server.ipc_metadata import BatchHead, batch_head
from gateway.groups import KeyedRows
from gateway.identity import Identity
from gateway.quick_writes import ROWS_MAX, QuickTarget
from gateway.writes import Writes
from grpc_transport.calls import Call as Rpc
from grpc_transport.header_blocks import Request
from grpc_transport.messages import Message, size_of
from ingest_bus.acceptance import Acceptance
from ingest_bus.port import Watch

BATCH_MAX_BYTES: Final = 64 * 1024
"""So little that the thread which moves bytes is not held up by it."""

_RECEIPTS_MAX_BYTES: Final = 256 * 1024
"""Of receipts that their client does not take: no more are made for it here."""

_NOT_FOR_HERE: Final = (DuckMeshError, pa.ArrowException, OSError, ValueError, KeyError)
"""What a batch may be found wanting by: what is said of it is said by a thread."""

_REMEMBERED: Final = 1_000
_HEADER_BYTES: Final = 4096
_RECENT_SECONDS: Final = 0.02
"""So little that it adds nothing to how long memory itself may be behind."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Arrival:
    """A DoPut that has arrived, and what begins it on a thread."""

    rpc: Rpc
    place: Place
    count: CallCount
    trace_id: str
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who calls, as memory said a moment ago."""

    until: float
    request: Request
    identity: Identity


@dataclass(frozen=True, slots=True)
class _Recent:
    """What memory said a moment ago of the same caller, table and columns."""

    until: float
    request: Request
    schema: pa.Schema
    found: tuple[Identity, QuickTarget]


class QuickAppends:
    """Everything but `settled` runs on the thread that moves bytes, and never blocks."""

    def __init__(
        self,
        writes: Writes,
        authentication: Authentication,
        *,
        window: int,
        soon: Callable[[Callable[[], None]], None],
        watch: Watch,
        on_a_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        """`soon` runs something on the thread that moves bytes, from any other; `watch` does when
        a file descriptor has bytes to read."""
        self._watch = watch
        self.window = window
        self._writes = writes
        self._authentication = authentication
        self.soon = soon
        self._on_a_thread = on_a_thread
        self._answered: deque[_Stream] = deque()
        self._woken = False
        # What clients say again and again: a table's name, and the columns of its rows.
        self._names: dict[bytes, str | None] = {}
        self._schemas: dict[bytes, pa.Schema | None] = {}
        self._heads: dict[bytes, BatchHead | None] = {}
        # A client says the same with each call, and its connection has one object for it.
        self._callers: dict[int, _Caller] = {}
        self._recent: dict[tuple[int, str], _Recent] = {}
        self._monotonic = time.monotonic

    def follow(self, arrival: Arrival) -> None:
        """Look after a stream from now on."""
        stream = _Stream(self, arrival)
        arrival.place.on_drain = partial(self.soon, stream.drain)
        arrival.rpc.follow(stream.look)
        stream.look()

    # ---- Answers that other threads have

    def note(self, stream: "_Stream", _answer: Acceptance) -> None:
        """From any thread: one of the stream's batches has its answer. `settled` follows."""
        self._answered.append(stream)

    def settled(self) -> None:
        """From any thread: a group is durable."""
        # In this order, and `_deliver` in the other one: whoever finds it woken is delivered too.
        if not self._woken:
            self._woken = True
            self.soon(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._answered:
            try:
                self._answered.popleft().look()
            except Exception:  # noqa: BLE001 - logged
                # What fails of one stream is not the others': nobody else tells them.
                _log.exception("stream_not_told")

    # ---- What is asked for a stream

    def table_name(self, descriptor: bytes) -> str | None:
        """The table that a descriptor's path names; None for a command, and for a bad path."""
        if descriptor not in self._names:
            if len(self._names) >= _REMEMBERED:
                self._names.clear()
            self._names[descriptor] = _table_name(descriptor)
        return self._names[descriptor]

    def schema(self, data: FlightData) -> pa.Schema | None:
        """The columns that a stream's first message announces; None when Arrow must be asked."""
        if size_of(data.body):
            # Not remembered: the next one who says the same may send no body with it.
            return None
        if data.header not in self._schemas:
            if len(self._schemas) >= _REMEMBERED:
                self._schemas.clear()
            self._schemas[data.header] = _schema(data)
        return self._schemas[data.header]

    def head(self, header: bytes) -> BatchHead | None:
        """What a message says of its rows. Raises ValueError for one that is damaged."""
        head = self._heads.get(header)
        if head is None:
            head = batch_head(header)
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            if len(header) <= _HEADER_BYTES:
                self._heads[header] = head
        return head

    def caller(self, rpc: Rpc) -> Identity | None:
        """Who calls, by memory. Raises Denied."""
        request, now = rpc.request, self._monotonic()
        known = self._callers.get(id(request))
        if known is not None and now < known.until and known.request is request:
            return known.identity
        identity = self._authentication.recall(request.headers)
        if identity is not None:
            if len(self._callers) >= _REMEMBERED:
                self._callers.clear()
            self._callers[id(request)] = _Caller(now + _RECENT_SECONDS, request, identity)
        return identity

    def recalled(
        self, rpc: Rpc, table: str, schema: pa.Schema
    ) -> tuple[Identity, QuickTarget] | None:
        """Who writes and what to, by memory. Raises what forbids the write."""
        key, now = (id(rpc.request), table), self._monotonic()
        known = self._recent.get(key)
        if (
            known is not None
            and now < known.until
            and known.request is rpc.request
            and known.schema is schema
        ):
            return known.found
        identity = self.caller(rpc)
        if identity is None:
            return None
        target = self._writes.quick.target_for(identity, table, schema)
        if target is None or target.allowance.limits_ingest_rate:
            return None
        if len(self._recent) >= _REMEMBERED:
            self._recent.clear()
        found = identity, target
        self._recent[key] = _Recent(now + _RECENT_SECONDS, rpc.request, schema, found)
        return found

    def submit(
        self,
        stream: "_Stream",
        identity: Identity,
        target: QuickTarget,
        parts: Sequence[KeyedRows],
        trace_id: str,
    ) -> Acceptance | None:
        """Hand batches to the bus, all or none; None when one of them is not for here."""
        answer = self._writes.quick.submit(
            identity,
            target,
            parts,
            again=stream.tries_again,
            trace_id=trace_id,
            settled=self.settled,
            watch=self._watch,
        )
        if answer is not None:
            answer.add_done_callback(partial(self.note, stream))
            if answer.done():
                # Its group may have been told of before it was noted.
                self.settled()
        return answer

    def look_up(self, stream: "_Stream", table: str, schema: pa.Schema) -> None:
        """Have memory know the caller and the table again, and let the stream go on."""

        def ask() -> None:
            # Whatever is wrong is said by the thread that the stream then goes to.
            with contextlib.suppress(Exception):
                identity = self._authentication.identity(stream.rpc.headers)
                self._writes.check_may_write(identity, table)
                self._writes.open_stream(identity, table, schema)
            self.soon(stream.look_again)

        self._on_a_thread(ask)


class _Stream:
    """One DoPut. Batches are taken and answered in their order."""

    def __init__(self, desk: QuickAppends, arrival: Arrival) -> None:
        self.rpc = arrival.rpc
        self._desk = desk
        self._arrival = arrival
        self._traceparent = traceparent_of(arrival.rpc.headers, arrival.trace_id)
        self._opening: Message | None = None
        self._table = ""
        self._schema: pa.Schema | None = None
        self._stream_key: str | None = None
        self._taken = 0
        self._answered = 0
        self._unanswered: deque[Acceptance] = deque()
        self._waiting = 0
        """Batches that are taken and not answered."""
        self._first: Message | None = None
        """The first batch, until it is answered: a thread may have to take it once more."""
        self._leaving: list[Message] | None = None
        """What a thread goes on with, as soon as all is answered that was taken here."""
        self._recalled_now: tuple[Identity, QuickTarget] | None = None
        self._asking = False
        self._asked = False
        self._draining = False
        self._posted = False
        """Whether an answer waits to go out with those that follow."""
        self._over = False

    def look(self) -> None:
        """Answer what is durable, take what has come, end what is complete."""
        if self._over:
            return
        if self.rpc.cancelled:
            self._leave_place()
            self._arrival.count.left()
            return
        if self._unanswered and not self._unanswered[0].done() and not self.rpc.inbox:
            # As when the sender says that it was all: the answer comes first.
            return
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 - mapped, and logged
            self._fail(error)

    def _look(self) -> None:
        self._answer()
        if not self._over:
            self._take()
        # It holds for what came with the opening.
        self._recalled_now = None
        if self._over:
            return
        if self._leaving is not None and not self._unanswered:
            self._hand_over(self._leaving)
        elif self._opening is not None and self.rpc.is_complete and not self._unanswered:
            if not self._asking:
                self._leave_place()
                self.rpc.finish()
                # Counted behind the answer: nobody waits for that.
                self._arrival.count.ended(failed=False)
        elif self._draining and not self._unanswered:
            self._fail(shutting_down())
        elif self._posted:
            self._posted = False
            self.rpc.flush()

    def drain(self) -> None:
        """The server ends: so does the stream, once what was taken is answered."""
        self._draining = True
        self.look()

    def look_again(self) -> None:
        """Memory was refreshed."""
        self._asking = False
        self._asked = True
        if not (self._over or self._taken or self._recalled() is not None):
            self._leave([])
        self.look()

    # ---- Batches that come

    def _take(self) -> None:
        if self._opening is None:
            if self.rpc.is_to_be_met and not self.rpc.inbox:
                # The end, or a large message: no more of it comes before its sender is known.
                self._hand_over([])
                return
            message = self.rpc.take()
            if message is None:
                return
            self._open(message)
        while self.rpc.inbox and self._may_take():
            if self.rpc.pending_bytes > _RECEIPTS_MAX_BYTES:
                # A thread waits with the next ones until its client takes some.
                self._leave([])
                return
            message = self.rpc.take()
            if message is None or not self._append(message):
                return

    def _may_take(self) -> bool:
        """Not before the first is answered: it may find that the table has changed since."""
        if self._over or self._leaving is not None or self._asking or self._draining:
            return False
        return self._waiting < self._desk.window and not (self._taken and not self._answered)

    def _open(self, message: Message) -> None:
        self._opening = message
        if not self._opens(message):
            self._hand_over([message])
        elif self._recalled_now is None:
            # Before any row: a sender may wait for his refusal.
            self._look_up([])

    def _opens(self, message: Message) -> bool:
        try:
            # First of all: for nobody else is anything remembered.
            if self._desk.caller(self.rpc) is None or size_of(message) > BATCH_MAX_BYTES:
                return False
            data = flight_data.read(message)
            options = read_options(self.rpc.headers)
            self._arrival.place.work()
            self.rpc.let_in()
        except DuckMeshError:
            return False
        if options.wait or data.descriptor is None or data.app_metadata is not None:
            return False
        name, schema = self._desk.table_name(data.descriptor), self._desk.schema(data)
        if name is None or schema is None:
            return False
        self._table, self._schema, self._stream_key = name, schema, options.idempotency_key
        self._recalled_now = self._recalled()
        return True

    def _append(self, message: Message) -> bool:
        """Take one message; whether the next one may be looked at."""
        try:
            rows = self._rows(message, self._taken)
        except _NOT_FOR_HERE:
            self._leave([message])
            return False
        recalled = self._recalled_now or self._recalled()
        self._recalled_now = None
        if rows is None:
            return True
        if recalled is None:
            if self._asked:
                # Nothing helps: what is wrong is said by a thread.
                self._leave([message])
            else:
                self._look_up([message])
            return False
        together = [(message, rows)]
        if self._answered and rows.idempotency_key is None:
            together += self._those_that_follow(size_of(message))
        return self._submit(recalled, together)

    def _those_that_follow(self, size_bytes: int) -> list[tuple[Message, KeyedRows]]:
        """Take what has come with a batch, as far as they may be accepted together.

        A batch with a key stands for itself: another one's conflict must not be its own.
        """
        together: list[tuple[Message, KeyedRows]] = []
        while self._waiting + len(together) + 1 < self._desk.window:
            message = self.rpc.take()
            if message is None:
                break
            size_bytes += size_of(message)
            try:
                number = self._taken + len(together) + 1
                rows = None if size_bytes > BATCH_MAX_BYTES else self._rows(message, number)
            except _NOT_FOR_HERE:
                rows = None
            if rows is None or rows.idempotency_key is not None:
                # It is looked at again in its turn.
                self.rpc.put_back([message])
                break
            together.append((message, rows))
        return together

    def _submit(
        self,
        recalled: tuple[Identity, QuickTarget],
        together: Sequence[tuple[Message, KeyedRows]],
    ) -> bool:
        """Have batches accepted; whether all of them are under way."""
        parts = [rows for _, rows in together]
        try:
            with tracing.arriving(self._traceparent):
                answer = self._desk.submit(self, *recalled, parts, self._arrival.trace_id)
        except DuckMeshError:
            answer = None
        if answer is None and len(together) == 1:
            self._leave([together[0][0]])
            return False
        if answer is None:
            # One of them is not for here. Those before it are.
            for number, each in enumerate(together, 1):
                if not self._submit(recalled, [each]):
                    assert self._leaving is not None  # noqa: S101 - it has just been left
                    self._leaving += [message for message, _ in together[number:]]
                    return False
            return True
        self._asked = False
        self._first = None if self._taken else together[0][0]
        self._taken += len(parts)
        self._waiting += len(parts)
        self._unanswered.append(answer)
        return True

    def _rows(self, message: Message, number: int) -> KeyedRows | None:
        """The batch of a message; None for one that has no rows. Raises what is wrong with it."""
        if size_of(message) > BATCH_MAX_BYTES:
            raise ValueError("a thread takes it")
        data = flight_data.read(message)
        key = key_of_batch(data.app_metadata, self._stream_key, number)
        if not data.header:
            return None
        head = self._desk.head(data.header)
        if head is None or head.row_count > ROWS_MAX or head.is_compressed:
            raise ValueError("a thread takes it")
        head.check_size(data.body)
        rows = pa.ipc.read_record_batch(pa.py_buffer(data.encapsulated()), self._schema)
        return KeyedRows(rows, key)

    def _recalled(self) -> tuple[Identity, QuickTarget] | None:
        """Who writes and what to, by memory."""
        assert self._schema is not None  # noqa: S101 - _opens saw to it
        try:
            return self._desk.recalled(self.rpc, self._table, self._schema)
        except DuckMeshError:
            return None

    def _look_up(self, taken: list[Message]) -> None:
        """Go on when memory knows the caller and the table again."""
        self._asking = True
        self.rpc.put_back(taken)
        assert self._schema is not None  # noqa: S101 - _opens saw to it
        self._desk.look_up(self, self._table, self._schema)

    def tries_again(self, error: DuckMeshError) -> bool:
        """Whether a thread takes a batch that failed here: what it says of it is what counts."""
        if isinstance(error, Conflict):
            # Nothing of it was accepted, and the table may be another one by now.
            return self._first is not None
        return isinstance(error, Invalid | Overloaded)

    # ---- Answers

    def _answer(self) -> None:
        while self._unanswered and self._unanswered[0].done():
            answer = self._unanswered.popleft()
            error = answer.exception()
            if error is not None:
                if self._first is not None and isinstance(error, Conflict):
                    self._taken = 0
                    self._leave([self._first])
                    return
                raise error
            for receipt in answer.result():
                said = {"batch": self._answered, **accepted_fields(receipt, None)}
                self.rpc.post([flight_data.put_result(orjson.dumps(said))], more=True)
                self._answered += 1
                self._waiting -= 1
            self._posted = True
            self._first = None

    # ---- Ends

    def _leave(self, messages: list[Message]) -> None:
        """Let a thread go on with these, once all that was taken is answered."""
        assert self._opening is not None  # noqa: S101 - nothing is left before
        self._leaving = [self._opening, *messages]

    def _hand_over(self, messages: list[Message]) -> None:
        self._over = True
        self._arrival.place.on_drain = None
        self.rpc.follow(None)
        self.rpc.put_back(messages)
        self.rpc.state = self._taken
        if self._posted:
            # The thread may wait long for what it is to answer first.
            self._posted = False
            self.rpc.flush()
        self._arrival.run()

    def _fail(self, error: Exception) -> None:
        arrival = self._arrival
        failure = judged(
            "do_put",
            error,
            context=self.rpc,
            trace_id=arrival.trace_id,
            failing=arrival.count.failing,
        )
        self._leave_place()
        arrival.count.ended(failed=True)
        said = failure_json(self._answered, failure.error, arrival.trace_id)
        self.rpc.post([flight_data.put_result(said)], more=True)
        self.rpc.finish(failure.status, failure.text, failure.trailers)

    def _leave_place(self) -> None:
        self._over = True
        self.rpc.follow(None)
        # A ring of references otherwise, and the collector's work.
        self._arrival.place.on_drain = None
        # Before the answer: whoever has it finds the place free.
        self._arrival.place.leave()


def _table_name(serialized: bytes) -> str | None:
    try:
        descriptor = flight.FlightDescriptor.deserialize(serialized)
        if descriptor.descriptor_type != flight.DescriptorType.PATH:
            return None
        return table_of_path(descriptor.path)
    except (DuckMeshError, pa.ArrowException, ValueError, OSError):
        return None


def _schema(data: FlightData) -> pa.Schema | None:
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data.encapsulated()))
    except (pa.ArrowException, OSError, ValueError):
        return None
    # Numbers in another order of bytes are turned round by Arrow's reader of streams alone. Of two
    # schemas with the same columns, that order is what may differ.
    is_native = schema.equals(pa.schema(list(schema)))
    return schema if is_native and not has_dictionaries(schema) else None
