"""The metadata commands of Flight SQL: which table answers which command."""

import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid
from flight_server import metadata, sql_info, type_info
from flight_server.commands import (
    Command,
    GetCatalogs,
    GetCrossReference,
    GetDbSchemas,
    GetExportedKeys,
    GetImportedKeys,
    GetPrimaryKeys,
    GetSqlInfo,
    GetTables,
    GetTableTypes,
    GetXdbcTypeInfo,
)
from flight_server.metadata import TableDescriptor
from gateway import system_tables
from gateway.identity import Identity
from gateway.reads import Reads

_SCHEMAS = {
    GetCatalogs: metadata.CATALOGS_SCHEMA,
    GetDbSchemas: metadata.DB_SCHEMAS_SCHEMA,
    GetTableTypes: metadata.TABLE_TYPES_SCHEMA,
    GetPrimaryKeys: metadata.PRIMARY_KEYS_SCHEMA,
    GetExportedKeys: metadata.FOREIGN_KEYS_SCHEMA,
    GetImportedKeys: metadata.FOREIGN_KEYS_SCHEMA,
    GetCrossReference: metadata.FOREIGN_KEYS_SCHEMA,
    GetSqlInfo: sql_info.SQL_INFO_SCHEMA,
    GetXdbcTypeInfo: type_info.XDBC_TYPE_INFO_SCHEMA,
}

SYSTEM_TABLES = [
    TableDescriptor(
        each.name, each.table.schema, kind=metadata.SYSTEM_TABLE, db_schema=each.schema_name
    )
    for each in system_tables.EMPTY
]


def answer_schema(command: Command) -> pa.Schema | None:
    """The schema of a metadata command's answer; None when it is another command."""
    if isinstance(command, GetTables):
        return (
            metadata.TABLES_WITH_SCHEMA_SCHEMA if command.include_schema else metadata.TABLES_SCHEMA
        )
    return _SCHEMAS.get(type(command))


def answer(command: Command, reads: Reads, identity: Identity) -> pa.Table:
    """The rows of a metadata command. Raises Invalid for another command."""
    match command:
        case GetSqlInfo():
            return sql_info.sql_info(command.info)
        case GetTables():
            return metadata.tables(command, _described(reads, identity))
        case GetCatalogs():
            return metadata.catalogs()
        case GetDbSchemas():
            return metadata.db_schemas(command)
        case GetTableTypes():
            return metadata.table_types()
        case GetXdbcTypeInfo():
            return type_info.xdbc_type_info(command.data_type)
        case GetPrimaryKeys():
            return metadata.primary_keys(command, _described(reads, identity))
        case GetExportedKeys() | GetImportedKeys() | GetCrossReference():
            return metadata.foreign_keys()
    raise Invalid(
        ErrorCode.INVALID_COMMAND,
        f"{command.MESSAGE} is not fetched: ask for its flight info and present the ticket",
        command=command.MESSAGE,
    )


def _described(reads: Reads, identity: Identity) -> list[TableDescriptor]:
    return [
        TableDescriptor(
            table.name,
            table.schema,
            kind=metadata.VIEW if table.is_view else metadata.TABLE,
            primary_key=table.primary_key,
            properties={}
            if table.watermark is None
            else {"duckmesh.visibility_token": str(table.watermark)},
        )
        for table in reads.tables(identity)
    ] + SYSTEM_TABLES
