"""Which rows a table takes: every change of type that keeps the value, and no other."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from catalog.table_schema import TableSchema
from duckmesh.errors import ErrorCode, Invalid
from gateway.conform import Conformer, check_batch

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).replace(tzinfo=None)
MIDNIGHT = NOON.replace(hour=0)
DAY = date(2026, 1, 31)
UTC_US = pa.timestamp("us", tz="UTC")


def conformed(values: pa.Array, target: pa.Field) -> pa.Array:
    schema = TableSchema.first(pa.schema([target])).arrow
    offered = pa.schema([pa.field(target.name, values.type)])
    batch = pa.RecordBatch.from_arrays([values], schema=offered)
    answer = Conformer.between(offered, schema).conform(batch)
    assert answer.schema.equals(schema, check_metadata=True)
    answer.validate(full=True)
    return answer.column(0)


def refused(values: pa.Array, target: pa.Field) -> Invalid:
    with pytest.raises(Invalid) as caught:
        conformed(values, target)
    return caught.value


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
NATURALS = [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


@pytest.mark.parametrize("to", [*INTEGERS, *NATURALS, pa.float64()], ids=str)
@pytest.mark.parametrize("of", [*INTEGERS, *NATURALS], ids=str)
def test_an_integer_fits_every_number_that_can_hold_it(of: pa.DataType, to: pa.DataType) -> None:
    got = conformed(pa.array([0, None, 100], of), pa.field("v", to))
    assert got.type == to
    assert got.to_pylist() == [0, None, 100]


@pytest.mark.parametrize(
    ("values", "to", "expected"),
    [
        (pa.array([7], pa.int32()), pa.decimal128(12, 2), [Decimal("7.00")]),
        (pa.array([7], pa.int64()), pa.decimal128(4, 2), [Decimal("7.00")]),
        (pa.array([2**63], pa.uint64()), pa.decimal128(38, 2), [Decimal(2**63)]),
        (pa.array([Decimal("1.5")]), pa.decimal128(9, 4), [Decimal("1.5000")]),
        (pa.array([0.5], pa.float32()), pa.float64(), [0.5]),
        (pa.array([0.5], pa.float16()), pa.float32(), [0.5]),
        (pa.array([DAY], pa.date32()), pa.timestamp("us"), [MIDNIGHT]),
        (pa.array([DAY], pa.date64()), pa.date32(), [DAY]),
        (pa.array([NOON], pa.timestamp("s")), pa.timestamp("us"), [NOON]),
        (pa.array([NOON], pa.timestamp("us")), pa.timestamp("ns"), [NOON]),
        (
            pa.array([NOON.replace(tzinfo=UTC)], pa.timestamp("ns", tz="Europe/Zurich")),
            UTC_US,
            [NOON.replace(tzinfo=UTC)],
        ),
        (pa.array([time(1, 2)], pa.time32("s")), pa.time64("us"), [time(1, 2)]),
        (pa.array(["a", None], pa.large_string()), pa.string(), ["a", None]),
        (pa.array(["a", None], pa.string_view()), pa.string(), ["a", None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string(), ["a", None, "a"]),
        (
            pa.DictionaryArray.from_arrays([0, None, 0], pa.array(["a"], pa.string_view())),
            pa.string(),
            ["a", None, "a"],
        ),
        (pa.array([b"ab"], pa.binary(2)), pa.binary(), [b"ab"]),
        (pa.array([b"ab"], pa.binary_view()), pa.binary(), [b"ab"]),
        (pa.nulls(2), pa.int64(), [None, None]),
        (pa.nulls(1), pa.list_(pa.int64()), [None]),
        (pa.array([[1], None], pa.large_list(pa.int32())), pa.list_(pa.int64()), [[1], None]),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), pa.list_(pa.int64()), [[1, 2]]),
        (pa.array([[1, 2], None]), pa.list_(pa.int64(), 2), [[1, 2], None]),
        (pa.array([[1], None], pa.list_view(pa.int8())), pa.list_(pa.int64()), [[1], None]),
        (pa.array([b"x" * 16]), pa.uuid(), [UUID(bytes=b"x" * 16)]),
        (pa.array([b"x" * 16], pa.binary(16)).cast(pa.uuid()), pa.binary(), [b"x" * 16]),
        (pa.array([str(UUID(int=5)), None]), pa.uuid(), [UUID(int=5), None]),
        (
            pa.array([pa.MonthDayNano([0, -1, 5_000]), None], pa.month_day_nano_interval()),
            pa.duration("us"),
            [timedelta(days=-1, microseconds=5), None],
        ),
        (pc.run_end_encode(pa.array([7, 7, None])), pa.int64(), [7, 7, None]),
        (pa.array([1, 0], pa.int8()).cast(pa.bool8()), pa.bool_(), [True, False]),
        (pa.array([1000], pa.duration("ns")), pa.duration("us"), [timedelta(microseconds=1)]),
        (
            pa.array([{"a": 1, "b": "x"}], pa.struct([("a", pa.int8()), ("b", pa.string_view())])),
            pa.struct([("a", pa.int64()), ("b", pa.string())]),
            [{"a": 1, "b": "x"}],
        ),
        (
            pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
            pa.map_(pa.string(), pa.int64()),
            [[("k", 1)]],
        ),
    ],
    ids=lambda each: str(getattr(each, "type", each))[:40],
)
def test_a_lossless_change_keeps_the_value(
    values: pa.Array, to: pa.DataType, expected: list[object]
) -> None:
    assert conformed(values, pa.field("v", to)).to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "to"),
    [
        (pa.array(["1"]), pa.int64()),
        (pa.array([1]), pa.string()),
        (pa.array([1.0]), pa.int64()),
        (pa.array([1.0]), pa.float32()),
        (pa.array([1]), pa.float32()),
        (pa.array([1.0]), pa.decimal128(9, 2)),
        (pa.array([Decimal("1.5")]), pa.float64()),
        (pa.array([True]), pa.int64()),
        (pa.array([1]), pa.bool_()),
        (pa.array([b"a"]), pa.string()),
        (pa.array(["a"]), pa.binary()),
        (pa.array([1]), pa.timestamp("us")),
        (pa.array(["2026-01-31"]), pa.date32()),
        (pa.array([NOON]), pa.date32()),
        (pa.array([NOON], pa.timestamp("us")), UTC_US),
        (pa.array([NOON], UTC_US), pa.timestamp("us")),
        (pa.array([DAY]), UTC_US),
        (pa.array([["1"]]), pa.list_(pa.int64())),
        (pa.array([[1.0]]), pa.list_(pa.int64())),
        (pa.array([[1]]), pa.int64()),
        (pa.array([[1.0]], pa.list_view(pa.float64())), pa.list_(pa.int64())),
        (pa.array([{"a": 1, "b": 2}]), pa.struct([("a", pa.int64())])),
        (pa.array([{"a": 1}]), pa.struct([("a", pa.int64()), ("b", pa.int64())])),
        (pa.array([{"a": "1"}]), pa.struct([("a", pa.int64())])),
        (pa.array([1], pa.duration("s")), pa.int64()),
    ],
    ids=lambda each: str(getattr(each, "type", each))[:40],
)
def test_any_other_change_is_refused_before_a_row_is_read(
    values: pa.Array, to: pa.DataType
) -> None:
    error = refused(values, pa.field("v", to))
    assert error.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert "column v is" in error.message


@pytest.mark.parametrize(
    ("values", "to", "record"),
    [
        (pa.array([1, 2, 300, 400]), pa.int8(), 2),
        (pa.array([5, -1]), pa.uint64(), 1),
        (pa.array([1, 2**60 + 1]), pa.float64(), 1),
        (pa.array([1, 2, 3, 10**9], pa.int64()), pa.decimal128(4, 2), 3),
        (pa.array([Decimal("1.00"), Decimal("1.25")]), pa.decimal128(9, 1), 1),
        (pa.array([0, 1000, 1], pa.timestamp("ns")), pa.timestamp("us"), 2),
        (pa.array([[1], [2, 300]]), pa.list_(pa.int8()), 1),
        (pa.array([[1, 2], [1]]), pa.list_(pa.int64(), 2), 1),
        (pa.array([b"x" * 16, b"x"]), pa.uuid(), 1),
        (pa.array([1000, 1], pa.duration("ns")), pa.duration("us"), 1),
        (pa.array([str(UUID(int=5)), "no"]), pa.uuid(), 1),
        (
            pa.array(
                [pa.MonthDayNano([0, 1, 0]), pa.MonthDayNano([1, 0, 0])],
                pa.month_day_nano_interval(),
            ),
            pa.duration("us"),
            1,
        ),
        (pa.array([[1], [300]], pa.list_view(pa.int16())), pa.list_(pa.int8()), 1),
        (pa.array([{"a": 1}, {"a": None}, {"a": 300}]), pa.struct([("a", pa.int8())]), 2),
    ],
    ids=lambda each: str(getattr(each, "type", each))[:40],
)
def test_the_first_bad_value_is_named_by_its_record(
    values: pa.Array, to: pa.DataType, record: int
) -> None:
    error = refused(values, pa.field("v", to))
    assert error.code is ErrorCode.INVALID_PAYLOAD
    assert (error.context["column"], error.context["record"]) == ("v", record)


NOT_NULL = pa.field("v", pa.int64(), nullable=False)
FULL_LIST = pa.list_(pa.field("element", pa.int64(), nullable=False))
FULL_STRUCT = pa.struct([pa.field("a", pa.int64(), nullable=False), ("b", FULL_LIST)])


@pytest.mark.parametrize(
    ("values", "target", "record"),
    [
        (pa.array([1, 2, None, None]), NOT_NULL, 2),
        (pa.array([[1], None, [2, None]]), pa.field("v", FULL_LIST), 2),
        (pa.array([[1], None, [2, None]], FULL_LIST), pa.field("v", FULL_LIST), 2),
        (
            pa.array([None, {"a": 1, "b": [1]}, {"a": None, "b": []}], FULL_STRUCT),
            pa.field("v", FULL_STRUCT),
            2,
        ),
        (
            pa.array([{"a": 1, "b": None}, {"a": 1, "b": [None]}], FULL_STRUCT),
            pa.field("v", FULL_STRUCT),
            1,
        ),
    ],
    ids=["column", "element, cast", "element", "field", "element of a field"],
)
def test_a_null_where_none_may_be_is_refused(
    values: pa.Array, target: pa.Field, record: int
) -> None:
    error = refused(values, target)
    assert error.code is ErrorCode.INVALID_PAYLOAD
    assert error.context["record"] == record


def test_a_null_beside_what_must_not_be_null_is_taken() -> None:
    """An absent list or struct holds nothing, whatever lies in its children."""
    values = pa.array([None, {"a": 1, "b": None}, {"a": 1, "b": [2]}], FULL_STRUCT)
    assert conformed(values, pa.field("v", FULL_STRUCT)).to_pylist() == values.to_pylist()
    map_type = pa.map_(pa.string(), pa.int64())
    maps = pa.array([None, [("k", None)], []], map_type)
    assert conformed(maps, pa.field("v", map_type)).to_pylist() == [None, [("k", None)], []]


def test_a_column_of_nulls_does_not_fit_where_none_may_be() -> None:
    assert refused(pa.nulls(1), NOT_NULL).code is ErrorCode.SCHEMA_INCOMPATIBLE


def test_all_faults_of_a_schema_are_named_at_once() -> None:
    table = TableSchema.first(
        pa.schema([("id", pa.int64()), ("name", pa.string()), ("at", pa.date32())])
    )
    offered = pa.schema([("name", pa.int64()), ("extra", pa.int64()), ("id", pa.int64())])
    with pytest.raises(Invalid) as caught:
        Conformer.between(offered, table.arrow)
    assert caught.value.context["faults"] == [
        "missing column at",
        "unknown column extra",
        "column name is string, not int64",
    ]


def test_columns_are_found_by_name_whatever_their_order_and_case() -> None:
    table = TableSchema.first(pa.schema([("id", pa.int64()), ("Name", pa.string())])).arrow
    batch = pa.record_batch({"NAME": ["a"], "ID": [1]})
    got = Conformer.between(batch.schema, table).conform(batch)
    assert got.to_pylist() == [{"id": 1, "Name": "a"}]


def test_a_name_that_is_offered_twice_is_no_match() -> None:
    table = TableSchema.first(pa.schema([("id", pa.int64())])).arrow
    offered = pa.schema([("ID", pa.int64()), ("Id", pa.int64())])
    with pytest.raises(Invalid, match="missing column id; unknown columns ID, Id"):
        Conformer.between(offered, table)


def test_an_extension_is_taken_as_what_it_stores() -> None:
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16)))
    assert conformed(values, pa.field("v", pa.binary())).to_pylist() == [b"x" * 16]


@pytest.mark.parametrize(
    "broken",
    [
        pa.StringArray.from_buffers(
            2, pa.array([0, 5, 2], pa.int32()).buffers()[1], pa.py_buffer(b"ab")
        ),
        pa.StringArray.from_buffers(
            1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
        ),
        pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int32()), pa.array(["a"]), safe=False),
    ],
    ids=["offsets out of bounds", "not UTF-8", "dictionary index out of bounds"],
)
def test_buffers_that_contradict_themselves_are_refused(broken: pa.Array) -> None:
    error = refused(broken, pa.field("v", pa.string()))
    assert error.code is ErrorCode.INVALID_PAYLOAD


# ---- In pieces


def pieces_of(batch: pa.RecordBatch, target: pa.Schema) -> list[pa.RecordBatch]:
    check_batch(batch)
    table = TableSchema.first(target).arrow
    return list(Conformer.between(batch.schema, table).pieces(batch))


def test_pieces_are_what_the_whole_batch_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([f"{n % 17}" * 100 for n in range(200_000)]).dictionary_encode()
    runs = pa.RunEndEncodedArray.from_arrays(
        pa.array(range(1000, 200_001, 1000), pa.int32()), pa.array(range(200), pa.int32())
    )
    batch = pa.record_batch({"t": texts, "r": runs, "n": pa.nulls(200_000)})
    target = pa.schema([("r", pa.int64()), ("n", pa.int64()), ("t", pa.utf8())])
    table = TableSchema.first(target).arrow
    conformer = Conformer.between(batch.schema, table)
    whole = pa.Table.from_batches([conformer.conform(batch)])
    monkeypatch.setattr("gateway.conform.PIECE_BYTES", 100_000)
    pieces = list(conformer.pieces(batch))
    assert len(pieces) > 10
    assert max(piece.nbytes for piece in pieces) <= 100_000
    assert pa.Table.from_batches(pieces).combine_chunks().equals(whole)


def test_rows_that_keep_their_types_are_one_piece() -> None:
    batch = pa.record_batch({"v": range(200_000)})
    (piece,) = pieces_of(batch, batch.schema)
    assert piece.column(0).equals(batch.column(0))


def test_a_bad_value_of_a_later_piece_has_its_number_in_the_batch() -> None:
    values = [1] * 150_000
    values[140_000] = -1
    batch = pa.record_batch({"v": pa.array(values, pa.int64())})
    with pytest.raises(Invalid, match="record 140000 of the batch") as caught:
        pieces_of(batch, pa.schema([("v", pa.uint64())]))
    assert caught.value.context["record"] == 140_000


def test_a_long_column_of_nulls_is_never_whole_in_memory() -> None:
    batch = pa.record_batch({"v": pa.nulls(10_000_000)})
    table = TableSchema.first(pa.schema([("v", pa.int64())])).arrow
    before, count, most = pa.total_allocated_bytes(), 0, 0
    for piece in Conformer.between(batch.schema, table).pieces(batch):
        count += piece.num_rows
        most = max(most, pa.total_allocated_bytes() - before)
    assert count == 10_000_000
    assert most < 4 * 2**20


@pytest.mark.parametrize(
    ("values", "target"),
    [
        (pa.nulls(10**9), pa.int64()),
        (
            pa.RunEndEncodedArray.from_arrays(pa.array([2**40], pa.int64()), pa.array([1])),
            pa.int64(),
        ),
        (
            pa.LargeListArray.from_arrays(
                [0, 10**9],
                pa.RunEndEncodedArray.from_arrays(pa.array([10**9], pa.int64()), pa.array([1])),
            ),
            pa.list_(pa.int64()),
        ),
    ],
    ids=["nulls", "a run", "a run in a list"],
)
def test_few_bytes_that_would_be_gigabytes_are_refused(
    values: pa.Array, target: pa.DataType
) -> None:
    before = pa.total_allocated_bytes()
    with pytest.raises(Invalid, match="send fewer rows") as caught:
        pieces_of(pa.record_batch({"v": values}), pa.schema([("v", target)]))
    assert caught.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    refused_whole = refused(values, pa.field("v", target))
    assert refused_whole.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert pa.total_allocated_bytes() - before < 2**20


def test_a_large_row_that_came_as_large_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.conform.PIECE_BYTES", 1000)
    batch = pa.record_batch({"v": pa.array(["x" * 10_000, "y"], pa.large_utf8())})
    taken = pieces_of(batch, pa.schema([("v", pa.utf8())]))
    assert [piece.num_rows for piece in taken] == [1, 1]
