"""Values on their way in and out: column types from files, parameters from Arrow, descriptions."""

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import ErrorCode, Invalid, NotFound
from query_engine.engine import QueryEngine
from query_engine.relations import Relation, RelationSet

EMPTY = RelationSet("acme", 1, (), ())
UTC = "UTC"

COLUMNS: list[tuple[pa.DataType, list[Any], pa.DataType]] = [
    (pa.bool_(), [True, False, None], pa.bool_()),
    (pa.int8(), [-128, 127, None], pa.int8()),
    (pa.int16(), [-(2**15), None], pa.int16()),
    (pa.int32(), [-(2**31), None], pa.int32()),
    (pa.int64(), [-(2**63), 2**63 - 1, None], pa.int64()),
    (pa.uint8(), [255, None], pa.uint8()),
    (pa.uint16(), [2**16 - 1, None], pa.uint16()),
    (pa.uint32(), [2**32 - 1, None], pa.uint32()),
    (pa.uint64(), [2**64 - 1, None], pa.uint64()),
    (pa.float32(), [0.5, None], pa.float32()),
    (pa.float64(), [0.1, float("inf"), None], pa.float64()),
    (pa.string(), ["é", "", None], pa.string()),
    (pa.large_string(), ["x", None], pa.string()),
    (pa.string_view(), ["x", None], pa.string()),
    (pa.binary(), [b"\x00\xff", b"", None], pa.binary()),
    (pa.large_binary(), [b"\x00", None], pa.binary()),
    (pa.binary(3), [b"abc", None], pa.binary()),
    (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31), None], pa.date32()),
    (pa.time64("us"), [dt.time(23, 59, 59, 999999), None], pa.time64("us")),
    (pa.timestamp("ms"), [1_700_000_000_001, None], pa.timestamp("ms")),
    (pa.timestamp("us"), [1_700_000_000_000_001, None], pa.timestamp("us")),
    (pa.timestamp("ns"), [2**62 + 1, None], pa.timestamp("ns")),
    (pa.timestamp("us", "UTC"), [1_700_000_000_000_001, None], pa.timestamp("us", UTC)),
    (pa.timestamp("ns", "Europe/Berlin"), [2**60 + 1, None], pa.timestamp("ns", UTC)),
    (pa.decimal128(38, 10), [Decimal("1234567890123456789012345678.0123456789"), None], None),
    (pa.decimal128(9, 2), [Decimal("-1.25"), None], None),
    (pa.list_(pa.int32()), [[1, None], [], None], None),
    (pa.struct([("x", pa.int32()), ("y", pa.string())]), [{"x": 1, "y": None}, None], None),
    (pa.map_(pa.string(), pa.int64()), [[("k", 1)], [], None], None),
    (pa.list_(pa.struct([("x", pa.list_(pa.float64()))])), [[{"x": [0.5]}], None], None),
]


@pytest.mark.parametrize("uniform", [True, False], ids=["as they are", "as mapped"])
@pytest.mark.parametrize(("kind", "values", "out"), COLUMNS, ids=[str(c[0]) for c in COLUMNS])
def test_a_column_comes_out_as_it_went_in(kind, values, out, lake, ask, *, uniform) -> None:
    written = pa.array(values, kind)
    schema = lake.schema(v=(1, kind))
    relations = lake.snapshot(
        Relation("t", schema, (lake.write(schema, {"v": written}),), uniform=uniform),
        Relation("e", schema, (), uniform=uniform),
    )
    found = ask.table("SELECT v FROM t", relations).column("v").combine_chunks()
    expected = written if out is None else written.cast(out)
    if pa.types.is_nested(kind):
        # The names of lists' items are DuckDB's own; the values are not.
        assert found.to_pylist() == written.to_pylist()
    else:
        assert found.type == expected.type
        assert found.equals(expected)
    assert ask.table("SELECT v FROM e", relations).schema.types == [found.type]


