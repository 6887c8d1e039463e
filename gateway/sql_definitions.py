"""CREATE, ALTER, DROP and TRUNCATE: statements that define tables and views."""

from collections.abc import Callable

import pyarrow as pa

from catalog.table_schema import TableSchema, without_field_ids
from catalog.tables import table_not_found
from catalog.views import View, view_not_found
from data_files.partitions import bound_spec
from duckmesh.errors import Conflict, ErrorCode, Invalid, NotSupported
from duckmesh.identifiers import check_table_name
from duckmesh.partitions import parse_terms
from gateway.alterations import check_alteration
from gateway.identity import Role
from gateway.ingest_modes import IngestMode
from gateway.reads import ReadPoint
from gateway.sql_steps import DONE, Executed, SqlRequest, SqlSteps, computing, executed, reading
from query_engine.definitions import (
    CreateTable,
    DefinitionReader,
    Rename,
    read_alter_table,
    read_create_table,
    read_rename,
)
from query_engine.lexemes import LexemeReader, TableName
from query_engine.partition_clauses import PartitionChange, read_partition_change
from query_engine.scratch import Scratch
from query_engine.statements import parse_drop_table
from query_engine.views import read_create_view, read_drop_view


class SqlDefinitions:
    """Statements that define tables and views, for a serving process. Thread-safe."""

    def __init__(self, steps: SqlSteps, scratch: Scratch) -> None:
        self._steps = steps
        self._reads = steps.reads
        self._writes = steps.writes
        self._definitions = DefinitionReader(scratch)

    def create_table(self, request: SqlRequest) -> Executed:
        statement = read_create_table(request.sql)
        self._require_admin(request, "create_table", statement.target.name)
        name = check_table_name(statement.target.name)
        taken = self._writes.definitions.live_name(request.identity, name)
        if taken is not None and statement.if_not_exists:
            return DONE
        name = taken or name
        if statement.source is not None:
            return self._create_table_as(request, statement, statement.source, name)
        definition = self._definitions.columns(statement.declaration)
        schema = TableSchema.first(definition.schema)
        key = definition.primary_key
        spec = bound_spec(parse_terms(statement.partitioned_by), schema.arrow)
        if statement.or_replace:
            self._writes.definitions.recreate_table(
                request.identity, name, schema, primary_key=key, partition_spec=spec
            )
            return DONE
        made = self._writes.definitions.create_table(
            request.identity,
            name,
            schema,
            creation_key=request.idempotency_key,
            primary_key=key,
            partition_spec=spec,
        )
        if made is None and not statement.if_not_exists:
            self._check_created_by(request, name)
        return DONE

    def _check_created_by(self, request: SqlRequest, name: str) -> None:
        """Raise TABLE_EXISTS, unless this is the retry of the statement that made the table."""
        table = self._writes.table(request.identity, name)
        if request.idempotency_key is None or table.creation_key != request.idempotency_key:
            raise Conflict(
                ErrorCode.TABLE_EXISTS,
                f"table {name!r} exists: write CREATE TABLE IF NOT EXISTS, CREATE OR REPLACE "
                "TABLE, or another name",
                table=name,
            )

    def _create_table_as(
        self, request: SqlRequest, statement: CreateTable, source: str, name: str
    ) -> Executed:
        """Make a table of a query's rows; the table appears with its rows, or not at all."""
        request.identity.require(Role.INGEST_WRITER)
        mode = IngestMode.REPLACE if statement.or_replace else IngestMode.CREATE
        request = computing(request, self._steps.engine.tables_read(source))
        if not statement.with_data:
            schema = _renamed(self._steps.described(request, source), statement.column_names)
            return executed(
                self._steps.write(request, name, schema.empty_table().to_reader(), mode=mode)
            )
        with self._steps.query(request, source) as reader:
            schema = _renamed(reader.schema, statement.column_names)
            rows = pa.RecordBatchReader.from_batches(
                schema, (batch.rename_columns(schema.names) for batch in reader)
            )
            return executed(self._steps.write(request, name, rows, mode=mode))

    def alter(self, request: SqlRequest) -> Executed:
        """Change a table's columns, how its files are cut, or a name."""
        partitions = read_partition_change(request.sql)
        if partitions is not None:
            return self._repartition(request, partitions)
        rename = read_rename(request.sql)
        return self._rename(request, rename) if rename else self._alter_table(request)

    def _alter_table(self, request: SqlRequest) -> Executed:
        """Change a table's columns; readers of this snapshot and later see old rows in them."""
        statement = read_alter_table(request.sql)
        self._require_admin(request, "alter_table", statement.target.name)
        name = self._writes.definitions.live_name(request.identity, statement.target.name)
        if name is None and statement.if_exists:
            return DONE
        self._once_published(request, lambda: self._alter(request, name or statement.target.name))
        return DONE

    def _repartition(self, request: SqlRequest, statement: PartitionChange) -> Executed:
        """Cut a table's new files by another spec; its rows and its files stay as they are."""
        name = statement.target.name
        self._require_admin(request, "alter_table", name)
        known = self._writes.definitions.live_name(request.identity, name)
        if known is None and statement.if_exists:
            return DONE
        table = self._writes.table(request.identity, known or name)
        spec = bound_spec(parse_terms(statement.terms), table.schema.arrow)
        self._writes.definitions.set_partition_spec(request.identity, table, spec)
        return DONE

    def _once_published(self, request: SqlRequest, change: Callable[[], None]) -> None:
        """Change a table; when a replacement brings it other columns, after they are there."""
        try:
            change()
        except Conflict as conflict:
            if conflict.code is not ErrorCode.SCHEMA_INCOMPATIBLE:
                raise
            self._reads.pin(reading(request), None, ReadPoint(strong=True), stop=request.stop)
            change()

    def _alter(self, request: SqlRequest, name: str) -> None:
        table = self._writes.table(request.identity, name)
        columns = self._definitions.altered(request.sql, table.name, table.schema.arrow)
        altered = check_alteration(table, columns)
        if altered is not None:
            self._writes.definitions.alter_table(
                request.identity, table, altered.fields, primary_key=altered.primary_key
            )

    def _rename(self, request: SqlRequest, statement: Rename) -> Executed:
        """Give a table or a view another name, in a snapshot of its own."""
        name = statement.target.name
        self._require_admin(request, "rename_view" if statement.of_view else "rename_table", name)
        new_name = check_table_name(statement.new_name)
        known = self._writes.definitions.live_name(request.identity, name)
        if self._writes.definitions.is_view(request.identity, name):
            self._writes.definitions.rename_view(request.identity, name, new_name)
        elif known is not None and statement.of_view:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED, f"{name!r} is a table: write ALTER TABLE", table=name
            )
        elif known is not None:
            self._once_published(request, lambda: self._rename_table(request, known, new_name))
        elif not statement.if_exists:
            raise view_not_found(name) if statement.of_view else table_not_found(name)
        return DONE

    def _rename_table(self, request: SqlRequest, name: str, new_name: str) -> None:
        table = self._writes.table(request.identity, name)
        self._writes.definitions.rename_table(
            request.identity, table, new_name, request.transaction
        )

    def create_view(self, request: SqlRequest) -> Executed:
        """Name a query. It is bound now, so that a view that never worked is not there."""
        statement = read_create_view(request.sql)
        self._require_admin(request, "create_view", statement.target.name)
        name = check_table_name(statement.target.name)
        if statement.if_not_exists and self._writes.definitions.is_view(request.identity, name):
            return DONE
        if request.parameters is not None:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED, "a view has no parameters: write the values into it"
            )
        schema = self._reads.view_schema(request.identity, name, statement.query)
        view = View(name, statement.query, without_field_ids(schema))
        self._writes.definitions.create_view(request.identity, view, replace=statement.or_replace)
        return DONE

    def drop_view(self, request: SqlRequest) -> Executed:
        statement = read_drop_view(request.sql)
        name = statement.target.name
        self._require_admin(request, "drop_view", name)
        if self._writes.definitions.is_view(request.identity, name) or not statement.if_exists:
            self._writes.definitions.drop_view(request.identity, name)
        return DONE

    def truncate(self, request: SqlRequest) -> Executed:
        """Remove all rows: an overwrite by none, in the order of the table's writes."""
        reader = LexemeReader(request.sql)
        reader.took("TRUNCATE")
        reader.took("TABLE")
        name = TableName.of(reader.path()).name
        self._require_admin(request, "truncate_table", name)
        table = self._steps.table(request, name)
        nothing = table.schema.arrow.empty_table().to_reader()
        receipt = self._steps.write(request, table.name, nothing, mode=IngestMode.REPLACE)
        return Executed(None, None if receipt.is_held else receipt.visibility_token)

    def drop_table(self, request: SqlRequest) -> Executed:
        dropped = parse_drop_table(request.sql)
        TableName(dropped.name, dropped.schema, dropped.catalog).check()
        self._require_admin(request, "drop_table", dropped.name)
        name = self._writes.definitions.live_name(request.identity, dropped.name) or dropped.name
        self._writes.definitions.drop_table(request.identity, name, if_exists=dropped.if_exists)
        return DONE

    def _require_admin(self, request: SqlRequest, act: str, target: str) -> None:
        self._writes.definitions.require_admin(request.identity, act, target)


def _renamed(schema: pa.Schema, names: tuple[str, ...]) -> pa.Schema:
    """The schema with these names for its first columns."""
    if len(names) > len(schema):
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            f"{len(names)} columns are named and the query has {len(schema)}: name as many",
        )
    kept = schema.names[len(names) :]
    return pa.schema(
        field.with_name(name) for field, name in zip(schema, (*names, *kept), strict=True)
    )
