"""Parameters through ADBC: the types that are announced, and values of each of them bound."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pytest

# The column's type, the announced type of `column = ?`, a value, and another one.
CASES = {
    "flag": (pa.bool_(), pa.bool_(), True, False),
    "tiny": (pa.int8(), pa.int8(), -128, 127),
    "small": (pa.int16(), pa.int16(), -1, 32_767),
    "whole": (pa.int32(), pa.int32(), 7, -(2**31)),
    "large": (pa.int64(), pa.int64(), 2**63 - 1, 0),
    "positive": (pa.uint64(), pa.uint64(), 2**64 - 1, 1),
    "single": (pa.float32(), pa.float32(), 0.5, -0.0),
    "double": (pa.float64(), pa.float64(), 1e300, 0.1),
    "amount": (pa.decimal128(18, 2), pa.decimal128(18, 2), Decimal("12.34"), Decimal("-0.01")),
    "huge": (pa.decimal128(38, 0), pa.decimal128(38, 0), Decimal(10**37), Decimal(-1)),
    "name": (pa.string(), pa.string(), "é'\"\n", ""),
    "bytes": (pa.binary(), pa.binary(), b"\x00\xff", b""),
    "day": (pa.date32(), pa.date32(), date(2026, 1, 31), date(1, 1, 1)),
    "hour": (pa.time64("us"), None, time(23, 59, 59), time(0)),
    "local": (
        pa.timestamp("us"),
        None,
        datetime(2026, 1, 31, 12, 0, 0, 1000),  # noqa: DTZ001 - a time without a zone
        datetime(1969, 12, 31),  # noqa: DTZ001
    ),
    "moment": (
        pa.timestamp("us", "UTC"),
        None,
        datetime(2026, 1, 31, 12, tzinfo=UTC),
        datetime(1, 1, 2, tzinfo=UTC),
    ),
}


@pytest.fixture
def cursor(uri):
    with flightsql.connect(uri, autocommit=True) as connection, connection.cursor() as opened:
        yield opened


@pytest.fixture
def table(cursor):
    columns = {
        name: pa.array([value, other, None], kind)
        for name, (kind, _, value, other) in CASES.items()
    }
    cursor.adbc_ingest("every", pa.table(columns), mode="create")


def count(cursor, sql, parameters):
    cursor.execute(sql, parameters)
    return cursor.fetchone()[0]


@pytest.mark.usefixtures("table")
def test_each_type_is_announced_bound_and_found(cursor) -> None:
    for name, (kind, announced, value, _) in CASES.items():
        sql = f"SELECT count(*) FROM every WHERE {name} = ?"
        schema = cursor.adbc_prepare(sql)
        told = schema.field(0).type
        assert told == announced or (announced is None and told.id in _MOMENTS), name
        for parameter in (pa.array([value], kind), pa.array([value], told)):
            rows = pa.record_batch([parameter], names=["1"])
            assert count(cursor, sql, rows) == 1, (name, parameter.type)
        if name != "positive":
            # The driver's Python takes no int beyond 63 bits without a type.
            assert count(cursor, sql, [value]) == 1, name
        nothing = pa.record_batch([pa.array([None], told)], names=["1"])
        assert count(cursor, sql, nothing) == 0, name
        assert count(cursor, f"SELECT count(*) FROM every WHERE {name} IS NOT DISTINCT FROM ?",
                     nothing) == 1, name  # fmt: skip


_MOMENTS = {pa.time32("ms").id, pa.time64("us").id, pa.timestamp("us").id}


@pytest.mark.usefixtures("table")
def test_each_row_of_parameters_gives_its_rows(cursor) -> None:
    for name, (kind, _, value, other) in CASES.items():
        rows = pa.record_batch([pa.array([value, other, value, None], kind)], names=["1"])
        cursor.execute(f"SELECT {name} FROM every WHERE {name} = ?", rows)
        answered = cursor.fetch_arrow_table()
        assert answered.schema.field(0).type == kind
        assert answered.column(0).to_pylist() == [value, other, value], name


@pytest.mark.usefixtures("table")
def test_many_rows_of_many_parameters(cursor) -> None:
    rows = pa.record_batch({"a": list(range(500)), "b": [f"n{n}" for n in range(500)]})
    cursor.execute("SELECT CAST(? AS BIGINT) * 2 AS twice, ? || '!' AS said", rows)
    answered = cursor.fetch_arrow_table().to_pydict()
    assert answered["twice"] == [2 * n for n in range(500)]
    assert answered["said"] == [f"n{n}!" for n in range(500)]


@pytest.mark.usefixtures("table")
def test_a_null_without_a_type_is_a_null(cursor) -> None:
    untyped = pa.record_batch([pa.nulls(1)], names=["1"])
    assert count(cursor, "SELECT count(*) FROM every WHERE whole = ?", untyped) == 0
    assert count(cursor, "SELECT ? IS NULL", untyped) is True
    assert count(cursor, "SELECT coalesce(?, 'x')", [None]) == "x"


@pytest.mark.usefixtures("table")
def test_a_parameter_of_no_known_type_is_announced_as_text(cursor) -> None:
    assert cursor.adbc_prepare("SELECT ?").field(0).type == pa.string()
    assert count(cursor, "SELECT ?", ["text"]) == "text"
    assert count(cursor, "SELECT ?", [5]) == 5
    assert count(cursor, "SELECT CAST(? AS INTEGER) + 1", ["41"]) == 42


@pytest.mark.usefixtures("table")
def test_a_number_as_text_is_taken_where_a_number_is_compared(cursor) -> None:
    # JDBC's setString on a column of numbers.
    assert count(cursor, "SELECT count(*) FROM every WHERE whole = ?", ["7"]) == 1
    assert count(cursor, "SELECT count(*) FROM every WHERE day = ?", ["2026-01-31"]) == 1


def test_a_uuid_is_found_by_its_text(cursor) -> None:
    known = UUID(int=5)
    ids = pa.array([known.bytes, None], pa.binary(16)).cast(pa.uuid())
    cursor.adbc_ingest("keyed", pa.table({"id": ids}), mode="create")
    sql = "SELECT count(*) FROM keyed WHERE id = ?"
    assert cursor.adbc_prepare(sql).field(0).type == pa.string()
    assert count(cursor, sql, [str(known)]) == 1
    assert count(cursor, sql, pa.record_batch([ids.slice(0, 1)], names=["1"])) == 1


@pytest.mark.parametrize("clause", ["LIMIT ?", "OFFSET ?"])
def test_a_limit_is_announced_as_a_number(cursor, clause) -> None:
    schema = cursor.adbc_prepare(f"SELECT * FROM (VALUES (1), (2)) AS v (a) {clause}")
    assert schema.field(0).type == pa.int64()
