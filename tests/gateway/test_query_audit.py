"""The query audit: a row for each statement, written beside it, and never lost in silence."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from catalog import queries
from catalog.connection import Catalog, Connection
from catalog.queries import AuditedQuery
from duckmesh import metrics
from duckmesh.errors import Denied, DuckMeshError, ErrorCode, Invalid, NotFound, Unavailable
from duckmesh.identifiers import KeyId
from duckmesh.telemetry import bind_trace
from duckmesh.tokens import VisibilityToken
from gateway.audit_buffer import AuditBuffer
from gateway.identity import Identity, Role
from gateway.open_answers import Answer
from gateway.query_audit import QueryAudit
from gateway.reads import ReadPoint
from query_engine.engine import Interruption
from tests.processes import until
from tests.rooms import Rooms, rows

PATIENCE = timedelta(seconds=20)


@pytest.fixture
def audited(rooms: Rooms) -> Iterator[Callable[[], list[AuditedQuery]]]:
    """Statements of `rooms` leave rows from now on; call it for those since, in their order."""
    buffer = AuditBuffer(rooms.catalog, rows_max=1000, flush_interval=timedelta(milliseconds=10))
    rooms.write("t", rows(1, 2, 3))
    rooms.publish_all()
    rooms.reads.audit = QueryAudit(buffer)

    def read() -> list[AuditedQuery]:
        until(lambda: buffer.waiting == 0)
        with rooms.catalog.connect() as connection:
            shown = queries.recent(connection, limit=1000)
        return sorted((each.query for each in shown), key=lambda query: query.query_id)

    yield read
    buffer.close(PATIENCE)


def test_a_query_leaves_one_row_that_tells_all(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]]
) -> None:
    token = rooms.reads.pin(rooms.acme, None, ReadPoint()).max_visibility_token
    with bind_trace("trace-of-the-caller"):
        pinned = rooms.reads.pin(rooms.acme, "SELECT v FROM t", ReadPoint(min_token=token))
        with rooms.reads.run(
            rooms.acme, "SELECT v FROM t", pinned.snapshot_id, asked_token=token
        ) as answer:
            assert answer.reader.read_all().num_rows == 3
    (row,) = audited()
    assert (row.tenant_id, row.principal) == (rooms.acme.tenant_id, "test")
    assert (row.sql, row.outcome) == ("SELECT v FROM t", "OK")
    assert (row.snapshot_id, row.asked_token) == (pinned.snapshot_id, token)
    assert row.trace_id == "trace-of-the-caller"
    assert (row.row_count, row.scanned_files) == (3, 1)
    assert row.byte_count >= 24
    assert row.scanned_bytes > 0
    assert row.run_seconds > 0


FAILURES: dict[str, tuple[str, str]] = {
    "not SQL": ("SELEKT 1", "QUERY_EXECUTION_FAILED"),
    "no such table": ("SELECT * FROM nothing", "TABLE_NOT_FOUND"),
    "no such column": ("SELECT w FROM t", "QUERY_EXECUTION_FAILED"),
    "at run time": ("SELECT error('x') FROM t", "QUERY_EXECUTION_FAILED"),
    "not allowed": ("SELECT * FROM read_csv('/etc/passwd')", "SQL_NOT_ALLOWED"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_query_that_fails_leaves_one_row_with_its_code(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]], case: str
) -> None:
    sql, code = FAILURES[case]

    def ask() -> None:
        rooms.reads.is_query(rooms.acme, sql)
        rooms.query(sql)

    with pytest.raises(DuckMeshError):
        ask()
    assert [(row.sql, row.outcome) for row in audited()] == [(sql, code)]


def test_a_refused_query_and_a_late_one_leave_rows(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]]
) -> None:
    nobody = replace(rooms.acme, key_id=KeyId("0123456789ab"), roles=frozenset())
    with pytest.raises(Denied):
        rooms.query("SELECT 1", identity=nobody)
    receipt = rooms.write("t", rows(4))
    with pytest.raises(DuckMeshError):
        rooms.query("SELECT v FROM t", min_token=receipt.visibility_token, timeout=timedelta(0))
    refused, late = audited()
    assert (refused.principal, refused.outcome) == ("0123456789ab", "FORBIDDEN")
    assert (late.outcome, late.asked_token) == ("CONSISTENCY_TIMEOUT", receipt.visibility_token)


def read_after(act: Callable[[], None], answer: Answer) -> pa.Table:
    act()
    return answer.reader.read_all()


def test_a_query_that_is_left_is_cancelled_and_one_that_is_enough_is_not(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]]
) -> None:
    sql = "SELECT * FROM range(10_000_000)"
    newest = rooms.reads.pin(rooms.acme, sql, ReadPoint()).snapshot_id
    with rooms.reads.run(rooms.acme, sql, newest) as answer:
        assert answer.next_batch() is not None
    with rooms.reads.run(rooms.acme, sql, newest) as answer:
        assert answer.next_batch() is not None
        answer.enough()
    stop = Interruption()
    with (
        rooms.reads.run(rooms.acme, sql, newest, interruption=stop) as answer,
        pytest.raises(DuckMeshError),
    ):
        read_after(stop.interrupt, answer)
    assert [row.outcome for row in audited()] == ["QUERY_CANCELLED", "OK", "QUERY_CANCELLED"]


def test_a_statement_that_writes_is_one_row_whatever_it_reads(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]]
) -> None:
    statements = [
        "INSERT INTO t SELECT v + 10 FROM t",
        "CREATE TABLE u AS SELECT v FROM t",
        "CREATE VIEW w AS SELECT v FROM t",
        "DROP TABLE u",
    ]
    for sql in statements:
        rooms.execute(sql)
    with pytest.raises(NotFound):
        rooms.execute("INSERT INTO t SELECT v FROM nothing")
    found = audited()
    assert [row.sql for row in found[:-1]] == statements
    assert [row.row_count for row in found] == [3, 3, 0, 0, 0]
    assert [row.outcome for row in found] == ["OK"] * 4 + ["TABLE_NOT_FOUND"]


def test_long_statements_are_cut_and_literals_redacted(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]]
) -> None:
    buffer = AuditBuffer(rooms.catalog, rows_max=10, flush_interval=timedelta(milliseconds=10))
    rooms.reads.audit = QueryAudit(buffer, redact_literals=True, sql_max_chars=100)
    rooms.query("SELECT 'secret', 42")
    rooms.query(f"SELECT 'secret', {', '.join(str(n) for n in range(1000))}")
    buffer.close(PATIENCE)
    short, long = audited()
    assert short.sql == "SELECT ?, ?"
    assert long.sql.startswith("SELECT ?, ?, ?")
    assert long.sql.endswith(" ...")
    assert len(long.sql) < 110


def shown(rooms: Rooms, table: str, identity: Identity) -> list[dict[str, Any]]:
    found = rooms.query(f"FROM duckmesh_system.{table}", identity=identity)
    return found.to_pylist()


def test_an_ops_admin_sees_the_tenants_rows_and_others_their_own(
    rooms: Rooms, audited: Callable[[], list[AuditedQuery]]
) -> None:
    reader = replace(rooms.acme, key_id=KeyId("0123456789ab"), roles=frozenset({Role.QUERY_READER}))
    rooms.query("SELECT 'by the admin'")
    rooms.query("SELECT 'by the reader'", identity=reader)
    rooms.query("SELECT 'by another'", identity=rooms.identity("zeta"))
    audited()
    by_admin = {row["sql"] for row in shown(rooms, "query_audit", rooms.acme)}
    assert by_admin == {"SELECT 'by the admin'", "SELECT 'by the reader'"}
    own = {row["sql"] for row in shown(rooms, "query_audit", reader)}
    assert own == {"SELECT 'by the reader'"}
    acts = shown(rooms, "admin_audit", rooms.acme)
    assert [(act["act"], act["target"]) for act in acts] == [
        ("create_table", "t"),
        ("create_tenant", "acme"),
    ]
    assert json.loads(acts[0]["detail"]) == {}
    assert shown(rooms, "admin_audit", reader) == []


# --- the buffer


def row(number: int, tenant: Identity) -> AuditedQuery:
    made: list[AuditedQuery] = []

    class _Kept:
        def add(self, build: Callable[[], AuditedQuery]) -> None:
            made.append(build())

    record = QueryAudit(_Kept()).begin(tenant, f"SELECT {number}")  # type: ignore[arg-type]
    assert record is not None
    record.asked_token = VisibilityToken(number)
    record.ended()
    return made[0]


class Closable(Catalog):
    """A catalog that a test takes away and gives back."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, pool_max=4)
        self.away = threading.Event()
        self.refused = threading.Event()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        if self.away.is_set():
            self.refused.set()
            raise Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "away")
        with super().connect() as connection:
            yield connection


