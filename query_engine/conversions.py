"""The conversions that DuckDB's own INSERT and UPDATE make, written into queries as casts."""

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.statements import Statements
from query_engine.failures import clean
from query_engine.quoting import identifier, sql_type
from query_engine.trees import Tree, Trees

_SQL: Final = Statements("query_engine", "writes.sql")

CONVERSION: Final = "Conversion Error: "
"""How DuckDB's message begins for a value that does not convert."""


def query_over(source: str, names: Sequence[str], schema: pa.Schema) -> str:
    """A query that gives the columns of `schema`, in order and of their types.

    `names` are those that the columns of `source` fill, in its order; the others are NULL.
    """
    aliases = aliases_of(names)
    places = dict(zip(names, aliases, strict=True))
    columns = ", ".join(column(field, places.get(field.name)) for field in schema)
    return _SQL["select_source"].format(columns=columns, source=source, aliases=", ".join(aliases))


def column(field: pa.Field, value: str | None) -> str:
    """A column of a table as a query's: the value's cast, under its name."""
    cast = _SQL["cast"].format(value=value or "NULL", type=sql_type(field.type))
    return _SQL["named"].format(value=cast, name=identifier(field.name))


def aliases_of(names: Sequence[str]) -> list[str]:
    """What the columns of a source are called where it is read."""
    return [f"c{at}" for at in range(len(names))]


def kinds_of(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """The DuckDB types of these columns."""
    return [sql_type(schema.field(name).type) for name in names]


def templates_of(trees: Trees, template: str, kinds: Sequence[str]) -> tuple[Tree, ...]:
    """The template of each column, with NULL where a value goes; see `put`."""
    return trees.selected(*(template.format(value="NULL", type=kind) for kind in kinds))


def put(cell: Tree, into: Any) -> Any:
    """The template with the cell where its NULL stands; DEFAULT is NULL and leaves it."""
    if cell["class"] == "DEFAULT":
        return into
    if isinstance(into, list):
        return [put(cell, each) for each in into]
    if not isinstance(into, dict):
        return into
    if into.get("class") == "CONSTANT" and into["literal"]["kind"] == "NULL_LITERAL":
        return cell
    return {key: put(cell, value) for key, value in into.items()}


def known_columns(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """The names as the table spells them.

    Raises Invalid (SCHEMA_INCOMPATIBLE) for an unknown column and for one that is named twice.
    """
    known = {field.name.lower(): field.name for field in schema}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            f"the table has no column {unknown[0]!r}: it has {', '.join(schema.names[:20])}",
            column=unknown[0],
        )
    if len({name.lower() for name in names}) < len(names):
        raise Invalid(ErrorCode.SCHEMA_INCOMPATIBLE, "a column is named twice: name it once")
    return [known[name.lower()] for name in names]


def conversion_failed(column: str | None, message: str) -> Invalid:
    """The refusal of a value that its column's type cannot hold."""
    reason = clean(message, ()).partition("\n")[0].removeprefix(CONVERSION)
    where = "a value" if column is None else f"a value of column {column!r}"
    context = {} if column is None else {"column": column}
    return Invalid(ErrorCode.INVALID_PAYLOAD, f"{where} does not convert: {reason}", **context)
