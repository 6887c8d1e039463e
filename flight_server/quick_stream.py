"""One append stream of small batches, on the thread that moves bytes: nothing here blocks."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import orjson
import pyarrow as pa

from duckmesh import tracing
from duckmesh.errors import Conflict, DuckMeshError, Invalid, Overloaded
from flight_server import flight_data
from flight_server.boundary import judged
from flight_server.calls import Place, shutting_down
from flight_server.counts import CallCount
from flight_server.flight_data import FlightData
from flight_server.headers import read_options, traceparent_of
from flight_server.ingest import accepted_fields, failure_json, key_of_batch
from flight_server.ipc_metadata import BatchHead
from gateway.groups import KeyedRows
from gateway.identity import Identity
from gateway.quick_writes import ROWS_MAX, QuickTarget
from grpc_transport.calls import Call as Rpc
from grpc_transport.messages import Message, size_of
from ingest_bus.acceptance import Acceptance

BATCH_MAX_BYTES: Final = 64 * 1024
"""So little that the thread which moves bytes is not held up by it."""

_RECEIPTS_MAX_BYTES: Final = 256 * 1024
"""Of receipts that their client does not take: no more are made for it here."""

_NOT_FOR_HERE: Final = (DuckMeshError, pa.ArrowException, OSError, ValueError, KeyError)
"""What a batch may be found wanting by: what is said of it is said by a thread."""


@dataclass(slots=True)
class Arrival:
    """A DoPut that has arrived, and what begins it on a thread."""

    rpc: Rpc
    place: Place
    count: CallCount
    trace_id: str
    run: Callable[[], None]


class Desk(Protocol):
    """What a stream asks of the desk that began it."""

    window: int
    """So many batches may be taken and not answered."""

    def table_name(self, descriptor: bytes) -> str | None: ...
    def schema(self, data: FlightData) -> pa.Schema | None: ...
    def head(self, header: bytes) -> BatchHead | None: ...
    def caller(self, rpc: Rpc) -> Identity | None: ...
    def recalled(
        self, rpc: Rpc, table: str, schema: pa.Schema
    ) -> tuple[Identity, QuickTarget] | None: ...
    def submit(
        self,
        stream: "QuickStream",
        identity: Identity,
        target: QuickTarget,
        parts: Sequence[KeyedRows],
        trace_id: str,
    ) -> Acceptance | None: ...
    def look_up(self, stream: "QuickStream", table: str, schema: pa.Schema) -> None: ...


class QuickStream:
    """One DoPut. Batches are taken and answered in their order."""

    def __init__(self, desk: Desk, arrival: Arrival) -> None:
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

    @property
    def _waiting(self) -> int:
        """How many batches are taken and not answered."""
        return self._taken - self._answered

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