PARAMETERS: list[tuple[pa.DataType, Any, pa.DataType | None]] = [
    (pa.bool_(), True, None),
    (pa.int8(), -5, None),
    (pa.int64(), 2**63 - 1, None),
    (pa.uint8(), 200, None),
    (pa.uint64(), 2**64 - 1, None),
    (pa.float32(), 0.25, None),
    (pa.float64(), 0.1, None),
    (pa.string(), "it's é \x01 \\ $1 ?", None),
    (pa.large_string(), "x", pa.string()),
    (pa.string_view(), "x", pa.string()),
    (pa.binary(), b"\x00'\xff", None),
    (pa.binary(2), b"ab", pa.binary()),
    (pa.date32(), 20_000_000, None),
    (pa.date32(), -1_000_000, None),
    (pa.date64(), 86_400_000, pa.date32()),
    (pa.time32("ms"), 1, pa.time64("us")),
    (pa.time64("us"), 86_399_999_999, None),
    (pa.time64("ns"), 86_399_999_999_999, None),
    (pa.timestamp("s"), 2**36, None),
    (pa.timestamp("ms"), -1, None),
    (pa.timestamp("us"), 2**60, None),
    (pa.timestamp("ns"), 2**60 + 1, None),
    (pa.timestamp("us", "America/New_York"), 1_700_000_000_000_001, pa.timestamp("us", UTC)),
    (pa.timestamp("ns", "UTC"), 2**60 + 1, pa.timestamp("ns", UTC)),
    (pa.decimal128(38, 10), Decimal("-1234567890123456789012345678.0123456789"), None),
    (pa.decimal128(5, 2), Decimal("0.01"), None),
    (pa.dictionary(pa.int8(), pa.string()), "x", pa.string()),
    (pa.list_(pa.int32()), [1, None, 3], None),
    (pa.list_(pa.string()), ["NULL", None, "a, 'b' \"c\" [d] {e} \\"], None),
    (pa.struct([("a", pa.int32()), ("b c", pa.string())]), {"a": 1, "b c": "it's"}, None),
]


@pytest.mark.parametrize(
    ("kind", "value", "out"), PARAMETERS, ids=[f"{p[0]}-{p[1]!r}" for p in PARAMETERS]
)
def test_a_parameter_comes_back_without_loss(kind, value, out, ask) -> None:
    sent = pa.array([value], kind)
    batch = pa.record_batch([sent], names=["p"])
    found = ask.table("SELECT ? AS v", EMPTY, parameters=batch).column("v").combine_chunks()
    expected = sent if out is None else sent.cast(out)
    if pa.types.is_nested(kind):
        assert found.to_pylist() == sent.to_pylist()
    else:
        assert found.equals(expected), (found.type, expected.type)


def test_a_uuid_parameter_is_a_uuid(ask) -> None:
    value = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    sent = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([value.bytes], pa.binary(16)))
    batch = pa.record_batch([sent], names=["p"])
    assert ask.rows("SELECT typeof(?), $1", EMPTY, parameters=batch) == [("UUID", str(value))]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.string(), pa.date32(), pa.decimal128(7, 3), pa.list_(pa.int16())]
)
def test_a_null_parameter_keeps_its_type_and_the_columns_name(kind, ask) -> None:
    batch = pa.record_batch([pa.nulls(1, kind), pa.array([5])], names=["p", "q"])
    table = ask.table("SELECT 'é' AS é, ?, $2 AS q", EMPTY, parameters=batch)
    assert table.schema.names == ["é", "$1", "q"]
    assert table.to_pylist()[0]["$1"] is None
    if pa.types.is_nested(kind):
        assert pa.types.is_list(table.schema.types[1])
    else:
        assert table.schema.types[1] == kind


def test_a_null_parameter_of_no_type_is_null(ask) -> None:
    batch = pa.record_batch([pa.nulls(1)], names=["p"])
    assert ask.rows("SELECT ? IS NULL", EMPTY, parameters=batch) == [(True,)]


def test_parameters_work_wherever_sql_takes_them(numbers, ask) -> None:
    batch = pa.record_batch({"p": pa.array([1], pa.int64()), "q": ["y"]})
    sql = "WITH x AS (SELECT * FROM t WHERE a > $1) SELECT a FROM x WHERE b IN ($2, 'z') LIMIT $1"
    assert ask.rows(sql, numbers, parameters=batch) == [(2,)]


def test_parameters_are_numbered_or_named(ask) -> None:
    batch = pa.record_batch({"a": [1], "b": [2]})
    assert ask.rows("SELECT $2, $1", EMPTY, parameters=batch) == [(2, 1)]
    assert ask.rows("SELECT $b, $a, $b", EMPTY, parameters=batch) == [(2, 1, 2)]
    unnamed = pa.record_batch({"0": [1], "1": [2]})
    assert ask.rows("SELECT $b, $a", EMPTY, parameters=unnamed) == [(1, 2)]


