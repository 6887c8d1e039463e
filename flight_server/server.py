"""The Flight SQL door: each RPC is parsed, handed to one desk, and answered.

pyarrow calls each RPC in a thread of its own. Every one runs inside the boundary; what it returns
or raises is for pyarrow. https://arrow.apache.org/docs/format/FlightSql.html
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pyarrow as pa
from pyarrow import flight

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from flight_server import answers, discovery, ticket_actions
from flight_server.authenticate import (
    MIDDLEWARE,
    AcceptHandshake,
    Authentication,
    Call,
    call_of,
)
from flight_server.boundary import boundary, install_traceback_filter
from flight_server.calls import CallsInFlight
from flight_server.commands import (
    BeginTransaction,
    ClosePreparedStatement,
    Command,
    CreatePreparedStatement,
    EndTransaction,
    PreparedStatementQuery,
    PreparedStatementUpdate,
    StatementIngest,
    StatementQuery,
    StatementTicket,
    StatementUpdate,
    parse_action,
    parse_command,
)
from flight_server.fetches import Fetches
from flight_server.ingest import SENT_MAX_BYTES, IngestDesk, bound_rows
from flight_server.session_options import SessionDesk
from flight_server.sessions import Sessions
from flight_server.statements import StatementDesk, outcome_rows, with_snapshot
from flight_server.ticket_actions import TicketDesk
from flight_server.tickets import Seal, SealedStatement
from flight_server.transactions import TransactionDesk
from gateway.credentials import Authenticator
from gateway.open_answers import Answer
from gateway.reads import Reads
from gateway.sessions import ClientSessions
from gateway.sql_writes import SqlWrites
from gateway.transactions import Transactions
from gateway.writes import Writes
from query_engine.stream import split

_ACTIONS: Final = {
    "CreatePreparedStatement": "Prepare a statement: its handle, its rows' schema, its parameters.",
    "ClosePreparedStatement": "Forget a prepared statement's handle. Nothing is held for it.",
    "SetSessionOptions": "Set options of the session; each one that is refused is named.",
    "GetSessionOptions": "The session's options, last_visibility_token among them.",
    "CloseSession": "End the session: its open transaction is rolled back.",
    "BeginTransaction": "Begin a transaction; in a session it becomes the current one.",
    "EndTransaction": "Commit a transaction, or roll it back. Repeatable.",
    ticket_actions.CANCEL: "Stop the running fetches of a FlightInfo's tickets in this process.",
    ticket_actions.RENEW: "A fresh ticket for the same question and snapshot.",
}
"""What ListActions lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates in PEM. With `client_ca` set a client must show one that it signed."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorOptions:
    """How the door listens, and its limits."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    calls_max: int = 1024
    stream_window: int = 32
    session_lifetime: timedelta = timedelta(hours=24)
    ticket_lifetime: timedelta = timedelta(hours=1)

    @property
    def location(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'grpc' if self.tls is None else 'grpc+tls'}://{host}:{self.port}"


class FlightDoor(flight.FlightServerBase):  # type: ignore[misc]
    """Serves from its construction on. `drain`, then `close`, end it."""

    def __init__(
        self,
        options: DoorOptions,
        *,
        reads: Reads,
        writes: Writes,
        sessions: ClientSessions,
        sql_writes: SqlWrites,
        transactions: Transactions,
        authenticator: Authenticator,
        seal: Seal,
    ) -> None:
        install_traceback_filter()
        self._reads = reads
        known = Sessions(seal, sessions, lifetime=options.session_lifetime)
        self._calls = CallsInFlight(options.calls_max)
        self._fetches = Fetches()
        self._check_live = authenticator.check_live
        self._tickets = TicketDesk(seal, self._fetches, lifetime=options.ticket_lifetime)
        self._transactions = TransactionDesk(transactions)
        self._session_desk = SessionDesk(sessions)
        self._statements = StatementDesk(
            reads,
            sql_writes,
            seal,
            tickets=self._tickets,
            transactions=self._transactions,
            sessions=self._session_desk,
        )
        self._ingest = IngestDesk(
            writes,
            reads,
            self._transactions,
            stream_window=options.stream_window,
            check_live=authenticator.check_live,
        )
        super().__init__(
            options.location,
            auth_handler=AcceptHandshake(),
            middleware={MIDDLEWARE: Authentication(authenticator, known, self._calls)},
            **_tls_arguments(options.tls),
        )

    @property
    def calls_in_flight(self) -> int:
        return int(self._calls.count)

    def drain(self, grace: timedelta) -> bool:
        """Refuse new calls, let those in flight end, cancel what outlasts `grace`.

        Whether all have ended, after at most twice `grace`. A caller who neither reads nor leaves
        holds his call for ever: then the process ends itself, and loses nothing that was answered.
        """
        return self._calls.drain(grace)

    def close(self) -> None:
        """Stop listening. Blocks until the last call has ended: `drain` first."""
        self.shutdown()
        self._calls.close()

    # ---- RPCs

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        call = call_of(context)
        with _watched("get_flight_info", context, call):
            command = parse_command(_command_of(descriptor))
            if (schema := discovery.answer_schema(command)) is not None:
                self._send_session(context, call)
                endpoint = flight.FlightEndpoint(descriptor.command, [])
                return flight.FlightInfo(schema, descriptor, [endpoint], -1, -1)
            call.place.work()
            statement = self._statement_of(call, command)
            info, token = self._statements.flight_info(call, descriptor, statement)
            self._send_session(context, call, token)
            return info

    def get_schema(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.SchemaResult:
        call = call_of(context)
        with _watched("get_schema", context, call):
            command = parse_command(_command_of(descriptor))
            schema = discovery.answer_schema(command)
            if schema is None:
                call.place.work()
                schema = self._statements.schema(call, self._statement_of(call, command))
            return flight.SchemaResult(schema)

    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.RecordBatchStream:
        call = call_of(context)
        with _watched("do_get", context, call):
            command = parse_command(ticket.ticket)
            self._send_session(context, call)
            if not isinstance(command, StatementTicket):
                rows = discovery.answer(command, self._reads, call.identity)
                return flight.RecordBatchStream(_in_small_messages(rows))
            call.place.work()
            statement = self._statements.open_ticket(call, command.statement_handle)
            if statement.outcome is not None:
                return flight.RecordBatchStream(outcome_rows(statement.outcome))
            call.place.on_leave(self._fetches.begin(statement.ticket_id, call.stop))
            answer = self._statements.run(call, statement)
            # Also when the caller goes before the first row is pulled, and `_rows` never begins.
            call.place.on_leave(answer.close)
            live = partial(self._check_live, call.identity)
            first, ended = answer.first_rows()
            schema = _schema_of(statement, answer)
            if ended:
                # From here on no call of pyarrow's needs Python, nor waits for its lock.
                return flight.RecordBatchStream(pa.Table.from_batches(first, schema))
            rows = _rows(context, call, answer, live, first)
            return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, rows))

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        call = call_of(context)
        with _watched("do_put", context, call):
            call.place.work()
            if descriptor.descriptor_type == flight.DescriptorType.PATH:
                self._ingest.stream(call, context, descriptor.path, reader, writer)
                return
            command = parse_command(_command_of(descriptor))
            answer = self._put(context, call, command, reader)
            writer.write(pa.py_buffer(answer))

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,  # noqa: ARG002 - pyarrow's signature
        reader: flight.MetadataRecordBatchReader,  # noqa: ARG002
        writer: flight.MetadataRecordBatchWriter,  # noqa: ARG002
    ) -> None:
        with _guarded("do_exchange", context, call_of(context)):
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "DoExchange is not supported: query with DoGet, and write with DoPut",
            )

    def do_action(
        self, context: flight.ServerCallContext, action: flight.Action
    ) -> list[flight.Result]:
        call = call_of(context)
        with _watched("do_action", context, call):
            body = action.body.to_pybytes()
            if action.type == "CloseSession":
                # First: what it leaves open is known by the session.
                self._transactions.leave(call)
            session_answer = self._session_desk.answer(action.type, body, call)
            if session_answer is not None:
                return [flight.Result(pa.py_buffer(session_answer))]
            if action.type == ticket_actions.CANCEL:
                return [flight.Result(pa.py_buffer(self._tickets.cancel(call, body)))]
            if action.type == ticket_actions.RENEW:
                return [flight.Result(pa.py_buffer(self._tickets.renew(call, body)))]
            match parse_action(action.type, body):
                case CreatePreparedStatement() as command:
                    call.place.work()
                    return [flight.Result(pa.py_buffer(self._prepared(call, command)))]
                case ClosePreparedStatement():
                    return []
                case BeginTransaction():
                    return [flight.Result(pa.py_buffer(self._transactions.begin(call)))]
                case EndTransaction() as command:
                    return self._end_transaction(context, call, command)
            raise AssertionError("parse_action knows no other")

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        with _guarded("list_actions", context, call_of(context)):
            return list(_ACTIONS.items())

    def list_flights(
        self,
        context: flight.ServerCallContext,
        criteria: bytes,  # noqa: ARG002 - pyarrow's signature
    ) -> Iterator[flight.FlightInfo]:
        """Nothing is listed: GetTables is the list of tables."""
        with _guarded("list_flights", context, call_of(context)):
            return iter(())

    # ---- Parts of the RPCs

    def _prepared(self, call: Call, command: CreatePreparedStatement) -> bytes:
        try:
            return self._statements.prepare(call, command)
        except NotSupported as error:
            # UNIMPLEMENTED would say that nothing can be prepared here: ADBC then runs the
            # statement unprepared, and on a cursor that has ingested fails with its own words.
            raise Invalid(ErrorCode.NOT_SUPPORTED, error.message, **error.context) from None

    def _statement_of(self, call: Call, command: Command) -> SealedStatement:
        match command:
            case StatementQuery():
                return self._statements.unprepared(call, command)
            case PreparedStatementQuery(prepared_statement_handle=handle):
                return self._statements.open_prepared(call, handle)
        raise _wrong_rpc(command)

    def _put(
        self, context: flight.ServerCallContext, call: Call, command: Command, reader: Any
    ) -> bytes:
        match command:
            case StatementIngest():
                receipt = self._ingest.ingest(call, context, command, reader)
                # Before the wait: the write stands also when that runs out of time.
                self._send_session(context, call, receipt.visibility_token)
                return self._ingest.awaited(call, receipt).put_result()
            case PreparedStatementQuery(prepared_statement_handle=handle):
                rows = bound_rows(context, reader)
                return answers.bind_result(self._statements.bind(call, handle, rows))
            case StatementUpdate():
                # Its sender sends a descriptor and no stream: there is nothing to read.
                statement, sent = self._statements.unprepared(call, command), None
            case PreparedStatementUpdate(prepared_statement_handle=handle):
                statement = self._statements.open_prepared(call, handle)
                sent = bound_rows(context, reader, max_bytes=SENT_MAX_BYTES)
            case _:
                raise _wrong_rpc(command)
        done = self._statements.update(call, statement, sent)
        self._send_session(context, call, done.visibility_token)
        token = done.visibility_token
        # JDBC takes -1 for "no count yet", and runs a prepared statement again for its rows.
        prepared = isinstance(command, PreparedStatementUpdate)
        uncounted = answers.NO_ROWS if prepared else answers.UNKNOWN_COUNT
        return answers.update_result(
            uncounted if done.row_count is None else done.row_count,
            None if token is None else {"visibility_token": int(token)},
        )

    def _end_transaction(
        self, context: flight.ServerCallContext, call: Call, command: EndTransaction
    ) -> list[flight.Result]:
        done = self._transactions.end(call, command)
        if done is None:
            return []
        self._send_session(context, call, done.visibility_token)
        answer = answers.committed_result(
            done.visibility_token, write_count=done.write_count, row_count=done.row_count
        )
        return [flight.Result(pa.py_buffer(answer))]

    def _send_session(
        self, context: flight.ServerCallContext, call: Call, token: VisibilityToken | None = None
    ) -> None:
        """Send the session's token anew when the client's knows less, or grows old.

        It goes out with the first bytes of the answer: call this before them, and once.
        """
        for name, value in call.headers_after(token).items():
            context.add_header(name, value)


def _guarded(rpc: str, context: flight.ServerCallContext, call: Call) -> boundary:
    return boundary(
        rpc,
        context=context,
        trace_id=call.trace_id,
        tenant=call.identity.tenant,
        tenant_id=call.identity.tenant_id,
        traceparent=call.traceparent,
        failing=call.count.failing,
    )


def _watched(rpc: str, context: flight.ServerCallContext, call: Call) -> boundary:
    """The boundary around an RPC that may wait or run: it stops when its caller goes."""
    call.place.on_cancel(context, call.stop.interrupt)
    return _guarded(rpc, context, call)


def _schema_of(statement: SealedStatement, answer: Answer) -> pa.Schema:
    """The schema of the rows, with the snapshot that they are of in its metadata."""
    if statement.snapshot_id is None:
        return answer.schema
    token = statement.required_token or BEFORE_ALL
    return with_snapshot(answer.schema, statement.snapshot_id, token)


def _rows(
    context: flight.ServerCallContext,
    call: Call,
    answer: Answer,
    check_live: Callable[[], None],
    first: list[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """The rows under way, the first of them at hand.

    They end when the caller's key does: `check_live` raises before the next of them.
    """
    # Runs while pyarrow pulls. A client that stops reading closes this generator, which ends
    # the query. Errors midway pass the boundary too; it is not held across a yield, for
    # pyarrow resumes in another Python context each time.
    with answer:
        yield from first
        first.clear()
        while True:
            with _guarded("do_get", context, call):
                check_live()
                batch = answer.next_batch()
            if batch is None:
                return
            yield batch


def _in_small_messages(rows: pa.Table) -> pa.RecordBatchReader:
    parts = (part for batch in rows.to_batches() for part in split(batch))
    return pa.RecordBatchReader.from_batches(rows.schema, parts)


def _command_of(descriptor: flight.FlightDescriptor) -> bytes:
    if descriptor.descriptor_type != flight.DescriptorType.CMD:
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            "the descriptor has a path: send a Flight SQL command; a path is for DoPut",
        )
    return bytes(descriptor.command)


def _wrong_rpc(command: Command) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_COMMAND,
        f"{command.MESSAGE} does not belong to this RPC: see the Flight SQL specification",
        command=command.MESSAGE,
    )


def _tls_arguments(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "tls_certificates": [(tls.certificate, tls.key)],
        "verify_client": tls.client_ca is not None,
        "root_certificates": tls.client_ca,
    }
