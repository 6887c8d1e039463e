"""DELETE, UPDATE and INSERT OR REPLACE over real rooms: what they change, refuse and return."""

import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from catalog.table_schema import TableSchema
from duckmesh.errors import (
    Cancelled,
    Conflict,
    Denied,
    DuckMeshError,
    ErrorCode,
    Invalid,
    NotFound,
    NotSupported,
    NotYetVisible,
)
from duckmesh.tokens import VisibilityToken
from gateway.identity import Identity, Role
from gateway.reads import ReadPoint
from gateway.sql_steps import Executed
from query_engine.engine import Interruption
from tests.rooms import Rooms, open_rooms

STOCK = [(1, 10, "nut"), (2, 20, "bolt"), (3, None, "pin"), (4, 40, None)]


@pytest.fixture
def stock(rooms: Rooms) -> Rooms:
    """A keyed table `stock` with four rows, all visible."""
    rooms.execute("CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER, name VARCHAR)")
    rooms.execute("INSERT INTO stock VALUES (?, ?, ?)", *STOCK)
    rooms.publish_all()
    return rooms


def found(rooms: Rooms, sql: str = "FROM stock ORDER BY id") -> list[tuple[Any, ...]]:
    rooms.publish_all()
    table = rooms.query(sql)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def change(rooms: Rooms, sql: str, *bound: tuple[object, ...], **options: Any) -> Executed:
    """Run a statement when everything before it is visible: it would wait for that."""
    rooms.publish_all()
    return rooms.execute(sql, *bound, **options)


def last_token(rooms: Rooms) -> int:
    return rooms.bus.last_token(rooms.acme.tenant_id)


def with_roles(rooms: Rooms, *roles: Role) -> Identity:
    return Identity(rooms.acme.tenant_id, "acme", "some", None, frozenset(roles))


# ---- what they do


DELETES = [
    "DELETE FROM stock WHERE id = 2",
    "DELETE FROM stock WHERE n IS NULL OR n > 30",
    "DELETE FROM main.stock AS s WHERE s.name LIKE '%t' -- both",
    "DELETE FROM stock USING (VALUES (1), (1), (3)) AS gone(id) WHERE stock.id = gone.id",
    "WITH q AS (SELECT min(n) AS n FROM stock) DELETE FROM stock USING q WHERE stock.n = q.n",
    "DELETE FROM stock",
]


def test_delete_removes_the_rows_that_match(stock: Rooms) -> None:
    with duckdb.connect(":memory:") as duck:
        duck.execute("CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER, name VARCHAR)")
        for sql in DELETES:
            duck.executemany("INSERT OR REPLACE INTO stock VALUES (?, ?, ?)", STOCK)
            change(stock, "INSERT OR REPLACE INTO stock VALUES (?, ?, ?)", *STOCK)
            done = change(stock, sql)
            assert (done.row_count,) == duck.execute(sql).fetchone()
            assert done.visibility_token == last_token(stock)
            assert found(stock) == duck.execute("FROM stock ORDER BY id").fetchall(), sql


def test_update_writes_the_rows_that_match_anew(stock: Rooms) -> None:
    done = change(stock, "UPDATE stock SET n = coalesce(n, 0) + id, name = DEFAULT WHERE id > 2")
    assert (done.row_count, done.visibility_token) == (2, 2)
    assert found(stock) == [(1, 10, "nut"), (2, 20, "bolt"), (3, 3, None), (4, 44, None)]


def test_older_snapshots_keep_what_was_changed(stock: Rooms) -> None:
    before = stock.reads.pin(stock.acme, None, ReadPoint()).snapshot_id
    change(stock, "UPDATE stock SET n = 0")
    change(stock, "DELETE FROM stock WHERE id = 1")
    assert [row[:2] for row in found(stock)] == [(2, 0), (3, 0), (4, 0)]
    assert stock.query_at("SELECT sum(n) AS s FROM stock", before)["s"].to_pylist() == [70]


def test_an_update_may_take_its_values_from_other_tables(stock: Rooms) -> None:
    stock.execute("CREATE TABLE moves (id INTEGER, by_n INTEGER)")
    stock.execute("INSERT INTO moves VALUES (1, 5), (1, 4), (2, 7), (9, 9)")
    done = change(stock, "UPDATE stock SET n = n + by_n FROM moves WHERE stock.id = moves.id")
    assert done.row_count == 2
    assert [row[1] for row in found(stock)] == [14, 27, None, 40]


