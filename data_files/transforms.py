"""Iceberg's partition transforms over whole Arrow arrays. Pure; nulls stay null.

Semantics and types are those of Apache Iceberg's table specification, "Partition Transforms" and
appendix B. Ordinals of time count from 1970; the columns' own types are `catalog.table_schema`'s.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from data_files.murmur3 import hash_bytes, hash_longs
from duckmesh.partitions import Transform

_MICROS_PER_DAY: Final = 86_400_000_000
_MICROS_PER_HOUR: Final = 3_600_000_000
_POSITIVE: Final = 2**31 - 1


def takes(transform: Transform, kind: pa.DataType) -> bool:
    """Whether the transform is of values of this type."""
    return any(of(kind) for of in _TYPES[transform.name])


def apply(transform: Transform, values: pa.Array) -> pa.Array:
    """The transform of each value: numbers, text, bytes or truth; equal where partitions are.

    A date or a moment that stays what it is, is given as its number of days or ticks.
    """
    match transform.name:
        case "identity":
            return _plain(values)
        case "bucket":
            return _buckets(values, transform.size or 1)
        case "truncate":
            return _truncated(values, transform.size or 1)
    return _ordinals(values, transform.name)


def _is_small_integer(kind: pa.DataType) -> bool:
    """Iceberg's int and long hold it."""
    return bool(pat.is_integer(kind) and kind != pa.uint64())


def _is_uuid(kind: pa.DataType) -> bool:
    return bool(kind == pa.uuid())


_Of = Callable[[pa.DataType], bool]
_DAYS: Final[tuple[_Of, ...]] = (pat.is_date32, pat.is_timestamp)
_HASHED: Final[tuple[_Of, ...]] = (
    _is_small_integer,
    pat.is_decimal,
    pat.is_date32,
    pat.is_time64,
    pat.is_timestamp,
    pat.is_string,
    pat.is_binary,
    _is_uuid,
)
_TYPES: Final[Mapping[str, tuple[_Of, ...]]] = {
    "identity": (*_HASHED, pat.is_boolean),
    "bucket": _HASHED,
    "truncate": (_is_small_integer, pat.is_decimal, pat.is_string, pat.is_binary),
    "year": _DAYS,
    "month": _DAYS,
    "day": _DAYS,
    "hour": (pat.is_timestamp,),
}


def _plain(values: pa.Array) -> pa.Array:
    kind = values.type
    if pat.is_integer(kind):
        return values.cast(pa.int64())
    if pat.is_date32(kind):
        return values.cast(pa.int32()).cast(pa.int64())
    if pat.is_timestamp(kind) or pat.is_time64(kind):
        return values.cast(pa.int64())
    if _is_uuid(kind):
        return values.storage.cast(pa.binary())
    return values


def _buckets(values: pa.Array, count: int) -> pa.Array:
    there = values.drop_null()
    hashes = pc.bit_wise_and(_hashes(there), pa.scalar(_POSITIVE, pa.uint32())).cast(pa.int64())
    return _with_nulls(values, _modulo(hashes, count))


def _hashes(values: pa.Array) -> pa.Array:
    kind = values.type
    if pat.is_decimal(kind):
        # Minimal bytes of the unscaled value, big end first. Money repeats: each once.
        each = values.dictionary_encode()
        unscaled = [_minimal_bytes(_unscaled(v)) for v in each.dictionary.to_pylist()]
        return hash_bytes(pa.array(unscaled, pa.binary())).take(each.indices)
    if pat.is_string(kind):
        return hash_bytes(values.cast(pa.binary()))
    if pat.is_binary(kind) or _is_uuid(kind):
        return hash_bytes(_plain(values))
    longs = _plain(values)
    return hash_longs(_micros(longs) if _is_nano(kind) else longs)


def _is_nano(kind: pa.DataType) -> bool:
    return bool((pat.is_timestamp(kind) or pat.is_time64(kind)) and kind.unit == "ns")


def _micros(nanos: pa.Array) -> pa.Array:
    return _floored(nanos, 1_000)


def _unscaled(value: Decimal) -> int:
    sign, digits, _ = value.as_tuple()
    number = int("".join(map(str, digits)))
    return -number if sign else number


def _minimal_bytes(number: int) -> bytes:
    magnitude = number if number >= 0 else ~number
    return number.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)


