"""Whether a file of a partition can hold a row that a query asks for. Pure.

Conservative: whatever is not certain keeps the file. The transforms of time and size keep the order
of values, so a range of values becomes a range of partitions; a bucket tells equality alone.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from data_files import transforms
from duckmesh.identifiers import FIELD_ID
from duckmesh.partitions import Partition, PartitionField, Transform, field_of, is_many
from query_engine.predicates import AllOf, AnyOf, Comparison, IsNull, Predicate
from query_engine.pruning import wanted_range


def partition_may_match(
    predicate: Predicate,
    fields: Mapping[str, pa.Field],
    partition: Partition,
    values: Mapping[str, Any],
) -> bool:
    """Whether rows of the partition may fulfil the predicate.

    `fields` are the file's columns by lower-case name, `values` those of parameters by identifier.
    """
    if is_many(partition):
        return True
    known = [(field_of(key), value) for key, value in partition.items()]
    return _may_match(predicate, fields, known, values)


_Known = list[tuple[PartitionField, Any]]


def _may_match(
    predicate: Predicate, fields: Mapping[str, pa.Field], known: _Known, values: Mapping[str, Any]
) -> bool:
    if isinstance(predicate, AllOf):
        return all(_may_match(part, fields, known, values) for part in predicate.parts)
    if isinstance(predicate, AnyOf):
        return any(_may_match(part, fields, known, values) for part in predicate.parts)
    field = fields.get(predicate.column)
    if field is None:
        return True
    source_id = int(field.metadata[FIELD_ID])
    of_column = [(each.transform, value) for each, value in known if each.source_id == source_id]
    if isinstance(predicate, IsNull):
        # Every transform keeps null, and makes it of nothing else.
        return all(value is None for _, value in of_column)
    return all(
        _column_may_match(predicate, field.type, transform, value, values)
        for transform, value in of_column
    )


def _column_may_match(
    asked: Comparison,
    kind: pa.DataType,
    transform: Transform,
    value: Any,
    values: Mapping[str, Any],
) -> bool:
    if value is None:
        # No comparison holds for null.
        return False
    if isinstance(value, dict):
        return True
    try:
        wanted = wanted_range(asked, kind, values)
        if wanted is None:
            return True
        low, high = (_stored(end, kind) for end in wanted)
        if low is None or high is None:
            return True
        if transform.name == "bucket":
            return asked.operator != "=" or low != high or _of(transform, low, kind) == value
        return _in_order(asked.operator, kind, transform, value, low=low, high=high)
    except (ValueError, ArithmeticError, TypeError, pa.ArrowException):
        # A value that the column cannot hold: DuckDB compares it in a wider type.
        return True


def _in_order(
    operator: str, kind: pa.DataType, transform: Transform, value: Any, *, low: Any, high: Any
) -> bool:
    if _may_have_wrapped(kind, transform, value):
        return True
    place = _comparable(value, kind)
    if operator in ("=", "<", "<=") and place > _comparable(_of(transform, high, kind), kind):
        return False
    return not (
        operator in ("=", ">", ">=") and place < _comparable(_of(transform, low, kind), kind)
    )


def _may_have_wrapped(kind: pa.DataType, transform: Transform, value: Any) -> bool:
    """Whether the bin may be that of the least integers, which wrap to the greatest."""
    if transform.name != "truncate" or not pat.is_integer(kind):
        return False
    bits = 32 if kind.bit_width < 32 or kind == pa.int32() else 64
    return bool(value > 2 ** (bits - 1) - 1 - (transform.size or 1))


def _stored(end: Any, kind: pa.DataType) -> Any:
    """A bound as a value of the column's type; None when there is none exactly there."""
    if pat.is_integer(kind):
        return int(end) if end == int(end) else None
    if pat.is_decimal(kind):
        return end if isinstance(end, Decimal) else None
    if pat.is_timestamp(kind):
        moment: datetime = end
        return moment if kind.tz else moment.astimezone(UTC).replace(tzinfo=None)
    if pat.is_date32(kind):
        return end if type(end) is date else None
    return end if pat.is_string(kind) and isinstance(end, str) else None


def _of(transform: Transform, value: Any, kind: pa.DataType) -> Any:
    """The transform of one value. Raises what Arrow raises for one that the type does not hold."""
    return transforms.apply(transform, pa.array([value], kind)).to_pylist()[0]


def _comparable(value: Any, kind: pa.DataType) -> Any:
    return Decimal(value) if pat.is_decimal(kind) else value
