"""Columns in normal form, with field ids that stay."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.table_schema import (
    COLUMN_LIMIT,
    TableSchema,
    normal_schema,
    without_field_ids,
)
from duckmesh.errors import ErrorCode, Invalid

UNITS = ("s", "ms", "us", "ns")

leaf_types = st.sampled_from(
    [
        pa.bool_(),
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(16)),
        *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms")),
        *(pa.time64("us"), pa.time64("ns")),
        *(pa.timestamp(unit) for unit in UNITS),
        *(pa.timestamp(unit, tz) for unit in UNITS for tz in ("UTC", "Europe/Zurich")),
        *(pa.decimal128(9, 2), pa.decimal128(38, 0), pa.decimal32(5, 1), pa.decimal256(30, 3)),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.timestamp("ms"))),
        *(pa.uuid(), pa.json_()),
    ]
)


def nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    item = st.builds(pa.field, st.just("item"), inner, st.booleans())
    children = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(pa.list_, item),
        st.builds(pa.large_list, item),
        st.builds(lambda t: pa.list_(t, 3), inner),
        st.builds(pa.map_, st.sampled_from([pa.string(), pa.large_string()]), inner),
        children.map(lambda types: pa.struct([(f"f{n}", t) for n, t in enumerate(types)])),
    )


column_types = st.recursive(leaf_types, nested, max_leaves=6)
column_names = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20
)
schemas = st.lists(
    st.builds(pa.field, column_names, column_types, st.booleans()),
    min_size=1,
    max_size=8,
    unique_by=lambda field: field.name.lower(),
).map(pa.schema)


def field_ids(schema: TableSchema) -> list[int]:
    return [column["field_id"] for column in schema.as_columns()]


@given(schemas)
def test_the_normal_form_of_a_normal_form_is_itself(offered: pa.Schema) -> None:
    normal = normal_schema(offered)
    assert normal_schema(normal).equals(normal, check_metadata=True)
    assert normal.names == offered.names
    assert [f.nullable for f in normal] == [f.nullable for f in offered]


@given(schemas)
def test_a_schema_comes_back_from_its_bytes(offered: pa.Schema) -> None:
    schema = TableSchema.first(offered)
    again = TableSchema.from_bytes(schema.version, schema.to_bytes())
    assert again.arrow.equals(schema.arrow, check_metadata=True)
    assert again.to_bytes() == schema.to_bytes()
    assert again.as_columns() == schema.as_columns()
    assert again.has_same_columns(offered)


@given(schemas)
def test_field_ids_are_dense_in_the_first_version(offered: pa.Schema) -> None:
    schema = TableSchema.first(offered)
    assert field_ids(schema) == list(range(1, len(offered) + 1))
    assert schema.next_field_id == len(offered) + 1
    assert without_field_ids(schema.arrow).equals(normal_schema(offered), check_metadata=True)


@given(schemas, schemas)
def test_replaced_columns_have_fresh_field_ids(before: pa.Schema, after: pa.Schema) -> None:
    first = TableSchema.first(before)
    second = first.replaced_by(after)
    assert second.version == 2
    assert set(field_ids(first)).isdisjoint(field_ids(second))
    assert len(set(field_ids(second))) == len(after)


@pytest.mark.parametrize(
    ("offered", "normal"),
    [
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.binary(16), pa.binary()),
        (pa.float16(), pa.float32()),
        (pa.date64(), pa.date32()),
        (pa.time32("s"), pa.time64("us")),
        (pa.timestamp("s"), pa.timestamp("us")),
        (pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.timestamp("ns", "Asia/Tokyo"), pa.timestamp("us", "UTC")),
        (pa.decimal256(38, 4), pa.decimal128(38, 4)),
        (pa.uuid(), pa.uuid()),
        (pa.bool8(), pa.bool_()),
        (pa.opaque(pa.large_binary(), "thing", "vendor"), pa.binary()),
        (pa.duration("s"), pa.duration("us")),
        (pa.run_end_encoded(pa.int32(), pa.int8()), pa.int8()),
        (pa.list_view(pa.int8()), pa.list_(pa.field("element", pa.int8()))),
        (pa.list_(pa.large_string(), 2), pa.list_(pa.field("element", pa.string()), 2)),
        (pa.list_(pa.int8(), 100_001), pa.list_(pa.field("element", pa.int8()))),
    ],
)
def test_types_of_one_meaning_have_one_form(offered: pa.DataType, normal: pa.DataType) -> None:
    assert normal_schema(pa.schema([("c", offered)])).field("c").type == normal


@pytest.mark.parametrize(
    "unstorable",
    [
        pa.null(),
        pa.month_day_nano_interval(),
        pa.decimal256(76, 0),
        pa.list_(pa.null()),
        pa.struct([("inner", pa.duration("us"))]),
        pa.map_(pa.string(), pa.null()),
        pa.dense_union([pa.field("a", pa.int8())]),
        pa.decimal128(5, -2),
        pa.decimal128(2, 3),
        pa.struct([]),
    ],
)
def test_a_type_that_cannot_be_stored_is_refused_by_its_column(unstorable: pa.DataType) -> None:
    with pytest.raises(Invalid) as raised:
        TableSchema.first(pa.schema([("fine", pa.int8()), ("odd", unstorable)]))
    assert raised.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert raised.value.context["column"] == "odd"


@pytest.mark.parametrize("names", [["a", "A"], ["a", "a"], [""], ["a\x00b"]])
def test_names_that_sql_cannot_tell_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(Invalid) as raised:
        TableSchema.first(pa.schema([(name, pa.int8()) for name in names]))
    assert raised.value.code is ErrorCode.SCHEMA_INCOMPATIBLE


@pytest.mark.parametrize("count", [0, COLUMN_LIMIT + 1])
def test_no_columns_and_too_many_are_refused(count: int) -> None:
    with pytest.raises(Invalid):
        TableSchema.first(pa.schema([(f"c{n}", pa.int8()) for n in range(count)]))


def other(change: str) -> pa.Schema:
    fields: dict[str, Any] = {
        "order": [("b", pa.string()), ("a", pa.int64())],
        "name": [("a", pa.int64()), ("c", pa.string())],
        "type": [("a", pa.int32()), ("b", pa.string())],
        "fewer": [("a", pa.int64())],
        "nullability": [pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())],
    }
    return pa.schema(fields[change])


@pytest.mark.parametrize("change", ["order", "name", "type", "fewer", "nullability"])
def test_other_columns_are_not_the_same(change: str) -> None:
    schema = TableSchema.first(pa.schema([("a", pa.int64()), ("b", pa.string())]))
    assert not schema.has_same_columns(other(change))
