"""Who is let in, and for how long, by real processes and at both doors."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import httpx
import pyarrow as pa
import pytest
from pyarrow import flight

from catalog.connection import Catalog
from flight_server import messages
from gateway import tenancy
from tests.identity_provider import AUDIENCE, ISSUER, Provider, identity_provider
from tests.processes import Service, service, until

AUTHORIZATION = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
STATUS = adbc_driver_manager.AdbcStatusCode


@pytest.fixture
def provider() -> Iterator[Provider]:
    with identity_provider() as started:
        yield started


@pytest.fixture
def closed_service(database_dsn: str, tmp_path: Path, provider: Provider) -> Iterator[Service]:
    """Serving processes that believe the provider, and let nobody in without a credential."""
    with Catalog(database_dsn) as catalog:
        tenancy.ensure_tenant(catalog, "acme", principal="test")
    settings = {
        "DUCKMESH_AUTH_OPEN_MODE": "false",
        "DUCKMESH_AUTH_JWT_ISSUER": ISSUER,
        "DUCKMESH_AUTH_JWT_AUDIENCE": AUDIENCE,
        "DUCKMESH_AUTH_JWKS_URL": provider.url,
        "DUCKMESH_AUTH_JWT_LEEWAY_SECONDS": "0",
        "DUCKMESH_QUERY_WORKERS": "0",
    }
    with service(database_dsn, tmp_path, **settings) as running:
        yield running


def ask_http(client: httpx.Client, credential: str, sql: str = "SELECT 1") -> httpx.Response:
    headers = {"authorization": f"Bearer {credential}"}
    return client.post("/v1/query", json={"sql": sql}, headers=headers)


def connect(uri: str, **options: str) -> adbc_driver_flightsql.dbapi.Connection:
    return adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=options, autocommit=True)


def asked(connection: adbc_driver_flightsql.dbapi.Connection, sql: str = "SELECT 1") -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return int(cursor.fetchone()[0])


def test_a_providers_token_opens_both_doors_until_it_ends(
    closed_service: Service, provider: Provider
) -> None:
    _, uri = closed_service.serve()
    reader, writer = provider.token(), provider.token(roles=["ingest_writer", "table_admin"])
    with httpx.Client(base_url=closed_service.http_of(uri), timeout=30) as http:
        assert ask_http(http, reader).status_code == 200
        assert ask_http(http, provider.token(tenant="nobody")).status_code == 401
        assert ask_http(http, provider.token(aud="another")).status_code == 401
        assert ask_http(http, writer).status_code == 403
        # A program that knows no header but the password's is let in as well.
        assert http.post("/v1/query", json={"sql": "SELECT 1"}, auth=("x", reader)).is_success

        with connect(uri, username="x", password=reader) as connection:
            assert asked(connection) == 1
        with connect(uri, **{AUTHORIZATION: f"Bearer {writer}"}) as connection:
            with connection.cursor() as cursor:
                cursor.adbc_ingest("t", pa.table({"v": [1]}), mode="create_append")
            with pytest.raises(adbc_driver_manager.Error) as refused:
                asked(connection)
            assert refused.value.status_code is STATUS.UNAUTHORIZED

        ends = int(time.time()) + 6
        short = provider.token(exp=ends)
        with connect(uri, **{AUTHORIZATION: f"Bearer {short}"}) as connection:
            assert asked(connection) == 1
            assert ask_http(http, short).status_code == 200
            # The session's own token has a day to go; what it began with has not.
            until(lambda: time.time() >= ends + 1)
            with pytest.raises(adbc_driver_manager.Error) as ended:
                asked(connection)
            assert ended.value.status_code is STATUS.UNAUTHENTICATED
        assert ask_http(http, short).status_code == 401


# --- keys that are revoked -----------------------------------------------------------------------

_LATE_SECONDS = 1.0
"""What begins later than this after the revocation is refused."""


@dataclass
class Caller:
    """A loop of calls, and when the last of those began that were let in."""

    call: Callable[[], None]
    last_begun: float = 0.0
    admitted: int = 0
    refusal: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, give_up: threading.Event) -> None:
        try:
            while not give_up.is_set():
                begun = time.monotonic()
                self.call()
                self.last_begun = begun
                self.admitted += 1
        except (adbc_driver_manager.Error, flight.FlightError, pa.ArrowException) as refused:
            self.refusal = f"{type(refused).__name__}: {refused}"
        except httpx.HTTPStatusError as refused:
            self.refusal = refused.response.text
        finally:
            self.ended.set()


def _query(sql: str) -> flight.FlightDescriptor:
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    return flight.FlightDescriptor.for_command(command)


@contextmanager
def callers_of(uri: str, http_uri: str, secret: str) -> Iterator[list[Caller]]:
    """A caller of each kind at one serving process, all with the same key."""
    authorization = [(b"authorization", f"Bearer {secret}".encode())]
    options = flight.FlightCallOptions(headers=authorization, timeout=60)
    with ExitStack() as opened:
        http = opened.enter_context(httpx.Client(base_url=http_uri, timeout=60))
        client = opened.enter_context(flight.connect(uri))
        info = client.get_flight_info(_query("SELECT range AS v FROM range(4000000000)"), options)
        rows = client.do_get(info.endpoints[0].ticket, options)
        batch = pa.record_batch({"v": pa.array([1], pa.int64())})
        writer, receipts = client.do_put(
            flight.FlightDescriptor.for_path("t"), batch.schema, options
        )

        def write_on() -> None:
            writer.write_batch(batch)
            if receipts.read() is None:
                writer.close()  # Raises what ended the stream.
                raise AssertionError("the stream ended without an error")

        def ask_over_http() -> None:
            ask_http(http, secret).raise_for_status()

        yield [
            Caller(lambda: client.get_flight_info(_query("SELECT 1"), options)),
            Caller(ask_over_http),
            Caller(rows.read_chunk),
            Caller(write_on),
        ]


def test_keys_revoked_under_load_stop_working_within_1_s_on_two_serving_processes(
    closed_service: Service, database_dsn: str
) -> None:
    uris = [closed_service.serve()[1] for _ in range(2)]
    give_up = threading.Event()
    with Catalog(database_dsn) as catalog, ExitStack() as opened:
        roles = ["query_reader", "ingest_writer", "table_admin"]
        key_id, secret = tenancy.create_key(catalog, "acme", name="lost", roles=roles)
        _, kept = tenancy.create_key(catalog, "acme", name="kept", roles=roles)
        with (
            connect(uris[0], **{AUTHORIZATION: f"Bearer {secret}"}) as maker,
            maker.cursor() as cursor,
        ):
            cursor.adbc_ingest("t", pa.table({"v": [1]}), mode="create")
        callers = [
            caller
            for uri in uris
            for caller in opened.enter_context(callers_of(uri, closed_service.http_of(uri), secret))
        ]
        threads = [
            threading.Thread(target=caller.run, args=(give_up,), daemon=True) for caller in callers
        ]
        for thread in threads:
            thread.start()
        until(lambda: all(caller.admitted >= 3 or caller.ended.is_set() for caller in callers))
        assert [caller.refusal for caller in callers] == [""] * len(callers)

        tenancy.revoke_key(catalog, "acme", key_id)
        revoked = time.monotonic()
        try:
            until(lambda: all(caller.ended.is_set() for caller in callers))
        finally:
            give_up.set()
        for caller in callers:
            assert "UNAUTHORIZED" in caller.refusal
            assert caller.last_begun - revoked < _LATE_SECONDS
        for uri in uris:
            with connect(uri, **{AUTHORIZATION: f"Bearer {kept}"}) as connection:
                assert asked(connection) == 1
        for thread in threads:
            thread.join(30)
