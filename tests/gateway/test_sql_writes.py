"""SQL that writes, over real rooms: what each statement does, refuses and returns."""

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import (
    Cancelled,
    Conflict,
    Denied,
    DuckMeshError,
    ErrorCode,
    Invalid,
    NotFound,
    NotSupported,
)
from gateway.identity import Identity, Role
from gateway.reads import ReadPoint
from query_engine.engine import Interruption
from tests.rooms import Rooms, rows


def found(rooms: Rooms, sql: str) -> list[tuple[Any, ...]]:
    rooms.publish_all()
    table = rooms.query(sql)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def with_roles(rooms: Rooms, *roles: Role) -> Identity:
    return Identity(rooms.acme.tenant_id, "acme", "some", None, frozenset(roles))


def last_token(rooms: Rooms) -> int:
    return rooms.bus.last_token(rooms.acme.tenant_id)


@pytest.fixture
def t(rooms: Rooms) -> Rooms:
    """A table `t` of an INTEGER, a VARCHAR and a DATE, made by SQL."""
    rooms.execute("CREATE TABLE t (a INTEGER NOT NULL, b VARCHAR, d DATE)")
    return rooms


# ---- CREATE TABLE


def test_create_table_makes_a_table_that_the_next_statement_sees(rooms: Rooms) -> None:
    done = rooms.execute(
        "CREATE TABLE duckmesh.main.every (a TINYINT, b DECIMAL(9,2) NOT NULL, c TIMESTAMPTZ, "
        "d STRUCT(x INTEGER, y VARCHAR[]), e MAP(VARCHAR, DOUBLE), f BLOB, g TIME, h UBIGINT)"
    )
    assert (done.row_count, done.visibility_token) == (None, None)
    (table,) = rooms.reads.tables(rooms.acme)
    assert table.name == "every"
    assert table.schema.field("b").type == pa.decimal128(9, 2)
    assert not table.schema.field("b").nullable
    assert table.schema.field("c").type == pa.timestamp("us", tz="UTC")
    assert found(rooms, "SELECT count(*) FROM every") == [(0,)]


def test_a_name_that_is_taken_is_refused_kept_or_replaced_as_the_statement_says(
    t: Rooms,
) -> None:
    t.execute("INSERT INTO t VALUES (1, 'x', NULL)")
    t.publish_all()
    with pytest.raises(Conflict) as caught:
        t.execute("CREATE TABLE t (z INTEGER)")
    assert caught.value.code is ErrorCode.TABLE_EXISTS
    t.execute("CREATE TABLE IF NOT EXISTS t (z INTEGER)")
    assert found(t, "SELECT a FROM t") == [(1,)]
    before = t.reads.pin(t.acme, None, ReadPoint()).snapshot_id
    t.execute("CREATE OR REPLACE TABLE t (z INTEGER)")
    assert found(t, "SELECT z FROM t") == []
    assert t.query_at("SELECT a FROM t", before)["a"].to_pylist() == [1]


def test_a_retried_create_table_is_known_by_its_key(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE k (a INTEGER)", idempotency_key="once")
    rooms.execute("CREATE TABLE k (a INTEGER)", idempotency_key="once")
    with pytest.raises(Conflict):
        rooms.execute("CREATE TABLE k (a INTEGER)", idempotency_key="other")


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ("a INTEGER DEFAULT 3", "DEFAULT"),
        ("a INTEGER, b INTEGER GENERATED ALWAYS AS (a + 1)", "GENERATED"),
        ("a INTEGER CHECK (a > 1)", "CHECK"),
        ("a INTEGER UNIQUE", "UNIQUE"),
        ("a INTERVAL", "INTERVAL"),
        ("a STRUCT(x TIMETZ)", "TIME WITH TIME ZONE"),
        ("a UNION(x INTEGER)", "UNION"),
    ],
)
def test_what_a_table_cannot_keep_is_refused_by_name(rooms: Rooms, columns: str, word: str) -> None:
    with pytest.raises(NotSupported, match=word):
        rooms.execute(f"CREATE TABLE t ({columns})")
    assert rooms.reads.tables(rooms.acme) == []


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMP TABLE t (a INTEGER)",
        "CREATE TABLE t (a INTEGER) WITH (x = 1)",
        "UPDATE t SET a = 1",
        "DELETE FROM t",
        "MERGE INTO t USING t AS u ON t.a = u.a WHEN MATCHED THEN DELETE",
        "COPY t TO 'file.csv'",
        "COPY t FROM 'file.csv'",
        "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
        "INSERT OR REPLACE INTO t VALUES (1)",
        "INSERT INTO t VALUES (1) RETURNING a",
        "CREATE INDEX i ON t (a)",
        "CREATE SCHEMA s",
        "CREATE SEQUENCE s",
    ],
)
def test_what_is_not_there_yet_is_refused_with_another_way(t: Rooms, sql: str) -> None:
    with pytest.raises(NotSupported) as caught:
        t.execute(sql)
    assert caught.value.code is ErrorCode.NOT_SUPPORTED
    assert last_token(t) == 0