def test_an_update_may_take_rows_back_from_an_older_snapshot(stock: Rooms) -> None:
    then = stock.reads.pin(stock.acme, None, ReadPoint()).snapshot_id
    change(stock, "UPDATE stock SET n = 0, name = 'lost'")
    change(
        stock,
        f"UPDATE stock SET n = old.n, name = old.name FROM stock AS old AT (VERSION => {then}) "
        "WHERE stock.id = old.id AND old.id < 4",
    )
    assert found(stock) == [*STOCK[:3], (4, 0, "lost")]


def test_a_change_may_read_views(stock: Rooms) -> None:
    stock.execute("CREATE VIEW plenty AS SELECT id, n AS much FROM stock WHERE n > 15")
    assert change(stock, "UPDATE stock SET n = -much FROM plenty WHERE stock.id = plenty.id") == (
        Executed(2, VisibilityToken(2))
    )
    assert change(stock, "DELETE FROM stock WHERE id NOT IN (SELECT id FROM plenty)").row_count == 4
    assert found(stock) == []


def test_what_matches_nothing_writes_nothing(stock: Rooms) -> None:
    for sql in ("DELETE FROM stock WHERE id = 9", "UPDATE stock SET n = 1 WHERE false"):
        assert change(stock, sql) == Executed(0, None)
    assert last_token(stock) == 1


def test_a_deleted_key_may_come_again(stock: Rooms) -> None:
    change(stock, "DELETE FROM stock WHERE id = 2")
    change(stock, "INSERT INTO stock VALUES (2, 21, 'again')")
    assert found(stock)[1] == (2, 21, "again")
    assert change(stock, "UPDATE stock SET n = 22 WHERE id = 2").row_count == 1
    assert found(stock)[1] == (2, 22, "again")


def test_a_change_sees_what_was_accepted_before_it_or_waits(stock: Rooms) -> None:
    stock.execute("INSERT INTO stock VALUES (5, 50, 'new')")
    soon = ReadPoint(timeout=timedelta(milliseconds=50))
    with pytest.raises(NotYetVisible):
        stock.execute("DELETE FROM stock WHERE id = 5", point=soon)
    stock.publish_all()
    assert stock.execute("DELETE FROM stock WHERE id = 5", point=soon).row_count == 1


def test_what_another_writes_after_the_plan_is_replaced_by_key(stock: Rooms) -> None:
    transaction = stock.transactions.begin(stock.acme, None)
    mine = stock.transactions.find(stock.acme, transaction)
    change(stock, "UPDATE stock SET n = n + 1 WHERE id = 1", transaction=mine)
    stock.execute("INSERT INTO stock VALUES (1, 99, 'theirs')")
    stock.transactions.commit(stock.acme, transaction)
    assert found(stock)[0] == (1, 11, "nut")


def test_every_type_stays_what_it_was_in_a_row_that_changes(rooms: Rooms) -> None:
    kinds = {
        "id": pa.uuid(),
        "day": pa.date32(),
        "flag": pa.bool_(),
        "tiny": pa.int8(),
        "huge": pa.uint64(),
        "half": pa.float32(),
        "whole": pa.float64(),
        "price": pa.decimal128(38, 9),
        "blob": pa.binary(),
        "seconds": pa.timestamp("us"),
        "nanos": pa.timestamp("ns"),
        "moment": pa.timestamp("us", tz="UTC"),
        "clock": pa.time64("us"),
        "span": pa.duration("us"),
        "tags": pa.list_(pa.string()),
        "three": pa.list_(pa.int32(), 3),
        "place": pa.struct([("x", pa.float64()), ("y", pa.list_(pa.int16()))]),
        "named": pa.map_(pa.string(), pa.int64()),
        "changed": pa.int32(),
    }
    values = [
        [bytes(range(16)), bytes(16)], [19_000, -5], [True, None], [-128, 127], [2**64 - 1, 0],
        [0.1, None], [1e300, -0.0], ["12345678901234567890123456789.123456789", None],
        [b"\x00\xff", b""], [-1, 2**53], [1_700_000_000_123_456_789, None], [0, 1],
        [86_399_999_999, 0], [123_456_789_012, -1], [["a", None], []], [[1, 2, 3], None],
        [{"x": 0.5, "y": [1]}, None], [[("a", 1)], []], [1, 2],
    ]  # fmt: skip
    columns = [_array(kind, cells) for kind, cells in zip(kinds.values(), values, strict=True)]
    schema = pa.schema(
        [pa.field(name, kind, name not in ("id", "day")) for name, kind in kinds.items()]
    )
    rooms.writes.definitions.create_table(
        rooms.acme,
        "every",
        TableSchema.first(schema),
        creation_key=None,
        primary_key=("id", "day"),
    )
    rooms.write("every", pa.table(columns, schema=schema))
    rooms.publish_all()
    before = rooms.query("SELECT * EXCLUDE changed FROM every ORDER BY id")
    assert change(rooms, "UPDATE every SET changed = changed + 10").row_count == 2
    rooms.publish_all()
    assert rooms.query("SELECT * EXCLUDE changed FROM every ORDER BY id").equals(before)
    assert sorted(rooms.query("FROM every")["changed"].to_pylist()) == [11, 12]
    assert change(rooms, "DELETE FROM every WHERE flag").row_count == 1
    assert found(rooms, "SELECT changed FROM every") == [(12,)]


