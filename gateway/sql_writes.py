"""SQL that writes: one statement, run exactly once, its rows accepted by the bus.

A statement is judged by DuckDB's parser and binder; its rows go the way of every write. Died before
the commit: nothing was written, and what was staged is an orphan. Died after it: the write stands,
and its idempotency key finds the receipt.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Self

import pyarrow as pa

from catalog.table_schema import TableSchema, without_field_ids
from catalog.tables import Table, table_not_found
from catalog.views import View, view_not_found
from data_files.partitions import bound_spec
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Invalid, NotSupported
from duckmesh.identifiers import check_table_name
from duckmesh.partitions import parse_terms
from duckmesh.tokens import VisibilityToken
from gateway.alterations import check_alteration
from gateway.identity import Identity, Role
from gateway.ingest_modes import IngestMode
from gateway.pending_write import PendingWrite
from gateway.reads import ReadPoint, Reads
from gateway.transactions import ClientTransaction
from gateway.writes import Writes
from ingest_bus.envelope import Receipt, WritingSession
from query_engine.conversions import conversion_failed
from query_engine.definitions import (
    CreateTable,
    DefinitionReader,
    Rename,
    read_alter_table,
    read_create_table,
    read_rename,
)
from query_engine.describe import Description
from query_engine.engine import Interruption, QueryEngine
from query_engine.insertion import Insertion, InsertionReader, filled_columns
from query_engine.lexemes import LexemeReader, TableName, first_word
from query_engine.partition_clauses import PartitionChange, read_partition_change
from query_engine.scratch import Scratch
from query_engine.statements import StatementKind, parse_drop_table
from query_engine.views import read_create_view, read_drop_view

_CONVERSION: Final = "Conversion Error: "

_NOT_YET: Final = {
    StatementKind.UPDATE: "UPDATE needs tables with keys, which are not here yet: write the "
    "changed rows to a new table, or replace this one by CREATE OR REPLACE TABLE ... AS",
    StatementKind.DELETE: "DELETE needs tables with keys, which are not here yet: keep the rows "
    "that stay by CREATE OR REPLACE TABLE ... AS",
    StatementKind.MERGE: "MERGE needs tables with keys, which are not here yet: INSERT the rows, "
    "and choose the newest in the query",
    StatementKind.COPY: "COPY reaches no file here: ingest the rows (adbc_ingest), or run the "
    "query and write its result where you are",
    StatementKind.TRANSACTION: "every statement is its own transaction: leave it out",
    StatementKind.SET: "settings are fixed: pass options with the request",
}


@dataclass(frozen=True, slots=True)
class Executed:
    """The outcome of a statement that is no query. `row_count` is None when it has none (DDL)."""

    row_count: int | None
    visibility_token: VisibilityToken | None


_DONE: Final = Executed(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One call to `execute`."""

    identity: Identity
    sql: str
    point: ReadPoint
    parameters: pa.Table | None
    idempotency_key: str | None
    session: WritingSession | None
    transaction: ClientTransaction | None = None
    trace_id: str | None
    stop: Interruption

    @property
    def digest(self) -> bytes | None:
        """What makes a repeat of the statement: its text and its bound rows."""
        if self.idempotency_key is None:
            return None
        digest = hashlib.blake2b(self.sql.encode(), digest_size=32)
        if self.parameters is not None:
            rows = self.parameters.replace_schema_metadata(None).combine_chunks()
            digest.update(rows.schema.serialize())
            for batch in rows.to_batches():
                digest.update(batch.serialize())
        return digest.digest()


