"""ALTER TABLE and ALTER VIEW ... RENAME TO: the name changes from one snapshot to the next."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from catalog.snapshots import Snapshot
from duckmesh.errors import Conflict, Denied, DuckMeshError, ErrorCode
from duckmesh.identifiers import SnapshotId, TenantId, TransactionId
from gateway.identity import Identity, Role
from gateway.ingest_modes import IngestMode
from gateway.known_tables import KnownTables
from gateway.limits import IngestLimits
from gateway.reads import ReadPoint
from gateway.staging import StagingLimits
from gateway.visibility import Visibility
from gateway.writes import Writes
from ingest_bus.envelope import Receipt
from ingest_bus.postgres import PostgresIngestBus
from tests.rooms import Rooms, rows


def found(rooms: Rooms, sql: str) -> list[tuple[Any, ...]]:
    rooms.publish_all()
    table = rooms.query(sql)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def newest(rooms: Rooms) -> SnapshotId:
    return rooms.reads.pin(rooms.acme, None, ReadPoint()).snapshot_id


def code_of(act: Callable[[], object]) -> ErrorCode:
    with pytest.raises(DuckMeshError) as caught:
        act()
    return caught.value.code


@pytest.fixture
def t(rooms: Rooms) -> Rooms:
    """A table `t` with one published row."""
    rooms.execute("CREATE TABLE t AS SELECT 1::BIGINT AS v")
    rooms.publish_all()
    return rooms


@pytest.fixture
def elsewhere(rooms: Rooms) -> Iterator[Writes]:
    """The writes of another process, whose memory of tables lasts as long as the test."""
    bus = PostgresIngestBus(rooms.catalog)
    writes = Writes(rooms.catalog, bus, rooms.store, limits=IngestLimits(), staging=StagingLimits())
    writes._tables = writes.definitions._tables = KnownTables(rooms.catalog, monotonic=lambda: 0.0)
    yield writes
    bus.close()


def append(rooms: Rooms, writes: Writes, name: str, table: pa.Table) -> None:
    pending = writes.begin(rooms.acme, name, table.schema, mode=IngestMode.APPEND)
    for batch in table.to_batches():
        pending.append(batch)
    pending.commit()


def test_a_renamed_table_has_its_rows_under_its_new_name_alone(t: Rooms) -> None:
    t.execute("ALTER TABLE t RENAME TO u")
    t.execute("INSERT INTO u VALUES (2)")
    assert found(t, "SELECT v FROM u ORDER BY v") == [(1,), (2,)]
    assert code_of(lambda: t.query("FROM t")) is ErrorCode.TABLE_NOT_FOUND
    assert code_of(lambda: t.execute("INSERT INTO t VALUES (3)")) is ErrorCode.TABLE_NOT_FOUND
    assert [table.name for table in t.reads.tables(t.acme)] == ["u"]


def test_older_snapshots_keep_each_former_name(t: Rooms) -> None:
    seen = [("t", newest(t))]
    for name in ("u", "w"):
        t.execute(f"ALTER TABLE {seen[-1][0]} RENAME TO {name}")
        seen.append((name, newest(t)))
    for name, snapshot in seen:
        assert t.query_at(f"SELECT v FROM {name}", snapshot)["v"].to_pylist() == [1]
        assert found(t, f"SELECT v FROM {name} AT (VERSION => {snapshot})") == [(1,)]
        for other in {"t", "u", "w"} - {name}:
            past = f"FROM {other} AT (VERSION => {snapshot})"
            assert code_of(lambda past=past: t.query(past)) is ErrorCode.TABLE_NOT_FOUND
    t.execute("DROP TABLE w")
    assert found(t, f"SELECT v FROM u AT (VERSION => {seen[1][1]})") == [(1,)]


def test_rows_accepted_before_a_rename_and_published_after_it_go_with_the_table(t: Rooms) -> None:
    t.execute("INSERT INTO t VALUES (2)")
    t.execute("ALTER TABLE t RENAME TO u")
    t.execute("CREATE TABLE t (v BIGINT)")
    assert found(t, "SELECT v FROM u ORDER BY v") == [(1,), (2,)]
    assert found(t, "SELECT v FROM t") == []


def test_two_tables_swap_their_names_as_dbt_does(t: Rooms) -> None:
    t.execute("CREATE TABLE t__dbt_tmp AS SELECT 7::BIGINT AS v")
    t.execute("ALTER TABLE t RENAME TO t__dbt_backup")
    t.execute("ALTER TABLE t__dbt_tmp RENAME TO t")
    t.execute("DROP TABLE IF EXISTS t__dbt_backup CASCADE")
    assert found(t, "SELECT v FROM t") == [(7,)]
    t.execute("INSERT INTO t VALUES (8)")
    assert found(t, "SELECT v FROM t ORDER BY v") == [(7,), (8,)]


def test_names_stay_unique_among_tables_and_views(t: Rooms) -> None:
    t.execute("CREATE TABLE other (v BIGINT)")
    t.execute("CREATE VIEW seen AS FROM t")
    before = newest(t)
    for sql in (
        "ALTER TABLE t RENAME TO OTHER",
        "ALTER TABLE t RENAME TO Seen",
        "ALTER VIEW seen RENAME TO T",
    ):
        assert code_of(lambda sql=sql: t.execute(sql)) is ErrorCode.TABLE_EXISTS
    assert newest(t) == before


def test_a_new_name_may_differ_by_case_alone_and_the_same_name_changes_nothing(t: Rooms) -> None:
    t.execute("CREATE VIEW seen AS FROM t")
    before = newest(t)
    t.execute("ALTER TABLE t RENAME TO t")
    t.execute("ALTER VIEW seen RENAME TO seen")
    assert newest(t) == before
    t.execute("ALTER TABLE t RENAME TO T")
    t.execute("ALTER VIEW seen RENAME TO SEEN")
    assert [table.name for table in t.reads.tables(t.acme)] == ["T", "SEEN"]
    assert found(t, "SELECT v FROM seen") == [(1,)]


def test_the_freed_name_may_be_a_views_and_a_views_a_tables(t: Rooms) -> None:
    t.execute("ALTER TABLE t RENAME TO u")
    t.execute("CREATE VIEW t AS SELECT v + 10 AS v FROM u")
    assert found(t, "SELECT v FROM t") == [(11,)]
    t.execute("ALTER VIEW t RENAME TO w")
    t.execute("ALTER TABLE u RENAME TO t")
    assert found(t, "SELECT v FROM t") == [(1,)]
    assert code_of(lambda: t.query("FROM w")) is ErrorCode.TABLE_NOT_FOUND


def test_a_renamed_view_stands_for_the_same_query_and_older_snapshots_keep_its_name(
    t: Rooms,
) -> None:
    t.execute("CREATE VIEW seen AS SELECT v + 1 AS w FROM t")
    before = newest(t)
    t.execute("ALTER VIEW seen RENAME TO shown")
    assert found(t, "SELECT w FROM shown") == [(2,)]
    assert t.query_at("SELECT w FROM seen", before)["w"].to_pylist() == [2]
    assert code_of(lambda: t.query("FROM seen")) is ErrorCode.TABLE_NOT_FOUND
    t.execute("ALTER TABLE shown RENAME TO seen")
    assert found(t, "SELECT w FROM seen") == [(2,)]


def test_a_view_that_names_a_renamed_table_fails_until_the_name_is_back(t: Rooms) -> None:
    t.execute("CREATE VIEW seen AS SELECT v FROM t")
    t.execute("ALTER TABLE t RENAME TO u")
    assert code_of(lambda: t.query("FROM seen")) is ErrorCode.TABLE_NOT_FOUND
    t.execute("ALTER VIEW seen RENAME TO t")
    assert code_of(lambda: t.query("FROM t")) is ErrorCode.SQL_NOT_ALLOWED
    t.execute("ALTER VIEW t RENAME TO seen")
    t.execute("ALTER TABLE u RENAME TO t")
    assert found(t, "FROM seen") == [(1,)]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("ALTER TABLE absent RENAME TO u", ErrorCode.TABLE_NOT_FOUND),
        ("ALTER VIEW absent RENAME TO u", ErrorCode.TABLE_NOT_FOUND),
        ("ALTER VIEW t RENAME TO u", ErrorCode.SQL_NOT_ALLOWED),
        ("ALTER TABLE elsewhere.t RENAME TO u", ErrorCode.TABLE_REQUIRED),
        ('ALTER TABLE t RENAME TO "a/b\n"', ErrorCode.TABLE_REQUIRED),
    ],
)
def test_a_rename_that_cannot_be_is_refused(t: Rooms, sql: str, code: ErrorCode) -> None:
    before = newest(t)
    assert code_of(lambda: t.execute(sql)) is code
    t.execute("ALTER TABLE IF EXISTS absent RENAME TO u")
    t.execute("ALTER VIEW IF EXISTS absent RENAME TO u")
    assert newest(t) == before


def test_a_rename_needs_a_right(t: Rooms) -> None:
    writer = Identity(t.acme.tenant_id, "acme", "w", None, frozenset({Role.INGEST_WRITER}))
    with pytest.raises(Denied):
        t.execute("ALTER TABLE t RENAME TO u", identity=writer)


def test_a_write_through_a_former_name_reaches_the_table_that_has_it_now(
    t: Rooms, elsewhere: Writes
) -> None:
    """Another process has `t` in memory, and writes at once after the name went on."""
    append(t, elsewhere, "t", rows(2))
    t.execute("ALTER TABLE t RENAME TO u")
    t.execute("CREATE TABLE t (v BIGINT)")
    append(t, elsewhere, "t", rows(3))
    assert found(t, "SELECT v FROM t") == [(3,)]
    assert found(t, "SELECT v FROM u ORDER BY v") == [(1,), (2,)]


def test_a_stream_through_a_former_name_reaches_the_table_that_has_it_now(
    t: Rooms, elsewhere: Writes
) -> None:
    target = elsewhere.open_stream(t.acme, "t", rows(2).schema)
    late = elsewhere.open_stream(t.acme, "t", rows(2).schema)
    (batch,) = rows(2).to_batches()
    send = {"idempotency_key": None, "at_once": True}
    elsewhere.append_batch(t.acme, late, batch, **send).result(0)
    t.execute("ALTER TABLE t RENAME TO u")
    t.execute("CREATE TABLE t (v BIGINT)")
    (batch,) = rows(3).to_batches()
    elsewhere.append_batch(t.acme, target, batch, **send).result(0)
    # One that has written already is sent back: its client decides.
    with pytest.raises(Conflict) as caught:
        elsewhere.append_batch(t.acme, late, batch, **send).result(0)
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert found(t, "SELECT v FROM t") == [(3,)]
    assert found(t, "SELECT v FROM u ORDER BY v") == [(1,), (2,)]


def test_a_write_through_a_name_that_nothing_has_any_more_is_refused(
    t: Rooms, elsewhere: Writes
) -> None:
    append(t, elsewhere, "t", rows(2))
    t.execute("ALTER TABLE t RENAME TO u")
    assert code_of(lambda: append(t, elsewhere, "t", rows(3))) is ErrorCode.TABLE_NOT_FOUND
    assert found(t, "SELECT v FROM u ORDER BY v") == [(1,), (2,)]


@pytest.mark.parametrize("columns", [rows(9), pa.table({"other": ["x"]})], ids=["same", "other"])
def test_a_replacement_that_began_under_the_former_name_replaces_nothing_else(
    t: Rooms, elsewhere: Writes, columns: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = elsewhere.begin(t.acme, "t", columns.schema, mode=IngestMode.REPLACE)
    late.append(columns.to_batches()[0])
    publish = elsewhere.publish

    def publish_late(*values: Any, **named: Any) -> Receipt:
        t.execute("ALTER TABLE t RENAME TO u")
        return publish(*values, **named)

    monkeypatch.setattr(elsewhere, "publish", publish_late)
    with pytest.raises(Conflict):
        late.commit()
    late.abort()
    assert found(t, "SELECT v FROM u") == [(1,)]


def test_a_drop_that_found_the_table_under_its_former_name_ends_nothing(
    t: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = t.writes.table(t.acme, "t")
    t.execute("ALTER TABLE t RENAME TO u")
    monkeypatch.setattr(t.writes, "_find", lambda *_: known)
    assert code_of(lambda: t.execute("DROP TABLE t")) is ErrorCode.TABLE_NOT_FOUND
    monkeypatch.undo()
    assert found(t, "SELECT v FROM u") == [(1,)]
    t.execute("INSERT INTO u VALUES (2)")
    assert found(t, "SELECT count(*) FROM u") == [(2,)]


def test_columns_that_a_replacement_brings_come_before_the_new_name(t: Rooms) -> None:
    t.write("t", pa.table({"n": [1, 2]}), mode=IngestMode.REPLACE)
    rename = "ALTER TABLE t RENAME TO u"
    assert code_of(lambda: t.execute(rename)) is ErrorCode.CONSISTENCY_TIMEOUT
    t.publish_all()
    t.execute(rename)
    assert found(t, "SELECT n FROM u ORDER BY n") == [(1,), (2,)]


def begun(rooms: Rooms) -> TransactionId:
    return rooms.transactions.begin(rooms.acme, None)


def test_what_a_transaction_holds_goes_with_the_table_that_it_renames(t: Rooms) -> None:
    mine = begun(t)

    def run(sql: str) -> None:
        t.execute(sql, transaction=t.transactions.find(t.acme, mine))

    run("CREATE TABLE tmp AS SELECT 7::BIGINT AS v")
    run("INSERT INTO tmp VALUES (8)")
    run("ALTER TABLE t RENAME TO backup")
    run("ALTER TABLE tmp RENAME TO t")
    run("INSERT INTO t VALUES (9)")
    run("DROP TABLE backup")
    assert found(t, "FROM t") == []
    t.transactions.commit(t.acme, mine)
    assert found(t, "SELECT v FROM t ORDER BY v") == [(7,), (8,), (9,)]


def test_what_another_transaction_holds_under_the_former_name_is_refused_at_commit(
    t: Rooms,
) -> None:
    theirs = begun(t)
    t.execute("INSERT INTO t VALUES (2)", transaction=t.transactions.find(t.acme, theirs))
    t.execute("ALTER TABLE t RENAME TO u")
    t.execute("CREATE TABLE t (v BIGINT)")
    with pytest.raises(Conflict) as caught:
        t.transactions.commit(t.acme, theirs)
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert found(t, "FROM t") == []
    assert found(t, "FROM u") == [(1,)]


class _Renaming(Visibility):
    """Swaps two names before its second look at the newest snapshot, and publishes after it."""

    def __init__(self, rooms: Rooms) -> None:
        super().__init__(rooms.catalog, rooms.bus)
        self._rooms = rooms
        self.looks = 0

    def newest(self, tenant_id: TenantId) -> Snapshot:
        self.looks += 1
        if self.looks == 2:
            self._rooms.execute("ALTER TABLE t RENAME TO former")
            self._rooms.execute("ALTER TABLE other RENAME TO t")
        elif self.looks > 2:
            self._rooms.publish_all()
        return super().newest(tenant_id)


def test_the_barrier_waits_for_the_table_that_has_the_name_when_it_answers(t: Rooms) -> None:
    t.execute("CREATE TABLE other (v BIGINT)")
    token = t.execute("INSERT INTO other VALUES (5)").visibility_token
    t.reads._visibility = renaming = _Renaming(t)
    assert t.query("SELECT v FROM t", min_token=token)["v"].to_pylist() == [5]
    assert renaming.looks > 2
