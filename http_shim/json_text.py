"""Arrow columns as JSON text, a whole column at a time: no Python runs per value.

The rules for values that JSON has no form for (docs/http.md has the table):
- whole numbers beyond 2^53-1, where JavaScript loses digits, are strings; so are decimals with a
  scale. With `Numbers.AS_JSON` all of them are JSON numbers, with every digit;
- NaN and the infinities are the strings "NaN", "Infinity", "-Infinity";
- moments are RFC 3339 strings, in UTC; dates, times and wall-clock times are ISO 8601;
- binary is base64; lists are arrays, structs objects, maps arrays of {"key", "value"}.
"""

import base64
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from duckmesh.errors import ErrorCode, NotSupported

_SAFE_MAX: Final = 2**53 - 1
_SAFE_DIGITS: Final = 15
_UNPRINTABLE: Final = r'["\\\x00-\x1f]'
_CSV_NEEDS_QUOTES: Final = r'^$|[",\r\n]|^\s|\s$'
_ESCAPES: Final = (
    ("\\", "\\\\"),
    ('"', '\\"'),
    ("\n", "\\n"),
    ("\r", "\\r"),
    ("\t", "\\t"),
    *((chr(n), f"\\u{n:04x}") for n in range(0x20) if chr(n) not in "\n\r\t"),
)
# DuckDB's infinite dates and timestamps are the outermost values of their type.
_INFINITIES: Final = {32: 2**31 - 1, 64: 2**63 - 1}


class Numbers(StrEnum):
    """How numbers that JavaScript would round are written."""

    SAFE = "safe"
    AS_JSON = "json"


def object_rows(batch: pa.RecordBatch, numbers: Numbers) -> bytes:
    """A batch as NDJSON: one object a line."""
    if not batch.num_columns:
        return bytes(b"{}\n" * batch.num_rows)
    parts: list[Any] = []
    for index, field in enumerate(batch.schema):
        parts += ["{" if index == 0 else ",", f"{quoted(field.name)}:"]
        parts.append(json_text(batch.column(index), numbers))
    return _joined([*parts, "}\n"])


def array_rows(batch: pa.RecordBatch, numbers: Numbers) -> bytes:
    """A batch as JSON arrays, each with a comma behind it."""
    if not batch.num_columns:
        return bytes(b"[]," * batch.num_rows)
    parts: list[Any] = []
    for index in range(batch.num_columns):
        parts += ["[" if index == 0 else ",", json_text(batch.column(index), numbers)]
    return _joined([*parts, "],"])


def quoted(text: str) -> str:
    """A text as a JSON string."""
    return orjson.dumps(text).decode()


def json_text(column: pa.Array, numbers: Numbers) -> pa.Array:
    """Each value as JSON text; none is null. Raises NotSupported for a type with no JSON form."""
    text = _text(column, numbers)
    return pc.fill_null(text, "null") if text.null_count else text


def csv_rows(batch: pa.RecordBatch, numbers: Numbers) -> bytes:
    """A batch as lines of CSV (RFC 4180): quoted where a field needs it, or is an empty text."""
    if not batch.num_columns:
        return bytes(b"\r\n" * batch.num_rows)
    parts: list[Any] = []
    for index in range(batch.num_columns):
        parts += [*([","] if index else []), _csv_field(batch.column(index), numbers)]
    return _joined([*parts, "\r\n"])