class SqlWrites:
    """Statements that are no query, for a serving process. Thread-safe."""

    def __init__(self, reads: Reads, writes: Writes, *, engine: QueryEngine) -> None:
        self._reads = reads
        self._writes = writes
        self._engine = engine
        self._scratch = Scratch()
        self._insertions = InsertionReader(self._scratch)
        self._definitions = DefinitionReader(self._scratch)

    def close(self) -> None:
        """Give the scratch database back. Idempotent."""
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(
        self,
        identity: Identity,
        sql: str,
        *,
        point: ReadPoint | None = None,
        parameters: pa.Table | None = None,
        idempotency_key: str | None = None,
        session: WritingSession | None = None,
        transaction: ClientTransaction | None = None,
        trace_id: str | None = None,
        interruption: Interruption | None = None,
    ) -> Executed:
        """Run a statement that is no query, once. What it wrote is durable on return.

        `point` is where its own queries read; `parameters` are the bound rows, one write for all
        of them. In a transaction what it writes is held until COMMIT, and has no token before;
        tables are made and dropped at once all the same. A repeated idempotency key with the same
        text and rows writes nothing and returns the first receipt. Raises what reading and writing
        raise, and NotSupported naming another way for what DuckMesh does not do.
        """
        request = _Request(
            identity=identity,
            sql=sql,
            point=point or ReadPoint(),
            parameters=parameters if parameters is not None and parameters.num_columns else None,
            idempotency_key=idempotency_key,
            session=session,
            transaction=transaction,
            trace_id=trace_id,
            stop=interruption or Interruption(),
        )
        with self._reads.audit.statement(identity, sql, request.point.min_token) as record:
            done = self._execute(request)
            if record is not None:
                record.row_count = done.row_count or 0
        return done

    def _execute(self, request: _Request) -> Executed:
        sql = request.sql
        kind = self._engine.classify(sql).kind
        match kind:
            case StatementKind.INSERT:
                return self._insert(request)
            case StatementKind.CREATE_TABLE:
                return self._create_table(request)
            case StatementKind.DROP_TABLE:
                return self._drop_table(request)
            case StatementKind.ALTER:
                partitions = read_partition_change(sql)
                if partitions is not None:
                    return self._repartition(request, partitions)
                rename = read_rename(sql)
                return self._rename(request, rename) if rename else self._alter_table(request)
            case StatementKind.CREATE_VIEW:
                return self._create_view(request)
            case StatementKind.DROP_VIEW:
                return self._drop_view(request)
            case StatementKind.DELETE if first_word(sql) == "TRUNCATE":
                return self._truncate(request)
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            _NOT_YET.get(kind, "this statement is not supported: docs/sql.md lists those that are"),
            statement=kind.value,
        )

    def parameters(
        self,
        identity: Identity,
        sql: str,
        *,
        point: ReadPoint | None = None,
        interruption: Interruption | None = None,
    ) -> pa.Schema:
        """What `execute` takes for the statement's parameters; it is bound for that, and not run.

        A parameter of VALUES has the type of the column that it fills. Raises what `execute`
        raises before it writes.
        """
        request = _Request(
            identity=identity,
            sql=sql,
            point=point or ReadPoint(),
            parameters=None,
            idempotency_key=None,
            session=None,
            trace_id=None,
            stop=interruption or Interruption(),
        )
        query = self._query_with_parameters(request)
        if query is None:
            return pa.schema([])
        return self._description(
            _computing(request, self._engine.tables_read(query)), query
        ).parameter_schema

    def _query_with_parameters(self, request: _Request) -> str | None:
        """The query whose parameters are the statement's; None when it can have none."""
        kind = self._engine.classify(request.sql).kind
        if kind is StatementKind.CREATE_TABLE:
            return read_create_table(request.sql).source
        if kind is not StatementKind.INSERT:
            return None
        insertion = self._insertions.read(request.sql)
        if not insertion.parameters:
            return None
        schema = self._table(request, insertion.target.name).schema.arrow
        names = filled_columns(insertion, schema, self._given(request, insertion))
        return self._insertions.query_of(insertion, names, schema)

    # -- INSERT

    def _insert(self, request: _Request) -> Executed:
        insertion = self._insertions.read(request.sql)
        request.identity.require(Role.INGEST_WRITER)
        table = self._table(request, insertion.target.name)
        with self._rows_of(request, insertion, table.schema.arrow) as rows:
            receipt = self._write(request, table.name, rows, mode=IngestMode.APPEND)
        return _executed(receipt)

    @contextlib.contextmanager
    def _rows_of(
        self, request: _Request, insertion: Insertion, schema: pa.Schema
    ) -> Iterator[pa.RecordBatchReader]:
        """The rows to insert, with the table's columns; from a query they come as they are read.

        Raises Invalid (INVALID_PAYLOAD) naming the column for a value that does not convert.
        """
        if insertion.is_written_out:
            cells = insertion.cells or [[]]
            names = filled_columns(insertion, schema, len(cells[0]))
            rows = self._insertions.written_rows(insertion, names, schema, request.parameters)
            yield rows.to_reader()
            return
        request = _computing(request, self._engine.tables_read(self._source(insertion)))
        names = filled_columns(insertion, schema, self._given(request, insertion))
        query = self._insertions.query_of(insertion, names, schema)
        try:
            with self._query(request, query) as reader:
                yield reader
        except Invalid as error:
            if not error.message.startswith(_CONVERSION):
                raise
            column = self._failing_column(request, insertion, names, schema)
            raise conversion_failed(column, error.message) from None

    def _source(self, insertion: Insertion) -> str:
        return self._insertions.source_text(insertion)

    def _given(self, request: _Request, insertion: Insertion) -> list[str] | int:
        if (cells := insertion.cells) is not None:
            return len(cells[0])
        return list(self._described(request, self._source(insertion)).names)

    def _described(self, request: _Request, query: str) -> pa.Schema:
        return self._description(request, query).result_schema

    def _description(self, request: _Request, query: str) -> Description:
        pinned = self._reads.pin(request.identity, query, request.point, stop=request.stop)
        return self._reads.describe(request.identity, query, pinned.snapshot_id, stop=request.stop)

    def _failing_column(
        self, request: _Request, insertion: Insertion, names: list[str], schema: pa.Schema
    ) -> str | None:
        """Which column a value did not fit, asked once it is known that one did not."""
        query = self._insertions.failing_columns_query(insertion, names, schema)
        try:
            with self._query(request, query) as reader:
                failed = reader.read_all().to_pylist()[0].values()
        except DuckMeshError:
            return None
        return next((name for name, bad in zip(names, failed, strict=True) if bad), None)

    @contextlib.contextmanager
    def _query(self, request: _Request, query: str) -> Iterator[pa.RecordBatchReader]:
        pinned = self._reads.pin(request.identity, query, request.point, stop=request.stop)
        answer = self._reads.run(
            request.identity,
            query,
            pinned.snapshot_id,
            parameters=_one_batch(request.parameters),
            last_token=request.point.min_token,
            interruption=request.stop,
        )
        with answer:
            yield answer.reader

    def _write(
        self, request: _Request, table: str, rows: pa.RecordBatchReader, *, mode: IngestMode
    ) -> Receipt:
        """Accept the rows as one write, in bounded memory however many they are."""
        pending = self._writes.begin(
            request.identity,
            table,
            rows.schema,
            mode=mode,
            idempotency_key=request.idempotency_key,
            payload_hash=request.digest,
            session=request.session,
            transaction=request.transaction,
            trace_id=request.trace_id,
            # Nobody holds a statement back while it runs.
            slows=False,
        )
        return _sent(pending, rows, request.stop)

    # -- definitions

    def _create_table(self, request: _Request) -> Executed:
        statement = read_create_table(request.sql)
        self._require_admin(request, "create_table", statement.target.name)
        name = check_table_name(statement.target.name)
        taken = self._writes.definitions.live_name(request.identity, name)
        if taken is not None and statement.if_not_exists:
            return _DONE
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
            return _DONE
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
        return _DONE

    def _check_created_by(self, request: _Request, name: str) -> None:
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
        self, request: _Request, statement: CreateTable, source: str, name: str
    ) -> Executed:
        """Make a table of a query's rows; the table appears with its rows, or not at all."""
        request.identity.require(Role.INGEST_WRITER)
        mode = IngestMode.REPLACE if statement.or_replace else IngestMode.CREATE
        request = _computing(request, self._engine.tables_read(source))
        if not statement.with_data:
            schema = _renamed(self._described(request, source), statement.column_names)
            return _executed(
                self._write(request, name, schema.empty_table().to_reader(), mode=mode)
            )
        with self._query(request, source) as reader:
            schema = _renamed(reader.schema, statement.column_names)
            rows = pa.RecordBatchReader.from_batches(
                schema, (batch.rename_columns(schema.names) for batch in reader)
            )
            return _executed(self._write(request, name, rows, mode=mode))

    def _alter_table(self, request: _Request) -> Executed:
        """Change a table's columns; readers of this snapshot and later see old rows in them."""
        statement = read_alter_table(request.sql)
        self._require_admin(request, "alter_table", statement.target.name)
        name = self._writes.definitions.live_name(request.identity, statement.target.name)
        if name is None and statement.if_exists:
            return _DONE
        self._once_published(request, lambda: self._alter(request, name or statement.target.name))
        return _DONE

    def _repartition(self, request: _Request, statement: PartitionChange) -> Executed:
        """Cut a table's new files by another spec; its rows and its files stay as they are."""
        name = statement.target.name
        self._require_admin(request, "alter_table", name)
        known = self._writes.definitions.live_name(request.identity, name)
        if known is None and statement.if_exists:
            return _DONE
        table = self._writes.table(request.identity, known or name)
        spec = bound_spec(parse_terms(statement.terms), table.schema.arrow)
        self._writes.definitions.set_partition_spec(request.identity, table, spec)
        return _DONE

    def _once_published(self, request: _Request, change: Callable[[], None]) -> None:
        """Change a table; when a replacement brings it other columns, after they are there."""
        try:
            change()
        except Conflict as conflict:
            if conflict.code is not ErrorCode.SCHEMA_INCOMPATIBLE:
                raise
            self._reads.pin(_reading(request), None, ReadPoint(strong=True), stop=request.stop)
            change()

    def _alter(self, request: _Request, name: str) -> None:
        table = self._writes.table(request.identity, name)
        columns = self._definitions.altered(request.sql, table.name, table.schema.arrow)
        altered = check_alteration(table, columns)
        if altered is not None:
            self._writes.definitions.alter_table(
                request.identity, table, altered.fields, primary_key=altered.primary_key
            )

    def _rename(self, request: _Request, statement: Rename) -> Executed:
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
        return _DONE

    def _rename_table(self, request: _Request, name: str, new_name: str) -> None:
        table = self._writes.table(request.identity, name)
        self._writes.definitions.rename_table(
            request.identity, table, new_name, request.transaction
        )

    def _require_admin(self, request: _Request, act: str, target: str) -> None:
        self._writes.definitions.require_admin(request.identity, act, target)

    def _table(self, request: _Request, name: str) -> Table:
        """The table that a statement names. Raises TABLE_NOT_FOUND."""
        known = self._writes.definitions.live_name(request.identity, name)
        if known is None and self._writes.definitions.is_view(request.identity, name):
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED, f"{name!r} is a view: write to the tables it reads"
            )
        return self._writes.table(request.identity, known or name, request.transaction)

    def _create_view(self, request: _Request) -> Executed:
        """Name a query. It is bound now, so that a view that never worked is not there."""
        statement = read_create_view(request.sql)
        self._require_admin(request, "create_view", statement.target.name)
        name = check_table_name(statement.target.name)
        if statement.if_not_exists and self._writes.definitions.is_view(request.identity, name):
            return _DONE
        if request.parameters is not None:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED, "a view has no parameters: write the values into it"
            )
        schema = self._reads.view_schema(request.identity, name, statement.query)
        view = View(name, statement.query, without_field_ids(schema))
        self._writes.definitions.create_view(request.identity, view, replace=statement.or_replace)
        return _DONE

    def _drop_view(self, request: _Request) -> Executed:
        statement = read_drop_view(request.sql)
        name = statement.target.name
        self._require_admin(request, "drop_view", name)
        if self._writes.definitions.is_view(request.identity, name) or not statement.if_exists:
            self._writes.definitions.drop_view(request.identity, name)
        return _DONE

    def _truncate(self, request: _Request) -> Executed:
        """Remove all rows: an overwrite by none, in the order of the table's writes."""
        reader = LexemeReader(request.sql)
        reader.took("TRUNCATE")
        reader.took("TABLE")
        name = TableName.of(reader.path()).name
        self._require_admin(request, "truncate_table", name)
        table = self._table(request, name)
        nothing = table.schema.arrow.empty_table().to_reader()
        receipt = self._write(request, table.name, nothing, mode=IngestMode.REPLACE)
        return Executed(None, None if receipt.is_held else receipt.visibility_token)

    def _drop_table(self, request: _Request) -> Executed:
        dropped = parse_drop_table(request.sql)
        TableName(dropped.name, dropped.schema, dropped.catalog).check()
        self._require_admin(request, "drop_table", dropped.name)
        name = self._writes.definitions.live_name(request.identity, dropped.name) or dropped.name
        self._writes.definitions.drop_table(request.identity, name, if_exists=dropped.if_exists)
        return _DONE


def _executed(receipt: Receipt) -> Executed:
    return Executed(receipt.row_count, None if receipt.is_held else receipt.visibility_token)


def _sent(
    pending: PendingWrite, rows: Iterable[pa.RecordBatch], interruption: Interruption
) -> Receipt:
    """Append all rows and commit; nothing is left of the write when either fails."""
    try:
        for batch in rows:
            pending.append(batch)
        # The last moment to know that the caller has cancelled, or left.
        interruption.check()
        return pending.commit()
    except BaseException:
        # A write that may stand all the same keeps its staged files: `abort` knows.
        pending.abort()
        raise


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


def _computing(request: _Request, tables: frozenset[str] | None) -> _Request:
    """The request for a source that reads no table: to compute needs no right to read."""
    if tables is None or tables:
        return request
    return replace(request, identity=_reading(request))


def _reading(request: _Request) -> Identity:
    """The caller, with the right to read."""
    return replace(request.identity, roles=request.identity.roles | {Role.QUERY_READER})


def _one_batch(rows: pa.Table | None) -> pa.RecordBatch | None:
    if rows is None:
        return None
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
