"""Columns of every Arrow type that a table takes, drawn by hypothesis, and what they must answer.

A column is drawn as plain values, so that what is expected is computed from them and from none of
the product's own conversions.
"""

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from hypothesis import strategies as st

DAY = 86_400_000_000
_NANOS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@dataclass(frozen=True)
class Kind:
    """A type, the values to draw, and the value that a query must answer for a drawn one."""

    offered: pa.DataType
    values: st.SearchStrategy[Any]
    answered: pa.DataType
    answer: Callable[[Any], Any] = lambda value: value
    encode: Callable[[pa.Array], pa.Array] = lambda array: array
    """What the client does to the whole column: another encoding of the same values."""


@dataclass(frozen=True)
class Column:
    """A drawn column as a client sends it, and what must come back."""

    kind: Kind
    values: list[Any]

    @property
    def array(self) -> pa.Array:
        return self.kind.encode(pa.array(self.values, self.kind.offered))

    @property
    def expected(self) -> list[Any]:
        return [None if value is None else self.kind.answer(value) for value in self.values]


def _integers(kind: pa.DataType, bits: int, *, signed: bool) -> Kind:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return Kind(kind, st.integers(low, high), kind)


def _float_bits(value: float) -> str:
    return "nan" if value != value else struct.pack(">d", value).hex()  # noqa: PLR0124


def _float(kind: pa.DataType, width: int) -> Kind:
    answered = pa.float64() if width == 64 else pa.float32()
    return Kind(kind, st.floats(width=width), answered, _float_bits)


