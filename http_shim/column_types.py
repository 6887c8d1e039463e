"""How the HTTP door names types: SQL's words for plain types, structure for nested ones.

`{"name": "tags", "type": "list", "element": {"type": "varchar"}}`. What a table's description says
can be sent to create another table.
"""

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat

from duckmesh.arrow_types import is_list
from duckmesh.errors import ErrorCode, Invalid

NESTING_MAX: Final = 32

_NAME_OF: Final[Mapping[pa.DataType, str]] = {
    pa.bool_(): "boolean",
    pa.int8(): "tinyint",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.uint8(): "utinyint",
    pa.uint16(): "usmallint",
    pa.uint32(): "uinteger",
    pa.uint64(): "ubigint",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "varchar",
    pa.binary(): "blob",
    pa.uuid(): "uuid",
    pa.date32(): "date",
    pa.time64("us"): "time",
    pa.time64("ns"): "time_ns",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("ns"): "timestamp_ns",
    pa.timestamp("us", tz="UTC"): "timestamptz",
    pa.duration("us"): "duration",
    pa.month_day_nano_interval(): "interval",
    pa.null(): "null",
}
_ANOTHER_NAME: Final[Mapping[str, str]] = {
    "bool": "boolean",
    "int8": "tinyint",
    "int16": "smallint",
    "int32": "integer",
    "int": "integer",
    "int64": "bigint",
    "uint8": "utinyint",
    "uint16": "usmallint",
    "uint32": "uinteger",
    "uint64": "ubigint",
    "float32": "float",
    "real": "float",
    "float64": "double",
    "string": "varchar",
    "text": "varchar",
    "binary": "blob",
    "bytea": "blob",
    "date32": "date",
    "timestamp with time zone": "timestamptz",
}
_TYPE_OF: Final = {name: kind for kind, name in _NAME_OF.items()}
PLAIN_NAMES: Final = tuple(sorted({*_TYPE_OF, *_ANOTHER_NAME} - {"null", "interval"}))


def describe_columns(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns of a table or an answer, in order."""
    return [describe_field(field) for field in schema]


def describe_field(field: pa.Field) -> dict[str, Any]:
    return {"name": field.name, **describe_type(field.type), "nullable": field.nullable}


def describe_type(kind: pa.DataType) -> dict[str, Any]:
    """A type of Arrow's in the door's words; its own name where the door has none."""
    if isinstance(kind, pa.BaseExtensionType):
        known = {"arrow.uuid": "uuid", "arrow.json": "json", "arrow.bool8": "boolean"}
        name = known.get(kind.extension_name)
        return {"type": name} if name else describe_type(kind.storage_type)
    if pat.is_dictionary(kind):
        return describe_type(kind.value_type)
    if pat.is_struct(kind):
        return {"type": "struct", "fields": [describe_field(field) for field in kind]}
    if pat.is_map(kind):
        return {
            "type": "map",
            "key": describe_type(kind.key_type),
            "value": describe_type(kind.item_type),
        }
    if is_list(kind):
        element = kind.value_field
        return {
            "type": "list",
            "element": {**describe_type(element.type), "nullable": element.nullable},
        }
    return {"type": _plain_name(kind)}


def arrow_type(described: Mapping[str, Any], *, column: str, depth: int = 0) -> pa.DataType:
    """The type that a description names. Raises Invalid (SCHEMA_INCOMPATIBLE) with the column."""
    if depth > NESTING_MAX:
        raise _unknown(column, f"types nest at most {NESTING_MAX} deep")
    name = str(described.get("type", "")).strip().lower()
    match name:
        case "list":
            element = _part(described, "element", column)
            inner = arrow_type(element, column=column, depth=depth + 1)
            nullable = bool(element.get("nullable", True))
            return pa.list_(pa.field("element", inner, nullable))
        case "map":
            key, value = (
                arrow_type(_part(described, part, column), column=column, depth=depth + 1)
                for part in ("key", "value")
            )
            return pa.map_(key, value)
        case "struct":
            return _struct(described, column, depth)
    return _plain_type(name, column)


def arrow_field(described: Mapping[str, Any], *, depth: int = 0) -> pa.Field:
    name = str(described.get("name", ""))
    kind = arrow_type(described, column=name, depth=depth)
    return pa.field(name, kind, bool(described.get("nullable", True)))


def _struct(described: Mapping[str, Any], column: str, depth: int) -> pa.DataType:
    fields = described.get("fields") or []
    names = [str(field.get("name", "")).lower() for field in fields]
    if not fields or len(set(names)) < len(names) or "" in names:
        raise _unknown(column, "a struct has fields with names that differ by more than case")
    return pa.struct([arrow_field(field, depth=depth + 1) for field in fields])


def _part(described: Mapping[str, Any], part: str, column: str) -> Mapping[str, Any]:
    found = described.get(part)
    if not isinstance(found, Mapping):
        raise _unknown(column, f"a {described['type']} says its {part}, a type of its own")
    return found


def _plain_type(name: str, column: str) -> pa.DataType:
    plain = _TYPE_OF.get(_ANOTHER_NAME.get(name, name))
    if plain is not None:
        return plain
    for word in ("decimal", "numeric"):
        if name.startswith(word):
            return _decimal(name.removeprefix(word), column)
    raise _unknown(column, f"there is no type {name[:80]!r}")


def _decimal(rest: str, column: str) -> pa.DataType:
    inner = rest.strip()
    if not inner:
        return pa.decimal128(18, 3)
    digits = inner.removeprefix("(").removesuffix(")").split(",")
    plain = all(part.strip().isascii() and part.strip().isdigit() for part in digits)
    if not (inner.startswith("(") and inner.endswith(")") and plain and len(digits) <= 2):
        raise _unknown(column, "a decimal is decimal(precision,scale)")
    precision, scale = (*(int(part.strip()[:4]) for part in digits), 0)[:2]
    if not 1 <= precision <= 38 or scale > precision:
        raise _unknown(column, "a decimal has 1 to 38 digits, and no more after the point")
    return pa.decimal128(precision, scale)


def _plain_name(kind: pa.DataType) -> str:
    if pat.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pat.is_timestamp(kind):
        return "timestamptz" if kind.tz else f"timestamp_{kind.unit}".removesuffix("_us")
    if pat.is_large_string(kind) or pat.is_string_view(kind):
        return "varchar"
    if pat.is_large_binary(kind) or pat.is_binary_view(kind) or pat.is_fixed_size_binary(kind):
        return "blob"
    if pat.is_duration(kind):
        return "duration"
    return _NAME_OF.get(kind, str(kind))


def _unknown(column: str, reason: str) -> Invalid:
    return Invalid(
        ErrorCode.SCHEMA_INCOMPATIBLE,
        f"column {column[:80]!r}: {reason}; plain types are {', '.join(_TYPE_OF)} and "
        "decimal(p,s), nested ones list, struct and map",
        column=column[:80],
        reason=reason,
    )
