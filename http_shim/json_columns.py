"""JSON values as Arrow columns of a table's types: exact, or refused with the record's index.

No value changes on its way. A number that its column cannot hold, digits past a decimal's scale, a
moment without its zone: each is refused. What an answer writes as a string because JSON has no form
for it (a wide number, NaN, base64) is read back from that string.
"""

import base64
import binascii
import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

_INTEGER_TEXT: Final = r"^[+-]?[0-9]{1,20}$"
_DECIMAL_TEXT: Final = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$"
_FLOAT_WORDS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NESTING_MAX: Final = 64
_WHOLE_MAX: Final = 2**64
_CASTS_FAIL: Final = (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError)


class BadValue(Exception):
    """A value does not fit: its index among the values given, and why. Never leaves the room."""

    def __init__(self, index: int, reason: str, *, within: str = "") -> None:
        super().__init__(reason)
        self.index = index
        self.reason = reason
        self.within = within
        """Where inside a nested value, such as `.address.city`."""


def column_of(values: Sequence[Any], kind: pa.DataType, *, depth: int = 0) -> pa.Array:
    """The values, as JSON gave them, as a column; None is null. Raises BadValue."""
    if depth > _NESTING_MAX:
        raise BadValue(0, f"values nest at most {_NESTING_MAX} deep")
    for matches, read in _READERS.items():
        if matches(kind):
            return read(values, kind, depth)
    raise BadValue(0, f"values of type {kind} are sent as Arrow or Parquet, not as JSON")


