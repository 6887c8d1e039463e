"""The metadata tables of Flight SQL: their exact schemas, and their rows from plain descriptors.

Drivers compare these schemas with the reference, nullability included; the field order of the key
tables is the reference's. https://arrow.apache.org/docs/format/FlightSql.html
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from duckmesh.errors import NotSupported
from duckmesh.identifiers import FIELD_ID
from flight_server.commands import GetDbSchemas, GetPrimaryKeys, GetTables
from flight_server.like import like
from query_engine.quoting import sql_type
from query_engine.relations import CATALOG, MAIN_SCHEMA, SYSTEM_SCHEMA

TABLE: Final = "TABLE"
VIEW: Final = "VIEW"
SYSTEM_TABLE: Final = "SYSTEM TABLE"

_METADATA_PREFIX: Final = "ARROW:FLIGHT:SQL:"


def _text(name: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, pa.utf8(), nullable)


CATALOGS_SCHEMA: Final = pa.schema([_text("catalog_name", nullable=False)])
DB_SCHEMAS_SCHEMA: Final = pa.schema(
    [_text("catalog_name"), _text("db_schema_name", nullable=False)]
)
TABLES_SCHEMA: Final = pa.schema(
    [
        _text("catalog_name"),
        _text("db_schema_name"),
        _text("table_name", nullable=False),
        _text("table_type", nullable=False),
    ]
)
TABLES_WITH_SCHEMA_SCHEMA: Final = TABLES_SCHEMA.append(
    pa.field("table_schema", pa.binary(), nullable=False)
)
TABLE_TYPES_SCHEMA: Final = pa.schema([_text("table_type", nullable=False)])
PRIMARY_KEYS_SCHEMA: Final = pa.schema(
    [
        _text("catalog_name"),
        _text("db_schema_name"),
        _text("table_name", nullable=False),
        _text("column_name", nullable=False),
        pa.field("key_sequence", pa.int32(), nullable=False),
        _text("key_name"),
    ]
)
FOREIGN_KEYS_SCHEMA: Final = pa.schema(
    [
        _text("pk_catalog_name"),
        _text("pk_db_schema_name"),
        _text("pk_table_name", nullable=False),
        _text("pk_column_name", nullable=False),
        _text("fk_catalog_name"),
        _text("fk_db_schema_name"),
        _text("fk_table_name", nullable=False),
        _text("fk_column_name", nullable=False),
        pa.field("key_sequence", pa.int32(), nullable=False),
        _text("fk_key_name"),
        _text("pk_key_name"),
        pa.field("update_rule", pa.uint8(), nullable=False),
        pa.field("delete_rule", pa.uint8(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class TableDescriptor:
    """A table as metadata commands show it."""

    name: str
    schema: pa.Schema
    kind: str = TABLE
    catalog: str = CATALOG
    db_schema: str = MAIN_SCHEMA
    primary_key: Sequence[str] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    """Told to clients as metadata of the table's schema (such as its latest token)."""


def catalogs() -> pa.Table:
    """The one catalog."""
    return pa.table([[CATALOG]], schema=CATALOGS_SCHEMA)


def db_schemas(command: GetDbSchemas) -> pa.Table:
    """The schemas that `command` selects, in order."""
    matches = like(command.db_schema_filter_pattern)
    selected = [
        name
        for name in sorted((MAIN_SCHEMA, SYSTEM_SCHEMA))
        if command.catalog in (None, CATALOG) and matches(name)
    ]
    return pa.table([[CATALOG] * len(selected), selected], schema=DB_SCHEMAS_SCHEMA)


def tables(command: GetTables, described: Iterable[TableDescriptor]) -> pa.Table:
    """The tables that `command` selects, in the order the specification asks for."""
    of_schema = like(command.db_schema_filter_pattern)
    of_name = like(command.table_name_filter_pattern)
    kinds = {kind.upper() for kind in command.table_types}
    selected = [
        table
        for table in described
        if command.catalog in (None, table.catalog)
        and of_schema(table.db_schema)
        and of_name(table.name)
        and not _is_hidden(command, table)
        and (not kinds or not kinds.isdisjoint(_names_of_kind(table.kind)))
    ]
    selected.sort(key=lambda table: (table.catalog, table.db_schema, table.name, table.kind))
    schema = TABLES_WITH_SCHEMA_SCHEMA if command.include_schema else TABLES_SCHEMA
    rows = [_table_row(table, with_schema=command.include_schema) for table in selected]
    return pa.Table.from_pylist(rows, schema=schema)


def _is_hidden(command: GetTables, table: TableDescriptor) -> bool:
    """Whether a name alone does not reach the table, as in SQL: it means the one in schema main.

    ADBC takes the first table of a name for the schema that it tells, and pandas takes any for
    the one that it is to create.
    """
    pattern = command.table_name_filter_pattern
    alone = pattern is not None and command.db_schema_filter_pattern is None
    return alone and table.db_schema != MAIN_SCHEMA and pattern == table.name


