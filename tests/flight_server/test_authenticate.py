"""Who calls, over a real wire with real drivers."""

import base64
import queue
from datetime import timedelta

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import grpc
import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import messages
from flight_server.authenticate import Authentication
from flight_server.sessions import TOKEN_PREFIX
from tests import wire
from tests.processes import until

AUTHORIZATION = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
STATUS = adbc_driver_manager.AdbcStatusCode


class Clock:
    seconds = 1_000_000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def admitted(monkeypatch):
    """The sessions of the calls that were let in, in their order."""
    sessions = []
    admit = Authentication.admit

    def admit_and_note(self, *args, **options):
        call = admit(self, *args, **options)
        sessions.append(call.session)
        return call

    monkeypatch.setattr(Authentication, "admit", admit_and_note)
    return sessions


def ask(connection):
    """Ask a question: a GetFlightInfo and a DoGet."""
    with connection.cursor() as cursor:
        cursor.adbc_statement.set_sql_query("SELECT 1 AS one")
        stream, _ = cursor.adbc_statement.execute_query()
        reader = pa.RecordBatchReader._import_from_c(stream.address)
        assert reader.read_all()["one"].to_pylist() == [1]


def who(sessions):
    return {session.identity.principal for session in sessions}


def at(door):
    return f"grpc://127.0.0.1:{door.port}"


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
def test_adbc_is_in_one_session_from_its_first_call(open_door, ada, admitted, options):
    door = open_door({"ada-key": ada}, anonymous=None)
    with connect(at(door), **options) as connection:
        ask(connection)
        ask(connection)
    assert who(admitted) == {"ada"}
    assert len(admitted) >= 4
    sessions = {session.session_id for session in admitted[1:]}
    assert len(sessions) == 1, "every call after the first carries the session token"


def test_an_open_door_needs_no_credential_and_still_gives_a_session(uri, admitted):
    with connect(uri) as connection:
        ask(connection)
        ask(connection)
    assert who(admitted) == {"anonymous"}
    assert len({session.session_id for session in admitted[1:]}) == 1


def test_an_open_door_still_refuses_a_wrong_key(uri, admitted):
    with (
        connect(uri, **{AUTHORIZATION: "Bearer x"}) as connection,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        ask(connection)
    assert caught.value.status_code is STATUS.UNAUTHENTICATED
    assert admitted == []


@pytest.mark.parametrize(
    "options",
    [{}, {AUTHORIZATION: "Bearer wrong"}, {AUTHORIZATION: f"Bearer {TOKEN_PREFIX}AAAA"}],
    ids=["no credential", "unknown key", "forged session"],
)
def test_a_refused_call_is_unauthenticated_with_the_contract(open_door, ada, admitted, options):
    door = open_door({"ada-key": ada}, anonymous=None)
    with (
        connect(at(door), **options) as connection,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        ask(connection)
    assert caught.value.status_code is STATUS.UNAUTHENTICATED
    shown = str(caught.value) + str(caught.value.details)
    assert "[UNAUTHORIZED]" in shown
    assert '"error_code":"UNAUTHORIZED"' in shown
    assert "Traceback" not in shown
    assert ".py" not in shown
    assert admitted == []


def test_an_authenticator_that_breaks_is_internal_and_says_nothing(open_door):
    class Broken:
        def open_identity(self):
            raise RuntimeError("dsn=secret")

        def check_live(self, identity):
            raise AssertionError(identity)

    with (
        connect(at(open_door(authenticator=Broken()))) as connection,
        pytest.raises(adbc_driver_manager.Error) as caught,
    ):
        ask(connection)
    assert caught.value.status_code is STATUS.INTERNAL
    assert "secret" not in str(caught.value) + str(caught.value.details)


def test_a_revoked_key_ends_its_sessions(open_door, known_keys, ada, admitted):
    keys = known_keys({"ada-key": ada})
    door = open_door(authenticator=keys)
    with connect(at(door), **{AUTHORIZATION: "Bearer ada-key"}) as connection:
        ask(connection)
        assert who(admitted) == {"ada"}
        keys.keys.clear()
        with pytest.raises(adbc_driver_manager.Error, match="revoked"):
            ask(connection)


def test_a_session_outlives_its_tokens_while_its_client_calls(open_door, ada, clock):
    door = open_door({"ada-key": ada}, now=clock, session_lifetime=timedelta(hours=1))
    header = {AUTHORIZATION: "Bearer ada-key"}
    with (
        connect(at(door), **header) as connection,
        connection.cursor() as cursor,
    ):
        for _ in range(4):
            clock.seconds += 2000
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]


def test_the_drivers_call_headers_reach_the_options(uri):
    header = "adbc.flight.sql.rpc.call_header.x-duckmesh-min-visibility-token"
    with (
        connect(uri, **{header: "never"}) as connection,
        pytest.raises(adbc_driver_manager.Error, match="VISIBILITY_TOKEN_INVALID"),
    ):
        ask(connection)


@pytest.fixture
def held():
    """Open a call that is about to bind rows, so that it stays; what it gives ends it."""
    channels = []

    def hold(door):
        channel = grpc.insecure_channel(f"127.0.0.1:{door.port}")
        channels.append(channel)
        said, ends = queue.Queue(), object()
        binds = messages.sql("CommandPreparedStatementQuery")(prepared_statement_handle=b"any")
        (opening, *_) = wire.ipc_messages(pa.table({"parameter": [1]}))
        descriptor = flight.FlightDescriptor.for_command(messages.wrap(binds)).serialize()
        said.put(wire.flight_data(opening, descriptor=descriptor))
        path = "/arrow.flight.protocol.FlightService/DoPut"
        call = channel.stream_stream(path)(iter(said.get, ends))
        until(lambda: door.calls_in_flight == 1)

        def let_go():
            call.cancel()
            said.put(ends)
            until(lambda: door.calls_in_flight == 0)

        return let_go

    yield hold
    for channel in channels:
        channel.close()


def test_calls_beyond_the_limit_are_told_to_slow_down(open_door, held):
    door = open_door(calls_max=1)
    with connect(at(door)) as connection:
        let_go = held(door)
        with pytest.raises(adbc_driver_manager.Error) as caught:
            ask(connection)
        let_go()
        ask(connection)
        assert door.calls_in_flight == 0, "every call gave its place back"
    assert caught.value.status_code is STATUS.IO
    assert "[TOO_MANY_QUERIES]" in str(caught.value)


def test_refused_calls_give_their_place_back(open_door):
    door = open_door(calls_max=1, anonymous=None)
    with connect(at(door)) as connection:
        for _ in range(3):
            with pytest.raises(adbc_driver_manager.Error, match="UNAUTHORIZED"):
                ask(connection)
            assert door.calls_in_flight == 0
