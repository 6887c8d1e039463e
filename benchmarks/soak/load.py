"""The load: writers at a steady rate, a bulk load now and then, dashboards, all in one process.

Writers keep to a clock and not to the answers (an open loop): a latency is counted from when the
write was due. What is acknowledged is remembered, and compared with the table at the end.
"""

import re
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
from adbc_driver_flightsql import dbapi
from adbc_driver_manager import Error as DriverError
from pyarrow import flight

from benchmarks.clients import PlainClient
from benchmarks.data import ROW_SCHEMA, bulk_rows, one_row
from flight_server.append_stream import AppendStream

EVENTS: Final = "soak_events"
LOADS: Final = "soak_loads"
WRITERS_MAX: Final = 64
"""A row's id is its number times this, and its writer: ids grow with time."""
_FAILURES: Final = (flight.FlightError, pa.ArrowException, DriverError, OSError)
_CODE: Final = re.compile(r"\[([A-Z]+(?:_[A-Z]+)+)\]")
_TELL_SECONDS: Final = 1.0
_ANY_EVENT: Final = f"SELECT 1 AS one FROM {EVENTS} LIMIT 1"  # noqa: S608 - a name of ours
_RECENT: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything."""

    uri: str
    streams: int = 4
    stream_writes_per_second: float = 160.0
    callers: int = 4
    caller_writes_per_second: float = 40.0
    dashboards: int = 3
    dashboard_pause_seconds: float = 1.0
    probe_pause_seconds: float = 1.0
    bulk_rows: int = 1_000_000
    bulk_every_seconds: float = 300.0


@dataclass(slots=True)
class Observed:
    """What was seen since the last look. Sent between processes."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Latencies by kind: ack, visible, aggregate, recent, point, bulk."""
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ids whose fate is known at the end."""

    acknowledged: "array[int]"
    unanswered: "array[int]"
    """Sent, and no receipt came: such a row is there once, or not at all."""


class _Shared:
    """What all threads of the load tell, under one lock."""

    def __init__(self, stop: Any) -> None:
        self.stop = stop
        self.newest: tuple[int, int] | None = None
        """The id and the token of a write that was just acknowledged."""
        self._lock = threading.Lock()
        self._observed = Observed()
        self._acknowledged = array("q", [0])  # The row with which the table was created.
        self._unanswered = array("q")

    def saw(self, kind: str, seconds: float) -> None:
        with self._lock:
            self._observed.seconds.setdefault(kind, []).append(seconds)

    def acknowledged(self, row_id: int, token: int) -> None:
        with self._lock:
            self._acknowledged.append(row_id)
            self.newest = (row_id, token)

    def unanswered(self, row_id: int) -> None:
        with self._lock:
            self._unanswered.append(row_id)

    def failed(self, where: str, error: BaseException | str) -> None:
        found = _CODE.search(str(error))
        said = found[1] if found else error if isinstance(error, str) else type(error).__name__
        with self._lock:
            self._observed.errors[f"{where}: {said}"] += 1

    def take(self) -> Observed:
        with self._lock:
            taken, self._observed = self._observed, Observed()
            return taken

    def ledger(self) -> Ledger:
        with self._lock:
            return Ledger(self._acknowledged, self._unanswered)


def run(plan: Plan, stop: Any, observed: Any, ledgers: Any) -> None:
    """Run in a process of its own until the event `stop`; then the ledger is in its queue."""
    shared = _Shared(stop)
    rows = bulk_rows(plan.bulk_rows)
    works: list[Callable[[], None]] = [lambda: _load_in_bulk(plan, shared, rows)]
    numbers = iter(range(WRITERS_MAX))
    works += [_bound(_stream, plan, shared, next(numbers)) for _ in range(plan.streams)]
    works += [_bound(_call, plan, shared, next(numbers)) for _ in range(plan.callers)]
    works += [_bound(_probe, plan, shared, next(numbers))]
    works += [_bound(_look, plan, shared, number) for number in range(plan.dashboards)]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    while not stop.wait(_TELL_SECONDS):
        observed.put(shared.take())
    for thread in threads:
        thread.join()
    observed.put(shared.take())
    ledgers.put(shared.ledger())


def _bound(
    work: Callable[[Plan, _Shared, int], None], plan: Plan, shared: _Shared, number: int
) -> Callable[[], None]:
    return lambda: work(plan, shared, number)


def event_row(row_id: int) -> pa.RecordBatch:
    """One row of the table of events, measured now."""
    values = (row_id, datetime.now(UTC), *one_row(row_id)[2:])
    columns = [pa.array([v], each.type) for v, each in zip(values, ROW_SCHEMA, strict=True)]
    return pa.record_batch(columns, schema=ROW_SCHEMA)


def _due_times(shared: _Shared, per_second: float) -> Iterator[float]:
    """Wait for each moment of a steady clock, and yield it, late or not, until the end."""
    due = time.monotonic()
    while not shared.stop.wait(max(0.0, due - time.monotonic())):
        yield due
        due += 1 / per_second


@contextmanager
def _client(plan: Plan) -> Iterator[PlainClient]:
    client = PlainClient(plan.uri)
    try:
        yield client
    finally:
        with suppress(*_FAILURES):
            client.close()


# --- writers -------------------------------------------------------------------------------------


def _call(plan: Plan, shared: _Shared, writer: int) -> None:
    """One RPC for each row, each with a key of its own."""
    with _client(plan) as client:
        pace = plan.caller_writes_per_second / plan.callers
        for number, due in enumerate(_due_times(shared, pace), start=1):
            row_id = number * WRITERS_MAX + writer
            try:
                token = client.put(EVENTS, event_row(row_id), key=f"soak-{row_id}")
            except _FAILURES as error:
                shared.failed("write", error)
                shared.unanswered(row_id)
                continue
            shared.saw("ack", time.monotonic() - due)
            shared.acknowledged(row_id, token)


def _probe(plan: Plan, shared: _Shared, writer: int) -> None:
    """Write a row, and ask for it with its token: how long a write takes to be seen."""
    with _client(plan) as client:
        for number, _ in enumerate(_due_times(shared, 1 / plan.probe_pause_seconds), start=1):
            row_id = number * WRITERS_MAX + writer
            began = time.monotonic()
            try:
                token = client.put(EVENTS, event_row(row_id))
            except _FAILURES as error:
                shared.failed("write", error)
                shared.unanswered(row_id)
                continue
            shared.acknowledged(row_id, token)
            if _ask(shared, client, "visible", _ANY_EVENT, token):
                shared.saw("visible", time.monotonic() - began)


def _stream(plan: Plan, shared: _Shared, writer: int) -> None:
    """Rows on a stream that stays open, opened again when it breaks."""
    pace = plan.stream_writes_per_second / plan.streams
    numbers = iter(range(1, 2**40))
    while not shared.stop.is_set():
        _OpenStream(plan, shared, writer).write(numbers, pace)


class _OpenStream:
    """One stream: this thread sends, another takes the receipts, which come in order."""

    def __init__(self, plan: Plan, shared: _Shared, writer: int) -> None:
        self._shared = shared
        self._writer = writer
        self._sent: list[tuple[int, float]] = []
        self._answered = 0
        self._stream = AppendStream(plan.uri, EVENTS, ROW_SCHEMA)

    def write(self, numbers: Iterator[int], pace: float) -> None:
        """Until the end, or until the stream breaks."""
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        try:
            for due in _due_times(self._shared, pace):
                row_id = next(numbers) * WRITERS_MAX + self._writer
                self._sent.append((row_id, due))
                self._stream.send(event_row(row_id))
            self._stream.finish()
        except _FAILURES as error:
            self._shared.failed("stream", error)
        reader.join()
        with suppress(*_FAILURES):
            self._stream.close()
        for row_id, _ in self._sent[self._answered :]:
            self._shared.unanswered(row_id)

    def _read(self) -> None:
        try:
            while (token := self._stream.receipt()) is not None:
                row_id, due = self._sent[self._answered]
                self._answered += 1
                self._shared.saw("ack", time.monotonic() - due)
                self._shared.acknowledged(row_id, token)
                self._forget_answered()
        except _FAILURES as error:
            self._shared.failed("stream", error)

    def _forget_answered(self) -> None:
        """A stream of an hour must not hold all its rows; the sender appends meanwhile."""
        if self._answered >= 1000:
            del self._sent[: self._answered]
            self._answered = 0


def _load_in_bulk(plan: Plan, shared: _Shared, rows: pa.Table) -> None:
    """Replace a table's rows: what it holds stays as large as it is."""
    for _ in _due_times(shared, 1 / plan.bulk_every_seconds):
        began = time.monotonic()
        try:
            with dbapi.connect(plan.uri, autocommit=True) as connection, connection.cursor() as to:
                counted = to.adbc_ingest(LOADS, rows, mode="replace")
        except _FAILURES as error:
            shared.failed("bulk", error)
            continue
        if counted != rows.num_rows:
            shared.failed("bulk", "WRONG_COUNT")
        shared.saw("bulk", time.monotonic() - began)


