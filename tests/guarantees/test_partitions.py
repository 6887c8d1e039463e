"""A query of a partitioned table gives the answer of one that reads all of its files."""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ingest_modes import IngestMode
from gateway.reads import ReadPoint
from tests.guarantees.test_pruning import DAY_ZERO, MOMENT_ZERO, predicates
from tests.rooms import Rooms, open_rooms

TABLES = 12
FIELDS = [
    *("i", "bucket(3, i)", "truncate(7, i)", "k", "bucket(5, k)", "truncate(30, k)"),
    *("s", "bucket(4, s)", "truncate(2, s)", "truncate(3, s)"),
    *("d", "year(d)", "month(d)", "day(d)", "bucket(4, d)"),
    *("t", "month(t)", "day(t)", "hour(t)", "bucket(4, t)"),
    *("year(z)", "day(z)", "hour(z)", "bucket(3, z)"),
    *("n", "bucket(4, n)", "truncate(500, n)", "b"),
]
COLUMNS = (
    "i BIGINT, k SMALLINT, s VARCHAR, d DATE, t TIMESTAMP, z TIMESTAMPTZ, f DOUBLE, "
    "n DECIMAL(10,2), b BOOLEAN"
)


def some_rows(random: Random, count: int = 25) -> pa.Table:
    """Rows around the values that predicates ask for, negative ones and nulls among them."""

    def column(make, kind: pa.DataType) -> pa.Array:
        drawn = [make(random.randrange(-40, 110)) for _ in range(count)]
        return pa.array([None if random.random() < 0.1 else v for v in drawn], kind)

    return pa.table(
        {
            "i": column(lambda n: n, pa.int64()),
            "k": column(lambda n: n, pa.int16()),
            "s": column(lambda n: f"v{max(n, 0):03}", pa.string()),
            "d": column(lambda n: DAY_ZERO + timedelta(days=n), pa.date32()),
            "t": column(lambda n: MOMENT_ZERO + timedelta(hours=n), pa.timestamp("us")),
            "z": column(
                lambda n: MOMENT_ZERO.replace(tzinfo=UTC) + timedelta(hours=n),
                pa.timestamp("us", tz="UTC"),
            ),
            "f": column(lambda n: math.nan if n == 5 else n / 3, pa.float64()),
            "n": column(lambda n: Decimal(n) / 4, pa.decimal128(10, 2)),
            "b": column(lambda n: n % 2 == 0, pa.bool_()),
        }
    )


def compact(rooms: Rooms, table: str) -> None:
    compactor = rooms.compactor()
    for each in compactor.crowded():
        while compactor.compact(each.tenant_id, each.table_id, eager=True) is not None:
            pass
    assert rooms.query(f"SELECT count(*) AS n FROM {table}").num_rows == 1


def grown(rooms: Rooms, table: str, random: Random) -> pa.Table:
    """A table of a random spec, whose files were written and merged under more than one."""

    def spec() -> str:
        return ", ".join(random.sample(FIELDS, random.randint(1, 3)))

    written = []
    rooms.execute(f"CREATE TABLE {table} ({COLUMNS}) PARTITIONED BY ({spec()})")
    for step in range(6):
        each = some_rows(random, random.choice([1, 25]))
        written.append(each)
        rooms.write(table, each, mode=IngestMode.APPEND)
        materializer = rooms.materializer(inline_file_max_bytes=random.choice([0, 2**20]))
        while materializer.publish_next() is not None:
            pass
        if step == 2:
            compact(rooms, table)
        if step == 3 and random.random() < 0.5:
            rooms.execute(f"ALTER TABLE {table} SET PARTITIONED BY ({spec()})")
    if random.random() < 0.7:
        compact(rooms, table)
    return pa.concat_tables(written)


@pytest.fixture(scope="module")
def world(
    module_database_dsn: str, tmp_path_factory
) -> Iterator[tuple[Rooms, duckdb.DuckDBPyConnection]]:
    folder: Path = tmp_path_factory.mktemp("partitions")
    with (
        open_rooms(module_database_dsn, folder) as rooms,
        duckdb.connect(":memory:") as plain,
    ):
        plain.execute("SET TimeZone = 'UTC'")
        for at in range(TABLES):
            written = grown(rooms, f"p{at}", Random(at))  # noqa: S311 - repeatable
            plain.register("written", written)
            plain.execute(f"CREATE TABLE p{at} AS FROM written")
            plain.unregister("written")
        yield rooms, plain


