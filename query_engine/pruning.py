"""Whether a file may hold a row that a query asks for, by the statistics of its columns. Pure.

Conservative: whatever is not certain keeps the file. Statistics are those of
`data_files.parquet.column_stats`: least, greatest and the number of nulls, as plain JSON.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat

from query_engine.predicates import AllOf, AnyOf, Bound, Comparison, Constant, IsNull, Predicate

Stats = Mapping[str, Any]
"""By column: {"min", "max", "nulls"}."""

_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,9})?")
_DIGITS_MAX: Final = 18
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(?P<zone>Z|[+-][0-9]{2}(:[0-9]{2})?)?)?"
)
_WITH_ZONE: Final = ("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE")
_FLOAT_SLACK: Final = 1e-9
_TICK: Final = timedelta(milliseconds=1)
"""More than statistics of nanoseconds lose."""
_ZONES: Final = timedelta(hours=16)
"""More than any time zone is off: a text without one is of the session's."""

Range = tuple[Any, Any]
"""Within which a value certainly lies."""


def may_match(
    predicate: Predicate, fields: Mapping[str, pa.Field], stats: Stats, values: Mapping[str, Any]
) -> bool:
    """Whether a file with these statistics may hold a row that fulfils the predicate.

    `fields` are the file's columns by lower-case name, `values` those of parameters by identifier.
    """
    if isinstance(predicate, AllOf):
        return all(may_match(part, fields, stats, values) for part in predicate.parts)
    if isinstance(predicate, AnyOf):
        return any(may_match(part, fields, stats, values) for part in predicate.parts)
    field = fields.get(predicate.column)
    known = None if field is None else stats.get(field.name)
    if field is None or known is None:
        return True
    if isinstance(predicate, IsNull):
        return bool(known["nulls"] != 0)
    try:
        return _overlaps(predicate, field.type, known, values)
    except (ValueError, ArithmeticError, TypeError):
        # A text that is no such value, or a date out of Python's range.
        return True


def columns_of(predicate: Predicate) -> set[str]:
    """The columns, in lower case, whose statistics decide."""
    if isinstance(predicate, AllOf | AnyOf):
        return set[str]().union(*(columns_of(part) for part in predicate.parts))
    return {predicate.column}


def wanted_range(asked: Comparison, kind: pa.DataType, values: Mapping[str, Any]) -> Range | None:
    """Within which the value surely lies that a column of this type is compared with.

    Whole and decimal numbers as Decimal, text, dates, and moments in UTC. None when DuckDB may
    compare in another way. Raises ValueError or ArithmeticError for a text that is no such value.
    """
    return _wanted(asked.operand, kind, values)


def _overlaps(
    asked: Comparison, kind: pa.DataType, known: Mapping[str, Any], values: Mapping[str, Any]
) -> bool:
    wanted = _wanted(asked.operand, kind, values)
    bounds = None if wanted is None else _bounds(kind, known)
    if wanted is None or bounds is None:
        return True
    (low, high), (least, greatest) = wanted, bounds
    if asked.operator == "=":
        return bool(least <= high and greatest >= low)
    if asked.operator == "<":
        return bool(least < high)
    if asked.operator == "<=":
        return bool(least <= high)
    if pat.is_floating(kind):
        # DuckDB holds NaN to be greater than every number, and statistics leave it out.
        return True
    return bool(greatest > low if asked.operator == ">" else greatest >= low)


def _bounds(kind: pa.DataType, known: Mapping[str, Any]) -> Range | None:
    """The least and the greatest value of a column, as `_wanted` gives them to compare with."""
    low, high = known["min"], known["max"]
    if pat.is_integer(kind):
        return Decimal(low), Decimal(high)
    if pat.is_decimal(kind):
        return Decimal(low), Decimal(high)
    if pat.is_float64(kind):
        return float(low), float(high)
    if pat.is_string(kind):
        return str(low), str(high)
    if pat.is_date32(kind):
        return date.fromisoformat(low), date.fromisoformat(high)
    if pat.is_timestamp(kind):
        return _utc(low) - _TICK, _utc(high) + _TICK
    return None


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _wanted(
    operand: Constant | Bound, kind: pa.DataType, values: Mapping[str, Any]
) -> Range | None:
    """What the column is compared with; None when DuckDB may compare it in another way."""
    if isinstance(operand, Bound):
        return _of_value(values.get(operand.identifier), kind)
    if operand.kind in ("INTEGER", "NUMERIC") and operand.cast is None:
        return _of_number(operand.text, kind)
    if operand.kind != "STRING":
        return None
    if pat.is_string(kind) and operand.cast in (None, "VARCHAR", "TEXT"):
        return operand.text, operand.text
    if pat.is_date32(kind) and operand.cast in (None, "DATE") and _DATE.fullmatch(operand.text):
        day = date.fromisoformat(operand.text)
        return day, day
    if pat.is_timestamp(kind) and operand.cast in (None, "DATE", "TIMESTAMP", *_WITH_ZONE):
        return _of_moment(operand, kind)
    return None


def _of_number(text: str, kind: pa.DataType) -> Range | None:
    if not _NUMBER.fullmatch(text):
        return None
    if pat.is_integer(kind) or (pat.is_decimal(kind) and kind.precision <= _DIGITS_MAX):
        number = Decimal(text)
        return number, number
    return _around(float(text)) if pat.is_float64(kind) else None


def _around(number: float) -> Range:
    slack = max(abs(number) * _FLOAT_SLACK, _FLOAT_SLACK)
    return number - slack, number + slack


def _of_moment(operand: Constant, kind: pa.DataType) -> Range | None:
    text = operand.text
    found = _MOMENT.fullmatch(text)
    if found is None or (operand.cast == "DATE" and not _DATE.fullmatch(text)):
        return None
    if found["zone"]:
        if kind.tz is None or operand.cast == "TIMESTAMP":
            return None
        exact = datetime.fromisoformat(text).astimezone(UTC)
        return exact, exact
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    # With a zone on either side, the session's decides what the text means.
    off = timedelta(0) if kind.tz is None and operand.cast not in _WITH_ZONE else _ZONES
    return moment - off, moment + off


def _of_value(value: Any, kind: pa.DataType) -> Range | None:
    """A parameter, as its Arrow value is in Python."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and abs(value) < 10**_DIGITS_MAX:
        return _of_number(str(value), kind)
    if isinstance(value, float) and pat.is_float64(kind):
        return _around(value)
    if isinstance(value, str) and pat.is_string(kind):
        return value, value
    if isinstance(value, datetime) and pat.is_timestamp(kind):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        same = (kind.tz is None) == (value.tzinfo is None)
        off = _TICK if same else _ZONES
        return moment - off, moment + off
    if isinstance(value, date) and not isinstance(value, datetime):
        if pat.is_date32(kind):
            return value, value
        if pat.is_timestamp(kind):
            midnight = datetime.combine(value, time(), UTC)
            return midnight - _ZONES, midnight + _ZONES
    return None
