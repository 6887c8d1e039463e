"""Partition transforms are Iceberg's: its published vectors, and its definitions by the book."""

import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import murmur3
from data_files.partitions import Partitioner, bound_spec, terms_of
from data_files.transforms import apply, takes
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.partitions import (
    MANY,
    Transform,
    parse_terms,
    spec_as_json,
    spec_from_json,
)

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a TIMESTAMP has no zone
MICROSECOND = timedelta(microseconds=1)


def signed(hashes: pa.Array) -> list[int]:
    return [value - 2**32 if value >= 2**31 else value for value in hashes.to_pylist()]


def one(transform: Transform, value: object, kind: pa.DataType) -> object:
    values = pa.array([None, value, None], kind)
    found = apply(transform, values).to_pylist()
    assert found[0] is found[2] is None
    return found[1]


# Appendix B of the specification, "32-bit Hash Requirements". A bucket of 2**31 - 1 shows the whole
# hash but for its sign and its greatest value.
HASHES = [
    (34, pa.int32(), 2017239379),
    (34, pa.int64(), 2017239379),
    (34, pa.uint8(), 2017239379),
    (Decimal("14.20"), pa.decimal128(9, 2), -500754589),
    (date(2017, 11, 16), pa.date32(), -653330422),
    (time(22, 31, 8), pa.time64("us"), -662762989),
    (time(22, 31, 8), pa.time64("ns"), -662762989),
    (datetime(2017, 11, 16, 22, 31, 8), pa.timestamp("us"), -2047944441),  # noqa: DTZ001
    (datetime(2017, 11, 16, 22, 31, 8, 1), pa.timestamp("us"), -1207196810),  # noqa: DTZ001
    (datetime(2017, 11, 16, 22, 31, 8, tzinfo=UTC), pa.timestamp("us", "UTC"), -2047944441),
    (datetime(2017, 11, 16, 22, 31, 8), pa.timestamp("ns"), -2047944441),  # noqa: DTZ001
    (datetime(2017, 11, 16, 22, 31, 8, 1), pa.timestamp("ns"), -1207196810),  # noqa: DTZ001
    ("iceberg", pa.string(), 1210000089),
    (bytes([0, 1, 2, 3]), pa.binary(), -188683207),
]


@pytest.mark.parametrize(("value", "kind", "published"), HASHES, ids=str)
def test_bucket_hashes_are_those_that_the_specification_publishes(value, kind, published):
    size = 2**31 - 1
    assert one(Transform("bucket", size), value, kind) == (published & size) % size


def test_the_hash_of_a_uuid_is_the_published_one():
    value = uuid.UUID("f79c3e09-677c-4bbd-a479-3f349cb785e7").bytes
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([value], pa.binary(16)))
    size = 2**31 - 1
    assert apply(Transform("bucket", size), values).to_pylist() == [1488055340]


PUBLISHED_ELSEWHERE = [
    (Transform("truncate", 10), 1, pa.int32(), 0),
    (Transform("truncate", 10), -1, pa.int32(), -10),
    (Transform("truncate", 10), -1, pa.int64(), -10),
    (Transform("truncate", 50), Decimal("10.65"), pa.decimal128(9, 2), "10.50"),
    (Transform("truncate", 10), Decimal("-0.05"), pa.decimal128(9, 2), "-0.10"),
    (Transform("truncate", 3), "iceberg", pa.string(), "ice"),
    (Transform("truncate", 2), "😀😀😀", pa.string(), "😀😀"),
    (Transform("truncate", 2), b"\x01\x02\x03", pa.binary(), b"\x01\x02"),
    (Transform("bucket", 100), 34, pa.int64(), 79),
    (Transform("bucket", 100), Decimal("14.20"), pa.decimal128(9, 2), 59),
    (Transform("year"), date(2017, 12, 1), pa.date32(), 47),
    (Transform("month"), date(2017, 12, 1), pa.date32(), 575),
    (Transform("day"), date(2017, 12, 1), pa.date32(), 17501),
    (Transform("day"), date(1969, 12, 31), pa.date32(), -1),
    (Transform("hour"), datetime(2017, 12, 1, 10, 12, 55), pa.timestamp("us"), 420034),  # noqa: DTZ001
    (Transform("hour"), datetime(1969, 12, 31, 23, 59, 58), pa.timestamp("us"), -1),  # noqa: DTZ001
    (Transform("month"), datetime(1969, 12, 31, 23), pa.timestamp("us"), -1),  # noqa: DTZ001
    (Transform("year"), datetime(1969, 12, 31, 23), pa.timestamp("us"), -1),  # noqa: DTZ001
    (Transform("identity"), -5, pa.int16(), -5),
    (Transform("identity"), True, pa.bool_(), True),
    (Transform("identity"), date(1970, 1, 3), pa.date32(), 2),
]


