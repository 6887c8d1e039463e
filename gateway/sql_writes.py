"""SQL that writes: one statement, run exactly once, its rows accepted by the bus.

A statement is judged by DuckDB's parser and binder; its rows go the way of every write. Died before
the commit: nothing was written, and what was staged is an orphan. Died after it: the write stands,
and its idempotency key finds the receipt.
"""

from typing import Final, Self

import pyarrow as pa

from duckmesh.errors import ErrorCode, NotSupported
from gateway.identity import Identity
from gateway.reads import ReadPoint, Reads
from gateway.sql_changes import SqlChanges
from gateway.sql_definitions import SqlDefinitions
from gateway.sql_inserts import SqlInserts
from gateway.sql_steps import Executed, SqlRequest, SqlSteps, computing
from gateway.transactions import ClientTransaction
from gateway.writes import Writes
from ingest_bus.envelope import WritingSession
from query_engine.definitions import read_create_table
from query_engine.engine import Interruption, QueryEngine
from query_engine.lexemes import first_word
from query_engine.scratch import Scratch
from query_engine.statements import StatementKind

_NOT_YET: Final = {
    StatementKind.MERGE: "MERGE is not supported: INSERT replaces the row of its key in a table "
    "with a primary key, UPDATE takes FROM, and DELETE takes USING",
    StatementKind.COPY: "COPY reaches no file here: ingest the rows (adbc_ingest), or run the "
    "query and write its result where you are",
    StatementKind.TRANSACTION: "every statement is its own transaction: leave it out",
    StatementKind.SET: "settings are fixed: pass options with the request",
}


class SqlWrites:
    """Statements that are no query, for a serving process. Thread-safe."""

    def __init__(self, reads: Reads, writes: Writes, *, engine: QueryEngine) -> None:
        self._reads = reads
        self._engine = engine
        self._scratch = Scratch()
        self._steps = SqlSteps(reads, writes, engine=engine)
        self._inserts = SqlInserts(self._steps, self._scratch)
        self._changes = SqlChanges(self._steps, self._scratch)
        self._definitions = SqlDefinitions(self._steps, self._scratch)

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
        request = SqlRequest(
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

    def _execute(self, request: SqlRequest) -> Executed:
        kind = self._engine.classify(request.sql).kind
        match kind:
            case StatementKind.INSERT:
                return self._inserts.insert(request)
            case StatementKind.CREATE_TABLE:
                return self._definitions.create_table(request)
            case StatementKind.DROP_TABLE:
                return self._definitions.drop_table(request)
            case StatementKind.ALTER:
                return self._definitions.alter(request)
            case StatementKind.CREATE_VIEW:
                return self._definitions.create_view(request)
            case StatementKind.DROP_VIEW:
                return self._definitions.drop_view(request)
            case StatementKind.DELETE if _truncates(request.sql):
                return self._definitions.truncate(request)
            case StatementKind.DELETE | StatementKind.UPDATE:
                return self._changes.change(request)
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            _NOT_YET.get(kind, "this statement is not supported: docs/sql.md lists those that are"),
            statement=kind.value,
        )

    def changes_rows(self, sql: str) -> bool:
        """Whether a statement changes rows that it reads, and is to find the newest."""
        kind = self._engine.classify(sql).kind
        return kind in (StatementKind.DELETE, StatementKind.UPDATE) and not _truncates(sql)

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
        request = SqlRequest(
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
        return self._steps.description(
            computing(request, self._engine.tables_read(query)), query
        ).parameter_schema

    def _query_with_parameters(self, request: SqlRequest) -> str | None:
        """The query whose parameters are the statement's; None when it can have none."""
        match self._engine.classify(request.sql).kind:
            case StatementKind.CREATE_TABLE:
                return read_create_table(request.sql).source
            case StatementKind.INSERT:
                return self._inserts.source(request)
            case StatementKind.DELETE if _truncates(request.sql):
                return None
            case StatementKind.DELETE | StatementKind.UPDATE:
                return self._changes.source(request)
        return None


def _truncates(sql: str) -> bool:
    """Whether a DELETE, as DuckDB's parser has it, is a TRUNCATE."""
    return first_word(sql) == "TRUNCATE"
