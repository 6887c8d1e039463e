"""ALTER TABLE, TRUNCATE and keys by SQL, over real rooms: old rows are read right after each."""

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import Conflict, Denied, DuckMeshError, ErrorCode, Invalid, NotSupported
from gateway.identity import Identity, Role
from gateway.ingest_modes import IngestMode
from gateway.reads import ReadPoint
from tests.rooms import Rooms


def found(rooms: Rooms, sql: str) -> list[tuple[Any, ...]]:
    rooms.publish_all()
    table = rooms.query(sql)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def names(rooms: Rooms) -> list[str]:
    (table,) = rooms.reads.tables(rooms.acme)
    return list(table.schema.names)


@pytest.fixture
def t(rooms: Rooms) -> Rooms:
    """A table `t` with one published row."""
    rooms.execute("CREATE TABLE t (a INTEGER, b VARCHAR, c DECIMAL(5,2), f REAL)")
    rooms.execute("INSERT INTO t VALUES (1, 'old', 1.25, 0.5)")
    rooms.publish_all()
    return rooms


@pytest.mark.parametrize(
    ("change", "insert", "query", "expected"),
    [
        ("ADD COLUMN z DATE", "(2, 'n', 1, 1, NULL)", "a, z", [(1, None), (2, None)]),
        ("ADD COLUMN IF NOT EXISTS z INTEGER", "(2, 'n', 1, 1, 7)", "a, z", [(1, None), (2, 7)]),
        ("DROP COLUMN b", "(2, 1, 1)", "a", [(1,), (2,)]),
        ("RENAME COLUMN b TO name", "(2, 'n', 1, 1)", "a, name", [(1, "old"), (2, "n")]),
        ("RENAME b TO B", "(2, 'n', 1, 1)", "b", [("n",), ("old",)]),
        ("ALTER a TYPE BIGINT", "(5000000000, 'n', 1, 1)", "a", [(1,), (5_000_000_000,)]),
        ("ALTER a SET DATA TYPE DOUBLE", "(2.5, 'n', 1, 1)", "a", [(1.0,), (2.5,)]),
        ("ALTER a TYPE DECIMAL(12,1)", "(2.5, 'n', 1, 1)", "a", [(Decimal(1),), (Decimal("2.5"),)]),
        (
            "ALTER c TYPE DECIMAL(9,3)",
            "(2, 'n', 1234.125, 1)",
            "c",
            [(Decimal("1.250"),), (Decimal("1234.125"),)],
        ),
        ("ALTER f TYPE DOUBLE", "(2, 'n', 1, 1e300)", "f", [(0.5,), (1e300,)]),
    ],
)
def test_old_and_new_rows_are_read_through_the_new_columns(
    t: Rooms, change: str, insert: str, query: str, expected: list[tuple[Any, ...]]
) -> None:
    before = t.reads.pin(t.acme, None, ReadPoint()).snapshot_id
    t.execute(f"ALTER TABLE t {change}")
    t.execute(f"INSERT INTO t VALUES {insert}")
    assert found(t, f"SELECT {query} FROM t ORDER BY ALL") == expected
    assert t.query_at("SELECT a, b FROM t", before).to_pylist() == [{"a": 1, "b": "old"}]


def test_a_dropped_columns_name_may_come_again_without_its_values(t: Rooms) -> None:
    t.execute("ALTER TABLE t DROP COLUMN b")
    t.execute("ALTER TABLE t ADD COLUMN b INTEGER")
    assert found(t, "SELECT a, b FROM t") == [(1, None)]


def test_two_columns_may_swap_their_names(t: Rooms) -> None:
    t.execute("ALTER TABLE t ADD COLUMN d VARCHAR")
    t.execute("INSERT INTO t VALUES (2, 'b', 1, 1, 'd')")
    for old, new in (("b", "x"), ("d", "b"), ("x", "d")):
        t.execute(f"ALTER TABLE t RENAME COLUMN {old} TO {new}")
    assert found(t, "SELECT b, d FROM t ORDER BY a") == [(None, "old"), ("d", "b")]


def test_rows_accepted_before_a_change_and_published_after_it_are_read_right(t: Rooms) -> None:
    t.execute("INSERT INTO t VALUES (2, 'late', 1, 1)")
    t.execute("ALTER TABLE t RENAME COLUMN b TO name")
    t.execute("ALTER TABLE t ALTER a TYPE BIGINT")
    assert found(t, "SELECT a, name FROM t ORDER BY a") == [(1, "old"), (2, "late")]


def test_a_write_that_began_before_a_change_is_sent_back(t: Rooms) -> None:
    rows = t.query("FROM t")
    late = t.writes.begin(t.acme, "t", rows.schema, mode=IngestMode.APPEND)
    late.append(rows.to_batches()[0])
    t.execute("ALTER TABLE t DROP COLUMN b")
    with pytest.raises(Conflict) as caught:
        late.commit()
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    late.abort()
    assert found(t, "SELECT count(*) FROM t") == [(1,)]


