"""A table's columns: exact Arrow types with stable field ids.

Types are kept in one normal form per meaning, so that a value reads back with the type its table
declares: views, large, run-end and dictionary encodings become plain ones, time units that Parquet
lacks become the next finer one (docs/types.md has the whole table). The field id lies where
Parquet writers look for it, in the field's `PARQUET:field_id` metadata (Apache Arrow's convention).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.types as pat

from duckmesh.arrow_types import is_list
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import FIELD_ID, SchemaVersion

COLUMN_LIMIT: Final = 2_000
_DECIMAL_MAX_DIGITS: Final = 38
_ARRAY_MAX_LENGTH: Final = 100_000
"""DuckDB's arrays are no longer than this; longer ones are kept as lists."""


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One version of a table's columns. `arrow` carries a field id on every column."""

    version: SchemaVersion
    arrow: pa.Schema
    primary_key: tuple[str, ...] = ()
    """The columns of which a table keeps one row for each value; none for a table of all rows."""

    @classmethod
    def first(cls, offered: pa.Schema) -> Self:
        """Version 1 from an offered schema. Raises Invalid for what cannot be stored."""
        return cls(SchemaVersion(1), with_field_ids(normal_schema(offered), first_id=1))

    def replaced_by(self, offered: pa.Schema) -> "TableSchema":
        """The version after this one, with wholly new columns: their field ids are fresh."""
        arrow = with_field_ids(normal_schema(offered), first_id=self.next_field_id)
        version = SchemaVersion(self.version + 1)
        return TableSchema(version, arrow).with_key(self.primary_key)

    def with_key(self, names: Sequence[str]) -> "TableSchema":
        """The version with this primary key, if each of the columns is here and can be of one."""
        fields = {field.name: field for field in self.arrow}
        names = as_written(names, self.arrow)
        known = all(
            name in fields and not fields[name].nullable and can_be_key(fields[name].type)
            for name in names
        )
        return replace(self, primary_key=tuple(names) if known else ())

    @property
    def key(self) -> pa.Schema:
        """The columns of its primary key, in the order in which it names them."""
        return pa.schema([self.arrow.field(name) for name in self.primary_key])

    @property
    def next_field_id(self) -> int:
        return 1 + max((int(field.metadata[FIELD_ID]) for field in self.arrow), default=0)

    def has_same_columns(self, offered: pa.Schema) -> bool:
        """Whether the offered schema, in normal form, has these very columns in this order."""
        return bool(normal_schema(offered).equals(without_field_ids(self.arrow)))

    def to_bytes(self) -> bytes:
        return bytes(self.arrow.serialize())

    @classmethod
    def from_bytes(
        cls, version: SchemaVersion, content: bytes, primary_key: Sequence[str] = ()
    ) -> "TableSchema":
        return cls(version, pa.ipc.read_schema(pa.py_buffer(content))).with_key(primary_key)

    def as_columns(self) -> list[dict[str, Any]]:
        """The columns for people: field_id, name, type, nullable."""
        return [
            {
                "field_id": int(field.metadata[FIELD_ID]),
                "name": field.name,
                "type": str(field.type),
                "nullable": field.nullable,
            }
            for field in self.arrow
        ]


def can_be_key(kind: pa.DataType) -> bool:
    """Whether equal values of the type are equal wherever they are compared. Floats are not."""
    return kind == pa.uuid() or any(is_one(kind) for is_one in _KEY_TYPES)


