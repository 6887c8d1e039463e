"""Rows read at once are what they are when each column is read by itself, or are left to that."""

import json
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh.errors import Invalid
from http_shim.plain_rows import PlainRows, plain_rows
from http_shim.records import batch_by_columns, batch_of

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("small", pa.int8()),
        pa.field("large", pa.uint64()),
        pa.field("value", pa.float64()),
        pa.field("good", pa.bool_()),
        pa.field("word", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("wall", pa.timestamp("ms")),
        pa.field("day", pa.date32()),
    ]
)
MOMENTS = (
    "2024-12-31T23:59:59.5Z",
    "2024-12-31T23:59:59.123456789Z",
    "2024-12-31 23:59:59+02:00",
    "2024-12-31T23:59:59",
    "2024-12-31",
    "1970-01-01T00:00Z",
    "9999-12-31T23:59:59Z",
    "yesterday",
    "",
)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([127, 128, -129, 2**53, 2**53 + 1, 2**63, 2**64, -1, 1.0, -0.0, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.one_of(
    st.none(),
    NUMBERS,
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from([*MOMENTS, "NaN", "5", "Infinity", "true"]),
    st.lists(st.none(), max_size=1),
)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(-(2**63), 2**63 - 1),
    "small": st.integers(-128, 127) | st.none(),
    "large": st.integers(0, 2**64 - 1) | st.none(),
    "value": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9) | st.none(),
    "good": st.booleans() | st.none(),
    "word": st.text(max_size=8) | st.none(),
    "at": st.sampled_from(["2024-12-31T23:59:59.5Z", "1970-01-01T00:00:00+01:00", None]),
    "wall": st.sampled_from(["2024-12-31T23:59:59.123", "1970-01-01 00:00:00", None]),
    "day": st.sampled_from(["2024-02-29", "0001-01-01", None]),
}
NAMES = [*SCHEMA.names, "ID", "Word", "other"]
ROWS = st.lists(
    st.fixed_dictionaries({}, optional=FITTING)
    | st.fixed_dictionaries(FITTING)
    | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    min_size=1,
    max_size=4,
)


def outcome(read: Any, rows: list[dict[str, Any]]) -> Any:
    """The rows read, to the bit; or what is wrong with them."""
    try:
        batch = read(rows, SCHEMA)
    except Invalid as refused:
        return refused.code, str(refused), refused.context
    batch.validate(full=True)
    assert batch.schema.equals(SCHEMA, check_metadata=True)
    return [repr(column.to_pylist()) for column in batch.columns]


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_both_ways_say_the_same_of_any_rows(rows: list[dict[str, Any]]) -> None:
    assert outcome(batch_of, rows) == outcome(batch_by_columns, rows)


def test_plain_rows_are_read_at_once_and_others_are_left() -> None:
    plain = {"id": 1, "value": 2, "good": True, "word": "é", "at": "2024-12-31T23:59:59Z"}
    assert PlainRows(SCHEMA).batch_of([plain, {"id": 2}]) is not None
    for other in ({"id": True}, {"id": "1"}, {"ID": 1}, {"id": 1, "small": 300}, {"word": "x"}):
        assert PlainRows(SCHEMA).batch_of([plain, other]) is None
    nested = pa.schema([("id", pa.int64()), ("tags", pa.list_(pa.string()))])
    assert PlainRows(nested).batch_of([{"id": 1}]) is None


def test_a_text_that_is_no_unicode_is_refused_and_not_read() -> None:
    row = json.loads('{"id": 1, "word": "\\ud800"}')
    assert PlainRows(SCHEMA).batch_of([row]) is None
    with pytest.raises(Invalid, match="word"):
        batch_of([row], SCHEMA)


def test_how_rows_are_read_is_known_for_each_schema() -> None:
    found = [plain_rows(pa.schema([(f"c{n}", pa.int64())])) for n in range(600)]
    assert [each.schema.names for each in found] == [[f"c{n}"] for n in range(600)]
    again = pa.schema([("c1", pa.int64())])
    assert plain_rows(again) is plain_rows(again)
    row = orjson.loads(b'{"c1": 5}')
    assert batch_of([row], again).to_pylist() == [row]


def lines_of(rows: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


@given(ROWS)
@settings(max_examples=80, deadline=None)
def test_lines_read_at_once_are_the_rows_that_they_hold(rows: list[dict[str, Any]]) -> None:
    batch = PlainRows(SCHEMA).batch_of_lines(lines_of(rows))
    if batch is not None:
        assert outcome(lambda *_: batch, rows) == outcome(batch_by_columns, rows)


@given(
    st.lists(
        st.lists(
            st.sampled_from([*b'{}{}[],": 1x']),
            min_size=1,
            max_size=8,
        ).map(bytes)
        | st.sampled_from(
            [
                b'{"id":1},{"id":2}',
                b'{"id":1}{"id":2}',
                b'{"id":1',
                b'"small":2}',
                b'{"word":"}',
                b'{"}',
                b'{"id":[{}',
                b'{"id":2}]}',
                b'{"id":1},2,{"id":3}',
                b'{"id":1}],[{"id":2}',
                b'{"id":1}',
                b"{}",
            ]
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_no_line_that_is_no_object_is_read(lines: list[bytes]) -> None:
    if PlainRows(SCHEMA).batch_of_lines(lines) is not None:
        assert all(isinstance(orjson.loads(line), dict) for line in lines)
