"""DELETE and UPDATE, taken apart: the queries change what DuckDB's own statements change."""

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, ErrorCode, NotSupported
from query_engine.bound_rows import BoundRows
from query_engine.changes import ChangeReader, changed_columns
from query_engine.scratch import Scratch

TABLE = pa.schema(
    [("id", pa.int32()), ("part", pa.string()), ("a", pa.int32()), ("b", pa.string())]
)
KEY = ("id", "part")

MADE = (
    "CREATE TABLE t (id INTEGER, part VARCHAR, a INTEGER, b VARCHAR, PRIMARY KEY (id, part))",
    "INSERT INTO t SELECT i % 20, 'p' || i // 20, nullif(i, 7), 'b' || i FROM range(60) AS r(i)",
    "CREATE TABLE u (id INTEGER, v INTEGER)",
    "INSERT INTO u VALUES (1, 10), (2, 20), (3, NULL), (40, 4)",
    "CREATE TABLE w (id INTEGER, name VARCHAR)",
    "INSERT INTO w VALUES (1, 'one'), (2, 'two')",
    'CREATE TABLE "q""x" ("s""t" INTEGER, n INTEGER)',
    'INSERT INTO "q""x" VALUES (1, 5), (2, 6)',
)


@pytest.fixture(scope="module")
def reader() -> Iterator[ChangeReader]:
    scratch = Scratch()
    yield ChangeReader(scratch)
    scratch.close()


@pytest.fixture
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        for statement in MADE:
            connection.execute(statement)
        yield connection


def rows(duck: duckdb.DuckDBPyConnection, sql: str, bound: Any = None) -> list[tuple[Any, ...]]:
    return duck.execute(sql, bound).fetchall()