def _truncated(values: pa.Array, width: int) -> pa.Array:
    kind = values.type
    if pat.is_string(kind):
        # Of code points, whatever Arrow calls them.
        return pc.utf8_slice_codeunits(values, 0, width)
    if pat.is_binary(kind):
        return pc.binary_slice(values, 0, width)
    if pat.is_decimal(kind):
        each = values.dictionary_encode()
        cut = [None if v is None else _cut_decimal(v, width) for v in each.dictionary.to_pylist()]
        return pa.array(cut, pa.string()).take(each.indices)
    longs = values.cast(pa.int64())
    bins = pc.subtract(longs, _modulo(longs, width))
    # As a number of 32 bits wraps: below the least one there is none.
    return bins.cast(pa.int32(), safe=False).cast(pa.int64()) if _is_int(kind) else bins


def _is_int(kind: pa.DataType) -> bool:
    """Iceberg's int, and not its long."""
    return bool(kind.bit_width < 32 or kind == pa.int32())


def _cut_decimal(value: Decimal, width: int) -> str:
    number = _unscaled(value)
    return decimal_text(number - number % width, -int(value.as_tuple().exponent))


def decimal_text(unscaled: int, scale: int) -> str:
    """A decimal as partitions have it: all digits of its scale, no exponent."""
    if scale <= 0:
        return str(unscaled)
    digits = str(abs(unscaled)).rjust(scale + 1, "0")
    sign = "-" if unscaled < 0 else ""
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}"


def _ordinals(values: pa.Array, unit: str) -> pa.Array:
    if pat.is_date32(values.type):
        days = _plain(values)
    else:
        ticks = _plain(values)
        micros = _micros(ticks) if _is_nano(values.type) else ticks
        if unit == "hour":
            return _floored(micros, _MICROS_PER_HOUR)
        days = _floored(micros, _MICROS_PER_DAY)
    if unit == "day":
        return days
    years, months = _civil(days)
    if unit == "year":
        return pc.subtract(years, 1970)
    return pc.add(pc.multiply(pc.subtract(years, 1970), 12), pc.subtract(months, 1))


def _civil(days: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Year and month of days since 1970, in the proleptic Gregorian calendar without a bound.

    Howard Hinnant's `civil_from_days`: Arrow's own ends at the year 32,767.
    """
    shifted = pc.add(days, 719_468)
    era = _floored(shifted, 146_097)
    of_era = pc.subtract(shifted, pc.multiply(era, 146_097))
    leaps = pc.subtract(
        pc.add(pc.subtract(of_era, pc.divide(of_era, 1_460)), pc.divide(of_era, 36_524)),
        pc.divide(of_era, 146_096),
    )
    year_of_era = pc.divide(leaps, 365)
    before = pc.subtract(
        pc.add(pc.multiply(year_of_era, 365), pc.divide(year_of_era, 4)),
        pc.divide(year_of_era, 100),
    )
    day_of_year = pc.subtract(of_era, before)
    from_march = pc.divide(pc.add(pc.multiply(day_of_year, 5), 2), 153)
    is_late = pc.greater_equal(from_march, 10)
    months = pc.add(from_march, pc.if_else(is_late, -9, 3))
    years = pc.add(year_of_era, pc.multiply(era, 400))
    return pc.add(years, pc.if_else(is_late, 1, 0)), months


def _floored(numbers: pa.Array, by: int) -> pa.Array:
    """Divided, towards the lesser number."""
    quotients = pc.divide(numbers, by)
    too_much = pc.greater(pc.multiply(quotients, by), numbers)
    return pc.subtract(quotients, pc.if_else(too_much, 1, 0))


def _modulo(numbers: pa.Array, by: int) -> pa.Array:
    """What is left, never negative."""
    rest = pc.subtract(numbers, pc.multiply(pc.divide(numbers, by), by))
    return pc.if_else(pc.less(rest, 0), pc.add(rest, by), rest)


def _with_nulls(values: pa.Array, of_others: pa.Array) -> pa.Array:
    """What was found for the values that are there, in its place among the nulls."""
    if values.null_count == 0:
        return of_others
    return pc.replace_with_mask(pa.nulls(len(values), of_others.type), values.is_valid(), of_others)