def _csv_field(column: pa.Array, numbers: Numbers) -> pa.Array:
    """Texts bare, nested values as JSON, others as in JSON without quotation marks."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if _is_text(column.type):
        text = column.cast(_TEXT)
    elif pat.is_nested(column.type):
        text = _wide(_text(column, numbers))
    else:
        bare = pc.replace_substring(_wide(_text(column, numbers)), '"', "")
        return pc.fill_null(bare, "")
    needy = pc.match_substring_regex(text, _CSV_NEEDS_QUOTES)
    if pc.any(needy).as_py():
        text = pc.if_else(needy, _join('"', pc.replace_substring(text, '"', '""'), '"'), text)
    return pc.fill_null(text, "")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind))


def _joined(parts: list[Any]) -> bytes:
    """The rows' texts end to end, straight out of Arrow's buffer."""
    rows = pc.binary_join_element_wise(
        *(_wide(part) if isinstance(part, pa.Array) else pa.scalar(part, _TEXT) for part in parts),
        pa.scalar("", _TEXT),
    )
    offsets, content = rows.buffers()[1:]
    if not len(rows) or content is None:
        return b""
    ends = memoryview(offsets).cast("q")
    return bytes(memoryview(content)[ends[rows.offset] : ends[rows.offset + len(rows)]])


_TEXT: Final = pa.large_string()


def _wide(text: pa.Array) -> pa.Array:
    return text if text.type.equals(_TEXT) else text.cast(_TEXT)


def _join(*parts: Any) -> pa.Array:
    """Texts element by element; a null in one makes the whole null."""
    wide = (_wide(p) if isinstance(p, pa.Array) else pa.scalar(p, _TEXT) for p in parts)
    return pc.binary_join_element_wise(*wide, pa.scalar("", _TEXT))


def _text(column: pa.Array, numbers: Numbers) -> pa.Array:
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _of_extension(column, numbers)
    if isinstance(column, pa.DictionaryArray):
        return _text(column.dictionary_decode(), numbers)
    if pat.is_struct(kind):
        return _of_struct(column, numbers)
    if pat.is_map(kind):
        return _of_map(column, numbers)
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
        return _of_list(column, numbers)
    for matches, write in _WRITERS.items():
        if matches(kind):
            return write(column, numbers)
    raise NotSupported(
        ErrorCode.NOT_SUPPORTED,
        f"values of type {kind} have no form in JSON: cast them, or ask for an Arrow stream",
        type=str(kind),
    )


def _plain(column: pa.Array, _: Numbers) -> pa.Array:
    return column.cast(_TEXT)


def _of_null(column: pa.Array, _: Numbers) -> pa.Array:
    return pa.nulls(len(column), _TEXT)


def _of_text(column: pa.Array, _: Numbers) -> pa.Array:
    text = column.cast(_TEXT)
    if pc.any(pc.match_substring_regex(text, _UNPRINTABLE)).as_py():
        for char, escape in _ESCAPES:
            text = pc.replace_substring(text, char, escape)
    return _join('"', text, '"')


def _quoted_plain(column: pa.Array) -> pa.Array:
    """Texts in which nothing needs an escape."""
    return _join('"', column.cast(_TEXT), '"')


def _of_whole(column: pa.Array, numbers: Numbers) -> pa.Array:
    text = column.cast(_TEXT)
    if numbers is Numbers.AS_JSON or column.type.bit_width < 64:
        return text
    wide = pc.greater(column, pa.scalar(_SAFE_MAX, column.type))
    if not pat.is_unsigned_integer(column.type):
        wide = pc.or_(wide, pc.less(column, pa.scalar(-_SAFE_MAX, column.type)))
    return _quoted_where(wide, text)


def _of_decimal(column: pa.Array, numbers: Numbers) -> pa.Array:
    # Arrow writes small decimals as 0E-10; a cast to another width writes every digit.
    text = _decimal_digits(column)
    if numbers is Numbers.AS_JSON:
        return text
    if column.type.scale > 0:
        return _quoted_plain(text)
    if column.type.precision <= _SAFE_DIGITS:
        return text
    most = pa.scalar(Decimal(_SAFE_MAX), column.type)
    return _quoted_where(pc.greater(pc.abs(column), most), text)


def _decimal_digits(column: pa.Array) -> pa.Array:
    text = column.cast(_TEXT)
    if pc.any(pc.match_substring(text, "E")).as_py():
        exact = [None if v is None else format(v, "f") for v in column.to_pylist()]
        return pa.array(exact, _TEXT)
    return text


def _of_float(column: pa.Array, _: Numbers) -> pa.Array:
    text = column.cast(_TEXT)
    # Readers take -0 for a whole number, which has no such zero.
    text = pc.if_else(pc.equal(text, pa.scalar("-0", _TEXT)), pa.scalar("-0.0", _TEXT), text)
    finite = pc.is_finite(column)
    if pc.all(finite).as_py() is False:
        for word, matches in (
            ('"NaN"', pc.is_nan(column)),
            ('"Infinity"', pc.equal(column, pa.scalar(float("inf"), column.type))),
            ('"-Infinity"', pc.equal(column, pa.scalar(float("-inf"), column.type))),
        ):
            text = pc.if_else(matches, pa.scalar(word, _TEXT), text)
    return text


def _of_half(column: pa.Array, numbers: Numbers) -> pa.Array:
    return _of_float(column.cast(pa.float32()), numbers)


def _quoted_where(mask: pa.Array, text: pa.Array) -> pa.Array:
    return pc.if_else(mask, _quoted_plain(text), text) if pc.any(mask).as_py() else text


def _of_date(column: pa.Array, _: Numbers) -> pa.Array:
    days = column.cast(pa.date32())
    return _finite_or_word(days, days.view(pa.int32()), lambda each: each.cast(_TEXT))


def _of_time(column: pa.Array, _: Numbers) -> pa.Array:
    return _quoted_plain(column)


def _of_timestamp(column: pa.Array, _: Numbers) -> pa.Array:
    ticks = column.view(pa.int64())
    zone = "" if column.type.tz is None else "Z"
    # Without its zone: Arrow then writes the UTC ticks, which is what Z says, and far faster.
    wall = ticks.view(pa.timestamp(column.type.unit))
    return _finite_or_word(wall, ticks, lambda each: _with_t(each.cast(_TEXT), zone))


def _with_t(text: pa.Array, zone: str) -> pa.Array:
    return _join(pc.replace_substring(text, " ", "T"), zone)


def _finite_or_word(
    column: pa.Array, ticks: pa.Array, write: Callable[[pa.Array], pa.Array]
) -> pa.Array:
    """Moments as `write` has them, and DuckDB's infinite ones as words."""
    most = _INFINITIES[ticks.type.bit_width]
    forever = pc.equal(ticks, pa.scalar(most, ticks.type))
    never = pc.equal(ticks, pa.scalar(-most, ticks.type))
    if not pc.any(pc.or_(forever, never)).as_py():
        return _quoted_plain(write(column))
    finite = pc.if_else(pc.or_(forever, never), pa.scalar(None, column.type), column)
    text = _quoted_plain(write(finite))
    text = pc.if_else(forever, pa.scalar('"infinity"', _TEXT), text)
    return pc.if_else(never, pa.scalar('"-infinity"', _TEXT), text)


