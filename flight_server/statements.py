"""Questions and statements: prepare, bind, pin and seal, then answer from the seal alone.

A handle or ticket is the whole question, signed. Nothing is kept between two calls, so that any
serving process answers the next one, and closing a statement has nothing to do. A statement that
is no query runs in the call that carries it, GetFlightInfo or DoPut, and never in DoGet.
"""

import re
import secrets
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final

import pyarrow as pa
from pyarrow import flight

from catalog.snapshots import Snapshot
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId
from duckmesh.tokens import VisibilityToken
from flight_server import answers
from flight_server.authenticate import Call
from flight_server.commands import CreatePreparedStatement, StatementQuery, StatementUpdate
from flight_server.headers import CallOptions, Consistency
from flight_server.ingest import key_of_schema
from flight_server.session_options import SessionDesk, effective
from flight_server.sessions import Session
from flight_server.ticket_actions import TicketDesk
from flight_server.tickets import Outcome, Purpose, Seal, SealedStatement
from flight_server.transactions import TransactionDesk
from gateway.open_answers import Answer
from gateway.reads import ReadPoint, Reads
from gateway.sql_steps import Executed
from gateway.sql_writes import SqlWrites
from gateway.transactions import ClientTransaction
from query_engine.describe import Description
from query_engine.permitted import SESSION_FUNCTIONS
from query_engine.session_statements import TransactionVerb, read_session_statement

_ECHOED_MAX_BYTES: Final = 64 * 1024
"""A larger command is not sent back in its FlightInfo."""

HANDLE_LIFETIME: Final = timedelta(days=365)
"""A handle is the text of a statement and pins nothing: a connection pool may keep it for long."""


def read_point(options: CallOptions, session: Session) -> ReadPoint:
    """Where the call wants its answer from. In a session that has written, its own writes count."""
    options = effective(options, session)
    own = session.last_token or None
    if options.names_snapshot or options.consistency is Consistency.LATEST:
        own = None
    tokens = [token for token in (options.min_token, own) if token is not None]
    return ReadPoint(
        min_token=VisibilityToken(max(tokens)) if tokens else None,
        snapshot_id=options.snapshot_id,
        snapshot_time=options.snapshot_time,
        tag=options.tag,
        strong=options.consistency is Consistency.STRONG,
        timeout=options.consistency_timeout,
    )


def with_snapshot(
    schema: pa.Schema, snapshot_id: SnapshotId, max_token: VisibilityToken
) -> pa.Schema:
    """The schema of an answer, saying which snapshot it is of."""
    return schema.with_metadata(
        {
            "duckmesh.snapshot_id": str(snapshot_id),
            "duckmesh.max_visibility_token": str(max_token),
        }
    )


_MAY_READ: Final = re.compile(
    r"\b(?:select|from|table|pivot|summarize|describe|update)\b", re.IGNORECASE
)
"""What every statement that reads has somewhere: in a transaction it pins the snapshot."""

OUTCOME_SCHEMA: Final = pa.schema([("Count", pa.int64()), ("visibility_token", pa.int64())])
"""The one row that a statement gives which is no query."""