def _array(kind: pa.DataType, cells: list[Any]) -> pa.Array:
    if pa.types.is_decimal(kind):
        return pa.array(cells, pa.string()).cast(kind)
    if pa.types.is_temporal(kind):
        whole = pa.int32() if pa.types.is_date32(kind) else pa.int64()
        return pa.array(cells, whole).cast(kind)
    return pa.array(cells, kind)


def test_a_row_may_change_its_partition(rooms: Rooms) -> None:
    rooms.execute(
        "CREATE TABLE visits (id BIGINT PRIMARY KEY, day DATE NOT NULL, n INTEGER NOT NULL) "
        "PARTITIONED BY (day)"
    )
    rooms.execute(
        "INSERT INTO visits SELECT i, DATE '2026-11-01' + (i % 3)::INTEGER, i FROM range(9) AS r(i)"
    )
    first = "day = DATE '2026-11-01'"
    moved = change(rooms, f"UPDATE visits SET day = DATE '2026-12-01' WHERE {first} AND id > 0")
    assert moved.row_count == 2
    assert found(rooms, f"SELECT id FROM visits WHERE {first}") == [(0,)]
    assert change(rooms, "DELETE FROM visits WHERE day = DATE '2026-12-01'").row_count == 2
    assert found(rooms, "SELECT count(*), sum(n)::BIGINT FROM visits") == [(7, 27)]


# ---- parameters


def test_parameters_stand_anywhere(stock: Rooms) -> None:
    change(stock, "UPDATE stock SET name = ?, n = ? + n WHERE id = ?", ("x", 1, 1))
    change(stock, "UPDATE stock SET n = v FROM (SELECT ? AS v) AS s WHERE id = $2", (7, 2))
    change(stock, "WITH q AS (SELECT ? AS i) DELETE FROM stock USING q WHERE id = i", (3,))
    change(stock, "DELETE FROM stock WHERE id = (SELECT max(id) FROM stock WHERE id < ?)", (9,))
    assert found(stock) == [(1, 11, "x"), (2, 7, "bolt")]


def test_the_types_of_parameters_are_those_of_what_they_meet(stock: Rooms) -> None:
    taken = partial(stock.sql_writes.parameters, stock.acme)
    assert taken("UPDATE stock SET name = ?, n = ? WHERE id = ?").types == [
        pa.string(),
        pa.int32(),
        pa.int32(),
    ]
    assert taken("DELETE FROM stock WHERE name = $b AND n < $a").names == ["b", "a"]
    assert taken("DELETE FROM stock").names == []
    assert taken("TRUNCATE stock").names == []


def test_many_bound_rows_are_one_write(stock: Rooms) -> None:
    stock.execute("INSERT INTO stock SELECT i, i, 'n' || i FROM range(100, 1100) AS r(i)")
    done = change(stock, "UPDATE stock SET n = ? WHERE id = ?", *((-i, i) for i in range(100, 900)))
    assert (done.row_count, done.visibility_token) == (800, 3)
    assert found(stock, "SELECT count(*), min(n) FROM stock WHERE n < 0") == [(800, -899)]
    ids = [(i,) for i in (*range(100, 1000), 100, 5_000)]
    done = change(stock, "DELETE FROM stock WHERE id = ?", *ids)
    assert (done.row_count, done.visibility_token) == (900, 4)
    assert found(stock, "SELECT count(*) FROM stock") == [(104,)]