def _moment(unit: str, zone: str | None) -> Kind:
    # Within the years that DuckDB prints, a unit of seconds would else overflow microseconds.
    limit = 9 * 10**18 // _NANOS[unit] // (1 if unit == "ns" else 1000 if unit != "us" else 1)
    kept = "ns" if unit == "ns" and zone is None else "us"
    factor = _NANOS[unit] // _NANOS[kept] if unit != "ns" else 1
    values = st.integers(-limit, limit)
    if unit == "ns" and zone is not None:
        values = values.map(lambda value: value // 1000 * 1000)
        answer: Callable[[Any], Any] = lambda value: value // 1000  # noqa: E731
    else:
        answer = lambda value: value * factor  # noqa: E731
    answered = pa.timestamp(kept, "UTC" if zone else None)
    return Kind(pa.timestamp(unit, zone), values, answered, answer)


def _time(kind: pa.DataType) -> Kind:
    per_second = 10**9 // _NANOS[kind.unit]
    answered = pa.time64("ns" if kind.unit == "ns" else "us")
    factor = max(1, 10**6 // per_second)
    values = st.integers(0, 86_400 * per_second - 1)
    return Kind(kind, values, answered, lambda value: value * factor)


def _duration(unit: str) -> Kind:
    limit = 9 * 10**18 // max(1, _NANOS[unit] // 1000)
    values = st.integers(-limit, limit)
    if unit == "ns":
        values = values.map(lambda value: value // 1000 * 1000)

    def interval(value: int) -> tuple[int, int, int]:
        micros = value // 1000 if unit == "ns" else value * (_NANOS[unit] // 1000)
        days = abs(micros) // DAY * (1 if micros >= 0 else -1)
        return (0, days, (micros - days * DAY) * 1000)

    return Kind(pa.duration(unit), values, pa.month_day_nano_interval(), interval)


def _decimal(kind: pa.DataType) -> Kind:
    limit = 10**kind.precision - 1
    values = st.integers(-limit, limit).map(lambda unscaled: Decimal(f"{unscaled}E-{kind.scale}"))
    return Kind(kind, values, pa.decimal128(kind.precision, kind.scale))


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_BYTES = st.binary(max_size=12)
_ZONES = ("UTC", "Europe/Rome", "+05:30", "America/St_Johns")

PLAIN: list[Kind] = [
    Kind(pa.bool_(), st.booleans(), pa.bool_()),
    *(
        _integers(kind, kind.bit_width, signed=signed)
        for signed, kinds in (
            (True, (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
            (False, (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
        )
        for kind in kinds
    ),
    _float(pa.float16(), 16),
    _float(pa.float32(), 32),
    _float(pa.float64(), 64),
    *(
        Kind(kind, _TEXT, pa.string())
        for kind in (pa.string(), pa.large_string(), pa.string_view())
    ),
    *(
        Kind(kind, _BYTES, pa.binary())
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    ),
    Kind(pa.binary(3), st.binary(min_size=3, max_size=3), pa.binary()),
    Kind(pa.date32(), st.integers(-(2**31) + 2, 2**31 - 2), pa.date32()),
    Kind(
        pa.date64(),
        st.integers(-(10**8), 10**8).map(lambda day: day * 86_400_000),
        pa.date32(),
        lambda value: value // 86_400_000,
    ),
    *(_time(kind) for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))),
    *(_moment(unit, None) for unit in _NANOS),
    *(_moment(unit, zone) for unit in _NANOS for zone in _ZONES),
    *(
        _decimal(kind)
        for kind in (
            pa.decimal32(9, 2),
            pa.decimal64(18, 0),
            pa.decimal128(38, 38),
            pa.decimal128(5, 2),
            pa.decimal128(38, 0),
            pa.decimal256(38, 10),
        )
    ),
]


def _uuid() -> Kind:
    return Kind(
        pa.binary(16),
        st.uuids().map(lambda value: value.bytes),
        pa.string(),
        lambda value: str(uuid.UUID(bytes=value)),
        lambda array: array.cast(pa.uuid()),
    )


def _encoded(encode: Callable[[pa.Array], pa.Array], *kinds: Kind) -> list[Kind]:
    return [Kind(k.offered, k.values, k.answered, k.answer, encode) for k in kinds]


def _as_bool8(array: pa.Array) -> pa.Array:
    return array.cast(pa.int8()).cast(pa.bool8())


def _as_categories(array: pa.Array) -> pa.Array:
    """As Polars sends its categories."""
    encoded = array.dictionary_encode()
    views = encoded.dictionary.cast(pa.string_view())
    return pa.DictionaryArray.from_arrays(encoded.indices, views)


_STRINGS = Kind(pa.string(), _TEXT, pa.string())
_DOCUMENTS = Kind(pa.string(), st.just('{"a": 1}'), pa.string())
_LONGS = Kind(pa.int64(), st.integers(-9, 9), pa.int64())
WHOLE_COLUMNS: list[Kind] = [
    *(_duration(unit) for unit in _NANOS),
    _uuid(),
    *_encoded(_as_bool8, Kind(pa.bool_(), st.booleans(), pa.bool_())),
    *_encoded(lambda array: array.cast(pa.json_()), _DOCUMENTS),
    *_encoded(lambda array: array.dictionary_encode(), _STRINGS, _LONGS),
    *_encoded(_as_categories, _STRINGS),
    *_encoded(pc.run_end_encode, _STRINGS, _LONGS),
    *_encoded(
        lambda array: pa.ExtensionArray.from_storage(
            pa.opaque(array.type, "thing", "vendor"), array
        ),
        _STRINGS,
    ),
]  # fmt: skip


def _listed(item: Kind) -> st.SearchStrategy[Kind]:
    def kind(shape: Callable[[pa.DataType], pa.DataType], size: int | None) -> Kind:
        sizes = {"max_size": 3} if size is None else {"min_size": size, "max_size": size}
        values = st.lists(st.none() | item.values, **sizes)
        answered = pa.list_(item.answered) if size is None else pa.list_(item.answered, size)
        return Kind(
            shape(item.offered),
            values,
            answered,
            lambda value: [None if each is None else item.answer(each) for each in value],
        )

    return st.sampled_from(
        [
            kind(pa.list_, None),
            kind(pa.large_list, None),
            kind(pa.list_view, None),
            kind(lambda inner: pa.list_(inner, 2), 2),
        ]
    )


def _struct(fields: list[Kind]) -> Kind:
    names = [f"f {at}" for at in range(len(fields))]

    def answer(value: dict[str, Any]) -> tuple[Any, ...]:
        pairs = zip(names, fields, strict=True)
        return tuple(None if value[n] is None else f.answer(value[n]) for n, f in pairs)

    pairs = list(zip(names, fields, strict=True))
    return Kind(
        pa.struct([(name, each.offered) for name, each in pairs]),
        st.fixed_dictionaries({name: st.none() | each.values for name, each in pairs}),
        pa.struct([(name, each.answered) for name, each in pairs]),
        answer,
    )


def _map(item: Kind) -> Kind:
    return Kind(
        pa.map_(pa.string(), item.offered),
        st.dictionaries(_TEXT, st.none() | item.values, max_size=3).map(
            lambda value: list(value.items())
        ),
        pa.map_(pa.string(), item.answered),
        lambda value: [(key, None if each is None else item.answer(each)) for key, each in value],
    )


def _nested(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    return st.one_of(
        inner.flatmap(_listed),
        st.lists(inner, min_size=1, max_size=3).map(_struct),
        inner.map(_map),
    )


KINDS = st.one_of(
    st.sampled_from(PLAIN),
    st.sampled_from(WHOLE_COLUMNS),
    st.recursive(st.sampled_from(PLAIN), _nested, max_leaves=3),
)


@st.composite
def tables(draw: st.DrawFn, columns: int = 4, rows: int = 6) -> list[Column]:
    """Some columns of equal length; many values are null, and often there is no row."""
    length = draw(st.integers(0, rows))
    kinds = draw(st.lists(KINDS, min_size=1, max_size=columns))
    return [
        Column(kind, draw(st.lists(st.none() | kind.values, min_size=length, max_size=length)))
        for kind in kinds
    ]


def every_kind(rows: int) -> st.SearchStrategy[list[Column]]:
    """One column of each type, and one of each way of nesting."""
    nested = [
        _struct([PLAIN[-1], _STRINGS, PLAIN[0]]),
        _map(_LONGS),
        Kind(pa.list_(_STRINGS.offered), st.lists(_TEXT, max_size=3), pa.list_(pa.string())),
        Kind(pa.list_(pa.int64(), 2), st.just([1, None]), pa.list_(pa.int64(), 2)),
    ]
    kinds = [*PLAIN, *WHOLE_COLUMNS, *nested]
    columns = [
        st.lists(st.none() | kind.values, min_size=rows, max_size=rows).map(
            lambda values, kind=kind: Column(kind, values)
        )
        for kind in kinds
    ]
    return st.tuples(*columns).map(list)


def told(values: pa.Array) -> list[Any]:
    """An answered array as plain values: times as integers, floats as their bits."""
    kind = values.type
    if pat.is_list(kind) or pat.is_fixed_size_list(kind):
        return _lists(values, told(values.flatten()))
    if pat.is_map(kind):
        entries = values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        return _lists(entries, told(entries.flatten()))
    if pat.is_struct(kind):
        rows = zip(*(told(child) for child in values.flatten()), strict=True)
        valid = values.is_valid().to_pylist()
        return [row if there else None for row, there in zip(rows, valid, strict=True)]
    if pat.is_date32(kind):
        return list(values.view(pa.int32()).to_pylist())
    if pat.is_timestamp(kind) or pat.is_time64(kind):
        return list(values.view(pa.int64()).to_pylist())
    if pat.is_floating(kind):
        return [None if value is None else _float_bits(value) for value in values.to_pylist()]
    if pat.is_interval(kind):
        return [None if value is None else tuple(value) for value in values.to_pylist()]
    return list(values.to_pylist())


def _lists(values: pa.Array, inner: list[Any]) -> list[Any]:
    at, lists = 0, []
    for length in pc.list_value_length(values).to_pylist():
        lists.append(None if length is None else inner[at : at + length])
        at += length or 0
    return lists