def tokens_of(catalog: Catalog) -> list[int | None]:
    with catalog.connect() as connection:
        shown = queries.recent(connection, limit=100_000)
    return sorted(each.query.asked_token or 0 for each in shown)


def dropped() -> float:
    return metrics.QUERY_AUDIT_DROPPED.labels().value


def test_rows_wait_for_the_catalog_and_what_does_not_fit_is_counted(rooms: Rooms) -> None:
    with Closable(rooms.dsn) as catalog:
        buffer = AuditBuffer(catalog, rows_max=100, flush_interval=timedelta(milliseconds=10))
        before = dropped()
        catalog.away.set()
        for number in range(1, 131):
            made = row(number, rooms.acme)
            buffer.add(lambda made=made: made)
        assert catalog.refused.wait(20)
        assert dropped() - before == 30
        catalog.away.clear()
        until(lambda: buffer.waiting == 0)
        assert tokens_of(catalog) == list(range(1, 101))
        buffer.close(PATIENCE)


def test_closing_writes_what_is_left_at_once(rooms: Rooms) -> None:
    buffer = AuditBuffer(rooms.catalog, rows_max=10_000, flush_interval=timedelta(hours=1))
    for number in range(1, 1201):
        made = row(number, rooms.acme)
        buffer.add(lambda made=made: made)
    buffer.close(PATIENCE)
    assert tokens_of(rooms.catalog) == list(range(1, 1201))