def test_bound_rows_apply_each_where_one_query_cannot_take_them_all(stock: Rooms) -> None:
    change(stock, "DELETE FROM stock WHERE id IN (SELECT max(id) FROM stock WHERE id < ?)",
           (3,), (5,), (5,))  # fmt: skip
    assert [row[0] for row in found(stock)] == [1, 3]
    # Only constants are taken there.
    done = change(stock, "UPDATE stock SET name = strftime(DATE '2024-02-29', ?) WHERE id = ?",
                  ("%Y", 1), ("%d", 3))  # fmt: skip
    assert done.row_count == 2
    assert [row[2] for row in found(stock)] == ["2024", "29"]


def test_two_bound_rows_that_change_one_row_are_refused(stock: Rooms) -> None:
    with pytest.raises(NotSupported, match="two bound rows change the same row"):
        change(stock, "UPDATE stock SET n = n + ? WHERE id = ?", (1, 1), (2, 1))
    assert last_token(stock) == 1
    done = change(stock, "DELETE FROM stock WHERE n >= ?", (10,), (20,))
    assert done.row_count == 3


def test_a_value_that_its_column_cannot_hold_is_refused_by_the_columns_name(stock: Rooms) -> None:
    for sql, bound, column in (
        ("UPDATE stock SET name = 'x', n = name", [], "n"),
        ("UPDATE stock SET n = ? WHERE id = ?", [("x", 1)], "n"),
        ("UPDATE stock SET n = ? WHERE id = ?", [("7", 1), ("x", 2)], "n"),
        ("UPDATE stock SET n = 3000000000", [], "n"),
    ):
        with pytest.raises(Invalid) as caught:
            change(stock, sql, *bound)
        assert (caught.value.code, caught.value.context["column"]) == (
            ErrorCode.INVALID_PAYLOAD,
            column,
        )
    assert last_token(stock) == 1