class StatementDesk:
    """Everything a client does with SQL text. Stateless and safe for threads."""

    def __init__(
        self,
        reads: Reads,
        sql_writes: SqlWrites,
        seal: Seal,
        *,
        tickets: TicketDesk,
        transactions: TransactionDesk,
        sessions: SessionDesk,
    ) -> None:
        self._transactions = transactions
        self._sessions = sessions
        self._reads = reads
        self._sql_writes = sql_writes
        self._seal = seal
        self._tickets = tickets

    # ---- Preparing

    def prepare(self, call: Call, command: CreatePreparedStatement) -> bytes:
        """The result of CreatePreparedStatement.

        `is_update` stays unset: then ADBC runs a write through GetFlightInfo and receives its
        token as a row, and JDBC tells a write from a query by the missing dataset schema.
        """
        handle = self._handle(call, command.query, None, command.transaction_id)
        if read_session_statement(command.query) is not None:
            return answers.prepared_statement_result(
                handle, dataset_schema=None, parameter_schema=pa.schema([])
            )
        transaction = self._transactions.of(call, command.transaction_id)
        if not self._reads.is_query(call.identity, command.query):
            taken = self._sql_writes.parameters(
                call.identity,
                command.query,
                point=read_point(call.options(), call.recalled()),
                interruption=call.stop,
            )
            return answers.prepared_statement_result(
                handle, dataset_schema=None, parameter_schema=taken
            )
        pinned = self._pin(call, command.query, transaction)
        described = self._describe(call, command.query, pinned)
        return answers.prepared_statement_result(
            handle,
            dataset_schema=described.result_schema,
            parameter_schema=described.parameter_schema,
        )

    def bind(self, call: Call, handle: bytes, rows: pa.Table) -> bytes:
        """The handle of the same statement with these rows bound."""
        statement = self.open_prepared(call, handle)
        content = _to_ipc(rows) if rows.num_columns else None
        return self._handle(call, statement.sql, content, statement.transaction_id)

    def open_prepared(self, call: Call, handle: bytes) -> SealedStatement:
        """The statement behind a handle. Raises Invalid (TICKET_INVALID)."""
        return SealedStatement.opened_by(
            self._seal, Purpose.PREPARED, handle, tenant_id=call.identity.tenant_id
        )

    # ---- Asking

    def flight_info(
        self, call: Call, descriptor: flight.FlightDescriptor, statement: SealedStatement
    ) -> tuple[flight.FlightInfo, VisibilityToken | None]:
        """Pin a query and seal it, or run a statement that is none. The token is of its write."""
        if not self._reads.is_query(call.identity, statement.sql):
            return self._executed_info(call, descriptor, statement)
        pinned = self._pin(call, statement.sql, self._transaction_of(call, statement))
        described = self._describe(call, statement.sql, pinned)
        _check_bound(statement, described.parameter_schema)
        asked = replace(
            statement,
            sql=self._reads.settled(call.identity, statement.sql),
            snapshot_id=pinned.snapshot_id,
            required_token=pinned.max_visibility_token,
            asked_token=read_point(call.options(), call.recalled()).min_token,
        )
        schema = with_snapshot(
            described.result_schema, pinned.snapshot_id, pinned.max_visibility_token
        )
        if statement.parameters is not None:
            # The values' types decide those of the rows (`SELECT ?`): the stream alone says them.
            schema = None
        return _flight_info(descriptor, schema, self._endpoint(asked), records=-1), None

    def schema(self, call: Call, statement: SealedStatement) -> pa.Schema:
        """The schema of a statement's rows; no columns when it yields none."""
        if not self._reads.is_query(call.identity, statement.sql):
            return pa.schema([])
        pinned = self._pin(call, statement.sql, self._transaction_of(call, statement))
        described = self._describe(call, statement.sql, pinned)
        return described.result_schema

    def open_ticket(self, call: Call, ticket: bytes) -> SealedStatement:
        """The question, or the outcome, that a ticket carries. Raises Invalid (TICKET_INVALID)."""
        statement = SealedStatement.opened_by(
            self._seal, Purpose.TICKET, ticket, tenant_id=call.identity.tenant_id
        )
        if statement.snapshot_id is None and statement.outcome is None:
            raise Invalid(ErrorCode.TICKET_INVALID, "the ticket names no snapshot: ask again")
        return statement

    def run(self, call: Call, statement: SealedStatement) -> Answer:
        """Start a question on the snapshot that its ticket names."""
        assert statement.snapshot_id is not None  # noqa: S101 - open_ticket saw to it
        return self._reads.run(
            call.identity,
            statement.sql,
            statement.snapshot_id,
            parameters=_from_ipc(statement.parameters),
            last_token=_last_token(call, statement.sql),
            asked_token=statement.asked_token,
            interruption=call.stop,
        )

    # ---- Writing by SQL

    def update(
        self, call: Call, statement: SealedStatement, rows: pa.Table | None = None
    ) -> Executed:
        """Run a statement that is no query: once, whichever call carries it.

        `rows` that came with the call take the place of those bound before.
        """
        if self._reads.is_query(call.identity, statement.sql):
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED, "the statement yields rows: send it as a query"
            )
        asked = read_session_statement(statement.sql)
        if isinstance(asked, TransactionVerb):
            done = self._transactions.carry_out(call, asked)
            return Executed(None, None if done is None else done.visibility_token)
        if asked is not None:
            self._sessions.carry_out(call, asked)
            return Executed(None, None)
        options = call.options()
        transaction = self._transaction_of(call, statement)
        bound = rows is not None and rows.num_columns > 0
        parameters = rows if bound else _table_of(statement.parameters)
        return self._sql_writes.execute(
            call.identity,
            statement.sql,
            point=self._source_point(call, statement.sql, transaction),
            parameters=parameters,
            idempotency_key=options.idempotency_key or _key_of(parameters),
            session=call.writing,
            transaction=transaction,
            trace_id=call.trace_id,
            interruption=call.stop,
        )

    def _source_point(
        self, call: Call, sql: str, transaction: ClientTransaction | None
    ) -> ReadPoint:
        """Where the queries of a statement read that writes."""
        if transaction is not None and _MAY_READ.search(sql):
            newest = self._sql_writes.changes_rows(sql)
            pinned = self._pin(call, None, transaction, strong=newest)
            return ReadPoint(snapshot_id=pinned.snapshot_id)
        return read_point(call.options(), call.recalled())

    def _transaction_of(self, call: Call, statement: SealedStatement) -> ClientTransaction | None:
        # The id of a handle may be of a transaction that is over: drivers keep their handles.
        return self._transactions.of(call, statement.transaction_id, may_be_over=True)

    def unprepared(self, call: Call, command: StatementQuery | StatementUpdate) -> SealedStatement:
        """The statement of a command that carries its text."""
        self._transactions.check(call, command.transaction_id)
        return self._statement(call, command.query, None, command.transaction_id)

    def _executed_info(
        self, call: Call, descriptor: flight.FlightDescriptor, statement: SealedStatement
    ) -> tuple[flight.FlightInfo, VisibilityToken | None]:
        done = self.update(call, statement)
        outcome = Outcome(done.row_count, done.visibility_token)
        endpoint = self._endpoint(replace(statement, outcome=outcome, parameters=None))
        records = answers.UNKNOWN_COUNT if done.row_count is None else done.row_count
        info = _flight_info(descriptor, OUTCOME_SCHEMA, endpoint, records=records)
        return info, done.visibility_token

    def _pin(
        self,
        call: Call,
        sql: str | None,
        transaction: ClientTransaction | None,
        *,
        strong: bool = False,
    ) -> Snapshot:
        """The snapshot that answers. In a transaction, the one that its first query chose.

        With `strong` a snapshot that is chosen now has everything accepted before.
        """
        session = call.recalled()
        point = read_point(call.options(), session)
        if strong and not point.names_snapshot:
            point = replace(point, strong=True)
        pin = partial(self._reads.pin, call.identity, stop=call.stop, newest=session.newest)
        if transaction is None or point.names_snapshot:
            return pin(sql, point)
        chosen = transaction.record.snapshot_id
        if chosen is None:
            # Every table, not those of this statement: later ones read the same snapshot.
            first = pin(None, point)
            chosen = transaction.pin(first.snapshot_id)
            if chosen == first.snapshot_id:
                return first
        pinned = self._reads.pin(call.identity, sql, ReadPoint(snapshot_id=chosen))
        _check_reached(pinned, call.options())
        return pinned

    def _describe(self, call: Call, sql: str, pinned: Snapshot) -> Description:
        return self._reads.describe(call.identity, sql, pinned.snapshot_id, stop=call.stop)

    def _statement(
        self, call: Call, sql: str, parameters: bytes | None, transaction_id: bytes | None
    ) -> SealedStatement:
        return SealedStatement(
            tenant_id=call.identity.tenant_id,
            tenant=call.identity.tenant,
            sql=sql,
            parameters=parameters,
            transaction_id=transaction_id or b"",
            issued_at=self._seal.now,
        )

    def _handle(
        self, call: Call, sql: str, parameters: bytes | None, transaction_id: bytes | None
    ) -> bytes:
        statement = self._statement(call, sql, parameters, transaction_id)
        return statement.sealed_by(self._seal, Purpose.PREPARED, lifetime=HANDLE_LIFETIME)

    def _endpoint(self, statement: SealedStatement) -> flight.FlightEndpoint:
        return self._tickets.endpoint(replace(statement, ticket_id=secrets.token_bytes(12)))


