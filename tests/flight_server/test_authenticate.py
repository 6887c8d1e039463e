"""Who calls, over a real wire with real drivers."""

import base64
from datetime import timedelta

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import sql_info
from flight_server.authenticate import MIDDLEWARE, AcceptHandshake, Authentication, call_of
from flight_server.boundary import boundary, install_traceback_filter
from flight_server.calls import CallsInFlight
from flight_server.sessions import TOKEN_PREFIX, Sessions
from flight_server.tickets import Seal
from tests.flight_server.small_house import SmallSessions

AUTHORIZATION = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
STATUS = adbc_driver_manager.AdbcStatusCode


class Clock:
    seconds = 1_000_000.0

    def __call__(self):
        return self.seconds


class WhoServer(flight.FlightServerBase):
    """Answers every question with who asked, and records the calls."""

    def __init__(self, authenticator, clock, limit=100):
        install_traceback_filter()
        self.sessions = Sessions(
            Seal(b"s" * 32, now=clock), SmallSessions(), lifetime=timedelta(hours=1)
        )
        self.in_flight = CallsInFlight(limit)
        self.calls = []
        super().__init__(
            "grpc://127.0.0.1:0",
            auth_handler=AcceptHandshake(),
            middleware={MIDDLEWARE: Authentication(authenticator, self.sessions, self.in_flight)},
        )

    def get_flight_info(self, context, descriptor):
        call = call_of(context)
        self.calls.append(call.session)
        with boundary("get_flight_info", context=context, trace_id=call.trace_id):
            call.options()
            endpoint = flight.FlightEndpoint(descriptor.command, [])
            return flight.FlightInfo(None, descriptor, [endpoint], -1, -1)

    def do_get(self, context, ticket):
        call = call_of(context)
        self.calls.append(call.session)
        if b"CommandGetSqlInfo" in ticket.ticket:
            return flight.RecordBatchStream(sql_info.sql_info([8]))
        who = pa.table({"principal": [call.identity.principal]})
        return flight.RecordBatchStream(who)


@pytest.fixture
def clock():
    return Clock()


def who(connection):
    with connection.cursor() as cursor:
        cursor.adbc_statement.set_sql_query("who")
        stream, _ = cursor.adbc_statement.execute_query()
        reader = pa.RecordBatchReader._import_from_c(stream.address)
        return reader.read_all()["principal"].to_pylist()


def connect(uri, **options):
    return adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=options, autocommit=True)


@pytest.mark.parametrize(
    "options",
    [
        {"username": "anything", "password": "ada-key"},
        {AUTHORIZATION: "Bearer ada-key"},
        {AUTHORIZATION: "Basic " + base64.b64encode(b"x:ada-key").decode()},
    ],
    ids=["user and password", "bearer", "basic"],
)
def test_adbc_is_in_one_session_from_its_first_call(running, known_keys, ada, clock, options):
    server = WhoServer(known_keys({"ada-key": ada}), clock)
    with running(server) as uri, connect(uri, **options) as connection:
        assert who(connection) == ["ada"]
        assert who(connection) == ["ada"]
    sessions = {session.session_id for session in server.calls[1:]}
    assert len(sessions) == 1, "every call after the first carries the session token"


def test_an_open_door_needs_no_credential_and_still_gives_a_session(
    running, known_keys, anybody, clock
):
    server = WhoServer(known_keys({}, anybody), clock)
    with running(server) as uri, connect(uri) as connection:
        assert who(connection) == ["anonymous"]
        assert who(connection) == ["anonymous"]
    assert len({session.session_id for session in server.calls[1:]}) == 1


def test_an_open_door_still_refuses_a_wrong_key(running, known_keys, anybody, clock):
    server = WhoServer(known_keys({}, anybody), clock)
    with (
        running(server) as uri,
        connect(uri, **{AUTHORIZATION: "Bearer x"}) as connection,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        who(connection)
    assert caught.value.status_code is STATUS.UNAUTHENTICATED


@pytest.mark.parametrize(
    "options",
    [{}, {AUTHORIZATION: "Bearer wrong"}, {AUTHORIZATION: f"Bearer {TOKEN_PREFIX}AAAA"}],
    ids=["no credential", "unknown key", "forged session"],
)
def test_a_refused_call_is_unauthenticated_with_the_contract(
    running, known_keys, ada, clock, options
):
    server = WhoServer(known_keys({"ada-key": ada}), clock)
    with (
        running(server) as uri,
        connect(uri, **options) as connection,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        who(connection)
    assert caught.value.status_code is STATUS.UNAUTHENTICATED
    shown = str(caught.value) + str(caught.value.details)
    assert "[UNAUTHORIZED]" in shown
    assert '"error_code":"UNAUTHORIZED"' in shown
    assert "Traceback" not in shown
    assert ".py" not in shown
    assert server.calls == []


def test_an_authenticator_that_breaks_is_internal_and_says_nothing(running, clock):
    class Broken:
        def open_identity(self):
            raise RuntimeError("dsn=secret")

    with (
        running(WhoServer(Broken(), clock)) as uri,
        connect(uri) as connection,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        who(connection)
    assert caught.value.status_code is STATUS.INTERNAL
    assert "secret" not in str(caught.value) + str(caught.value.details)


def test_a_revoked_key_ends_its_sessions(running, known_keys, ada, clock):
    keys = known_keys({"ada-key": ada})
    with (
        running(WhoServer(keys, clock)) as uri,
        connect(uri, **{AUTHORIZATION: "Bearer ada-key"}) as connection,
    ):
        assert who(connection) == ["ada"]
        keys.keys.clear()
        with pytest.raises(adbc_driver_manager.Error, match="revoked"):
            who(connection)


def test_a_session_outlives_its_tokens_while_its_client_calls(open_door, ada, clock):
    door = open_door({"ada-key": ada}, now=clock, session_lifetime=timedelta(hours=1))
    header = {AUTHORIZATION: "Bearer ada-key"}
    with (
        connect(f"grpc://127.0.0.1:{door.port}", **header) as connection,
        connection.cursor() as cursor,
    ):
        for _ in range(4):
            clock.seconds += 2000
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]


def test_the_drivers_call_headers_reach_the_options(running, known_keys, anybody, clock):
    server = WhoServer(known_keys({}, anybody), clock)
    header = "adbc.flight.sql.rpc.call_header.x-duckmesh-min-visibility-token"
    with (
        running(server) as uri,
        connect(uri, **{header: "never"}) as connection,
        pytest.raises(adbc_driver_manager.Error, match="VISIBILITY_TOKEN_INVALID"),
    ):
        who(connection)


def test_calls_beyond_the_limit_are_told_to_slow_down(running, known_keys, anybody, clock):
    server = WhoServer(known_keys({}, anybody), clock, limit=1)
    with running(server) as uri, connect(uri) as connection:
        held = server.in_flight.enter()
        with pytest.raises(adbc_driver_manager.Error) as caught:
            who(connection)
        held.leave()
        assert who(connection) == ["anonymous"]
    assert caught.value.status_code is STATUS.IO
    assert "[TOO_MANY_QUERIES]" in str(caught.value)
    assert server.in_flight.count == 0, "every call gave its place back"


def test_refused_calls_give_their_place_back(running, known_keys, clock):
    server = WhoServer(known_keys({}), clock, limit=1)
    with running(server) as uri, connect(uri) as connection:
        for _ in range(3):
            with pytest.raises(adbc_driver_manager.Error, match="UNAUTHORIZED"):
                who(connection)