def test_null_does_not_come_into_a_column_that_forbids_it(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE k (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
    rooms.execute("INSERT INTO k VALUES (1, 1)")
    with pytest.raises(Invalid) as caught:
        change(rooms, "UPDATE k SET n = NULL")
    assert caught.value.context["column"] == "n"


# ---- what is refused


REFUSED = [
    ("DELETE FROM plain", ErrorCode.NOT_SUPPORTED),
    ("UPDATE plain SET v = 1", ErrorCode.NOT_SUPPORTED),
    ("INSERT OR REPLACE INTO plain VALUES (1)", ErrorCode.NOT_SUPPORTED),
    ("UPDATE stock SET id = 5 WHERE id = 1", ErrorCode.NOT_SUPPORTED),
    ("DELETE FROM stock RETURNING id", ErrorCode.NOT_SUPPORTED),
    ("UPDATE stock SET n = 1 RETURNING *", ErrorCode.NOT_SUPPORTED),
    ("INSERT OR IGNORE INTO stock VALUES (1, 1, 'x')", ErrorCode.NOT_SUPPORTED),
    ("INSERT OR REPLACE INTO stock (id, n) VALUES (1, 1)", ErrorCode.NOT_SUPPORTED),
    (
        "MERGE INTO stock USING plain ON id = v WHEN MATCHED THEN DELETE",
        ErrorCode.NOT_SUPPORTED,
    ),
    ("DELETE FROM seen", ErrorCode.SQL_NOT_ALLOWED),
    ("UPDATE seen SET n = 1", ErrorCode.SQL_NOT_ALLOWED),
    ("DELETE FROM absent", ErrorCode.TABLE_NOT_FOUND),
    ("UPDATE stock SET n = 1 FROM absent", ErrorCode.TABLE_NOT_FOUND),
    ("DELETE FROM duckmesh_system.tables", ErrorCode.TABLE_REQUIRED),
    ("DELETE FROM other.main.stock", ErrorCode.TABLE_REQUIRED),
    ("UPDATE stock SET absent = 1", ErrorCode.SCHEMA_INCOMPATIBLE),
    ("UPDATE stock SET n = absent", ErrorCode.QUERY_EXECUTION_FAILED),
    ("UPDATE stock SET n = sum(n)", ErrorCode.QUERY_EXECUTION_FAILED),
    ("DELETE FROM stock WHERE id = ?", ErrorCode.QUERY_EXECUTION_FAILED),
    ("DELETE FROM stock USING read_csv('/etc/passwd')", ErrorCode.SQL_NOT_ALLOWED),
    ("DELETE FROM stock WHERE name = getvariable('x')", ErrorCode.SQL_NOT_ALLOWED),
    (
        "WITH d AS (DELETE FROM plain RETURNING v) DELETE FROM stock USING d WHERE id = v",
        ErrorCode.SQL_NOT_ALLOWED,
    ),
    ("DELETE FROM stock; DELETE FROM stock", ErrorCode.SQL_NOT_ALLOWED),
]


def test_what_is_no_change_of_a_keyed_table_is_refused(stock: Rooms) -> None:
    stock.execute("CREATE TABLE plain (v INTEGER)")
    stock.execute("CREATE VIEW seen AS FROM stock")
    for sql, code in REFUSED:
        with pytest.raises(DuckMeshError) as caught:
            change(stock, sql)
        assert (sql, caught.value.code) == (sql, code)
    assert last_token(stock) == 1


def test_a_change_needs_the_right_to_write_and_to_read(stock: Rooms) -> None:
    for roles in ((Role.INGEST_WRITER,), (Role.QUERY_READER,)):
        for sql in ("DELETE FROM stock", "UPDATE stock SET n = 1"):
            with pytest.raises(Denied):
                change(stock, sql, identity=with_roles(stock, *roles))
    both = with_roles(stock, Role.INGEST_WRITER, Role.QUERY_READER)
    assert change(stock, "DELETE FROM stock", identity=both).row_count == 4


def test_another_tenants_table_is_out_of_reach(stock: Rooms) -> None:
    other = stock.identity("other")
    with pytest.raises(NotFound):
        stock.execute("DELETE FROM stock", identity=other)
    stock.execute("CREATE TABLE stock (id INTEGER PRIMARY KEY)", identity=other)
    assert stock.execute("DELETE FROM stock", identity=other).row_count == 0
    assert len(found(stock)) == 4


def test_a_cancelled_change_writes_nothing(stock: Rooms) -> None:
    stop = Interruption()
    stop.interrupt()
    for sql in ("DELETE FROM stock", "UPDATE stock SET n = 1"):
        with pytest.raises(Cancelled):
            change(stock, sql, interruption=stop)
    assert last_token(stock) == 1


# ---- exactly once


def test_a_change_with_a_key_is_made_once(stock: Rooms) -> None:
    add = partial(change, stock, "UPDATE stock SET n = n + 1 WHERE id = 1", idempotency_key="k")
    first = add()
    assert add() == first
    assert found(stock)[0] == (1, 11, "nut")
    with pytest.raises(Conflict) as caught:
        change(stock, "DELETE FROM stock", idempotency_key="k")
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


def test_a_change_of_nothing_with_a_key_stays_one_of_nothing(stock: Rooms) -> None:
    remove = partial(change, stock, "DELETE FROM stock WHERE id = 7", idempotency_key="k")
    first = remove()
    assert first.row_count == 0
    change(stock, "INSERT INTO stock VALUES (7, 7, 'late')")
    assert remove() == first
    assert found(stock)[-1] == (7, 7, "late")


# ---- transactions


def test_a_transaction_holds_its_changes_until_it_is_committed(stock: Rooms) -> None:
    for ends, left in ((stock.transactions.roll_back, 4), (stock.transactions.commit, 3)):
        transaction = stock.transactions.begin(stock.acme, None)
        mine = stock.transactions.find(stock.acme, transaction)
        done = change(stock, "DELETE FROM stock WHERE id = 1", transaction=mine)
        assert done == Executed(1, None)
        assert len(found(stock)) == 4
        ends(stock.acme, transaction)
        assert len(found(stock)) == left


def test_a_change_that_cannot_see_its_transactions_writes_is_refused(stock: Rooms) -> None:
    stock.execute("CREATE TABLE other (id INTEGER PRIMARY KEY)")
    transaction = stock.transactions.begin(stock.acme, None)
    mine = stock.transactions.find(stock.acme, transaction)
    run = partial(change, stock, transaction=mine)
    assert run("DELETE FROM stock WHERE id = 1").row_count == 1
    assert run("DELETE FROM stock WHERE id = 2").row_count == 1
    for sql in (
        "UPDATE stock SET n = n + 1",
        "DELETE FROM stock WHERE n = (SELECT max(n) FROM stock)",
    ):
        with pytest.raises(NotSupported, match="commit first"):
            run(sql)
    run("INSERT INTO stock VALUES (2, 0, 'new')")
    with pytest.raises(NotSupported, match="commit first"):
        run("DELETE FROM stock WHERE id = 3")
    assert run("DELETE FROM other").row_count == 0
    stock.transactions.commit(stock.acme, transaction)
    assert found(stock) == [(2, 0, "new"), *STOCK[2:]]
    assert change(stock, "UPDATE stock SET n = 1", transaction=None).row_count == 3


# ---- INSERT that replaces


def test_insert_replaces_the_row_of_its_key_in_each_of_its_words(stock: Rooms) -> None:
    change(stock, "INSERT INTO stock (id, n) VALUES (1, 1)")
    change(stock, "INSERT OR REPLACE INTO stock VALUES (?, ?, ?)", (2, 2, "two"), (5, 5, "five"))
    change(
        stock,
        "INSERT INTO stock SELECT 3, 3, 'three' ON CONFLICT (id) "
        "DO UPDATE SET n = excluded.n, name = excluded.name",
    )
    assert found(stock) == [
        (1, 1, None), (2, 2, "two"), (3, 3, "three"), (4, 40, None), (5, 5, "five"),
    ]  # fmt: skip


# ---- many rows, and many statements


def test_more_rows_than_the_bus_takes_are_changed_through_the_store(
    database_dsn: str, tmp_path: Path
) -> None:
    with open_rooms(database_dsn, tmp_path, inline_max_bytes=2**16) as rooms:
        rooms.execute("CREATE TABLE big (id BIGINT PRIMARY KEY, n BIGINT, name VARCHAR)")
        rooms.execute("INSERT INTO big SELECT i, i, 'row ' || i FROM range(40000) AS r(i)")
        assert change(rooms, "UPDATE big SET n = -n WHERE id % 2 = 0").row_count == 20_000
        assert change(rooms, "DELETE FROM big WHERE id >= 10000").row_count == 30_000
        assert found(rooms, "SELECT count(*), sum(n)::BIGINT, max(id) FROM big") == [
            (10_000, 5_000, 9_999)
        ]


Statement = Callable[[random.Random], str]

STATEMENTS: list[Statement] = [
    lambda r: f"INSERT OR REPLACE INTO m VALUES ({r.randrange(9)}, '{r.choice('ab')}', "
              f"{r.randrange(99)}, 'v{r.randrange(99)}')",
    lambda r: f"INSERT OR REPLACE INTO m SELECT i, 'a', i * {r.randrange(9)}, NULL "
              f"FROM range({r.randrange(5)}, {r.randrange(5, 9)}) AS r(i)",
    lambda r: f"UPDATE m SET n = n + {r.randrange(9)} WHERE id <= {r.randrange(9)}",
    lambda r: f"UPDATE m SET s = s || part, n = id WHERE part = '{r.choice('ab')}'",
    lambda r: f"UPDATE m SET n = (SELECT max(o.n) FROM m AS o WHERE o.id = m.id) "
              f"WHERE id % {r.randrange(2, 5)} = 0",
    lambda r: f"UPDATE m SET s = x.w FROM (SELECT id, max(s) AS w FROM m GROUP BY id) AS x "
              f"WHERE x.id = m.id AND m.n > {r.randrange(50)}",
    lambda r: f"DELETE FROM m WHERE id = {r.randrange(9)}",
    lambda r: f"DELETE FROM m WHERE n > {r.randrange(60, 99)} OR s IS NULL",
    lambda r: f"DELETE FROM m USING m AS o WHERE m.id = o.id AND m.part < o.part "
              f"AND o.n > {r.randrange(99)}",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_a_sequence_of_statements_ends_as_it_does_in_duckdb(rooms: Rooms, seed: int) -> None:
    made = "CREATE TABLE m (id INTEGER, part VARCHAR, n INTEGER, s VARCHAR, PRIMARY KEY (id, part))"
    chosen = random.Random(seed)  # noqa: S311 - statements, not secrets
    with duckdb.connect(":memory:") as duck:
        duck.execute(made)
        rooms.execute(made)
        for _ in range(40):
            sql = chosen.choice(STATEMENTS)(chosen)
            told = duck.execute(sql).fetchone()
            assert (change(rooms, sql).row_count,) == told, sql
            expected = duck.execute("FROM m ORDER BY ALL").fetchall()
            assert found(rooms, "FROM m ORDER BY ALL") == expected, sql


def test_bound_rows_meet_in_a_key_whatever_its_columns_are_called(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE p (place BIGINT PRIMARY KEY, v BIGINT)")
    rooms.execute("INSERT INTO p VALUES (1, 1), (2, 2)")
    rooms.publish_all()
    with pytest.raises(NotSupported, match="two bound rows change the same row"):
        rooms.execute("UPDATE p SET v = ? WHERE place = ?", (5, 1), (6, 1))
    rooms.publish_all()
    assert rooms.query("FROM p ORDER BY place")["v"].to_pylist() == [1, 2]
