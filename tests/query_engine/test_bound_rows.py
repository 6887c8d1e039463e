"""Bound rows as one relation: every value comes as it was sent."""

from typing import Any

import duckdb
import pyarrow as pa
import pytest

from duckmesh.errors import Invalid
from query_engine.bound_rows import BoundRows
from query_engine.parameters import ParameterReader
from query_engine.syntax import Parameter

TEXTS = [
    *("NULL", "null", "NULL ", "a, b", "[x]", "{a: 1}", "(1,2)", "'q'", '"dq"', "'", '"', "''"),
    *('""', "\\", "\\'", "\\\\", "\\n", "a\\,b", " lead ", "trail ", "", "new\nline", "tab\t"),
    *("\r", ",", "é😀", "x'y\"z", "\x00z", "a=b", None),
]

VALUES: list[pa.Array] = [
    pa.array(TEXTS),
    pa.array([b"\x00\xff", b"", b"'\"\\,[]", None, bytes(range(256))]),
    pa.array(["12345678901234567890123456789.123456789", None]).cast(pa.decimal128(38, 9)),
    pa.array([1_700_000_000_123_456_789, None, -1], pa.timestamp("ns")),
    pa.array([0, 1, -(2**50)], pa.timestamp("us", tz="UTC")),
    pa.array([0.1, float("nan"), float("inf"), -0.0, 1e-320, 1.7976931348623157e308, None]),
    pa.array([2**63 - 1, -(2**63), None]),
    pa.array([2**64 - 1, 0], pa.uint64()),
    pa.array([True, None, False]),
    pa.array([0, -719_162, 5_000_000, None], pa.int32()).cast(pa.date32()),
    pa.array([0, 86_399_999_999]).cast(pa.time64("us")),
    pa.array([["a", None, "b, c", "'"], [], None]),
    pa.array([{"x": "q, '", "y": 1}, None]),
    pa.array([[("a, '", 1)], None], pa.map_(pa.string(), pa.int64())),
    pa.array(["a", "b", None, "a"]).dictionary_encode(),
    pa.nulls(3),
]


@pytest.mark.parametrize("values", VALUES, ids=[str(each.type) for each in VALUES])
def test_every_value_comes_as_it_was_sent(values: pa.Array) -> None:
    place = Parameter("1", 0, 2)
    bound = BoundRows.of(pa.table({"0": values}), (place,), sql="")
    reader = ParameterReader()
    try:
        (row,) = reader.bindings(bound.lists, (place,))
    finally:
        reader.close()
    with duckdb.connect(":memory:") as duck:
        duck.execute("SET timezone = 'UTC'")
        query = f"SELECT {bound.columns['1']} FROM {bound.source}"
        got = duck.sql(query, params=dict(row.values)).to_arrow_table().column(0)
        duck.register("sent", pa.table({"v": values}))
        sent = duck.sql("FROM sent").to_arrow_table().column(0)
    assert got.type == sent.type
    # NaN is no equal of itself, and Python has no dates after the year 9999.
    assert got.equals(sent) or str(got.to_pylist()) == str(sent.to_pylist())


def test_the_columns_follow_the_parameters(two_rows: pa.Table) -> None:
    places = (Parameter("b", 7, 2), Parameter("a", 20, 2), Parameter("b", 30, 2))
    bound = BoundRows.of(two_rows, places, sql="SELECT bound, bound_")
    assert bound.name == "bound__", "no name of the statement's"
    assert [each[0].as_py() for each in bound.lists.columns] == [["x", "y"], [1, 2]]
    assert list(bound.columns) == ["b", "a"]
    tree: Any = {"class": "PARAMETER", "identifier": "a"}
    assert bound.put_into([{"child": tree}])[0]["child"]["column_names"] == ["bound__", "bound__1"]


def test_a_wrong_count_is_refused(two_rows: pa.Table) -> None:
    with pytest.raises(Invalid, match="takes 1 parameters and got 2"):
        BoundRows.of(two_rows, (Parameter("1", 0, 1),), sql="")


@pytest.fixture
def two_rows() -> pa.Table:
    return pa.table({"a": [1, 2], "b": ["x", "y"]})