def _of_binary(column: pa.Array, _: Numbers) -> pa.Array:
    # Arrow has no base64: a value at a time, in C.
    coded = [None if v is None else base64.b64encode(v).decode("ascii") for v in column.to_pylist()]
    return _quoted_plain(pa.array(coded, _TEXT))


def _of_interval(column: pa.Array, _: Numbers) -> pa.Array:
    words = [None if v is None else _iso_duration(*v) for v in column.to_pylist()]
    return _quoted_plain(pa.array(words, _TEXT))


def _of_duration(column: pa.Array, _: Numbers) -> pa.Array:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    ticks = column.view(pa.int64()).to_pylist()
    words = [None if v is None else _iso_duration(0, 0, v * 10**9 // per_second) for v in ticks]
    return _quoted_plain(pa.array(words, _TEXT))


def _iso_duration(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601: P1M2DT3.5S."""
    sign = "-" if nanoseconds < 0 else ""
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    date = (f"{months}M" if months else "") + (f"{days}D" if days else "")
    time = f"T{sign}{seconds}{fraction}S" if nanoseconds or not date else ""
    return f"P{date}{time}"


def _of_extension(column: pa.ExtensionArray, numbers: Numbers) -> pa.Array:
    if column.type.extension_name == "arrow.uuid":
        names = [None if v is None else str(UUID(bytes=v)) for v in column.storage.to_pylist()]
        return _quoted_plain(pa.array(names, _TEXT))
    if column.type.extension_name == "arrow.bool8":
        return _plain(column.storage.cast(pa.bool_()), numbers)
    return _text(column.storage, numbers)


def _of_list(column: pa.Array, numbers: Numbers) -> pa.Array:
    wide = column.cast(pa.large_list(column.type.value_field))
    first, last = _span(wide)
    return _bracketed(wide, json_text(wide.values.slice(first, last - first), numbers))


def _of_map(column: pa.MapArray, numbers: Numbers) -> pa.Array:
    first, last = _span(column)
    keys, items = (
        json_text(part.slice(first, last - first), numbers) for part in (column.keys, column.items)
    )
    return _bracketed(column, _join('{"key":', keys, ',"value":', items, "}"))


def _span(column: pa.Array) -> tuple[int, int]:
    """Which inner values belong to these lists, also to null ones."""
    return column.offsets[0].as_py(), column.offsets[-1].as_py()


def _bracketed(column: pa.Array, inner: pa.Array) -> pa.Array:
    """The texts of inner values as the JSON arrays of their lists."""
    offsets = pc.subtract(column.offsets.cast(pa.int64()), _span(column)[0])
    lists = pa.LargeListArray.from_arrays(offsets, _wide(inner))
    joined = _join("[", pc.binary_join(lists, pa.scalar(",", _TEXT)), "]")
    return pc.if_else(column.is_valid(), joined, None) if column.null_count else joined


def _of_struct(column: pa.StructArray, numbers: Numbers) -> pa.Array:
    parts: list[Any] = []
    for index, field in enumerate(column.type):
        parts += ["{" if index == 0 else ",", f"{quoted(field.name)}:"]
        # `flatten` and not `field`: a null above makes the values below it null.
        parts.append(json_text(column.flatten()[index], numbers))
    text = _join(*parts, "}") if parts else pa.array(["{}"] * len(column), _TEXT)
    return pc.if_else(column.is_valid(), text, None) if column.null_count else text


_Matches = Callable[[pa.DataType], bool]
_Write = Callable[[pa.Array, Numbers], pa.Array]
_WRITERS: Final[Mapping[_Matches, _Write]] = {
    pat.is_null: _of_null,
    pat.is_boolean: _plain,
    pat.is_integer: _of_whole,
    pat.is_float16: _of_half,
    pat.is_floating: _of_float,
    pat.is_decimal: _of_decimal,
    pat.is_string: _of_text,
    pat.is_large_string: _of_text,
    pat.is_string_view: _of_text,
    pat.is_binary: _of_binary,
    pat.is_large_binary: _of_binary,
    pat.is_binary_view: _of_binary,
    pat.is_fixed_size_binary: _of_binary,
    pat.is_date: _of_date,
    pat.is_time: _of_time,
    pat.is_timestamp: _of_timestamp,
    pat.is_duration: _of_duration,
    pat.is_interval: _of_interval,
}