@pytest.mark.parametrize("place", ["other.t", "other.main.t", "duckmesh.other.t", "temp.t"])
def test_tables_lie_in_one_place(t: Rooms, place: str) -> None:
    for sql in (f"CREATE TABLE {place} (a INTEGER)", f"INSERT INTO {place} VALUES (1)"):
        with pytest.raises(Invalid) as caught:
            t.execute(sql)
        assert caught.value.code is ErrorCode.TABLE_REQUIRED


# ---- INSERT


def test_insert_writes_its_values_as_the_columns_types(t: Rooms) -> None:
    done = t.execute(
        "INSERT INTO t VALUES (1, 'x', '2024-01-01'), ('2', 7, NULL), (2.6, NULL, NULL)"
    )
    assert (done.row_count, done.visibility_token) == (3, 1)
    assert found(t, "FROM t ORDER BY ALL") == [
        (1, "x", date(2024, 1, 1)),
        (2, "7", None),
        (3, None, None),
    ]


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("INSERT INTO t (d, a) VALUES (DATE '2020-02-02', 5)", (5, None, date(2020, 2, 2))),
        ("INSERT INTO main.t (A, B) VALUES (5, DEFAULT);", (5, None, None)),
        ("INSERT INTO t BY NAME SELECT 'q' AS b, 5 AS a", (5, "q", None)),
        ("INSERT INTO t SELECT 5, upper('q'), NULL -- end", (5, "Q", None)),
        ("INSERT INTO t VALUES (2 + 3, lower('Q'), NULL)", (5, "q", None)),
        ("WITH w AS (SELECT 5 AS n) INSERT INTO t (a) SELECT n FROM w", (5, None, None)),
        ("INSERT INTO t (a) (SELECT 5)", (5, None, None)),
        ("INSERT INTO t (a) FROM range(5, 6)", (5, None, None)),
        ('INSERT INTO "t" /* a ; b */ ("a") VALUES (5)', (5, None, None)),
    ],
)
def test_each_form_of_insert_writes_its_row(t: Rooms, sql: str, row: tuple[object, ...]) -> None:
    assert t.execute(sql).row_count == 1
    assert found(t, "FROM t") == [row]


