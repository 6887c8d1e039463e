"""Every error as real drivers see it: code, text, details, and nothing of the inside."""

import json
import traceback

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from google.protobuf import wrappers_pb2
from pyarrow import flight
from structlog.testing import capture_logs

from duckmesh import errors
from duckmesh.errors import DuckMeshError, ErrorCode
from flight_server import boundary as door
from flight_server import messages
from flight_server.boundary import GrpcCode, boundary, install_traceback_filter
from flight_server.commands import parse_action, parse_command

STATUS = adbc_driver_manager.AdbcStatusCode
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

FAILED = ("rpc_failed", "do_action")

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


class RaisingServer(flight.FlightServerBase):
    """Raises what it was told to, in every RPC, inside the boundary."""

    def __init__(self, error):
        install_traceback_filter()
        self.error = error
        super().__init__("grpc://127.0.0.1:0")

    def _fail(self, rpc, context):
        with boundary(rpc, context=context, trace_id=TRACE, tenant="acme"):
            raise self.error

    def get_flight_info(self, context, descriptor):
        with boundary("get_flight_info", context=context, trace_id=TRACE):
            parse_command(descriptor.command)
        self._fail("get_flight_info", context)

    def get_schema(self, context, descriptor):  # noqa: ARG002
        self._fail("get_schema", context)

    def do_action(self, context, action):
        with boundary("do_action", context=context, trace_id=TRACE):
            parse_action(action.type, action.body.to_pybytes())
        self._fail("do_action", context)

    def do_put(self, context, descriptor, reader, writer):  # noqa: ARG002
        self._fail("do_put", context)

    def do_get(self, context, ticket):  # noqa: ARG002
        self._fail("do_get", context)


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
    with running(RaisingServer(error)) as uri:
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
    with running(RaisingServer(error)) as uri, flight.connect(uri) as client:
        for call in (
            lambda: client.get_flight_info(question),
            lambda: client.get_schema(question),
            lambda: client.do_get(flight.Ticket(b"")).read_all(),
        ):
            with pytest.raises((pa.ArrowException, KeyError, NotImplementedError)) as caught:
                call()
            assert f"[{error.code}]" in str(caught.value)
            assert_nothing_of_the_inside(str(caught.value).split("gRPC client debug context")[0])


def test_the_status_detail_of_a_flight_error_carries_the_contract(running):
    error = errors.Unavailable(ErrorCode.STORE_UNAVAILABLE, "retry", store="objects")
    with running(RaisingServer(error)) as uri:
        failure = adbc_failure(uri, unprepared)
    assert str(failure).count("Detail: Failed") == 0, "the status replaces pyarrow's text"
    _, body = messages.any_of(shown(failure)["grpc-status-details-bin"])
    contract = wrappers_pb2.StringValue.FromString(body)
    assert json.loads(contract.value)["context"] == {"store": "objects"}


@pytest.mark.parametrize(
    "surprise", [RuntimeError("secret /etc/path"), KeyError("dsn"), pa.ArrowInvalid("x")]
)
def test_an_unknown_exception_becomes_internal_and_is_logged_with_its_trace_id(running, surprise):
    with capture_logs() as logs, running(RaisingServer(surprise)) as uri:
        failure = adbc_failure(uri, prepared)
    assert failure.status_code is STATUS.INTERNAL
    assert "[INTERNAL]" in str(failure)
    assert "secret" not in str(failure) + str(failure.details)
    (entry,) = [each for each in logs if (each["event"], each["rpc"]) == FAILED]
    assert (entry["trace_id"], entry["log_level"]) == (TRACE, "error")
    assert entry["exc_info"]


def test_an_error_is_logged_once(running):
    with capture_logs() as logs, running(RaisingServer(RAISED[0][0])) as uri:
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
    with running(RaisingServer(error)) as uri:
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
        assert door.grpc_code(error) in GrpcCode
        assert len(door.sqlstate(error)) == 5
        for in_get_schema in (False, True):
            made = door.flight_exception(error, TRACE, in_get_schema=in_get_schema)
            assert not (in_get_schema and isinstance(made, flight.FlightError))


def test_the_filter_leaves_other_tracebacks_whole():
    install_traceback_filter()
    install_traceback_filter()
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    error = caught.value
    whole = "".join(traceback.format_exception(error))
    same = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "test_boundary.py" in whole
    assert whole == same


def test_a_failure_after_the_caller_has_gone_is_a_cancellation():
    class Gone:
        def add_trailer(self, key, value):
            pass

        def is_cancelled(self):
            return True

    with pytest.raises(flight.FlightCancelledError), boundary("x", context=Gone(), trace_id=TRACE):
        raise OSError("broken stream")
