"""The RPCs: each is parsed, handed to one desk, and answered, in the thread of its call.

https://arrow.apache.org/docs/format/FlightSql.html
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

import pyarrow as pa
from pyarrow import flight

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.tokens import BEFORE_ALL
from flight_server import answers, discovery, flight_data, messages, ticket_actions
from flight_server.authenticate import Call
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
from flight_server.rows_in import ResultsOut, RowsIn
from flight_server.session_options import SessionDesk
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
from grpc_transport.messages import joined
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


_T = TypeVar("_T")


class Rpcs:
    """What each RPC does with a call that was let in. Thread-safe."""

    def __init__(
        self,
        *,
        reads: Reads,
        writes: Writes,
        sessions: ClientSessions,
        sql_writes: SqlWrites,
        transactions: Transactions,
        authenticator: Authenticator,
        seal: Seal,
        stream_window: int,
        ticket_lifetime: timedelta,
    ) -> None:
        self._reads = reads
        self._fetches = Fetches()
        self._check_live = authenticator.check_live
        self._tickets = TicketDesk(seal, self._fetches, lifetime=ticket_lifetime)
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
            stream_window=stream_window,
            check_live=authenticator.check_live,
        )

    def handshake(self, call: Call) -> None:
        """JDBC, ODBC and ADBC with a password open with it. The headers have said who calls."""

    def get_flight_info(self, call: Call) -> None:
        descriptor = _descriptor_of(call)
        command = parse_command(_command_of(descriptor))
        if (schema := discovery.answer_schema(command)) is not None:
            call.send_session()
            endpoint = flight.FlightEndpoint(descriptor.command, [])
            info = flight.FlightInfo(schema, descriptor, [endpoint], -1, -1)
        else:
            call.place.work()
            statement = self._statement_of(call, command)
            info, token = self._statements.flight_info(call, descriptor, statement)
            call.send_session(token)
        _reply(call, info.serialize())

    def get_schema(self, call: Call) -> None:
        command = parse_command(_command_of(_descriptor_of(call)))
        schema = discovery.answer_schema(command)
        if schema is None:
            call.place.work()
            schema = self._statements.schema(call, self._statement_of(call, command))
        _reply(call, flight.SchemaResult(schema).serialize())

    def do_get(self, call: Call) -> None:
        command = parse_command(_ticket_of(call))
        call.send_session()
        if not isinstance(command, StatementTicket):
            rows = discovery.answer(command, self._reads, call.identity)
            _send_rows(call, rows.schema, _in_small_messages(rows))
            return
        call.place.work()
        statement = self._statements.open_ticket(call, command.statement_handle)
        if statement.outcome is not None:
            outcome = outcome_rows(statement.outcome)
            _send_rows(call, outcome.schema, outcome.to_batches())
            return
        call.place.on_leave(self._fetches.begin(statement.ticket_id, call.stop))
        with self._statements.run(call, statement) as answer:
            first, ended = answer.first_rows()
            schema = _schema_of(statement, answer)
            live = partial(self._check_live, call.identity)
            _send_rows(call, schema, first if ended else _rows(answer, live, first))

    def do_put(self, call: Call) -> None:
        call.place.work()
        reader = RowsIn.begin(call.rpc)
        if reader is None:
            raise Invalid(
                ErrorCode.INVALID_COMMAND,
                "the call has no message, and so no descriptor: send one first. ADBC sends none "
                "when there is no batch: ingest one, which may be empty",
            )
        descriptor = _read(flight.FlightDescriptor.deserialize, reader.descriptor or b"")
        results = ResultsOut(call.rpc)
        if descriptor.descriptor_type == flight.DescriptorType.PATH:
            begun = call.rpc.state if isinstance(call.rpc.state, int) else 0
            self._ingest.stream(call, descriptor.path, reader, results, begun=begun)
            return
        command = parse_command(_command_of(descriptor))
        results.write(self._put(call, command, reader))

    def do_exchange(self, _call: Call) -> None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "DoExchange is not supported: query with DoGet, and write with DoPut",
        )

    def poll_flight_info(self, _call: Call) -> None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED, "PollFlightInfo is not supported: use GetFlightInfo"
        )

    def do_action(self, call: Call) -> None:
        action = _read(flight.Action.deserialize, _request_of(call))
        for result in self._acted(call, action.type, action.body.to_pybytes()):
            call.rpc.send([flight_data.put_result(result)], more=True)

    def list_actions(self, call: Call) -> None:
        for name, what in _ACTIONS.items():
            message = messages.session("ActionType")(type=name, description=what)
            call.rpc.send([message.SerializeToString()], more=True)

    def list_flights(self, _call: Call) -> None:
        """Nothing is listed: GetTables is the list of tables."""

    # ---- Their parts

    def _acted(self, call: Call, action: str, body: bytes) -> list[bytes]:
        """Carry out an action; its results."""
        if action == "CloseSession":
            # First: what it leaves open is known by the session.
            self._transactions.leave(call)
        session_answer = self._session_desk.answer(action, body, call)
        if session_answer is not None:
            return [session_answer]
        if action == ticket_actions.CANCEL:
            return [self._tickets.cancel(call, body)]
        if action == ticket_actions.RENEW:
            return [self._tickets.renew(call, body)]
        match parse_action(action, body):
            case CreatePreparedStatement() as command:
                call.place.work()
                return [self._prepared(call, command)]
            case ClosePreparedStatement():
                return []
            case BeginTransaction():
                return [self._transactions.begin(call)]
            case EndTransaction() as command:
                return self._end_transaction(call, command)
        raise AssertionError("parse_action knows no other")

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

    def _put(self, call: Call, command: Command, reader: RowsIn) -> bytes:
        match command:
            case StatementIngest():
                receipt = self._ingest.ingest(call, command, reader)
                # Before the wait: the write stands also when that runs out of time.
                call.send_session(receipt.visibility_token)
                return self._ingest.awaited(call, receipt).put_result()
            case PreparedStatementQuery(prepared_statement_handle=handle):
                rows = bound_rows(reader)
                return answers.bind_result(self._statements.bind(call, handle, rows))
            case StatementUpdate():
                # Its sender sends a descriptor and no stream: there is nothing to read.
                statement, sent = self._statements.unprepared(call, command), None
            case PreparedStatementUpdate(prepared_statement_handle=handle):
                statement = self._statements.open_prepared(call, handle)
                sent = bound_rows(reader, max_bytes=SENT_MAX_BYTES)
            case _:
                raise _wrong_rpc(command)
        done = self._statements.update(call, statement, sent)
        call.send_session(done.visibility_token)
        token = done.visibility_token
        # JDBC takes -1 for "no count yet", and runs a prepared statement again for its rows.
        prepared = isinstance(command, PreparedStatementUpdate)
        uncounted = answers.NO_ROWS if prepared else answers.UNKNOWN_COUNT
        return answers.update_result(
            uncounted if done.row_count is None else done.row_count,
            None if token is None else {"visibility_token": int(token)},
        )

    def _end_transaction(self, call: Call, command: EndTransaction) -> list[bytes]:
        done = self._transactions.end(call, command)
        if done is None:
            return []
        call.send_session(done.visibility_token)
        return [
            answers.committed_result(
                done.visibility_token, write_count=done.write_count, row_count=done.row_count
            )
        ]


def _reply(call: Call, message: bytes) -> None:
    """The one message of the answer: it goes out with the status."""
    call.rpc.send([message], more=True)


def _request_of(call: Call) -> bytes:
    """The one message of a request. Raises Invalid when there is none."""
    message = call.rpc.read()
    if message is None:
        raise Invalid(ErrorCode.INVALID_COMMAND, "the call has no message: send one")
    return joined(message)


def _descriptor_of(call: Call) -> flight.FlightDescriptor:
    return _read(flight.FlightDescriptor.deserialize, _request_of(call))


def _ticket_of(call: Call) -> bytes:
    return bytes(_read(flight.Ticket.deserialize, _request_of(call)).ticket)


def _read(deserialize: Callable[[bytes], _T], message: bytes) -> _T:
    try:
        return deserialize(message)
    except (pa.ArrowException, ValueError, OSError):
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            "the message of the call is malformed: send what the specification names",
        ) from None


def _send_rows(call: Call, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """The rows of a DoGet; a small answer goes out as a whole, with its status."""
    encoder = flight_data.Encoder(schema)
    call.rpc.send(encoder.schema(), more=True)
    waits = isinstance(batches, list)
    for batch in batches:
        for message in encoder.rows(batch):
            call.rpc.send(message, more=waits)


def _schema_of(statement: SealedStatement, answer: Answer) -> pa.Schema:
    """The schema of the rows, with the snapshot that they are of in its metadata."""
    if statement.snapshot_id is None:
        return answer.schema
    token = statement.required_token or BEFORE_ALL
    return with_snapshot(answer.schema, statement.snapshot_id, token)


def _rows(
    answer: Answer, check_live: Callable[[], None], first: list[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The rows under way, the first of them at hand.

    They end when the caller's key does: `check_live` raises before the next of them.
    """
    yield from first
    first.clear()
    while True:
        check_live()
        batch = answer.next_batch()
        if batch is None:
            return
        yield batch


def _in_small_messages(rows: pa.Table) -> list[pa.RecordBatch]:
    return [part for batch in rows.to_batches() for part in split(batch)]


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