def by_key(found: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    keyed = {row[:2]: row for row in found}
    assert len(keyed) == len(found), "a key comes twice"
    return keyed


FORMS = [
    ("DELETE FROM t", None),
    ("delete from main.t where a > 30 or a is null;", None),
    ("DELETE FROM t AS x WHERE x.id = 3 -- the end", None),
    ("DELETE FROM t WHERE main.t.id = 3", None),
    ("DELETE /* all ; of */ FROM T WHERE Id = 1", None),
    ("DELETE FROM t USING u WHERE t.id = u.id AND u.v > 10", None),
    ("DELETE FROM t USING u, w WHERE t.id = u.id AND w.id = u.id", None),
    ("DELETE FROM t USING u JOIN w USING (id), range(2) WHERE t.id = u.id", None),
    ("DELETE FROM t x USING t y WHERE x.id = y.id AND y.a > x.a", None),
    ("DELETE FROM t WHERE id IN (SELECT id FROM u)", None),
    ("DELETE FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id)", None),
    ("DELETE FROM t WHERE (id, part) IN (SELECT id, max(part) FROM t GROUP BY id)", None),
    ("DELETE FROM t WHERE a = (SELECT max(a) FROM t)", None),
    (
        "WITH q AS (SELECT 3 AS n), r AS (SELECT n m FROM q) DELETE FROM t USING r WHERE id = m",
        None,
    ),
    (
        "WITH RECURSIVE q AS (SELECT 1 n UNION FROM q) DELETE FROM t WHERE id IN (FROM q)",
        None,
    ),
    ("DELETE FROM t WHERE id IN (SELECT unnest([1, 2, 3]))", None),
    ('DELETE FROM t USING "q""x" WHERE id = "s""t"', None),
    ("DELETE FROM t WHERE b = 'x''); DROP TABLE t; --' OR b LIKE 'b1%'", None),
    ("DELETE FROM t WHERE list_has_any([id], list_transform([1, 2], lambda x: x + 1))", None),
    ("DELETE FROM t WHERE id = ? AND part = ?", [3, "p1"]),
    (
        "WITH q AS (SELECT ?::INT AS n) DELETE FROM t USING q, range(?) WHERE id = n AND a < ?",
        [3, 2, 40],
    ),
    ("DELETE FROM t WHERE id = $2 AND part = $1", ["p1", 3]),
    ("DELETE FROM t WHERE id = $i AND part = $p", {"p": "p1", "i": 3}),
    ("UPDATE t SET b = 'new'", None),
    ("UPDATE main.t SET B = upper(b), A = a + 1 WHERE id < 3;", None),
    ("UPDATE t AS x SET a = x.a * 2 WHERE x.part = 'p2'", None),
    ("UPDATE t SET a = id, b = a WHERE a IS NOT NULL", None),
    ("UPDATE t SET (a, b) = (1, 'y') WHERE id = 2", None),
    ("UPDATE t SET (a, b) = ROW(id, part)", None),
    ("UPDATE t SET a = DEFAULT, b = NULL WHERE id = 2", None),
    ("UPDATE t SET a = '7', b = 12 WHERE id = 2", None),
    ("UPDATE t SET a = 1.6 WHERE id = 2", None),
    ("UPDATE t SET a = v FROM u WHERE t.id = u.id", None),
    ("UPDATE t SET a = v, b = name FROM u, w WHERE t.id = u.id AND w.id = u.id", None),
    (
        "UPDATE t SET a = v, b = name FROM u LEFT JOIN w USING (id), range(3) WHERE t.id = u.id",
        None,
    ),
    (
        "UPDATE t SET a = 5 FROM u, u AS v, w WHERE t.id = u.id AND u.id = v.id AND v.id = w.id",
        None,
    ),
    (
        "UPDATE t SET a = n FROM (SELECT id, count(*) n FROM u GROUP BY id) s WHERE s.id = t.id",
        None,
    ),
    ("UPDATE t SET a = (SELECT max(v) FROM u WHERE u.id = t.id)", None),
    ("UPDATE t SET a = (SELECT count(*) FROM t AS o WHERE o.id = t.id AND o.a < t.a)", None),
    (
        "UPDATE t SET a = CASE WHEN a > 9 THEN 1 ELSE a END, b = b || '!' WHERE a BETWEEN 3 AND 20",
        None,
    ),
    ("WITH q AS (SELECT 9 AS n) UPDATE t SET a = n FROM q WHERE id = 1", None),
    ('UPDATE t SET a = "q""x".n FROM "q""x" WHERE id = "s""t"', None),
    ("UPDATE t SET b = '\"); DELETE FROM t; --' WHERE id = 1", None),
    ("UPDATE t SET b = ?, a = ? WHERE id = ?", ["z", 5, 1]),
    ("UPDATE t SET b = $y, a = $x WHERE id = $z", {"x": 5, "y": "z", "z": 1}),
    (
        "WITH q AS (SELECT ?::INT n) UPDATE t SET a = ? + n FROM q, range(?) WHERE id = ?",
        [1, 2, 3, 4],
    ),
    ("UPDATE t SET a = ?", ["12"]),
    ("UPDATE t SET a = 1 WHERE false", None),
]


@pytest.mark.parametrize(("sql", "bound"), FORMS, ids=[sql for sql, _ in FORMS])
def test_each_form_changes_what_duckdb_itself_changes(
    reader: ChangeReader, duck: duckdb.DuckDBPyConnection, sql: str, bound: Any
) -> None:
    change = reader.read(sql)
    assert change.target.name.lower() == "t"
    found = rows(duck, reader.query_of(change, TABLE, KEY), bound)
    left = by_key(rows(duck, "FROM t"))
    if change.is_delete:
        for key in found:
            del left[key]
    else:
        changed = by_key(found)
        assert changed.keys() <= left.keys()
        left |= changed
    assert duck.execute(sql, bound).fetchone() == (len(found),)
    assert left == by_key(rows(duck, "FROM t"))


SEVERAL = [
    ("DELETE FROM t WHERE id = ?", [(1,), (2,), (1,)]),
    ("DELETE FROM t WHERE part = $2 AND id = $1", [(1, "p0"), (2, "p1")]),
    ("DELETE FROM t AS bound USING u WHERE bound.id = u.id AND v > ?", [(5,), (15,)]),
    ("DELETE FROM t USING u, w WHERE t.id = u.id AND u.id = w.id AND name = ?", [("one",), ("x",)]),
    ("UPDATE t SET a = ?, b = ? WHERE id = ? AND part = ?", [(1, "x", 1, "p0"), (2, "y", 1, "p1")]),
    ("UPDATE t SET a = v + ? FROM u WHERE t.id = u.id AND u.id = ?", [(5, 1), (6, 2), (7, 9)]),
    ("UPDATE t SET a = n FROM range(?) AS r(n) WHERE id = ?", None),
    ("DELETE FROM t WHERE id = (SELECT max(id) FROM u WHERE v < ?)", None),
    ("WITH q AS (SELECT ? AS n) DELETE FROM t USING q WHERE id = n", None),
    ("DELETE FROM t", None),
]


@pytest.mark.parametrize(("sql", "several"), SEVERAL, ids=[sql for sql, _ in SEVERAL])
def test_one_query_for_all_bound_rows_finds_what_they_find_one_by_one(
    reader: ChangeReader,
    duck: duckdb.DuckDBPyConnection,
    sql: str,
    several: list[tuple[Any, ...]] | None,
) -> None:
    change = reader.read(sql)
    assert change.takes_bound_rows == (several is not None)
    if several is None:
        return
    table = pa.table({str(n): list(values) for n, values in enumerate(zip(*several, strict=True))})
    bound = BoundRows.of(table, change.parameters, sql=sql)
    lists = [column[0].as_py() for column in bound.lists.columns]
    found = rows(duck, reader.query_of(change, TABLE, KEY, bound), lists)
    query = reader.query_of(change, TABLE, KEY)
    one_by_one = [row for values in several for row in rows(duck, query, list(values))]
    if change.is_delete:
        assert len(found) == len(set(found))
        one_by_one = list(set(one_by_one))
    assert sorted(found, key=str) == sorted(one_by_one, key=str)
    assert found


def test_a_row_that_two_bound_rows_change_comes_twice(
    reader: ChangeReader, duck: duckdb.DuckDBPyConnection
) -> None:
    change = reader.read("UPDATE t SET a = ? FROM range(3) WHERE id = 1 AND part = 'p0'")
    bound = BoundRows.of(pa.table({"0": [7, 8]}), change.parameters, sql="")
    found = rows(duck, reader.query_of(change, TABLE, KEY, bound), [[7, 8]])
    assert sorted(found) == [(1, "p0", 7, "b1"), (1, "p0", 8, "b1")]


def test_the_query_has_the_columns_and_types_of_the_table(
    reader: ChangeReader, duck: duckdb.DuckDBPyConnection
) -> None:
    update = reader.query_of(reader.read("UPDATE t SET a = 1::BIGINT"), TABLE, KEY)
    assert duck.sql(update).to_arrow_table().schema.equals(TABLE)
    delete = reader.query_of(reader.read("DELETE FROM t"), TABLE, ("part", "id"))
    assert duck.sql(delete).to_arrow_table().schema.names == ["part", "id"]


def test_a_row_that_matches_several_times_becomes_the_least_of_its_new_rows(
    reader: ChangeReader, duck: duckdb.DuckDBPyConnection
) -> None:
    change = reader.read("UPDATE t SET a = n FROM range(5, 9) AS r(n) WHERE id = 1")
    found = rows(duck, reader.query_of(change, TABLE, KEY))
    assert sorted(found) == [(1, f"p{p}", 5, f"b{1 + 20 * p}") for p in range(3)]


def test_a_name_in_the_statement_is_never_taken_for_one_of_ours(
    reader: ChangeReader, duck: duckdb.DuckDBPyConnection
) -> None:
    duck.execute("CREATE TABLE odd (c0 INTEGER PRIMARY KEY, c1 INTEGER, source INTEGER)")
    duck.execute("INSERT INTO odd VALUES (1, 2, 3)")
    odd = pa.schema([(name, pa.int32()) for name in ("c0", "c1", "source")])
    change = reader.read(
        "WITH source AS (SELECT 7 AS matched) "
        "UPDATE odd SET source = c0 + matched, c1 = odd.source FROM source"
    )
    assert rows(duck, reader.query_of(change, odd, ("c0",))) == [(1, 3, 8)]
    with pytest.raises(duckdb.BinderException):
        rows(
            duck,
            reader.query_of(reader.read("UPDATE odd SET c1 = c2 WHERE c0 = 1"), odd, ("c0",)),
        )


def test_the_parameters_keep_their_order(reader: ChangeReader) -> None:
    change = reader.read("UPDATE t SET b = $y, a = $x FROM u WHERE id = $z AND a = $x")
    assert [each.identifier for each in change.parameters] == ["y", "x", "z", "x"]
    query = reader.query_of(change, TABLE, KEY)
    assert query.index("$y") < query.index("$x") < query.index("$z")


def test_the_columns_whose_values_do_not_convert_are_told(
    reader: ChangeReader, duck: duckdb.DuckDBPyConnection
) -> None:
    change = reader.read("UPDATE t SET b = 'x', a = b WHERE id = 1")
    assigned = changed_columns(change, TABLE, KEY)
    assert assigned == ["b", "a"]
    with pytest.raises(duckdb.ConversionException):
        rows(duck, reader.query_of(change, TABLE, KEY))
    failing = reader.failing_columns_query(change, TABLE, assigned)
    assert rows(duck, failing) == [(False, True)]


REFUSED = [
    ("UPDATE t SET id = 2", ErrorCode.NOT_SUPPORTED),
    ("UPDATE t SET a = 1, PART = 'x'", ErrorCode.NOT_SUPPORTED),
    ("UPDATE t SET a = 1 RETURNING a", ErrorCode.NOT_SUPPORTED),
    ("DELETE FROM t RETURNING *", ErrorCode.NOT_SUPPORTED),
    ("UPDATE t SET a = row_number() OVER ()", ErrorCode.NOT_SUPPORTED),
    ("UPDATE t SET a = 1 + unnest([1, 2])", ErrorCode.NOT_SUPPORTED),
    ("UPDATE t SET a = COLUMNS('a')", ErrorCode.NOT_SUPPORTED),
    ("DELETE FROM t WHERE COLUMNS(*) IS NULL", ErrorCode.NOT_SUPPORTED),
    ("UPDATE t SET none = 2", ErrorCode.SCHEMA_INCOMPATIBLE),
    ("UPDATE t SET a = 2, A = 3", ErrorCode.SCHEMA_INCOMPATIBLE),
    ("WITH t AS (SELECT 1 AS id) DELETE FROM t", ErrorCode.SQL_NOT_ALLOWED),
    ('WITH "T" AS (SELECT 1 AS id) UPDATE t SET a = 1', ErrorCode.SQL_NOT_ALLOWED),
    ("SELECT 1", ErrorCode.SQL_NOT_ALLOWED),
    ("INSERT INTO t VALUES (1)", ErrorCode.SQL_NOT_ALLOWED),
    ("DELETE FROM other.t", ErrorCode.TABLE_REQUIRED),
    ("DELETE FROM acme.main.t", ErrorCode.TABLE_REQUIRED),
    ("UPDATE duckmesh_system.tables SET a = 1", ErrorCode.TABLE_REQUIRED),
    ("DELETE FROM t) SELECT 1 --", ErrorCode.QUERY_EXECUTION_FAILED),
    ("DELETE FROM t), x AS (DELETE FROM u", ErrorCode.SQL_NOT_ALLOWED),
    ("UPDATE t SET t.a = 1", ErrorCode.QUERY_EXECUTION_FAILED),
    ("UPDATE t SET a", ErrorCode.QUERY_EXECUTION_FAILED),
    ("DELETE FROM t LIMIT 3", ErrorCode.QUERY_EXECUTION_FAILED),
    ("DELETE FROM range(3)", ErrorCode.QUERY_EXECUTION_FAILED),
    ("", ErrorCode.QUERY_EXECUTION_FAILED),
    ("UPDATE t SET a = " + "(" * 5_000 + "1" + ")" * 5_000, None),
]


@pytest.mark.parametrize(("sql", "code"), REFUSED, ids=[sql[:60] for sql, _ in REFUSED])
def test_what_is_no_change_of_a_table_is_refused(
    reader: ChangeReader, sql: str, code: ErrorCode | None
) -> None:
    with pytest.raises(DuckMeshError) as caught:
        reader.query_of(reader.read(sql), TABLE, KEY)
    assert code is None or caught.value.code is code


@pytest.mark.parametrize("sql", ["DELETE FROM t WHERE a = 1", "UPDATE t SET a = 1"])
def test_a_table_without_a_key_is_refused_with_another_way(reader: ChangeReader, sql: str) -> None:
    with pytest.raises(NotSupported, match="CREATE OR REPLACE TABLE"):
        reader.query_of(reader.read(sql), TABLE, ())