def test_closing_without_a_catalog_ends_in_time_and_counts_what_is_lost(rooms: Rooms) -> None:
    with Closable(rooms.dsn) as catalog:
        catalog.away.set()
        buffer = AuditBuffer(catalog, rows_max=1000, flush_interval=timedelta(milliseconds=10))
        before = dropped()
        for number in range(1, 8):
            made = row(number, rooms.acme)
            buffer.add(lambda made=made: made)
        buffer.close(timedelta(milliseconds=100))
        assert dropped() - before == 7
        buffer.add(lambda: row(8, rooms.acme))
        buffer.close(timedelta(0))
        assert dropped() - before == 8


def test_a_batch_that_is_sent_twice_is_stored_once(rooms: Rooms) -> None:
    batch = [row(number, rooms.acme) for number in range(1, 4)]
    with rooms.catalog.connect() as connection:
        queries.write(connection, batch)
        queries.write(connection, batch)
    assert tokens_of(rooms.catalog) == [1, 2, 3]


def test_a_row_that_cannot_be_written_is_counted_and_others_are_written(rooms: Rooms) -> None:
    buffer = AuditBuffer(rooms.catalog, rows_max=1000, flush_interval=timedelta(hours=1))
    before = dropped()
    batch = [row(number, rooms.acme) for number in range(1, 6)]
    batch[2] = replace(batch[2], tenant_id=rooms.acme.tenant_id + 1_000_000)
    batch[3] = replace(batch[3], sql="SELECT '\x00\ud800'", principal="jwt:\x00")
    for each in batch:
        buffer.add(lambda each=each: each)
    buffer.close(PATIENCE)
    assert dropped() - before == 1
    assert tokens_of(rooms.catalog) == [1, 2, 4, 5]


def test_rows_wait_for_a_catalog_that_only_reads(rooms: Rooms) -> None:
    with rooms.catalog.connect() as connection:
        connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(Unavailable):
            queries.write(connection, [row(1, rooms.acme)])
        connection.execute("SET default_transaction_read_only = off")


def test_old_rows_are_forgotten_a_bounded_number_at_a_time(rooms: Rooms) -> None:
    batch = [row(number, rooms.acme) for number in range(1, 11)]
    old = [replace(each, started_at=each.started_at - timedelta(days=40)) for each in batch[:7]]
    with rooms.catalog.connect() as connection:
        queries.write(connection, old + batch[7:])
        forgotten = [
            queries.forget(connection, older_than=timedelta(days=30), limit=5) for _ in range(3)
        ]
    assert forgotten == [5, 2, 0]
    assert tokens_of(rooms.catalog) == [8, 9, 10]


def test_a_table_is_not_a_query(rooms: Rooms, audited: Callable[[], list[AuditedQuery]]) -> None:
    rooms.write("t", pa.table({"v": pa.array([9], pa.int64())}))
    rooms.reads.tables(rooms.acme)
    with pytest.raises(Invalid):
        rooms.reads.is_query(rooms.acme, "SELECT 1; SELECT 2")
    assert [each.sql for each in audited()] == ["SELECT 1; SELECT 2"]
