"""Tables as they were, named inside a query: AT (VERSION => n) and AT (TIMESTAMP => ts)."""

from dataclasses import replace
from datetime import UTC, timedelta

import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, ErrorCode
from duckmesh.identifiers import ConsumerId
from gateway.identity import Role
from gateway.ingest_modes import IngestMode
from gateway.pins import SnapshotPins
from gateway.reads import ReadPoint
from tests.rooms import rows as table_of


@pytest.fixture
def versions(rooms):
    """Snapshots after which `t` holds 1; 1 and 2; 1, 2 and 3."""
    found = []
    for value in (1, 2, 3):
        rooms.write("t", table_of(value))
        rooms.publish_all()
        found.append(rooms.reads.pin(rooms.acme, None, ReadPoint()))
    return found


def answer(rooms, sql, **options):
    table = rooms.query(sql, **options)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def refused(rooms, sql):
    with pytest.raises(DuckMeshError) as caught:
        rooms.query(sql)
    return caught.value


def test_each_table_is_read_at_its_own_version(rooms, versions) -> None:
    first, second, _ = (each.snapshot_id for each in versions)
    sql = (
        f"SELECT (SELECT sum(v) FROM t AT (VERSION => {first})), "
        f"(SELECT sum(v) FROM t AS old AT (VERSION => {second})), (SELECT sum(v) FROM t)"
    )
    assert answer(rooms, sql) == [(1, 3, 6)]


PLACES = (
    "SELECT v FROM t AT (VERSION => {n})",
    "SELECT t.v FROM main.t AT (VERSION => {n})",
    "SELECT t.v FROM duckmesh.main.t AT (version=>{n}) WHERE t.v > 0",
    'FROM "T" /* ) AT */ AT /* ( */ (VERSION => {n}) SELECT v',
    "SELECT x.v FROM t AS x AT (VERSION => {n})",
    "SELECT b FROM t x(b) AT (VERSION => {n})",
    "SELECT x.v FROM x: t AT (VERSION => {n})",
    "SELECT 'é)', v FROM t AT (VERSION => {n})",
    "WITH c AS (SELECT * FROM t AT (VERSION => {n})) SELECT v FROM c",
    "WITH t AS (SELECT v + 0 AS v FROM t AT (VERSION => {n})) SELECT v FROM t",
    "SELECT v FROM (SELECT * FROM t AT (VERSION => {n})) ORDER BY v",
    "SELECT a.v FROM t a AT (VERSION => {n}) JOIN t b ON a.v = b.v",
    "SELECT v FROM t WHERE v IN (SELECT v FROM t AT (VERSION => {n}))",
    "SELECT v FROM t AT (VERSION => {n}) UNION SELECT v FROM t AT (VERSION => {n})",
    "SELECT DISTINCT v FROM t AT (VERSION => {n}), (VALUES (1), (2))",
)


def test_a_version_is_read_wherever_a_table_stands(rooms, versions) -> None:
    for sql in PLACES:
        found = answer(rooms, sql.format(n=versions[1].snapshot_id))
        assert sorted(row[-1] for row in found) == [1, 2], sql


def test_a_time_names_the_snapshot_that_was_newest_then(rooms, versions) -> None:
    second, third = versions[1], versions[2]
    at = second.created_at.astimezone(UTC).isoformat()
    just_before = (third.created_at.astimezone(UTC) - timedelta(microseconds=1)).isoformat()
    for moment in (f"TIMESTAMPTZ '{at}'", f"'{just_before}'", f"'{at}'::TIMESTAMPTZ"):
        assert answer(rooms, f"SELECT sum(v) FROM t AT (TIMESTAMP => {moment})") == [(3,)]
    later = "now() + INTERVAL 1 DAY"
    assert answer(rooms, f"SELECT sum(v) FROM t AT (TIMESTAMP => {later})") == [(6,)]


def test_a_settled_query_names_snapshots_and_stays_as_it_was(rooms, versions) -> None:
    sql = "SELECT sum(x.v) FROM t AS x AT (TIMESTAMP => now()) WHERE x.v > 0"
    settled = rooms.reads.settled(rooms.acme, sql)
    assert f"VERSION => {versions[2].snapshot_id}" in settled
    rooms.write("t", table_of(4))
    rooms.publish_all()
    assert answer(rooms, settled) == [(6,)]
    assert answer(rooms, sql) == [(10,)]
    assert rooms.reads.settled(rooms.acme, settled) == settled


def test_versions_stand_beside_a_pinned_snapshot_and_parameters(rooms, versions) -> None:
    first, second, third = (each.snapshot_id for each in versions)
    sql = (
        f"SELECT ? || 'é', (SELECT count(*) FROM t AT (VERSION => {third}) WHERE v >= ?), "
        f"(SELECT count(*) FROM t), ?"
    )
    bound = pa.record_batch({"a": ["x"], "b": [2], "c": pa.array([None], pa.string())})
    with rooms.reads.run(rooms.acme, sql, first, parameters=bound) as running:
        table = running.reader.read_all()
    assert [column.to_pylist() for column in table.columns] == [["xé"], [2], [1], [None]]
    described = rooms.reads.describe(rooms.acme, sql, second)
    assert len(described.parameter_schema) == 3


def test_a_version_has_the_columns_of_its_time(rooms, versions) -> None:
    other = pa.table({"name": ["a", "b"]})
    rooms.write("t", other, mode=IngestMode.REPLACE)
    rooms.publish_all()
    before = versions[2].snapshot_id
    assert answer(rooms, "SELECT * FROM t ORDER BY name") == [("a",), ("b",)]
    sql = f"SELECT old.v, t.name FROM t, t AS old AT (VERSION => {before}) ORDER BY ALL"
    assert answer(rooms, sql)[:2] == [(1, "a"), (1, "b")]