def test_several_rows_of_parameters_give_their_results_in_order(numbers, ask) -> None:
    batch = pa.record_batch({"p": pa.array([3, 1, None, 2], pa.int64())})
    rows = ask.rows("SELECT a, ? AS p FROM t WHERE a <= $1 ORDER BY a", numbers, parameters=batch)
    assert rows == [(1, 3), (2, 3), (3, 3), (1, 1), (1, 2), (2, 2)]


def test_later_rows_of_parameters_are_run_when_they_are_read(engine: QueryEngine) -> None:
    batch = pa.record_batch({"p": ["1", "2", "not a number"]})
    with engine.run("SELECT CAST(? AS INTEGER) AS v", EMPTY, parameters=batch) as running:
        got = [running.reader.read_next_batch()["v"][0].as_py() for _ in range(2)]
        assert got == [1, 2]
        with pytest.raises(Invalid, match="not a number"):
            running.reader.read_next_batch()


@pytest.mark.parametrize(
    ("sql", "columns", "expected", "got"),
    [
        ("SELECT ?", 0, 1, 0),
        ("SELECT ?, ?", 1, 2, 1),
        ("SELECT $3", 2, 3, 2),
        ("SELECT 1", 2, 0, 2),
        ("SELECT $x", 2, 1, 2),
    ],
)
def test_a_wrong_count_of_parameters_names_both(sql, columns, expected, got, engine) -> None:
    batch = pa.record_batch({f"p{n}": [n] for n in range(columns)}) if columns else None
    with pytest.raises(Invalid, match=f"takes {expected} parameters and got {got}") as wrong:
        engine.run(sql, EMPTY, parameters=batch)
    assert wrong.value.context == {"expected": expected, "got": got}
    assert wrong.value.code is ErrorCode.QUERY_EXECUTION_FAILED


def test_a_batch_of_no_columns_is_no_parameters(ask) -> None:
    assert ask.rows("SELECT 1", EMPTY, parameters=pa.record_batch({})) == [(1,)]


@pytest.mark.parametrize(
    ("sql", "types"),
    [
        ("SELECT * FROM t WHERE a = ? AND b = ?", [pa.int64(), pa.string()]),
        ("SELECT * FROM t LIMIT ?", [pa.int64()]),
        ("SELECT ?", [pa.string()]),
        ("SELECT a + ? FROM t", [pa.string()]),
        ("SELECT CAST(? AS DATE)", [pa.date32()]),
        ("SELECT * FROM t WHERE a = CAST(? AS DECIMAL(7, 2))", [pa.decimal128(7, 2)]),
        ("SELECT 1", []),
    ],
)
def test_parameters_are_described_and_never_null(sql, types, numbers, engine) -> None:
    description = engine.describe(sql, numbers)
    assert description.is_query
    assert description.parameter_schema.types == types
    assert pa.null() not in description.result_schema.types


def test_a_description_is_the_schema_that_the_query_then_has(numbers, engine) -> None:
    for sql in ("SELECT * FROM t", "SHOW TABLES", "DESCRIBE t", "EXPLAIN SELECT 1", "VALUES (1)"):
        with engine.run(sql, numbers) as running:
            assert engine.describe(sql, numbers).result_schema == running.schema


def test_a_description_follows_the_tables_columns(lake, engine) -> None:
    for kind in (pa.int32(), pa.string(), pa.int32()):
        relations = lake.snapshot(Relation("t", lake.schema(a=(1, kind)), ()))
        assert engine.describe("SELECT a FROM t", relations).result_schema.types == [kind]


def test_a_statement_that_is_no_query_is_described_as_such(numbers, engine) -> None:
    assert not engine.describe("INSERT INTO t VALUES (1, 'x')", numbers).is_query


def test_a_description_of_what_cannot_bind_raises_as_the_query_would(numbers, engine) -> None:
    with pytest.raises(Invalid, match="nosuch"):
        engine.describe("SELECT nosuch FROM t", numbers)
    with pytest.raises(NotFound):
        engine.describe("SELECT * FROM tt", numbers)