def check_key(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise Invalid (SCHEMA_INCOMPATIBLE) for a column that cannot be of a primary key."""
    for name in names:
        field = schema.field(name)
        if not can_be_key(field.type):
            raise Invalid(
                ErrorCode.SCHEMA_INCOMPATIBLE,
                f"column {name!r} is {field.type}, which makes no primary key: name columns of "
                "whole numbers, decimals, texts, bytes, dates, times, booleans or UUIDs",
                column=name,
            )


_KEY_TYPES: Final = (
    pat.is_integer,
    pat.is_boolean,
    pat.is_string,
    pat.is_binary,
    pat.is_fixed_size_binary,
    pat.is_date,
    pat.is_time,
    pat.is_timestamp,
    pat.is_decimal,
)


def as_written(names: Sequence[str], schema: pa.Schema) -> tuple[str, ...]:
    """The names as the schema writes its columns: SQL compares them without case. Others stay."""
    written = {name.lower(): name for name in schema.names}
    return tuple(written.get(name.lower(), name) for name in names)


def not_null(columns: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The columns, those of these names NOT NULL."""
    return pa.schema(
        field.with_nullable(False) if field.name in names else field for field in columns
    )


def with_field_ids(schema: pa.Schema, *, first_id: int) -> pa.Schema:
    return pa.schema(
        field.with_metadata({FIELD_ID: str(number).encode()})
        for number, field in enumerate(schema, start=first_id)
    )


def with_missing_ids(fields: Sequence[pa.Field], *, first_id: int) -> pa.Schema:
    """The fields as a schema: those without a field id get fresh ones."""
    fresh = count(first_id)
    return pa.schema(
        field
        if FIELD_ID in (field.metadata or {})
        else field.with_metadata({FIELD_ID: str(next(fresh)).encode()})
        for field in fields
    )


def widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of the old type is one of the new: then its files stay readable."""
    if pat.is_integer(old):
        signs, bits = (pat.is_signed_integer(old), pat.is_signed_integer(new)), old.bit_width
        if pat.is_integer(new):
            return new.bit_width > bits and signs != (True, False)
        if pat.is_decimal(new):
            return bool(new.precision - new.scale >= _DIGITS[bits])
        return bool((pat.is_float64(new) and bits <= 32) or (pat.is_float32(new) and bits <= 16))
    if pat.is_decimal(old) and pat.is_decimal(new):
        whole = new.precision - new.scale >= old.precision - old.scale
        return bool(whole and new.scale >= old.scale)
    return bool(pat.is_float32(old) and pat.is_float64(new))


_DIGITS: Mapping[int, int] = {8: 3, 16: 5, 32: 10, 64: 20}
"""The digits that integers of so many bits may have."""


def without_field_ids(schema: pa.Schema) -> pa.Schema:
    return pa.schema(field.remove_metadata() for field in schema)


def normal_schema(offered: pa.Schema) -> pa.Schema:
    """The offered columns in normal form, without metadata.

    Raises Invalid: SCHEMA_REQUIRED without columns, SCHEMA_INCOMPATIBLE naming the column for
    names that repeat (also in another case, as SQL sees them) and types that cannot be stored.
    """
    if len(offered) == 0:
        raise Invalid(ErrorCode.SCHEMA_REQUIRED, "a table needs at least one column")
    if len(offered) > COLUMN_LIMIT:
        raise Invalid(ErrorCode.SCHEMA_INCOMPATIBLE, f"a table has at most {COLUMN_LIMIT} columns")
    seen: set[str] = set()
    for name in offered.names:
        if not name or name.lower() in seen or "\x00" in name:
            raise Invalid(
                ErrorCode.SCHEMA_INCOMPATIBLE,
                "column names are not empty and differ by more than case",
                column=name[:80],
            )
        seen.add(name.lower())
    return pa.schema(
        pa.field(field.name, normal_type(field.type, column=field.name), field.nullable)
        for field in offered
    )


def normal_type(offered: pa.DataType, *, column: str) -> pa.DataType:
    """The normal form of a type, inner types included. Raises Invalid naming column and reason."""
    if pat.is_duration(offered):
        return pa.duration("us")
    return _normal(offered, column)


def _normal(offered: pa.DataType, column: str) -> pa.DataType:
    encoded = _without_encoding(offered)
    if encoded is not None:
        return _normal(encoded, column)
    for matches, plain in _PLAIN.items():
        if matches(offered):
            return plain(offered)
    if pat.is_fixed_size_list(offered) and 0 < offered.list_size <= _ARRAY_MAX_LENGTH:
        return pa.list_(_element(offered, column), offered.list_size)
    if is_list(offered):
        return pa.list_(_element(offered, column))
    if pat.is_struct(offered) and offered.num_fields:
        return pa.struct([pa.field(f.name, _normal(f.type, column), f.nullable) for f in offered])
    if pat.is_map(offered):
        return pa.map_(_normal(offered.key_type, column), _normal(offered.item_type, column))
    if pat.is_decimal(offered) and _is_storable(offered):
        return pa.decimal128(offered.precision, offered.scale)
    if offered == pa.uuid() or any(matches(offered) for matches in _AS_THEY_ARE):
        return offered
    raise Invalid(
        ErrorCode.SCHEMA_INCOMPATIBLE,
        f"column {column!r} has type {offered}, which a table cannot hold: {_way_out(offered)}",
        column=column,
        type=str(offered),
    )


def _without_encoding(offered: pa.DataType) -> pa.DataType | None:
    """The type of the values below an encoding or an extension; None when there is neither."""
    if offered == pa.uuid():
        return None
    if isinstance(offered, pa.BaseExtensionType):
        is_bool = offered.extension_name == "arrow.bool8"
        return pa.bool_() if is_bool else offered.storage_type
    if pat.is_dictionary(offered) or pat.is_run_end_encoded(offered):
        return offered.value_type
    return None


def _element(offered: pa.DataType, column: str) -> pa.Field:
    item = offered.value_field
    return pa.field("element", _normal(item.type, column), item.nullable)


def _is_storable(decimal: pa.DataType) -> bool:
    return bool(
        decimal.precision <= _DECIMAL_MAX_DIGITS and 0 <= decimal.scale <= decimal.precision
    )


def _way_out(refused: pa.DataType) -> str:
    """What to change, for each type that is refused."""
    for matches, way in _WAYS_OUT:
        if matches(refused):
            return way
    return "cast it to a type of docs/types.md first"


_WAYS_OUT: Sequence[tuple[Callable[[pa.DataType], bool], str]] = (
    (pat.is_null, "a column of nulls alone has no type; cast it to the type it is meant to have"),
    (
        pat.is_decimal,
        "a decimal has at most 38 digits and a scale from 0 to its precision; cast it or send text",
    ),
    (
        pat.is_duration,
        "a duration is a column of its own, never inside another type; send an int64",
    ),
    (
        pat.is_interval,
        "Parquet has no such interval; send a duration, or a struct of three integers",
    ),
    (pat.is_union, "Parquet has no unions; send a struct with one field per kind"),
    (pat.is_struct, "a struct needs at least one field"),
)

_PLAIN: Mapping[Callable[[pa.DataType], bool], Callable[[Any], pa.DataType]] = {
    pat.is_large_string: lambda _: pa.string(),
    pat.is_string_view: lambda _: pa.string(),
    pat.is_large_binary: lambda _: pa.binary(),
    pat.is_binary_view: lambda _: pa.binary(),
    pat.is_fixed_size_binary: lambda _: pa.binary(),
    pat.is_float16: lambda _: pa.float32(),
    pat.is_date64: lambda _: pa.date32(),
    pat.is_time32: lambda _: pa.time64("us"),
    # Parquet knows no seconds, and DuckDB's TIMESTAMPTZ is in microseconds.
    lambda t: pat.is_timestamp(t) and t.tz is not None: lambda _: pa.timestamp("us", tz="UTC"),
    lambda t: pat.is_timestamp(t) and t.unit in ("s", "ms"): lambda _: pa.timestamp("us"),
}

_AS_THEY_ARE: tuple[Callable[[pa.DataType], bool], ...] = (
    pat.is_boolean,
    pat.is_integer,
    pat.is_float32,
    pat.is_float64,
    pat.is_string,
    pat.is_binary,
    pat.is_date32,
    pat.is_time64,
    pat.is_timestamp,
)