def test_insert_default_values_fills_every_column_with_null(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE n (a INTEGER, b VARCHAR)")
    rooms.execute("INSERT INTO n DEFAULT VALUES")
    assert found(rooms, "FROM n") == [(None, None)]


def test_insert_select_reads_the_snapshot_and_writes_all_its_rows(t: Rooms) -> None:
    t.write("source", rows(*range(5_000)))
    t.publish_all()
    done = t.execute("INSERT INTO t (a, b) SELECT v, 'n' || v FROM source WHERE v >= 10")
    assert done.row_count == 4_990
    assert found(t, "SELECT count(*), sum(a), max(b) FROM t") == [
        (4_990, sum(range(10, 5_000)), "n999")
    ]


def test_an_insert_reads_its_own_table_as_it_was(t: Rooms) -> None:
    t.execute("INSERT INTO t (a) VALUES (1), (2)")
    t.publish_all()
    t.execute("INSERT INTO t SELECT * FROM t")
    assert found(t, "SELECT count(*) FROM t") == [(4,)]


@pytest.mark.parametrize(
    ("sql", "column"),
    [
        ("INSERT INTO t VALUES (1, 'x', 'no date')", "d"),
        ("INSERT INTO t VALUES (1, 'x', NULL), ('y', 'x', NULL)", "a"),
        ("INSERT INTO t SELECT 3000000000, 'x', NULL", "a"),
        ("INSERT INTO t SELECT 1, 'x', 'no ' || 'date'", "d"),
        ("INSERT INTO t (b) VALUES ('x')", "a"),
        ("INSERT INTO t SELECT NULL, 'x', NULL", "a"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused_by_the_columns_name(
    t: Rooms, sql: str, column: str
) -> None:
    with pytest.raises(Invalid) as caught:
        t.execute(sql)
    assert caught.value.code is ErrorCode.INVALID_PAYLOAD
    assert caught.value.context["column"] == column
    assert last_token(t) == 0


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("INSERT INTO t VALUES (1, 'x')", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("INSERT INTO t SELECT 1", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("INSERT INTO t (z) VALUES (1)", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("INSERT INTO t BY NAME SELECT 1 AS z", ErrorCode.SCHEMA_INCOMPATIBLE),
        ("INSERT INTO absent VALUES (1)", ErrorCode.TABLE_NOT_FOUND),
        ("INSERT INTO t SELECT * FROM absent", ErrorCode.TABLE_NOT_FOUND),
        ("INSERT INTO t (a) SELECT a FROM read_csv('x')", ErrorCode.SQL_NOT_ALLOWED),
        ("INSERT INTO t (a) VALUES (?)", ErrorCode.QUERY_EXECUTION_FAILED),
        ("INSERT INTO t (a) VALUES (1); INSERT INTO t (a) VALUES (2)", ErrorCode.SQL_NOT_ALLOWED),
        ("INSERT INTO t (a) VALUES (getvariable('x'))", ErrorCode.SQL_NOT_ALLOWED),
    ],
)
def test_a_wrong_insert_is_refused_and_writes_nothing(t: Rooms, sql: str, code: ErrorCode) -> None:
    with pytest.raises(DuckMeshError) as caught:
        t.execute(sql)
    assert caught.value.code is code
    assert last_token(t) == 0


# ---- parameters


def test_many_bound_rows_are_one_write(t: Rooms) -> None:
    bound = [(n, str(n), "2024-01-01") for n in range(1_000)]
    done = t.execute("INSERT INTO t VALUES (?, ?, ?)", *bound)
    assert (done.row_count, done.visibility_token) == (1_000, 1)
    assert found(t, "SELECT count(*), sum(a), min(d) FROM t") == [
        (1_000, 499_500, date(2024, 1, 1))
    ]


def test_parameters_stand_anywhere_in_an_insert(t: Rooms) -> None:
    t.execute("INSERT INTO t (b, a) VALUES ($2, $1)", (1, "x"))
    t.execute("INSERT INTO t VALUES (?, upper(?), NULL)", (2, "y"), (3, "z"))
    t.execute("INSERT INTO t (a, b) VALUES (?, ?), (?, 'w')", (4, "v", 5))
    t.execute("INSERT INTO t (a) SELECT v + ? FROM range(2) AS r(v)", (6,))
    assert found(t, "SELECT a, b FROM t ORDER BY a") == [
        (1, "x"),
        (2, "Y"),
        (3, "Z"),
        (4, "v"),
        (5, "w"),
        (6, None),
        (7, None),
    ]


def test_a_bound_value_that_does_not_convert_names_its_column(t: Rooms) -> None:
    with pytest.raises(Invalid) as caught:
        t.execute("INSERT INTO t VALUES (?, ?, ?)", (1, "x", "2024-01-01"), (2, "y", "soon"))
    assert caught.value.code is ErrorCode.INVALID_PAYLOAD
    assert caught.value.context["column"] == "d"
    assert last_token(t) == 0


def test_bound_values_pass_without_loss(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE p (a DECIMAL(38,9), b TIMESTAMP_NS, c BLOB, d INTEGER[])")
    bound = pa.table(
        {
            "0": pa.array([Decimal("12345678901234567890123456789.123456789")]),
            "1": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
            "2": pa.array([b"\x00\xff"]),
            "3": pa.array([[1, None, 3]], pa.list_(pa.int32())),
        }
    )
    rooms.sql_writes.execute(rooms.acme, "INSERT INTO p VALUES (?, ?, ?, ?)", parameters=bound)
    rooms.publish_all()
    got = rooms.query("FROM p")
    assert [got.column(i).cast(bound.column(i).type) for i in range(4)] == bound.columns


# ---- exactly once


def test_an_insert_with_a_key_is_written_once(t: Rooms) -> None:
    first = t.execute("INSERT INTO t (a) VALUES (1)", idempotency_key="k")
    again = t.execute("INSERT INTO t (a) VALUES (1)", idempotency_key="k")
    assert first == again
    with pytest.raises(Conflict) as caught:
        t.execute("INSERT INTO t (a) VALUES (2)", idempotency_key="k")
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    assert found(t, "SELECT a FROM t") == [(1,)]


def test_a_repeated_insert_select_is_the_same_write_though_its_source_has_changed(
    t: Rooms,
) -> None:
    t.execute("INSERT INTO t (a) VALUES (1)")
    t.publish_all()
    first = t.execute("INSERT INTO t SELECT * FROM t", idempotency_key="k")
    t.publish_all()
    assert t.execute("INSERT INTO t SELECT * FROM t", idempotency_key="k") == first
    assert found(t, "SELECT count(*) FROM t") == [(2,)]


def test_bound_rows_are_part_of_what_a_key_stands_for(t: Rooms) -> None:
    t.execute("INSERT INTO t (a) VALUES (?)", (1,), (2,), idempotency_key="k")
    t.execute("INSERT INTO t (a) VALUES (?)", (1,), (2,), idempotency_key="k")
    with pytest.raises(Conflict):
        t.execute("INSERT INTO t (a) VALUES (?)", (1,), (3,), idempotency_key="k")
    assert found(t, "SELECT count(*) FROM t") == [(2,)]


def test_a_cancelled_statement_writes_nothing(t: Rooms) -> None:
    stop = Interruption()
    stop.interrupt()
    for sql in ("INSERT INTO t (a) VALUES (1)", "INSERT INTO t (a) SELECT 1"):
        with pytest.raises(Cancelled):
            t.execute(sql, interruption=stop)
    assert last_token(t) == 0


# ---- CREATE TABLE AS


def test_create_table_as_holds_the_rows_of_its_query(t: Rooms) -> None:
    done = t.execute("CREATE TABLE made (n, name) AS SELECT i, 'r' || i FROM range(10) AS r(i)")
    assert (done.row_count, done.visibility_token) == (10, 1)
    assert found(t, "SELECT count(*), sum(n), max(name) FROM made") == [(10, 45, "r9")]
    t.execute("CREATE TABLE IF NOT EXISTS made AS SELECT 1 AS z")
    with pytest.raises(Conflict):
        t.execute("CREATE TABLE made AS SELECT 1 AS z")
    t.execute("CREATE OR REPLACE TABLE made AS SELECT n * ? AS z FROM made WHERE n > 7", (2,))
    assert found(t, "FROM made ORDER BY z") == [(16,), (18,)]


def test_create_table_as_with_no_data_takes_the_columns_alone(t: Rooms) -> None:
    t.execute("CREATE TABLE alike AS SELECT * FROM t WITH NO DATA")
    assert found(t, "SELECT count(a) FROM alike") == [(0,)]


def test_a_failing_create_table_as_leaves_no_table(t: Rooms) -> None:
    for sql in (
        "CREATE TABLE made AS SELECT error('no')",
        "CREATE TABLE made AS SELECT NULL AS untyped",
        "CREATE TABLE made AS FROM absent",
        "CREATE TABLE made AS FROM read_csv('x')",
    ):
        with pytest.raises(DuckMeshError):
            t.execute(sql)
    assert [table.name for table in t.reads.tables(t.acme)] == ["t"]


# ---- rights


def test_each_statement_needs_its_roles(t: Rooms) -> None:
    writer = with_roles(t, Role.INGEST_WRITER)
    reader = with_roles(t, Role.QUERY_READER)
    t.execute("INSERT INTO t (a) VALUES (1 + 1)", identity=writer)
    for who, sql in (
        (reader, "INSERT INTO t (a) VALUES (1)"),
        (writer, "INSERT INTO t SELECT * FROM t"),
        (writer, "CREATE TABLE u (a INTEGER)"),
        (writer, "DROP TABLE t"),
        (reader, "CREATE TABLE u AS SELECT 1 AS a"),
    ):
        with pytest.raises(Denied):
            t.execute(sql, identity=who)


def test_another_tenant_neither_sees_nor_writes_the_table(t: Rooms) -> None:
    other = t.identity("other")
    with pytest.raises(NotFound):
        t.execute("INSERT INTO t (a) VALUES (1)", identity=other)
    t.execute("CREATE TABLE t (x VARCHAR)", identity=other)
    t.execute("INSERT INTO t VALUES ('theirs')", identity=other)
    assert found(t, "SELECT count(*) FROM t") == [(0,)]


def test_drop_table_ends_it(t: Rooms) -> None:
    t.execute("DROP TABLE main.t")
    t.execute("DROP TABLE IF EXISTS t")
    with pytest.raises(NotFound):
        t.execute("DROP TABLE t")


# ---- Parameters


def test_parameters_have_the_types_of_the_columns_that_they_fill(t: Rooms) -> None:
    def of(sql: str, identity: Identity | None = None) -> list[pa.DataType]:
        return list(t.sql_writes.parameters(identity or t.acme, sql).types)

    assert of("INSERT INTO t VALUES (?, ?, ?)") == [pa.int32(), pa.string(), pa.date32()]
    assert of("INSERT INTO t (d, a) VALUES (?, ?)") == [pa.date32(), pa.int32()]
    assert of("INSERT INTO t SELECT a, b, d FROM t WHERE a = ? AND d < ?") == [
        pa.int32(),
        pa.date32(),
    ]
    assert of("CREATE TABLE u AS SELECT * FROM t WHERE b = ?") == [pa.string()]
    assert of("INSERT INTO t VALUES (1, 'x', NULL)") == []
    assert of("DROP TABLE t") == []
    writer = with_roles(t, Role.INGEST_WRITER)
    assert of("INSERT INTO t VALUES (?, 'x', NULL)", writer) == [pa.int32()]
    with pytest.raises(NotFound, match="absent"):
        of("INSERT INTO absent VALUES (?)")
    assert last_token(t) == 0, "nothing ran"
