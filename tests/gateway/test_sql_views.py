"""Views, over real rooms: expanded when they are queried, at the snapshot of the query."""

from typing import Any

import pytest

from duckmesh.errors import Conflict, Denied, DuckMeshError, ErrorCode
from gateway.identity import Identity, Role
from gateway.reads import ReadPoint
from tests.rooms import Rooms


def found(rooms: Rooms, sql: str, **point: object) -> list[tuple[Any, ...]]:
    rooms.publish_all()
    table = rooms.query(sql, **point)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.fixture
def t(rooms: Rooms) -> Rooms:
    rooms.execute("CREATE TABLE t (a INTEGER, b VARCHAR)")
    rooms.execute("CREATE TABLE u (a INTEGER)")
    rooms.execute("INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'z')")
    rooms.execute("INSERT INTO u VALUES (2), (3)")
    rooms.execute("CREATE VIEW v AS SELECT t.* FROM t JOIN u USING (a)")
    return rooms


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("FROM v ORDER BY a", [(2, "y"), (3, "z")]),
        ("SELECT V.b FROM main.v AS V WHERE V.a = 3", [("z",)]),
        ("SELECT x FROM v AS q(x, y) ORDER BY x", [(2,), (3,)]),
        ("SELECT count(*) FROM v JOIN v AS w USING (a)", [(2,)]),
        ("SELECT (SELECT max(a) FROM v)", [(3,)]),
        ("WITH t AS (SELECT 9 AS a, 'w' AS b) SELECT count(*) FROM v, t", [(2,)]),
        ("WITH v AS (SELECT 9 AS a) SELECT a FROM v", [(9,)]),
        ("WITH v AS (SELECT a FROM v) SELECT max(a) FROM v", [(3,)]),
        ("SELECT a FROM v WHERE a IN (WITH u AS (SELECT 2 AS a) FROM u)", [(2,)]),
        ("SELECT column_name FROM (DESCRIBE v)", [("a",), ("b",)]),
    ],
)
def test_a_view_is_read_as_a_table_is(t: Rooms, query: str, rows: list[tuple[Any, ...]]) -> None:
    assert found(t, query) == rows


def test_a_view_of_views_reads_and_waits_for_every_table_under_it(t: Rooms) -> None:
    t.execute("CREATE VIEW top (n) AS SELECT count(*) FROM v")
    assert found(t, "FROM top") == [(2,)]
    done = t.execute("INSERT INTO u VALUES (1)")
    with pytest.raises(DuckMeshError) as caught:
        t.query("FROM top", min_token=done.visibility_token)
    assert caught.value.code is ErrorCode.CONSISTENCY_TIMEOUT
    assert found(t, "FROM top", min_token=done.visibility_token) == [(3,)]


def test_a_view_does_not_wait_for_tables_that_it_does_not_read(t: Rooms) -> None:
    t.publish_all()
    t.execute("CREATE TABLE other (a INTEGER)")
    done = t.execute("INSERT INTO other VALUES (1)")
    point = ReadPoint(min_token=done.visibility_token)
    t.reads.pin(t.acme, "FROM v", point)
    with pytest.raises(DuckMeshError):
        t.reads.pin(t.acme, "FROM v, other", point)


def test_a_view_belongs_to_the_snapshots_that_have_it(t: Rooms) -> None:
    t.publish_all()
    before = t.reads.pin(t.acme, None, ReadPoint()).snapshot_id
    t.execute("CREATE OR REPLACE VIEW v AS SELECT 7 AS seven")
    assert found(t, "FROM v") == [(7,)]
    assert t.query_at("SELECT max(a) AS m FROM v", before).to_pylist() == [{"m": 3}]
    t.execute("DROP VIEW v")
    assert t.query_at("SELECT max(a) AS m FROM v", before).to_pylist() == [{"m": 3}]
    with pytest.raises(DuckMeshError) as caught:
        t.query("FROM v")
    assert caught.value.code is ErrorCode.TABLE_NOT_FOUND


def test_a_view_sees_the_columns_that_its_tables_have_now(t: Rooms) -> None:
    t.execute("ALTER TABLE t ADD COLUMN c INTEGER")
    assert found(t, "SELECT a, c FROM v ORDER BY a") == [(2, None), (3, None)]
    t.execute("DROP TABLE u")
    with pytest.raises(DuckMeshError) as caught:
        t.query("FROM v")
    assert caught.value.code is ErrorCode.TABLE_NOT_FOUND


