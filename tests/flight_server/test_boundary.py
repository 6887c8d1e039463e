"""Every error as real drivers see it: code, text, details, and nothing of the inside."""

import json

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_manager._reader import AdbcRecordBatchReader
from google.protobuf import wrappers_pb2
from pyarrow import flight
from structlog.testing import capture_logs

from duckmesh import errors
from duckmesh.errors import DuckMeshError, ErrorCode
from flight_server import boundary as door
from flight_server import messages
from flight_server.boundary import Failed, boundary, end_with
from flight_server.commands import StatementQuery, parse_action, parse_command
from flight_server.flight_data import Encoder
from grpc_transport.calls import Gone
from grpc_transport.messages import joined
from grpc_transport.status import Status
from tests import wire
from tests.http2 import Peer

STATUS = adbc_driver_manager.AdbcStatusCode
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

RPCS = {
    "GetFlightInfo": "get_flight_info",
    "GetSchema": "get_schema",
    "DoGet": "do_get",
    "DoPut": "do_put",
    "DoAction": "do_action",
}
FAILED = ("rpc_failed", "do_action")
KNOWN = (pa.ArrowException, KeyError, NotImplementedError)
PREPARE = messages.wrap(messages.sql("ActionCreatePreparedStatementRequest")(query="select 1"))
TICKET = b"rows"
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64())})

RAISED = [
    (errors.Invalid(ErrorCode.INVALID_PAYLOAD, "column 'a' is int"), STATUS.INVALID_ARGUMENT),
    (errors.Denied(ErrorCode.UNAUTHORIZED, "show a key"), STATUS.UNAUTHENTICATED),
    (errors.Denied(ErrorCode.FORBIDDEN, "ask for the role"), STATUS.UNAUTHORIZED),
    (errors.NotFound(ErrorCode.TABLE_NOT_FOUND, "no table 'x'", table="x"), STATUS.NOT_FOUND),
    (errors.Conflict(ErrorCode.TABLE_EXISTS, "it exists"), STATUS.INVALID_ARGUMENT),
    (
        errors.NotYetVisible(
            ErrorCode.CONSISTENCY_TIMEOUT, "not yet", requested_token=9, latest_token=7
        ),
        STATUS.TIMEOUT,
    ),
    (
        errors.Overloaded(ErrorCode.RATE_LIMITED, "slow down", retry_after_seconds=3),
        STATUS.IO,
    ),
    (errors.Exceeded(ErrorCode.QUERY_MEMORY, "too much memory"), STATUS.INVALID_ARGUMENT),
    (errors.Exceeded(ErrorCode.QUERY_TIMEOUT, "too slow"), STATUS.TIMEOUT),
    (errors.Cancelled(ErrorCode.QUERY_CANCELLED, "cancelled"), STATUS.CANCELLED),
    (errors.NotSupported(ErrorCode.NOT_SUPPORTED, "use INSERT"), STATUS.NOT_IMPLEMENTED),
    (errors.Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "retry"), STATUS.IO),
    (errors.Fenced("another owner"), STATUS.INTERNAL),
    (errors.Corrupt("contradiction"), STATUS.INTERNAL),
    (errors.Internal(), STATUS.INTERNAL),
]
IDS = [f"{type(error).__name__}-{error.code}" for error, _ in RAISED]


class Raising:
    """Raises what it was told to, in every RPC, inside the boundary.

    With `rows` a query has an answer, which fails after them.
    """

    def __init__(self, error, rows=None):
        self.error = error
        self.rows = rows

    def __call__(self, rpc):
        try:
            name = RPCS[rpc.path.rpartition("/")[2]]
            with boundary(name, context=rpc, trace_id=TRACE, tenant="acme"):
                self.answer(name, rpc, joined(rpc.read()))
        except Failed as failed:
            among_rows = self.rows is not None and name == "do_get"
            end_with(rpc, failed, among_rows=among_rows)
        else:
            rpc.finish()

    def answer(self, name, rpc, request):
        if name == "do_action":
            action = flight.Action.deserialize(request)
            parse_action(action.type, action.body.to_pybytes())
        if name == "get_flight_info":
            descriptor = flight.FlightDescriptor.deserialize(request)
            command = parse_command(descriptor.command)
            if self.rows is not None and isinstance(command, StatementQuery):
                endpoint = flight.FlightEndpoint(TICKET, [])
                info = flight.FlightInfo(self.rows.schema, descriptor, [endpoint], -1, -1)
                rpc.send([info.serialize()])
                return
        if self.rows is not None and request == wire.ticket(TICKET):
            encoder = Encoder(self.rows.schema)
            rpc.send(encoder.schema())
            for batch in self.rows.to_batches():
                for message in encoder.rows(batch):
                    rpc.send(message)
        raise self.error