# --- readers -------------------------------------------------------------------------------------


def _look(plan: Plan, shared: _Shared, number: int) -> None:
    """A dashboard: an aggregate of the large table, one of the last minute, and a point."""
    asked = [_aggregate, _recent, _point]
    with _client(plan) as client:
        pace = 1 / plan.dashboard_pause_seconds
        for turn, _ in enumerate(_due_times(shared, pace), start=number):
            asked[turn % len(asked)](plan, shared, client)


def _aggregate(plan: Plan, shared: _Shared, client: PlainClient) -> None:
    sql = f"SELECT site, count(*) AS n, avg(value) AS mean FROM {LOADS} GROUP BY site"  # noqa: S608
    answer = _ask(shared, client, "aggregate", sql)
    if answer is not None and sum(answer["n"].to_pylist()) != plan.bulk_rows:
        shared.failed("aggregate", "WRONG_ANSWER")


def _recent(plan: Plan, shared: _Shared, client: PlainClient) -> None:
    del plan
    since = (datetime.now(UTC) - _RECENT).isoformat()
    sql = (
        f"SELECT device, count(*) AS n, avg(value) AS mean FROM {EVENTS} "  # noqa: S608
        f"WHERE measured_at >= TIMESTAMPTZ '{since}' GROUP BY device"
    )
    _ask(shared, client, "recent", sql)


def _point(plan: Plan, shared: _Shared, client: PlainClient) -> None:
    del plan
    if shared.newest is None:
        return
    row_id, token = shared.newest
    sql = f"SELECT * FROM {EVENTS} WHERE id = {row_id}"  # noqa: S608 - names and numbers of ours
    answer = _ask(shared, client, "point", sql, token)
    if answer is not None and answer.num_rows != 1:
        shared.failed("point", "WRONG_ANSWER")


def _ask(
    shared: _Shared, client: PlainClient, kind: str, sql: str, token: int | None = None
) -> pa.Table | None:
    began = time.monotonic()
    try:
        answer = client.read(sql, token=token).read_all()
    except _FAILURES as error:
        shared.failed(kind, error)
        return None
    if kind != "visible":
        shared.saw(kind, time.monotonic() - began)
    return answer
