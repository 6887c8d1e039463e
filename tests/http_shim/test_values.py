"""Values between Arrow and JSON: exact both ways, and what JSON has no form for by its rule."""

import csv
import io
import json
import math
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from http_shim.json_columns import BadValue, column_of, text_column
from http_shim.json_text import Numbers, array_rows, csv_rows, json_text, object_rows
from http_shim.records import loads

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "boolean": (pa.bool_(), st.booleans()),
    "tinyint": (pa.int8(), st.integers(-128, 127)),
    "bigint": (pa.int64(), INT64),
    "ubigint": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "double": (pa.float64(), st.floats()),
    "float": (pa.float32(), st.floats(width=32)),
    "decimal": (
        pa.decimal128(38, 10),
        st.integers(-(10**37), 10**37).map(lambda n: Decimal(n).scaleb(-10)),
    ),
    "whole decimal": (pa.decimal128(38, 0), st.integers(-(10**37), 10**37).map(Decimal)),
    "varchar": (pa.string(), TEXT),
    "blob": (pa.binary(), st.binary(max_size=20)),
    "uuid": (pa.uuid(), st.uuids().map(lambda each: each.bytes)),
    "date": (pa.date32(), st.integers(-700_000, 2_900_000)),
    "time": (pa.time64("us"), st.integers(0, 86_399_999_999)),
    "timestamp": (pa.timestamp("us"), st.integers(-62 * 10**15, 253 * 10**15)),
    "timestamp_ns": (pa.timestamp("ns"), st.integers(-(10**18), 10**18)),
    "timestamptz": (pa.timestamp("us", "UTC"), st.integers(-62 * 10**15, 253 * 10**15)),
    "list": (pa.list_(pa.int64()), st.lists(st.none() | INT64, max_size=4)),
    "struct": (
        pa.struct([("a", pa.int64()), ('q"', pa.string())]),
        st.fixed_dictionaries({"a": st.none() | INT64, 'q"': st.none() | TEXT}),
    ),
    "map": (
        pa.map_(pa.string(), pa.float64()),
        st.lists(st.tuples(TEXT, st.none() | st.floats(allow_nan=False)), max_size=3),
    ),
    "deep": (
        pa.list_(pa.struct([("l", pa.list_(pa.string()))])),
        st.lists(
            st.none() | st.fixed_dictionaries({"l": st.none() | st.lists(st.none() | TEXT)}),
            max_size=3,
        ),
    ),
}


