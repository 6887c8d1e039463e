"""A session reads its own writes, whichever serving process answers and whatever header was lost.

DUCKMESH_TEST_SESSION_PAIRS sets how many pairs of a write and a read each test makes; the release
run has 10,000.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions, dbapi
from pyarrow import flight

from flight_server import messages
from flight_server.sessions import COOKIE, TOKEN_PREFIX
from tests.faults.tcp_round_robin import TcpRoundRobin
from tests.processes import service, until

PAIRS = int(os.environ.get("DUCKMESH_TEST_SESSION_PAIRS", "150"))
AUTHORIZATION = DatabaseOptions.AUTHORIZATION_HEADER.value
WITH_COOKIES = "adbc.flight.sql.rpc.with_cookie_middleware"
ROW = pa.table({"v": pa.array([1], pa.int64())})


@dataclass(frozen=True)
class Pair:
    """Two serving processes over one catalog, and a balancer in front of both."""

    uris: Sequence[str]
    balancer: TcpRoundRobin

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self.balancer.port}"


@pytest.fixture(scope="module")
def pair(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("two")
    # Publications come late: a read that does not wait for its own write is seen to be stale.
    settings = {
        "DUCKMESH_COORDINATOR_FLUSH_INTERVAL_MS": "100",
        "DUCKMESH_QUERY_CONSISTENCY_TIMEOUT_MS": "30000",
    }
    with service(module_database_dsn, folder, **settings) as both:
        uris = [both.serve()[1] for _ in range(2)]
        both.coordinate("c1")
        wait_until_published(uris[0])
        backends = [("127.0.0.1", int(uri.rpartition(":")[2])) for uri in uris]
        with TcpRoundRobin(backends) as balancer:
            yield Pair(uris, balancer)


def wait_until_published(uri: str) -> None:
    """Until the coordinator is at work: the pairs measure no process's start."""
    latest = {"adbc.flight.sql.rpc.call_header.x-duckmesh-consistency": "latest"}
    with (
        dbapi.connect(uri, db_kwargs=latest, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.adbc_ingest("warm", ROW, mode="create")

        def shown() -> bool:
            cursor.execute("SELECT * FROM warm")
            return bool(cursor.fetchall())

        until(shown)


@dataclass
class Header:
    """What a client that keeps headers knows of its session."""

    bearer: str | None = None
    cookies: dict[str, str] = field(default_factory=dict)
    ignored: bool = False
    answers: int = 0


class Keeping(flight.ClientMiddlewareFactory):  # type: ignore[misc]
    """Sends the header back that came last, by one of the two ways; None keeps neither."""

    def __init__(self, header: Header, way: str) -> None:
        super().__init__()
        self.header, self.way = header, way

    def start_call(self, info: object) -> "KeepingCall":
        del info
        return KeepingCall(self.header, self.way)


class KeepingCall(flight.ClientMiddleware):  # type: ignore[misc]
    def __init__(self, header: Header, way: str) -> None:
        super().__init__()
        self.header, self.way = header, way

    def sending_headers(self) -> dict[str, str]:
        known = self.header
        if self.way == "bearer" and known.bearer is not None:
            return {"authorization": known.bearer}
        if self.way == "cookie" and known.cookies:
            return {"cookie": "; ".join(f"{k}={v}" for k, v in known.cookies.items())}
        return {}

    def received_headers(self, headers: dict[str, list[str]]) -> None:
        self.header.answers += "authorization" in headers
        if self.header.ignored:
            return
        for bearer in headers.get("authorization", ()):
            self.header.bearer = bearer
        for cookie in headers.get("set-cookie", ()):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.header.cookies[name] = value


class RawSession:
    """One session of plain Flight calls, each call sent to the process that the caller names."""

    def __init__(self, uris: Sequence[str], way: str = "bearer") -> None:
        self.header = Header()
        middleware = [Keeping(self.header, way)]
        self.clients = [flight.connect(uri, middleware=middleware) for uri in uris]
        list(self.clients[0].do_action(flight.Action("GetSessionOptions", b"")))

    def ingest(self, process: int, table: str, rows: pa.Table = ROW) -> None:
        command = messages.sql("CommandStatementIngest")(table=table)
        command.table_definition_options.if_not_exist = 1
        command.table_definition_options.if_exists = 2
        descriptor = flight.FlightDescriptor.for_command(messages.wrap(command))
        writer, reader = self.clients[process].do_put(descriptor, rows.schema)
        with writer:
            writer.write_table(rows)
            writer.done_writing()
            assert reader.read() is not None

    def stream(self, process: int, table: str, rows: pa.Table = ROW) -> None:
        descriptor = flight.FlightDescriptor.for_path(table)
        writer, reader = self.clients[process].do_put(descriptor, rows.schema)
        with writer:
            writer.write_table(rows)
            writer.done_writing()
            assert reader.read() is not None

    def ask(self, asked: int, fetched: int, sql: str) -> list[dict[str, object]]:
        command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
        descriptor = flight.FlightDescriptor.for_command(command)
        info = self.clients[asked].get_flight_info(descriptor)
        ticket = info.endpoints[0].ticket
        rows: list[dict[str, object]] = self.clients[fetched].do_get(ticket).read_all().to_pylist()
        return rows

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.mark.parametrize("options", [{}, {WITH_COOKIES: "true"}], ids=["plain", "cookies"])
def test_plain_adbc_behind_a_balancer_never_misses_its_own_write(
    pair: Pair, options: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """The connection, and with it the session, is opened anew every few pairs."""
    table = "t_" + request.node.callspec.id
    stale = []
    given = list(pair.balancer.given)
    connection = dbapi.connect(pair.uri, db_kwargs=options, autocommit=True)
    try:
        for number in range(1, PAIRS + 1):
            if number % 10 == 0:
                connection.close()
                connection = dbapi.connect(pair.uri, db_kwargs=options, autocommit=True)
            with connection.cursor() as cursor:
                cursor.adbc_ingest(table, ROW, mode="create_append")
                cursor.execute(f"SELECT count(*), last_visibility_token() FROM {table}")
                if cursor.fetchall()[0][0] != number:
                    stale.append(number)
    finally:
        connection.close()
    assert stale == []
    both = [now - before for now, before in zip(pair.balancer.given, given, strict=True)]
    assert min(both) > 0, "both processes answered"


@pytest.mark.parametrize("way", ["bearer", "cookie"])
def test_a_session_whose_calls_alternate_between_processes_reads_its_writes(
    pair: Pair, way: str
) -> None:
    session = RawSession(pair.uris, way)
    table = f"alternating_{way}"
    stale = []
    for number in range(1, PAIRS + 1):
        session.ingest(number % 2, table)
        ((row,)) = session.ask((number + 1) % 2, number % 2, f"SELECT count(*) AS n FROM {table}")
        if row["n"] != number:
            stale.append(number)
    assert stale == []
    assert session.header.bearer is not None
    assert session.header.bearer.startswith(f"Bearer {TOKEN_PREFIX}")
    assert set(session.header.cookies) == {COOKIE}
    session.close()


@pytest.mark.parametrize("write", [RawSession.ingest, RawSession.stream], ids=["ingest", "stream"])
def test_a_client_that_loses_every_header_of_its_writes_reads_them_all_the_same(
    pair: Pair, write: object
) -> None:
    session = RawSession(pair.uris)
    table = f"lost_{write.__name__}"  # type: ignore[attr-defined]
    session.ingest(0, table, ROW.slice(0, 0))
    session.header.ignored = True
    first = session.header.bearer
    for number in range(1, PAIRS // 2 + 1):
        write(session, number % 2, table)  # type: ignore[operator]
        ((row,)) = session.ask((number + 1) % 2, number % 2, f"SELECT count(*) AS n FROM {table}")
        assert row["n"] == number
    assert session.header.bearer == first, "the client knows no more than at first"
    session.close()


def test_the_last_token_is_told_by_any_process_also_after_a_lost_header(pair: Pair) -> None:
    session = RawSession(pair.uris)
    session.header.ignored = True
    said = "SELECT last_visibility_token() AS one, duckmesh_last_token() AS other"
    for process in range(4):
        session.ingest(process % 2, "told")
        here = session.ask(process % 2, process % 2, said)
        there = session.ask((process + 1) % 2, (process + 1) % 2, said)
        crossed = session.ask(process % 2, (process + 1) % 2, said)
        assert here == there == crossed
        assert here[0]["one"] == here[0]["other"]
        assert isinstance(here[0]["one"], int)
        assert here[0]["one"] > 0
    session.close()


def test_a_token_and_a_cookie_together_are_one_session(pair: Pair) -> None:
    """ADBC with cookies sends both; of the two last tokens the larger counts."""
    options = {WITH_COOKIES: "true"}
    with dbapi.connect(pair.uris[0], db_kwargs=options, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.adbc_ingest("both", ROW, mode="create_append")
        option = "adbc.flight.sql.session.option."
        session_id = connection.adbc_connection.get_option(option + "session_id")
        again = connection.adbc_connection.get_option(option + "session_id")
        assert session_id == again
        assert connection.adbc_connection.get_option_int(option + "last_visibility_token") > 0