def text_column(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """The same of texts without quotation marks, as a CSV file has them. Raises BadValue."""
    if pat.is_string(kind):
        return texts.cast(kind)
    if pat.is_boolean(kind):
        lower = pc.utf8_lower(texts)
        known = pc.is_in(lower, pa.array(["true", "false"], texts.type))
        _check(pc.or_(known, pc.is_null(texts)), "true or false")
        return lower.cast(kind)
    if pat.is_integer(kind):
        return _whole_from_texts(texts, kind)
    if pat.is_floating(kind):
        return _checked_cast(texts, kind, "a number, NaN, Infinity or -Infinity")
    return column_of(texts.to_pylist(), kind)


# ---- What is wrong, and where


def _check_kinds(values: Sequence[Any], allowed: tuple[type, ...], wanted: str) -> None:
    """Raise BadValue for the first value of another type. `True` is no number."""
    found = set(map(type, values))
    if not found - {*allowed, type(None)}:
        return
    for index, value in enumerate(values):
        if value is not None and type(value) not in allowed:
            raise BadValue(index, f"{_named(value)} is not {wanted}")


def _named(value: Any) -> str:
    names = {bool: "a boolean", str: "a text", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def _check(good: pa.Array, wanted: str) -> None:
    if pc.all(good).as_py() is False:
        raise BadValue(pc.index(good, pa.scalar(False)).as_py(), f"it is not {wanted}")


def _checked_cast(values: pa.Array, kind: pa.DataType, wanted: str) -> pa.Array:
    try:
        return values.cast(kind)
    except _CASTS_FAIL:
        index = _first_failing(len(values), lambda i: values.slice(i, 1).cast(kind))
        raise BadValue(index, f"it is not {wanted}") from None


def _built(values: Sequence[Any], kind: pa.DataType, wanted: str) -> pa.Array:
    try:
        return pa.array(values, kind)
    except _CASTS_FAIL:
        index = _first_failing(len(values), lambda i: pa.array([values[i]], kind))
        raise BadValue(index, f"it is not {wanted}") from None


def _first_failing(count: int, attempt: Callable[[int], Any]) -> int:
    for index in range(count):
        try:
            attempt(index)
        except _CASTS_FAIL:
            return index
    return 0


# ---- One reader for each kind of type


def _booleans(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    _check_kinds(values, (bool,), "true or false")
    return pa.array(values, kind)


def _integers(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    wanted = f"a whole number that {kind} holds"
    _check_kinds(values, (int, float, Decimal, str), wanted)
    found = set(map(type, values))
    if found & {float, Decimal}:
        values = [_whole(value, index, wanted) for index, value in enumerate(values)]
    if str in found:
        texts = [None if v is None else str(v) for v in values]
        return _whole_from_texts(_built(texts, pa.string(), wanted), kind)
    return _built(values, kind, wanted)


def _whole(value: Any, index: int, wanted: str) -> Any:
    if type(value) in (float, Decimal):
        # The size first: the integer of 1e999999 has a million digits.
        if not (math.isfinite(value) and abs(value) < _WHOLE_MAX and value == int(value)):
            raise BadValue(index, f"it is not {wanted}")
        return int(value)
    return value


def _whole_from_texts(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    wanted = f"a whole number that {kind} holds"
    _check(pc.match_substring_regex(texts, _INTEGER_TEXT), wanted)
    return _checked_cast(pc.utf8_ltrim(texts, "+"), kind, wanted)


def _floats(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    wanted = 'a number, "NaN", "Infinity" or "-Infinity"'
    _check_kinds(values, (int, float, Decimal, str), wanted)
    found = set(map(type, values))
    if found & {str, Decimal}:
        values = [_as_float(value, index, wanted) for index, value in enumerate(values)]
    column = _built(values, pa.float64(), f"{wanted} that {kind} holds")
    if kind.equals(pa.float64()):
        return column
    narrow = column.cast(kind)
    _check(pc.equal(pc.is_inf(narrow), pc.is_inf(column)), f"a number that {kind} holds")
    return narrow


def _as_float(value: Any, index: int, wanted: str) -> Any:
    if type(value) is Decimal:
        return float(value)
    if type(value) is str:
        if value not in _FLOAT_WORDS:
            raise BadValue(index, f"it is not {wanted}")
        return _FLOAT_WORDS[value]
    return value


def _decimals(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    wanted = f"a number that {kind} holds without rounding"
    _check_kinds(values, (int, float, Decimal, str), wanted)
    # A float's repr has the digits that were sent, unless more than seventeen were.
    texts = _built([None if v is None else str(v) for v in values], pa.string(), wanted)
    _check(pc.match_substring_regex(texts, _DECIMAL_TEXT), wanted)
    return _checked_cast(texts, kind, wanted)


def _texts(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    _check_kinds(values, (str,), "a text")
    return _built(values, kind, "valid Unicode")


def _binaries(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    _check_kinds(values, (str,), "a text in base64")
    decoded = []
    for index, value in enumerate(values):
        try:
            decoded.append(None if value is None else base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            raise BadValue(index, "it is not base64") from None
    return pa.array(decoded, kind)


def _uuids(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    wanted = "a UUID such as 00000000-0000-0000-0000-000000000001"
    _check_kinds(values, (str,), wanted)
    found = []
    for index, value in enumerate(values):
        try:
            found.append(None if value is None else UUID(value).bytes)
        except ValueError:
            raise BadValue(index, f"it is not {wanted}") from None
    return pa.ExtensionArray.from_storage(kind, pa.array(found, pa.binary(16)))


def _dates(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    wanted = "a date such as 2024-12-31"
    _check_kinds(values, (str,), wanted)
    return _checked_cast(_built(values, pa.string(), wanted), kind, wanted)


def _times(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    wanted = f"a time such as 23:59:59.5, with no more digits than {kind} holds"
    _check_kinds(values, (str,), wanted)
    # Arrow reads no times: as moments of a day they are timestamps.
    moments = _built(
        [None if v is None else f"1970-01-01T{v}" for v in values], pa.string(), wanted
    )
    return _checked_cast(moments, pa.timestamp(kind.unit), wanted).cast(kind)


def _timestamps(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    zone = "with its zone, such as" if kind.tz else "without a zone, such as"
    example = "2024-12-31T23:59:59.5" + ("Z" if kind.tz else "")
    wanted = f"a time {zone} {example}, with no more digits than {kind} holds"
    _check_kinds(values, (str,), wanted)
    return _checked_cast(_built(values, pa.string(), wanted), kind, wanted)


def _nulls(values: Sequence[Any], kind: pa.DataType, _: int) -> pa.Array:
    _check_kinds(values, (), "null, and its type holds nothing else")
    return pa.nulls(len(values), kind)


def _lists(values: Sequence[Any], kind: pa.DataType, depth: int) -> pa.Array:
    _check_kinds(values, (list,), "an array")
    ends = [0]
    for value in values:
        ends.append(ends[-1] + (len(value) if value else 0))
    flat = [inner for value in values if value for inner in value]
    inner = _inner_column(flat, kind.value_field, ends, depth, within="[]")
    mask = pa.array([value is None for value in values], pa.bool_())
    offsets = pa.array(ends, pa.int32())
    return pa.ListArray.from_arrays(offsets, inner, type=kind, mask=mask)


def _inner_column(
    flat: Sequence[Any], field: pa.Field, ends: Sequence[int], depth: int, *, within: str
) -> pa.Array:
    """A column of inner values; what is wrong with one is said of the value that holds it."""
    try:
        inner = column_of(flat, field.type, depth=depth + 1)
        if inner.null_count and not field.nullable:
            first = pc.index(pc.is_null(inner), pa.scalar(True)).as_py()
            raise _forbidden_null(first)
    except BadValue as bad:
        holder = max(0, bisect.bisect_right(ends, bad.index) - 1)
        raise BadValue(holder, bad.reason, within=within + bad.within) from None
    return inner


def _forbidden_null(index: int) -> BadValue:
    return BadValue(index, "it is null, and its type forbids that")


def _structs(values: Sequence[Any], kind: pa.DataType, depth: int) -> pa.Array:
    _check_kinds(values, (dict,), "an object")
    names = {field.name for field in kind}
    for index, value in enumerate(values):
        if value and not value.keys() <= names:
            extra = min(value.keys() - names)
            raise BadValue(index, f"its type has no field {extra[:80]!r}")
    present = pa.array([value is not None for value in values], pa.bool_())
    columns = []
    for field in kind:
        inner = [None if value is None else value.get(field.name) for value in values]
        columns.append(_field_column(inner, field, values, depth))
    return pa.StructArray.from_arrays(columns, fields=list(kind), mask=pc.invert(present))


def _field_column(
    inner: Sequence[Any], field: pa.Field, values: Sequence[Any], depth: int
) -> pa.Array:
    try:
        column = column_of(inner, field.type, depth=depth + 1)
        if not field.nullable:
            for index, value in enumerate(inner):
                if value is None and values[index] is not None:
                    raise _forbidden_null(index)
    except BadValue as bad:
        raise BadValue(bad.index, bad.reason, within=f".{field.name}{bad.within}") from None
    return column


def _maps(values: Sequence[Any], kind: pa.DataType, depth: int) -> pa.Array:
    wanted = 'an array of {"key": …, "value": …}, or an object'
    _check_kinds(values, (list, dict), wanted)
    ends, keys, items = [0], [], []
    for index, value in enumerate(values):
        for key, item in _pairs(value, index, wanted):
            keys.append(key)
            items.append(item)
        ends.append(len(keys))
    key_field = kind.key_field.with_nullable(False)
    key_column = _inner_column(keys, key_field, ends, depth, within=".key")
    item_column = _inner_column(items, kind.item_field, ends, depth, within=".value")
    mask = pa.array([value is None for value in values], pa.bool_())
    offsets = pa.array(ends, pa.int32())
    return pa.MapArray.from_arrays(offsets, key_column, item_column, type=kind, mask=mask)


def _pairs(value: Any, index: int, wanted: str) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    pairs = []
    for pair in value or ():
        if not (isinstance(pair, dict) and pair.keys() == {"key", "value"}):
            raise BadValue(index, f"it is not {wanted}")
        pairs.append((pair["key"], pair["value"]))
    return pairs


_Matches = Callable[[pa.DataType], bool]
_Read = Callable[[Sequence[Any], pa.DataType, int], pa.Array]
_READERS: Final[Mapping[_Matches, _Read]] = {
    pa.uuid().equals: _uuids,
    pat.is_boolean: _booleans,
    pat.is_integer: _integers,
    pat.is_floating: _floats,
    pat.is_decimal: _decimals,
    pat.is_string: _texts,
    pat.is_binary: _binaries,
    pat.is_date: _dates,
    pat.is_time: _times,
    pat.is_timestamp: _timestamps,
    pat.is_null: _nulls,
    pat.is_list: _lists,
    pat.is_map: _maps,
    pat.is_struct: _structs,
}
