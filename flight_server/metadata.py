"""The metadata tables of Flight SQL: their exact schemas, and their rows from plain descriptors.

Drivers compare these schemas with the reference, nullability included; the field order of the key
tables is the reference's. https://arrow.apache.org/docs/format/FlightSql.html
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from flight_server.commands import GetDbSchemas, GetPrimaryKeys, GetTables
from flight_server.like import like

CATALOG: Final = "duckmesh"
DB_SCHEMA: Final = "main"
TABLE: Final = "TABLE"
VIEW: Final = "VIEW"

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
    db_schema: str = DB_SCHEMA
    primary_key: Sequence[str] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    """Told to clients as metadata of the table's schema (such as its latest token)."""


def catalogs() -> pa.Table:
    """The one catalog."""
    return pa.table([[CATALOG]], schema=CATALOGS_SCHEMA)


def db_schemas(command: GetDbSchemas) -> pa.Table:
    """The schemas that `command` selects."""
    matches = like(command.db_schema_filter_pattern)
    selected = command.catalog in (None, CATALOG) and matches(DB_SCHEMA)
    return pa.table([[CATALOG], [DB_SCHEMA]], schema=DB_SCHEMAS_SCHEMA).slice(0, int(selected))


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
        and (not kinds or not kinds.isdisjoint(_names_of_kind(table.kind)))
    ]
    selected.sort(key=lambda table: (table.catalog, table.db_schema, table.name, table.kind))
    schema = TABLES_WITH_SCHEMA_SCHEMA if command.include_schema else TABLES_SCHEMA
    rows = [_table_row(table, with_schema=command.include_schema) for table in selected]
    return pa.Table.from_pylist(rows, schema=schema)


def table_types() -> pa.Table:
    """The kinds of table."""
    return pa.table([[TABLE, VIEW]], schema=TABLE_TYPES_SCHEMA)


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
        "TABLE_NAME": table.name,
        "TYPE_NAME": sql_type_name(column.type),
        "IS_AUTO_INCREMENT": "0",
        "IS_CASE_SENSITIVE": "1" if _is_text(column.type) else "0",
        "IS_READ_ONLY": "0",
        "IS_SEARCHABLE": "1",
    }
    if pa.types.is_decimal(column.type):
        facts |= {"PRECISION": str(column.type.precision), "SCALE": str(column.type.scale)}
    metadata = {_METADATA_PREFIX + name: value for name, value in facts.items()}
    extra = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
    return extra | metadata


def _is_text(kind: pa.DataType) -> bool:
    return bool(kind.id in (pa.utf8().id, pa.large_utf8().id, pa.string_view().id))


_SQL_TYPE: Final[Mapping[int, str]] = {
    pa.bool_().id: "BOOLEAN",
    pa.int8().id: "TINYINT",
    pa.int16().id: "SMALLINT",
    pa.int32().id: "INTEGER",
    pa.int64().id: "BIGINT",
    pa.uint8().id: "UTINYINT",
    pa.uint16().id: "USMALLINT",
    pa.uint32().id: "UINTEGER",
    pa.uint64().id: "UBIGINT",
    pa.float16().id: "FLOAT",
    pa.float32().id: "FLOAT",
    pa.float64().id: "DOUBLE",
    pa.utf8().id: "VARCHAR",
    pa.large_utf8().id: "VARCHAR",
    pa.string_view().id: "VARCHAR",
    pa.binary().id: "BLOB",
    pa.large_binary().id: "BLOB",
    pa.binary_view().id: "BLOB",
    pa.binary(1).id: "BLOB",
    pa.date32().id: "DATE",
    pa.date64().id: "DATE",
    pa.time32("s").id: "TIME",
    pa.time64("us").id: "TIME",
    pa.duration("us").id: "INTERVAL",
    pa.month_day_nano_interval().id: "INTERVAL",
    pa.null().id: "NULL",
}
_TIMESTAMP_BY_UNIT: Final[Mapping[str, str]] = {
    "s": "TIMESTAMP_S",
    "ms": "TIMESTAMP_MS",
    "us": "TIMESTAMP",
    "ns": "TIMESTAMP_NS",
}


def sql_type_name(kind: pa.DataType) -> str:
    """DuckDB's name for an Arrow type."""
    if name := _SQL_TYPE.get(kind.id):
        return name
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP WITH TIME ZONE" if kind.tz else _TIMESTAMP_BY_UNIT[kind.unit]
    return _nested_type_name(kind)


def _nested_type_name(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return sql_type_name(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return f"{sql_type_name(kind.value_type)}[{kind.list_size}]"
    if pa.types.is_map(kind):
        return f"MAP({sql_type_name(kind.key_type)}, {sql_type_name(kind.item_type)})"
    if pa.types.is_struct(kind):
        inner = (f'"{_quoted(each.name)}" {sql_type_name(each.type)}' for each in kind)
        return f"STRUCT({', '.join(inner)})"
    if isinstance(kind, pa.BaseExtensionType):
        return sql_type_name(kind.storage_type)
    if hasattr(kind, "value_type"):
        return f"{sql_type_name(kind.value_type)}[]"
    return str(kind).upper()


def _quoted(name: str) -> str:
    return name.replace('"', '""')