def test_a_dropped_table_is_read_from_the_snapshots_that_have_it(rooms, versions) -> None:
    rooms.writes.definitions.drop_table(rooms.acme, "t", if_exists=False)
    dropped = rooms.reads.pin(rooms.acme, None, ReadPoint()).snapshot_id
    old = versions[2].snapshot_id
    assert answer(rooms, f"SELECT sum(v) FROM t AT (VERSION => {old})") == [(6,)]
    error = refused(rooms, f"SELECT * FROM t AT (VERSION => {dropped})")
    assert error.code is ErrorCode.TABLE_NOT_FOUND
    assert f"snapshot {dropped} has no table 't'" in error.message


NO_VERSIONS = (
    ("VERSION => 999999999", ErrorCode.SNAPSHOT_NOT_FOUND),
    ("VERSION => 0", ErrorCode.SNAPSHOT_NOT_FOUND),
    ("TIMESTAMP => TIMESTAMP '1999-01-01'", ErrorCode.SNAPSHOT_NOT_FOUND),
    ("VERSION => -1", ErrorCode.SQL_NOT_ALLOWED),
    ("VERSION => 1.5", ErrorCode.SQL_NOT_ALLOWED),
    ("VERSION => 1 + 1", ErrorCode.SQL_NOT_ALLOWED),
    ("VERSION => ?", ErrorCode.SQL_NOT_ALLOWED),
    ("VERSION => 99999999999999999999999", ErrorCode.SQL_NOT_ALLOWED),
    ("TIMESTAMP => 'yesterday'", ErrorCode.SQL_NOT_ALLOWED),
    ("TIMESTAMP => NULL", ErrorCode.SQL_NOT_ALLOWED),
    ("TIMESTAMP => (SELECT now())", ErrorCode.SQL_NOT_ALLOWED),
    ("TIMESTAMP => repeat('x', 2000000000)", ErrorCode.SQL_NOT_ALLOWED),
    ("TIMESTAMP => TIMESTAMP 'infinity'", ErrorCode.SQL_NOT_ALLOWED),
)


def test_what_names_no_version_is_refused(rooms, versions) -> None:
    for clause, code in NO_VERSIONS:
        assert refused(rooms, f"SELECT * FROM t AT ({clause})").code is code, clause


def test_only_tables_have_versions(rooms, versions) -> None:
    for source in ("duckmesh_system.receipts", "information_schema.tables", "nowhere.main.t"):
        error = refused(rooms, f"SELECT * FROM {source} AT (VERSION => 1)")
        assert error.code is ErrorCode.NOT_SUPPORTED
    sampled = refused(rooms, "FROM t AT (VERSION => 1) TABLESAMPLE 10%")
    assert "sample a subquery" in sampled.message


def test_another_tenants_snapshot_does_not_exist(rooms, versions) -> None:
    other = rooms.identity("globex")
    rooms.write("t", table_of(9), identity=other)
    rooms.publish_all()
    foreign = rooms.reads.pin(other, None, ReadPoint()).snapshot_id
    error = refused(rooms, f"SELECT * FROM t AT (VERSION => {foreign})")
    assert error.code is ErrorCode.SNAPSHOT_NOT_FOUND


def test_a_version_is_described_and_summarized(rooms, versions) -> None:
    rooms.write("t", pa.table({"name": ["a"]}), mode=IngestMode.REPLACE)
    rooms.publish_all()
    old = f"SELECT * FROM t AT (VERSION => {versions[1].snapshot_id})"
    assert [row[:2] for row in answer(rooms, f"DESCRIBE {old}")] == [("v", "BIGINT")]
    (summary,) = answer(rooms, f"SUMMARIZE {old}")
    assert summary[:4] == ("v", "BIGINT", "1", "2")
    assert [row[0] for row in answer(rooms, "DESCRIBE t")] == ["name"]


def test_a_listing_reads_no_version(rooms, versions) -> None:
    number = versions[0].snapshot_id
    sql = f"SELECT * FROM t AT (VERSION => {number}), information_schema.tables"
    assert refused(rooms, sql).code is ErrorCode.NOT_SUPPORTED


def test_system_tables_show_pins_and_dead_letters(rooms):
    rooms.write("t", table_of(1))
    rooms.publish_all()
    newest = rooms.visibility.newest(rooms.acme.tenant_id).snapshot_id
    SnapshotPins(rooms.catalog).pin(rooms.acme, newest, tag="good")
    found = rooms.query("SELECT snapshot_id, tag, created_by FROM duckmesh_system.pins")
    assert found.to_pylist() == [{"snapshot_id": newest, "tag": "good", "created_by": "test"}]
    rooms.write("t", table_of(2), key="k")
    held = rooms.bus.claim_batch(
        ConsumerId("c"), limit=1, max_bytes=2**20, lease=timedelta(seconds=30)
    )
    assert held is not None
    rooms.bus.nack(held, [held.events[0].envelope.event_id], "broken", dead=True)
    asked = "SELECT visibility_token, table_name, failure_reason FROM duckmesh_system.dead_letters"
    row = {"visibility_token": 2, "table_name": "t", "failure_reason": "broken"}
    assert rooms.query(asked).to_pylist() == [row]
    reader = replace(rooms.acme, roles=frozenset({Role.QUERY_READER}))
    assert rooms.query(asked, identity=reader).num_rows == 0
    assert rooms.query("SELECT v FROM t", tag="good").column(0).to_pylist() == [1]