def test_views_are_listed_as_views(t: Rooms) -> None:
    kinds = found(t, "SELECT table_name, table_type FROM information_schema.tables ORDER BY ALL")
    assert ("v", "VIEW") in kinds
    assert ("t", "BASE TABLE") in kinds
    assert ("v",) in found(t, "SHOW TABLES")
    assert [(each.name, each.is_view) for each in t.reads.tables(t.acme)] == [
        ("t", False),
        ("u", False),
        ("v", True),
    ]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("CREATE VIEW v AS SELECT 1 AS a", ErrorCode.TABLE_EXISTS),
        ("CREATE VIEW T AS SELECT 1 AS a", ErrorCode.TABLE_EXISTS),
        ("CREATE OR REPLACE VIEW t AS SELECT 1 AS a", ErrorCode.TABLE_EXISTS),
        ("CREATE TABLE V (a INTEGER)", ErrorCode.TABLE_EXISTS),
        ("CREATE TABLE v AS SELECT 1 AS a", ErrorCode.TABLE_EXISTS),
        ("CREATE OR REPLACE VIEW v AS SELECT * FROM v", ErrorCode.SQL_NOT_ALLOWED),
        ("CREATE VIEW w AS SELECT * FROM absent", ErrorCode.TABLE_NOT_FOUND),
        ("CREATE VIEW w AS SELECT nothing FROM t", ErrorCode.QUERY_EXECUTION_FAILED),
        ("CREATE VIEW w AS FROM read_csv('x')", ErrorCode.SQL_NOT_ALLOWED),
        ("CREATE VIEW w AS SELECT getvariable('x')", ErrorCode.SQL_NOT_ALLOWED),
        ("CREATE VIEW w AS FROM t AT (VERSION => 1)", ErrorCode.NOT_SUPPORTED),
        ("CREATE TEMP VIEW w AS SELECT 1 AS a", ErrorCode.NOT_SUPPORTED),
        ("INSERT INTO v VALUES (1, 'x')", ErrorCode.SQL_NOT_ALLOWED),
        ("DROP VIEW absent", ErrorCode.TABLE_NOT_FOUND),
        ("DROP VIEW t", ErrorCode.TABLE_NOT_FOUND),
        ("DROP TABLE v", ErrorCode.TABLE_NOT_FOUND),
    ],
)
def test_what_no_view_may_be_is_refused(t: Rooms, sql: str, code: ErrorCode) -> None:
    with pytest.raises(DuckMeshError) as caught:
        t.execute(sql)
    assert caught.value.code is code


def test_views_that_read_each_other_are_refused_when_they_would(t: Rooms) -> None:
    t.execute("CREATE VIEW w AS SELECT * FROM v")
    with pytest.raises(DuckMeshError, match="reads itself"):
        t.execute("CREATE OR REPLACE VIEW v AS SELECT * FROM w")


def test_views_that_would_multiply_are_refused(t: Rooms) -> None:
    t.execute("CREATE VIEW v0 AS SELECT 1 AS a")
    with pytest.raises(DuckMeshError, match="more than 256 views"):  # noqa: PT012 - which one fails is not the point
        for n in range(1, 12):
            t.execute(f"CREATE VIEW v{n} AS FROM v{n - 1} UNION ALL FROM v{n - 1}")


def test_if_exists_and_if_not_exists(t: Rooms) -> None:
    t.execute("DROP VIEW IF EXISTS absent")
    t.execute("CREATE VIEW IF NOT EXISTS v AS SELECT 1 AS other")
    assert found(t, "SELECT count(a) FROM v") == [(2,)]
    with pytest.raises(Conflict):
        t.execute("CREATE VIEW v AS SELECT 1 AS other")


def test_views_are_their_tenants_own_and_need_a_right(t: Rooms) -> None:
    other = t.identity("other")
    with pytest.raises(DuckMeshError) as caught:
        t.query("FROM v", identity=other)
    assert caught.value.code is ErrorCode.TABLE_NOT_FOUND
    reader = Identity(t.acme.tenant_id, "acme", "r", None, frozenset({Role.QUERY_READER}))
    for sql in ("CREATE VIEW w AS SELECT 1 AS a", "DROP VIEW v"):
        with pytest.raises(Denied):
            t.execute(sql, identity=reader)
    assert found(t, "SELECT count(*) FROM v") == [(2,)]


def test_rows_are_inserted_and_tables_made_from_views(t: Rooms) -> None:
    t.publish_all()
    t.execute("INSERT INTO u SELECT a + 10 FROM v")
    t.execute("CREATE TABLE made AS FROM v")
    assert found(t, "SELECT max(a) FROM u") == [(13,)]
    assert found(t, "SELECT count(*) FROM made") == [(2,)]
