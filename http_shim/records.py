"""JSON records and rows of a file, as batches of a table's columns."""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from duckmesh.errors import ErrorCode, Invalid
from http_shim.json_columns import BadValue, column_of, text_column
from http_shim.plain_rows import holds_decimal, plain_rows

_DIGITS_MAX: Final = 4000


def loads(text: bytes, *, exact_decimals: bool) -> Any:
    """A JSON text as plain values. Raises Invalid (INVALID_JSON), whatever the text is.

    With `exact_decimals` numbers with a point keep every digit; that parser is slower.
    """
    try:
        if exact_decimals:
            return json.loads(text, parse_float=_decimal, parse_constant=_no_constant)
        return orjson.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)
        raise Invalid(
            ErrorCode.INVALID_JSON, f"the body is not valid JSON: {reason[:200]}"
        ) from None


def _decimal(digits: str) -> Decimal:
    if len(digits) > _DIGITS_MAX:
        raise ValueError("a number has too many digits")
    return Decimal(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value: send it as a text")


def needs_exact_decimals(schema: pa.Schema) -> bool:
    """Whether a column holds numbers of which a double would lose digits."""
    return plain_rows(schema).exact_decimals


def batch_of(
    payloads: Sequence[Mapping[str, Any]], schema: pa.Schema, *, first_record: int = 0
) -> pa.RecordBatch:
    """Objects by column name as rows of `schema`; a column left out is null.

    Raises Invalid (INVALID_PAYLOAD) with record, column and reason. Names match exactly, else
    without regard to case, as SQL's do.
    """
    plain = plain_rows(schema).batch_of(payloads)
    if plain is not None:
        return plain
    return batch_by_columns(payloads, schema, first_record=first_record)


def batch_by_columns(
    payloads: Sequence[Mapping[str, Any]], schema: pa.Schema, *, first_record: int = 0
) -> pa.RecordBatch:
    """The same for values of every kind, and with the words for what is wrong."""
    rows = _with_exact_names(payloads, schema, first_record)
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            column = column_of(values, field.type)
        except BadValue as bad:
            raise bad_value(field.name, bad, first_record) from None
        _check_nulls(column, field, first_record)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def batch_of_texts(
    texts: pa.RecordBatch, schema: pa.Schema, *, first_record: int
) -> pa.RecordBatch:
    """Rows of texts, as a CSV file has them, as rows of `schema`. Raises as `batch_of` does."""
    by_name = {name.lower(): texts.column(i) for i, name in enumerate(texts.schema.names)}
    columns = []
    for field in schema:
        given = by_name.get(field.name.lower())
        if given is None:
            column = pa.nulls(texts.num_rows, field.type)
        else:
            column = _text_column(given, field, first_record)
        _check_nulls(column, field, first_record)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _text_column(given: pa.Array, field: pa.Field, first_record: int) -> pa.Array:
    try:
        if pat.is_nested(field.type):
            exact = holds_decimal(field.type)
            parsed = [_inner_json(v, i, exact) for i, v in enumerate(given.to_pylist())]
            return column_of(parsed, field.type)
        return text_column(given, field.type)
    except BadValue as bad:
        raise bad_value(field.name, bad, first_record) from None


def _inner_json(text: str | None, index: int, exact: bool) -> Any:
    if text is None:
        return None
    try:
        return loads(text.encode(), exact_decimals=exact)
    except Invalid:
        raise BadValue(index, "it is not valid JSON") from None


def _with_exact_names(
    payloads: Sequence[Mapping[str, Any]], schema: pa.Schema, first_record: int
) -> Sequence[Mapping[str, Any]]:
    known = set(schema.names)
    if all(payload.keys() <= known for payload in payloads):
        return payloads
    folded = {name.lower(): name for name in schema.names}
    renamed = []
    for index, payload in enumerate(payloads):
        row: dict[str, Any] = {}
        for name, value in payload.items():
            exact = name if name in known else folded.get(name.lower())
            if exact is None or exact in row:
                reason = "the table has no such column" if exact is None else "it is given twice"
                raise bad_value(name, BadValue(index, reason), first_record)
            row[exact] = value
        renamed.append(row)
    return renamed


def _check_nulls(column: pa.Array, field: pa.Field, first_record: int) -> None:
    if column.null_count and not field.nullable:
        index = pc.index(pc.is_null(column), pa.scalar(True)).as_py()
        bad = BadValue(index, "it is null or left out, and the column is NOT NULL")
        raise bad_value(field.name, bad, first_record)


def bad_value(column: str, bad: BadValue, first_record: int) -> Invalid:
    """A value that does not fit, as the client is told."""
    record = first_record + bad.index
    place = f"{column[:200]}{bad.within}"
    return Invalid(
        ErrorCode.INVALID_PAYLOAD,
        f"record {record} has a bad value in column {place!r}: {bad.reason}",
        record=record,
        column=place,
        reason=bad.reason,
    )
