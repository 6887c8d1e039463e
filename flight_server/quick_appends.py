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

import pyarrow as pa
import structlog
from pyarrow import flight

from duckmesh.errors import DuckMeshError
from flight_server.authenticate import Authentication
from flight_server.flight_data import FlightData, has_dictionaries
from flight_server.ingest import table_of_path
from flight_server.ipc_metadata import BatchHead, batch_head
from flight_server.quick_stream import Arrival, QuickStream
from gateway.groups import KeyedRows
from gateway.identity import Identity
from gateway.quick_writes import QuickTarget
from gateway.writes import Writes
from grpc_transport.calls import Call as Rpc
from grpc_transport.header_blocks import Request
from grpc_transport.messages import size_of
from ingest_bus.acceptance import Acceptance
from ingest_bus.port import Watch

_REMEMBERED: Final = 1_000
_HEADER_BYTES: Final = 4096
_RECENT_SECONDS: Final = 0.02
"""So little that it adds nothing to how long memory itself may be behind."""

_log = structlog.get_logger(__name__)


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
        self._answered: deque[QuickStream] = deque()
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
        stream = QuickStream(self, arrival)
        arrival.place.on_drain = partial(self.soon, stream.drain)
        arrival.rpc.follow(stream.look)
        stream.look()

    # ---- Answers that other threads have

    def note(self, stream: QuickStream, _answer: Acceptance) -> None:
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
        stream: QuickStream,
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

    def look_up(self, stream: QuickStream, table: str, schema: pa.Schema) -> None:
        """Have memory know the caller and the table again, and let the stream go on."""

        def ask() -> None:
            # Whatever is wrong is said by the thread that the stream then goes to.
            with contextlib.suppress(Exception):
                identity = self._authentication.identity(stream.rpc.headers)
                self._writes.check_may_write(identity, table)
                self._writes.open_stream(identity, table, schema)
            self.soon(stream.look_again)

        self._on_a_thread(ask)


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