def _check_reached(pinned: Snapshot, options: CallOptions) -> None:
    """A transaction goes on reading its snapshot: a token that came later is not in it."""
    if options.min_token is not None and options.min_token > pinned.max_visibility_token:
        raise Invalid(
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
            f"the transaction reads snapshot {pinned.snapshot_id}, which is older than the token: "
            "end the transaction first",
            requested_token=options.min_token,
            snapshot_id=pinned.snapshot_id,
        )


def _last_token(call: Call, sql: str) -> VisibilityToken:
    """The session's last token; from its record only when the statement asks for it."""
    text = sql.lower()
    asked = any(function in text for function in SESSION_FUNCTIONS)
    return (call.recalled() if asked else call.session).last_token


def outcome_rows(outcome: Outcome) -> pa.Table:
    """An outcome as the row that its ticket fetches."""
    return pa.table([[outcome.row_count], [outcome.visibility_token]], schema=OUTCOME_SCHEMA)


def _flight_info(
    descriptor: flight.FlightDescriptor,
    schema: pa.Schema | None,
    endpoint: flight.FlightEndpoint,
    *,
    records: int,
) -> flight.FlightInfo:
    if len(descriptor.command or b"") > _ECHOED_MAX_BYTES:
        # The ticket has the statement already: once is enough for one message.
        descriptor = flight.FlightDescriptor.for_command(b"")
    return flight.FlightInfo(schema, descriptor, [endpoint], records, -1)


def _check_bound(statement: SealedStatement, parameters: pa.Schema) -> None:
    """Say now that values are missing: in DoGet, drivers show less of an error."""
    if len(parameters) and statement.parameters is None:
        raise Invalid(
            ErrorCode.QUERY_EXECUTION_FAILED,
            f"the statement takes {len(parameters)} parameters and none is bound: bind a row",
            expected=len(parameters),
            got=0,
        )


def _to_ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _from_ipc(content: bytes | None) -> pa.RecordBatch | None:
    rows = _table_of(content)
    if rows is None:
        return None
    rows = rows.combine_chunks()
    batches = rows.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _table_of(content: bytes | None) -> pa.Table | None:
    return None if content is None else pa.ipc.open_stream(content).read_all()


def _key_of(rows: pa.Table | None) -> str | None:
    """The idempotency key in the metadata of the bound rows, as an ingest's rows carry it."""
    return None if rows is None else key_of_schema(rows.schema)