@pytest.mark.parametrize(("transform", "value", "kind", "expected"), PUBLISHED_ELSEWHERE, ids=str)
def test_a_value_is_transformed_as_the_specification_says(transform, value, kind, expected):
    assert one(transform, value, kind) == expected


def test_integers_at_the_least_end_wrap_as_numbers_of_their_width():
    for bits, kind in ((32, pa.int32()), (64, pa.int64())):
        least = -(2 ** (bits - 1))
        wrapped = (least - least % 7 + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        assert one(Transform("truncate", 7), least, kind) == wrapped


def murmur3_by_the_book(value: bytes) -> int:
    """Appleby's algorithm, one byte string at a time."""

    def rotated(word: int, bits: int) -> int:
        return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF

    def scrambled(word: int) -> int:
        return rotated(word * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF

    state = 0
    for at in range(0, len(value) // 4 * 4, 4):
        state ^= scrambled(int.from_bytes(value[at : at + 4], "little"))
        state = (rotated(state, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    tail = value[len(value) // 4 * 4 :]
    if tail:
        state ^= scrambled(int.from_bytes(tail, "little"))
    state ^= len(value)
    state = (state ^ state >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    state = (state ^ state >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return state ^ state >> 16


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.binary(min_size=250, max_size=300))))
def test_bytes_of_any_length_hash_as_one_by_one(values):
    padded = pa.array([b"before", *values], pa.binary()).slice(1)
    assert murmur3.hash_bytes(padded).to_pylist() == [murmur3_by_the_book(v) for v in values]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_longs_hash_as_eight_bytes(values):
    padded = pa.array([7, *values], pa.int64()).slice(1)
    expected = [murmur3_by_the_book(v.to_bytes(8, "little", signed=True)) for v in values]
    assert murmur3.hash_longs(padded).to_pylist() == expected


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12).map(lambda n: Decimal(n).scaleb(-3)))
def test_decimals_hash_their_least_bytes(value):
    unscaled = int(value * 1000)
    size = next(n for n in range(1, 17) if -(2 ** (8 * n - 1)) <= unscaled < 2 ** (8 * n - 1))
    whole = murmur3_by_the_book(unscaled.to_bytes(size, "big", signed=True))
    assert one(Transform("bucket", 1000), value, pa.decimal128(20, 3)) == (whole & 2**31 - 1) % 1000


@settings(deadline=None)
@given(st.datetimes())
def test_ordinals_of_time_are_those_of_the_calendar(moment):
    kind = pa.timestamp("us")
    assert one(Transform("year"), moment, kind) == moment.year - 1970
    assert one(Transform("month"), moment, kind) == 12 * (moment.year - 1970) + moment.month - 1
    assert one(Transform("day"), moment, kind) == (moment.date() - EPOCH.date()).days
    assert one(Transform("hour"), moment, kind) == (moment - EPOCH) // timedelta(hours=1)


def test_years_beyond_those_of_python_are_ordinals_too():
    # 250,000 years of the Gregorian calendar: 625 times 400 years of 146,097 days.
    days = 625 * 146_097
    micros = days * 86_400_000_000
    moments = pa.array([micros, -micros], pa.int64()).cast(pa.timestamp("us"))
    assert apply(Transform("year"), moments).to_pylist() == [250_000, -250_000]
    assert apply(Transform("month"), moments).to_pylist() == [3_000_000, -3_000_000]


@pytest.mark.parametrize(
    ("transform", "kind"),
    [
        (Transform("identity"), pa.float64()),
        (Transform("bucket", 4), pa.float32()),
        (Transform("bucket", 4), pa.uint64()),
        (Transform("truncate", 4), pa.timestamp("us")),
        (Transform("day"), pa.string()),
        (Transform("hour"), pa.date32()),
        (Transform("identity"), pa.list_(pa.int64())),
        (Transform("bucket", 4), pa.bool_()),
    ],
    ids=str,
)
def test_a_transform_does_not_take_every_type(transform, kind):
    assert not takes(transform, kind)


COLUMNS = pa.schema(
    pa.field(name, kind, metadata={"PARQUET:field_id": str(at)})
    for at, (name, kind) in enumerate(
        [("id", pa.int64()), ("at", pa.timestamp("us")), ('odd "name', pa.string())], start=3
    )
)


def test_a_spec_reads_as_it_is_written():
    texts = ["day(at)", "bucket(16, id)", 'truncate(2, "odd ""name")', "identity(id)"]
    terms = parse_terms(texts)
    assert [str(term) for term in terms] == texts
    assert str(parse_terms([" Id "])[0]) == "identity(Id)"
    spec = bound_spec(terms, COLUMNS)
    assert spec_from_json(spec_as_json(spec)) == spec
    assert [str(term) for term in terms_of(spec, COLUMNS)] == texts
    assert spec_as_json(spec)[1] == {"source_id": 3, "transform": "bucket[16]"}


@pytest.mark.parametrize(
    "texts",
    [
        ["day(nothing)"],
        ["week(at)"],
        ["bucket(id)"],
        ["bucket(0, id)"],
        ["bucket(2147483648, id)"],
        ["day(3, at)"],
        ["day(id)"],
        ["id", "identity(ID)"],
        ["id; drop table t"],
        [""],
        ["id", "day(at)", "hour(at)", "year(at)", "month(at)"],
    ],
    ids=str,
)
def test_a_spec_that_is_none_is_refused_by_name(texts):
    with pytest.raises(Invalid) as caught:
        bound_spec(parse_terms(texts), COLUMNS)
    assert caught.value.code is ErrorCode.PARTITION_SPEC_INVALID


def rows(ids: list[int | None], texts: list[str | None]) -> pa.RecordBatch:
    at = pa.nulls(len(ids), pa.timestamp("us"))
    arrays = [pa.array(ids, pa.int64()), at, pa.array(texts, pa.string())]
    return pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def test_rows_are_numbered_by_all_fields_together():
    spec = bound_spec(parse_terms(["truncate(10, id)", '"odd ""name"']), COLUMNS)
    partitioner = Partitioner(spec, COLUMNS)
    first = partitioner.numbers(rows([1, 11, None, 2], ["a", "a", "a", "a"])).to_pylist()
    assert first == [0, 1, 2, 0]
    assert partitioner.numbers(rows([12, 3], ["a", None])).to_pylist() == [1, 3]
    assert partitioner.partitions[2] == {"3:truncate[10]": None, "5:identity": "a"}
    assert partitioner.partitions[3] == {"3:truncate[10]": 0, "5:identity": None}
    assert partitioner.partition_of(rows([5, 9], ["a", "a"])) == partitioner.partitions[0]
    assert partitioner.partition_of(rows([5, 10], ["a", "a"])) == MANY
    assert partitioner.partition_of(rows([], [])) == {}


def test_values_that_json_or_a_key_cannot_hold_are_told_apart_by_their_hash():
    spec = bound_spec(parse_terms(['"odd ""name"']), COLUMNS)
    partitioner = Partitioner(spec, COLUMNS)
    partitioner.numbers(rows([1, 2, 3], ["x" * 500, "x" * 501, "a\x00b"]))
    texts = [each["5:identity"] for each in partitioner.partitions]
    assert len({text["sha256"] for text in texts}) == 3


def test_more_partitions_than_the_limit_are_refused():
    partitioner = Partitioner(bound_spec(parse_terms(["id"]), COLUMNS), COLUMNS, limit=3)
    partitioner.numbers(rows([1, 2, 3], ["a"] * 3))
    with pytest.raises(Invalid) as caught:
        partitioner.numbers(rows([1, 4], ["a"] * 2))
    assert caught.value.code is ErrorCode.TOO_MANY_PARTITIONS