def made(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An array of the kind; moments are given in ticks."""
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int32() if pa.types.is_date(kind) else pa.int64()).view(kind)
    return pa.array(values, kind)


def read(text: bytes | str) -> Any:
    return loads(text.encode() if isinstance(text, str) else text, exact_decimals=True)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read_back_as_it_was(name: str) -> None:
    kind, values = KINDS[name]

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(st.none() | values, max_size=6), st.integers(0, 3), st.sampled_from(Numbers))
    def holds(given_values: list[Any], start: int, numbers: Numbers) -> None:
        column = made(given_values, kind).slice(start)
        texts = json_text(column, numbers).to_pylist()
        again = column_of([read(text) for text in texts], kind)
        assert again.type == column.type
        assert str(again.to_pylist()) == str(column.to_pylist())

    holds()


@given(st.lists(st.tuples(st.none() | TEXT, st.none() | INT64), max_size=8))
@settings(max_examples=100, deadline=None, database=None)
def test_rows_are_whole_in_each_form(rows: list[tuple[str | None, int | None]]) -> None:
    columns = [
        pa.array([row[0] for row in rows], pa.string()),
        pa.array([r[1] for r in rows], pa.int64()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=["a b", 'q"'])
    lines = object_rows(batch, Numbers.AS_JSON).split(b"\n")[:-1]
    assert [json.loads(line) for line in lines] == [{"a b": a, 'q"': b} for a, b in rows]
    arrays = json.loads(b"[" + array_rows(batch, Numbers.AS_JSON)[:-1] + b"]")
    assert [tuple(each) for each in arrays] == rows
    text = csv_rows(batch, Numbers.AS_JSON).decode()
    parsed = list(csv.reader(io.StringIO(text, newline=""))) if "\x00" not in text else None
    if parsed is not None:
        assert parsed == [[a or "", "" if b is None else str(b)] for a, b in rows]


def test_what_json_has_no_form_for_is_written_by_its_rule() -> None:
    cases: list[tuple[pa.Array, list[Any]]] = [
        (pa.array([2**53 - 1, 2**53, -(2**53)]), [2**53 - 1, str(2**53), str(-(2**53))]),
        (pa.array([math.nan, math.inf, -math.inf]), ["NaN", "Infinity", "-Infinity"]),
        (pa.array([Decimal("1.50")], pa.decimal128(9, 2)), ["1.50"]),
        (pa.array([Decimal(7), Decimal(10**20)], pa.decimal128(38, 0)), [7, str(10**20)]),
        (
            pa.array([0], pa.int64()).view(pa.timestamp("us", "Europe/Berlin")),
            ["1970-01-01T00:00:00.000000Z"],
        ),
        (pa.array([2**63 - 1, -(2**63) + 1]).view(pa.timestamp("us")), ["infinity", "-infinity"]),
        (pa.array([(1, 2, 3_500_000_000)], pa.month_day_nano_interval()), ["P1M2DT3.5S"]),
        (pa.array([uuid.UUID(int=5).bytes], pa.uuid()), [str(uuid.UUID(int=5))]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([[1, None], None], pa.list_(pa.int32(), 2)), [[1, None], None]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), [[{"key": "k", "value": 1}]]),
        (pa.nulls(2), [None, None]),
    ]
    for column, expected in cases:
        assert [json.loads(t) for t in json_text(column, Numbers.SAFE).to_pylist()] == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, pa.int64()),
        (1, pa.bool_()),
        (1.5, pa.int64()),
        (128, pa.int8()),
        ("0x10", pa.int64()),
        ("1e3", pa.int64()),
        (2**60 + 1, pa.float64()),
        (1e300, pa.float32()),
        ("nan", pa.float64()),
        ("1.005", pa.decimal128(5, 2)),
        ("1e400", pa.decimal128(38, 0)),
        (Decimal("1E+999999"), pa.int64()),
        (1, pa.string()),
        ("\ud800", pa.string()),
        ("no base64!", pa.binary()),
        ("2024-02-30", pa.date32()),
        ("24:00:00", pa.time64("us")),
        ("2024-01-01T00:00:00", pa.timestamp("us", "UTC")),
        ("2024-01-01T00:00:00Z", pa.timestamp("us")),
        ("2024-01-01T00:00:00.1234567Z", pa.timestamp("us", "UTC")),
        ([1, "a"], pa.list_(pa.int64())),
        ({"b": 1}, pa.struct([("a", pa.int64())])),
        ([{"key": "k"}], pa.map_(pa.string(), pa.int64())),
        ([{"key": None, "value": 1}], pa.map_(pa.string(), pa.int64())),
        (7, pa.duration("us")),
        ("0-0", pa.uuid()),
    ],
)
def test_a_value_that_would_change_is_refused_by_its_index(value: Any, kind: pa.DataType) -> None:
    with pytest.raises(BadValue) as caught:
        column_of([None, None, value], kind)
    assert caught.value.index in (0, 2)
    assert caught.value.reason


def test_fields_of_a_file_are_read_as_their_columns_type() -> None:
    texts = pa.array(["+7", None, "-1"])
    assert text_column(texts, pa.int64()).to_pylist() == [7, None, -1]
    assert text_column(pa.array(["TRUE", None]), pa.bool_()).to_pylist() == [True, None]
    assert text_column(pa.array(["1.5", "Infinity"]), pa.float64()).to_pylist() == [1.5, math.inf]
    for text, kind in (("1 ", pa.int64()), ("yes", pa.bool_()), ("1,5", pa.float64())):
        with pytest.raises(BadValue):
            text_column(pa.array([text]), kind)