def test_columns_that_a_replacement_brings_are_altered_once_they_are_there(t: Rooms) -> None:
    t.write("t", pa.table({"n": [1, 2]}), mode=IngestMode.REPLACE)
    with pytest.raises(DuckMeshError) as caught:
        t.execute("ALTER TABLE t RENAME COLUMN n TO m")
    assert caught.value.code is ErrorCode.CONSISTENCY_TIMEOUT
    t.publish_all()
    t.execute("ALTER TABLE t RENAME COLUMN n TO m")
    assert found(t, "SELECT m FROM t ORDER BY m") == [(1,), (2,)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("ALTER a TYPE SMALLINT", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("ALTER a TYPE VARCHAR", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("ALTER a TYPE UBIGINT", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("ALTER a TYPE FLOAT", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("ALTER c TYPE DECIMAL(5,3)", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("ALTER b TYPE INTEGER USING length(b)", ErrorCode.NOT_SUPPORTED),
        ("ALTER a SET NOT NULL", ErrorCode.NOT_SUPPORTED),
        ("ALTER a SET DEFAULT 3", ErrorCode.NOT_SUPPORTED),
        ("ADD COLUMN z INTEGER DEFAULT 3", ErrorCode.NOT_SUPPORTED),
        ("ADD COLUMN z INTERVAL", ErrorCode.NOT_SUPPORTED),
        ("ADD PRIMARY KEY (a)", ErrorCode.NOT_SUPPORTED),
        ("DROP COLUMN absent", ErrorCode.QUERY_EXECUTION_FAILED),
        ("ADD COLUMN a INTEGER", ErrorCode.QUERY_EXECUTION_FAILED),
        ("RENAME COLUMN a TO b", ErrorCode.QUERY_EXECUTION_FAILED),
    ],
)
def test_a_change_that_old_rows_do_not_bear_is_refused(
    t: Rooms, change: str, code: ErrorCode
) -> None:
    with pytest.raises(DuckMeshError) as caught:
        t.execute(f"ALTER TABLE t {change}")
    assert caught.value.code is code
    assert names(t) == ["a", "b", "c", "f"]


def test_drop_not_null_takes_nulls_from_then_on(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE t (a INTEGER NOT NULL)")
    with pytest.raises(Invalid):
        rooms.execute("INSERT INTO t VALUES (NULL)")
    rooms.execute("ALTER TABLE t ALTER a DROP NOT NULL")
    rooms.execute("INSERT INTO t VALUES (NULL)")
    assert found(rooms, "FROM t") == [(None,)]


def test_alter_needs_a_table_and_a_right(t: Rooms) -> None:
    t.execute("ALTER TABLE IF EXISTS absent ADD COLUMN z INTEGER")
    with pytest.raises(DuckMeshError) as caught:
        t.execute("ALTER TABLE absent ADD COLUMN z INTEGER")
    assert caught.value.code is ErrorCode.TABLE_NOT_FOUND
    writer = Identity(t.acme.tenant_id, "acme", "w", None, frozenset({Role.INGEST_WRITER}))
    for sql in ("ALTER TABLE t ADD COLUMN z INTEGER", "TRUNCATE t"):
        with pytest.raises(Denied):
            t.execute(sql, identity=writer)


def test_truncate_removes_what_was_written_before_it(t: Rooms) -> None:
    t.execute("INSERT INTO t (a) VALUES (2)")
    done = t.execute("TRUNCATE TABLE t")
    assert (done.row_count, done.visibility_token) == (None, 3)
    t.execute("INSERT INTO t (a) VALUES (3)")
    assert found(t, "SELECT a FROM t") == [(3,)]


def test_a_primary_key_is_kept_shown_and_renamed_with_its_columns(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE k (a INTEGER, b VARCHAR, v DOUBLE, PRIMARY KEY (b, a))")
    (table,) = rooms.reads.tables(rooms.acme)
    assert table.primary_key == ("b", "a")
    assert [field.nullable for field in table.schema] == [False, False, True]
    rooms.execute("ALTER TABLE k RENAME COLUMN b TO code")
    (table,) = rooms.reads.tables(rooms.acme)
    assert table.primary_key == ("code", "a")
    for change in ("DROP COLUMN a", "ALTER code DROP NOT NULL"):
        with pytest.raises((NotSupported, Invalid)):
            rooms.execute(f"ALTER TABLE k {change}")
    rooms.execute("INSERT INTO k VALUES (1, 'x', 1), (1, 'x', 2)")
    assert found(rooms, "FROM k") == [(1, "x", 2.0)]


def test_names_are_compared_without_case(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE Mixed (A INTEGER)")
    rooms.execute("INSERT INTO mixed (a) VALUES (1)")
    rooms.execute("ALTER TABLE MIXED ADD COLUMN b INTEGER")
    with pytest.raises(Conflict):
        rooms.execute("CREATE TABLE MIXED (z INTEGER)")
    assert found(rooms, "SELECT a, b FROM mIxEd") == [(1, None)]
    rooms.execute("DROP TABLE mixeD")
    assert rooms.reads.tables(rooms.acme) == []