QUERIES = st.sampled_from(
    [
        "SELECT count(*) AS n, sum(i) AS i, min(s) AS s FROM {table} AS t WHERE {where}",
        "SELECT count(*) AS n FROM {table} AS t WHERE i < 60 AND ({where})",
        "SELECT (SELECT count(*) FROM {table} AS t WHERE {where}) AS n, count(*) AS m FROM {table}",
    ]
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(query=QUERIES, table=st.integers(0, TABLES - 1), where=predicates)
def test_leaving_partitions_out_changes_no_answer(world, query: str, table: int, where: str):
    rooms, plain = world
    sql = query.format(table=f"p{table}", where=where)
    assert rooms.query(sql).to_pylist() == plain.sql(sql).to_arrow_table().to_pylist()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    table=st.integers(0, TABLES - 1),
    operator=st.sampled_from(["=", "<", ">="]),
    number=st.integers(-45, 115),
    column=st.sampled_from(["i", "s", "d", "t", "z"]),
)
def test_bound_parameters_leave_out_no_row_either(world, table, operator, number, column):
    rooms, plain = world
    value = {
        "i": number,
        "s": f"v{max(number, 0):03}",
        "d": DAY_ZERO + timedelta(days=number),
        "t": MOMENT_ZERO + timedelta(hours=number),
        "z": MOMENT_ZERO.replace(tzinfo=UTC) + timedelta(hours=number),
    }[column]
    sql = f"SELECT count(*) AS n FROM p{table} AS t WHERE t.{column} {operator} ?"
    snapshot = rooms.reads.pin(rooms.acme, sql, ReadPoint())
    bound = pa.record_batch({"1": pa.array([value], some_rows(Random(0), 1)[column].type)})  # noqa: S311
    with rooms.reads.run(rooms.acme, sql, snapshot.snapshot_id, parameters=bound) as answer:
        found = answer.reader.read_all()["n"].to_pylist()
    assert found == [plain.execute(sql, [value]).fetchall()[0][0]]


def read_and_left_out(
    rooms: Rooms, sql: str, parameters: pa.RecordBatch | None = None
) -> tuple[int, int]:
    snapshot = rooms.reads.pin(rooms.acme, sql, ReadPoint())
    with rooms.reads.run(rooms.acme, sql, snapshot.snapshot_id, parameters=parameters) as answer:
        answer.reader.read_all()
        return answer.stats.scanned_files, answer.pruned_files


@pytest.fixture(scope="module")
def sales(world) -> Rooms:
    """Eight files: four buckets of two days, merged; and an inline one of a third day."""
    rooms, _ = world
    rooms.execute(
        "CREATE TABLE sales (customer BIGINT, day DATE, name VARCHAR) "
        "PARTITIONED BY (bucket(4, customer), day, truncate(1, name))"
    )
    for days in ((1, 2), (1, 2), (3,)):
        rows = [(c, date(2026, 1, d), f"n{c % 2}") for c in range(100) for d in days]
        customers, moments, names = zip(*rows, strict=True)
        if days == (3,):
            compact(rooms, "sales")
            customers, moments, names = [7], [date(2026, 1, 3)], ["n1"]
        rooms.write(
            "sales",
            pa.table({"customer": customers, "day": moments, "name": names}),
            mode=IngestMode.APPEND,
        )
        rooms.publish_all()
    return rooms


@pytest.mark.parametrize(
    ("where", "files"),
    [
        ("customer = 7", 3),
        ("customer = 7 AND day = DATE '2026-01-01'", 1),
        ("day = DATE '2026-01-02'", 4),
        ("day > DATE '2026-01-02'", 5),
        ("day >= DATE '2026-01-03'", 1),
        ("day BETWEEN DATE '2026-01-02' AND DATE '2026-01-02'", 4),
        ("customer IN (7, 7)", 3),
        ("name = 'x'", 0),
        ("name < 'n'", 9),
        ("name < 'm'", 0),
        ("name IS NULL", 0),
        ("customer <> 7", 9),
        ("customer + 0 = 7", 9),
    ],
)
def test_partitions_without_a_matching_row_are_not_read(sales: Rooms, where: str, files: int):
    read, left_out = read_and_left_out(sales, f"SELECT * FROM sales WHERE {where}")
    # Objects are left out by their statistics too, never fewer than by their partition.
    assert read <= files
    assert read + left_out == 9
    if files not in (0, 9):
        assert left_out > 0


def test_a_bound_parameter_leaves_buckets_out(sales: Rooms) -> None:
    sql = "SELECT * FROM sales WHERE customer = ?"
    read, left_out = read_and_left_out(sales, sql, pa.record_batch({"1": [7]}))
    assert (read, left_out) == (3, 6)


def test_years_far_away_and_the_ends_of_integers_are_found(world) -> None:
    rooms, _ = world
    rooms.execute(
        "CREATE TABLE ends (v BIGINT, w INTEGER, m TIMESTAMP) "
        "PARTITIONED BY (truncate(10, v), truncate(10, w), year(m))"
    )
    least, greatest = -(2**63), 2**63 - 1
    early = datetime(1, 1, 1)  # noqa: DTZ001 - a TIMESTAMP has no zone
    far = datetime(9999, 12, 31, 23, 59, 59)  # noqa: DTZ001
    for v, w, m in [(least, -(2**31), early), (greatest, 2**31 - 1, far), (0, 0, None)]:
        rows = {"v": [v], "w": pa.array([w], pa.int32()), "m": pa.array([m], pa.timestamp("us"))}
        rooms.write("ends", pa.table(rows), mode=IngestMode.APPEND)
        rooms.publish_all()
    for where in (
        f"v < {-(10**17)}",
        "w = -2147483648",
        "w < -5",
        "w >= 2147483647",
        "m < TIMESTAMP '1000-01-01'",
        "m > TIMESTAMP '9000-01-01'",
        "m IS NULL",
    ):
        assert rooms.query(f"SELECT v FROM ends WHERE {where}").num_rows == 1, where
