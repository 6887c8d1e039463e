"""The parameters of a JSON query as one Arrow row."""

from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid

_INT64: Final = range(-(2**63), 2**63)
_UINT64: Final = range(2**64)
_DECIMAL_MAX: Final = 10**38


def parameter_batch(params: list[Any] | dict[str, Any] | None) -> pa.RecordBatch | None:
    """One row with a column for each parameter; None without any.

    JSON decides the types: whole numbers are BIGINT (wider ones UBIGINT or DECIMAL), others DOUBLE,
    texts VARCHAR, arrays lists, objects structs. Raises Invalid naming the parameter.
    """
    if not params:
        return None
    named = params.items() if isinstance(params, dict) else enumerate(params, start=1)
    columns = {str(name): _column(str(name), value) for name, value in named}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _column(name: str, value: Any) -> pa.Array:
    try:
        if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
            return _wide(name, value)
        return pa.array([value])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise _refused(name, "it has no one type: cast it in the statement") from error


def _wide(name: str, value: int) -> pa.Array:
    if value in _UINT64:
        return pa.array([value], pa.uint64())
    if abs(value) < _DECIMAL_MAX:
        return pa.array([Decimal(value)], pa.decimal128(38, 0))
    raise _refused(name, "it has more than 38 digits")


def _refused(name: str, reason: str) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_PAYLOAD,
        f"parameter {name[:80]} cannot be bound: {reason}",
        parameter=name[:80],
        reason=reason,
    )