def adbc_failure(uri, act):
    with (
        adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection,
        connection.cursor() as cursor,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        act(cursor)
    return caught.value


def prepared(cursor):
    cursor.execute("select 1")


def unprepared(cursor):
    cursor.adbc_statement.set_sql_query("select 1")
    cursor.adbc_statement.execute_query()


def ingest(cursor):
    cursor.adbc_ingest("t", pa.table({"a": [1]}), mode="append")


def fetched(cursor):
    """Ask unprepared, and read the rows until they fail."""
    cursor.adbc_statement.set_sql_query("select 1")
    stream, _ = cursor.adbc_statement.execute_query()
    AdbcRecordBatchReader._import_from_c(stream.address).read_all()


def shown(failure):
    return {
        (name.decode() if isinstance(name, bytes) else name): value
        for name, value in failure.details
    }


def assert_nothing_of_the_inside(text):
    for leak in ("Traceback", 'File "', ".py", "line ", "/work", "boundary"):
        assert leak not in text, text


@pytest.mark.parametrize("act", [prepared, unprepared, ingest])
@pytest.mark.parametrize(("error", "status"), RAISED, ids=IDS)
def test_adbc_sees_code_text_and_details(running, error, status, act):
    with running(Raising(error)) as uri:
        failure = adbc_failure(uri, act)
    assert failure.status_code is status
    assert f"[{error.code}] {error.message}" in str(failure)
    details = shown(failure)
    assert details["x-sqlstate"] == door.sqlstate(error).encode()
    assert json.loads(details["x-duckmesh-error"]) == error.as_contract(TRACE)
    assert details["x-trace-id"] == TRACE.encode()
    if (token := error.context.get("latest_token")) is not None:
        assert details["x-duckmesh-visibility-token"] == str(token).encode()
    if (seconds := error.context.get("retry_after_seconds")) is not None:
        assert details["retry-after"] == str(seconds).encode()
    assert_nothing_of_the_inside(str(failure))
    assert_nothing_of_the_inside(str(failure.details))


@pytest.mark.parametrize(("error", "status"), RAISED, ids=IDS)
def test_pyarrow_clients_see_the_code_in_every_rpc(running, error, status):
    question = flight.FlightDescriptor.for_command(
        messages.wrap(messages.sql("CommandStatementQuery")(query="select 1"))
    )
    with running(Raising(error)) as uri, flight.connect(uri) as client:
        for call, raised in (
            (lambda: client.get_flight_info(question), KNOWN),
            # Here pyarrow raises OSError, and names the FlightError in its text.
            (lambda: client.get_schema(question), (*KNOWN, OSError)),
            (lambda: client.do_get(flight.Ticket(b"")).read_all(), KNOWN),
        ):
            with pytest.raises(raised) as caught:
                call()
            assert f"[{error.code}]" in str(caught.value)
            assert_nothing_of_the_inside(str(caught.value).split("gRPC client debug context")[0])


@pytest.mark.parametrize(("error", "status"), RAISED, ids=IDS)
def test_every_rpc_ends_with_the_status_and_trailers_of_its_error(running, error, status):
    question = wire.command_descriptor(
        messages.wrap(messages.sql("CommandStatementQuery")(query="select 1"))
    )
    action = wire.action(b"CreatePreparedStatement", PREPARE)
    with running(Raising(error)) as uri:
        raw = wire.RawFlight(uri.removeprefix("grpc://"))
        for rpc in RPCS:
            reply = raw.call(rpc, [action if rpc == "DoAction" else question])
            assert reply.status == door.grpc_code(error).name, rpc
            assert reply.text == f"[{error.code}] {error.message}", rpc
            assert reply.trailers["x-sqlstate"] == door.sqlstate(error), rpc
            contract = json.loads(reply.trailers["x-duckmesh-error"])
            assert contract == error.as_contract(TRACE), rpc
        raw.close()


def test_the_status_detail_of_a_flight_error_carries_the_contract(running):
    error = errors.Unavailable(ErrorCode.STORE_UNAVAILABLE, "retry", store="objects")
    with running(Raising(error)) as uri:
        failure = adbc_failure(uri, unprepared)
    assert str(failure).count("Detail: Failed") == 0, "the status replaces pyarrow's text"
    _, body = messages.any_of(shown(failure)["grpc-status-details-bin"])
    contract = wrappers_pb2.StringValue.FromString(body)
    assert json.loads(contract.value)["context"] == {"store": "objects"}


@pytest.mark.parametrize(("error", "status"), RAISED, ids=IDS)
def test_an_error_in_the_middle_of_rows_has_its_status_its_code_and_its_trailers(
    running, error, status
):
    with running(Raising(error, ROWS)) as uri:
        raw = wire.RawFlight(uri.removeprefix("grpc://"))
        reply = raw.call("DoGet", [wire.ticket(TICKET)])
        raw.close()
        failure = adbc_failure(uri, fetched)
    assert len(reply.messages) == 2, "the schema and the rows before it have come"
    cancelled = isinstance(error, errors.Cancelled)
    # See below for what pyarrow makes of a cancellation among rows.
    assert reply.status == ("ABORTED" if cancelled else door.grpc_code(error).name)
    assert reply.text == f"[{error.code}] {error.message}"
    assert reply.trailers["x-sqlstate"] == door.sqlstate(error)
    assert json.loads(reply.trailers["x-duckmesh-error"]) == error.as_contract(TRACE)
    assert failure.status_code is (STATUS.UNKNOWN if cancelled else status)
    assert json.loads(shown(failure)["x-duckmesh-error"]) == error.as_contract(TRACE)


@pytest.mark.parametrize(("error", "status"), RAISED, ids=IDS)
def test_pyarrow_raises_the_same_in_the_middle_of_rows_as_before_them(running, error, status):
    raised = []
    for rows in (None, ROWS):
        with (
            running(Raising(error, rows)) as uri,
            flight.connect(uri) as client,
            pytest.raises(KNOWN) as caught,
        ):
            # Not read_all: see below.
            for _ in client.do_get(flight.Ticket(TICKET)):
                pass
        raised.append(caught.type)
        assert f"[{error.code}]" in str(caught.value)
    assert raised[0] is raised[1] or isinstance(error, errors.Cancelled)


def test_a_cancellation_in_the_middle_of_rows_is_no_keyboard_interrupt_of_its_reader(running):
    error = errors.Cancelled(ErrorCode.QUERY_CANCELLED, "cancelled")
    with running(Raising(error, ROWS)) as uri, flight.connect(uri) as client:
        try:
            client.do_get(flight.Ticket(TICKET)).read_all()
        except BaseException as failure:  # noqa: BLE001 - pytest itself ends at an interrupt
            raised = failure
    assert isinstance(raised, Exception)
    assert f"[{error.code}]" in str(raised)


@pytest.mark.parametrize(
    "surprise", [RuntimeError("secret /etc/path"), KeyError("dsn"), pa.ArrowInvalid("x")]
)
def test_an_unknown_exception_becomes_internal_and_is_logged_with_its_trace_id(running, surprise):
    with capture_logs() as logs, running(Raising(surprise)) as uri:
        failure = adbc_failure(uri, prepared)
    assert failure.status_code is STATUS.INTERNAL
    assert "[INTERNAL]" in str(failure)
    assert "secret" not in str(failure) + str(failure.details)
    (entry,) = [each for each in logs if (each["event"], each["rpc"]) == FAILED]
    assert (entry["trace_id"], entry["log_level"]) == (TRACE, "error")
    assert entry["exc_info"]


def test_an_error_is_logged_once(running):
    with capture_logs() as logs, running(Raising(RAISED[0][0])) as uri:
        adbc_failure(uri, prepared)
    # The driver's own calls around it, at connect and close, are other calls.
    mine = [(each["rpc"], each["error_code"]) for each in logs]
    assert mine.count(("do_action", "INVALID_PAYLOAD")) == 1


@pytest.mark.parametrize(
    "error",
    [
        errors.Invalid(ErrorCode.INVALID_PAYLOAD, "ä" * 5000, column="ü" * 5000),
        errors.Unavailable(ErrorCode.STORE_UNAVAILABLE, "\x00\n€" * 5000, many=list(range(5000))),
        errors.NotFound(ErrorCode.TABLE_NOT_FOUND, "\N{OK HAND SIGN}" * 3000),
    ],
)
def test_a_huge_message_still_arrives_with_its_code(running, error):
    with running(Raising(error)) as uri:
        failure = adbc_failure(uri, prepared)
    assert f"[{error.code}]" in str(failure)
    assert len(str(failure)) < 1400
    contract = json.loads(shown(failure)["x-duckmesh-error"])
    assert contract["error_code"] == error.code


def test_every_class_of_the_tree_is_mapped():
    tree = set(DuckMeshError.__subclasses__())
    assert set(door.CODE_OF_CLASS) == tree
    assert {type(error) for error, _ in RAISED} == tree
    for error, _ in RAISED:
        made = door.failed(error, TRACE)
        assert made.status is door.grpc_code(error)
        assert made.status not in {Status.OK, Status.UNKNOWN}
        assert len(door.sqlstate(error)) == 5


@pytest.mark.parametrize("left", [Gone(), OSError("broken stream")], ids=["gone", "broken"])
def test_a_failure_after_the_caller_has_gone_is_a_cancellation(left):
    peer = Peer()
    rpc = peer.call()
    peer.leave(rpc)
    with pytest.raises(Failed) as caught, boundary("x", context=rpc, trace_id=TRACE):
        raise left
    assert caught.value.status is Status.CANCELLED
    assert caught.value.text.startswith("[QUERY_CANCELLED]")


def test_what_fails_while_its_caller_is_there_is_no_cancellation():
    with (
        capture_logs(),
        pytest.raises(Failed) as caught,
        boundary("x", context=Peer().call(), trace_id=TRACE),
    ):
        raise OSError("broken stream")
    assert caught.value.status is Status.INTERNAL