def table_types() -> pa.Table:
    """The kinds of table."""
    return pa.table([[SYSTEM_TABLE, TABLE, VIEW]], schema=TABLE_TYPES_SCHEMA)


def primary_keys(command: GetPrimaryKeys, described: Iterable[TableDescriptor]) -> pa.Table:
    """The primary key columns of the table that `command` names, in key order."""
    rows = [
        {
            "catalog_name": table.catalog,
            "db_schema_name": table.db_schema,
            "table_name": table.name,
            "column_name": column,
            "key_sequence": number,
            "key_name": None,
        }
        for table in described
        if table.name == command.table
        and command.catalog in (None, table.catalog)
        and command.db_schema in (None, table.db_schema)
        for number, column in enumerate(table.primary_key, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=PRIMARY_KEYS_SCHEMA)


def foreign_keys() -> pa.Table:
    """No table has foreign keys: the answer to exported and imported keys and cross reference."""
    return FOREIGN_KEYS_SCHEMA.empty_table()


def described_schema(table: TableDescriptor) -> pa.Schema:
    """The table's schema with what JDBC and ODBC read from the metadata of each field."""
    fields = [each.with_metadata(_field_metadata(table, each)) for each in table.schema]
    properties = dict(table.properties)
    return pa.schema(fields, metadata=properties or None)


def _table_row(table: TableDescriptor, *, with_schema: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "catalog_name": table.catalog,
        "db_schema_name": table.db_schema,
        "table_name": table.name,
        "table_type": table.kind,
    }
    if with_schema:
        row["table_schema"] = described_schema(table).serialize().to_pybytes()
    return row


def _names_of_kind(kind: str) -> set[str]:
    # Grafana asks for "BASE TABLE", as the information schema names it.
    return {kind, "BASE TABLE"} if kind == TABLE else {kind}


def _field_metadata(table: TableDescriptor, column: pa.Field) -> dict[str, str]:
    facts = {
        "CATALOG_NAME": table.catalog,
        "DB_SCHEMA_NAME": table.db_schema,
        # The specification says DB_SCHEMA_NAME; JDBC and ODBC read this one.
        "SCHEMA_NAME": table.db_schema,
        "TABLE_NAME": table.name,
        "TYPE_NAME": sql_type_name(column.type),
        "IS_AUTO_INCREMENT": "0",
        "IS_CASE_SENSITIVE": "1" if _is_text(column.type) else "0",
        "IS_READ_ONLY": "0" if table.kind == TABLE else "1",
        "IS_SEARCHABLE": "1",
    }
    if (sizes := _precision(column.type)) is not None:
        facts |= {"PRECISION": str(sizes[0]), "SCALE": str(sizes[1])}
    metadata = {_METADATA_PREFIX + name: value for name, value in facts.items()}
    kept = {key: value for key, value in (column.metadata or {}).items() if key != FIELD_ID}
    return {key.decode(): value.decode() for key, value in kept.items()} | metadata


def _is_text(kind: pa.DataType) -> bool:
    return bool(kind.id in (pa.utf8().id, pa.large_utf8().id, pa.string_view().id))


_PRECISION: Final[Mapping[int, tuple[int, int]]] = {
    pa.bool_().id: (1, 0),
    pa.int8().id: (3, 0),
    pa.int16().id: (5, 0),
    pa.int32().id: (10, 0),
    pa.int64().id: (19, 0),
    pa.uint8().id: (3, 0),
    pa.uint16().id: (5, 0),
    pa.uint32().id: (10, 0),
    pa.uint64().id: (20, 0),
    pa.date32().id: (10, 0),
}
"""Digits, or characters, and decimal digits of the types that have one size."""
_FRACTION_DIGITS: Final[Mapping[str, int]] = {"s": 0, "ms": 3, "us": 6, "ns": 9}


def _precision(kind: pa.DataType) -> tuple[int, int] | None:
    """Precision and scale as ODBC counts them; None where a type has neither (texts, floats)."""
    if pa.types.is_decimal(kind):
        return int(kind.precision), int(kind.scale)
    if pa.types.is_time(kind) or pa.types.is_timestamp(kind):
        digits = _FRACTION_DIGITS[kind.unit]
        whole = len("hh:mm:ss") if pa.types.is_time(kind) else len("yyyy-mm-dd hh:mm:ss")
        return whole + (1 + digits if digits else 0), digits
    return _PRECISION.get(kind.id)


def sql_type_name(kind: pa.DataType) -> str:
    """DuckDB's name for an Arrow type; the Arrow type's own where DuckDB has none."""
    try:
        return sql_type(kind)
    except NotSupported:
        return str(kind).upper()
