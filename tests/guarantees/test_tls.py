"""TLS and mutual TLS of a real process, by the settings, with an authority made for the test."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions, dbapi
from adbc_driver_manager import Error
from pyarrow import flight

from tests.certificates import Authority, Pair
from tests.processes import Service, service, until

ROOTS, CHAIN, KEY = (
    DatabaseOptions.TLS_ROOT_CERTS.value,
    DatabaseOptions.MTLS_CERT_CHAIN.value,
    DatabaseOptions.MTLS_PRIVATE_KEY.value,
)
TIMEOUTS = [
    f"adbc.flight.sql.rpc.timeout_seconds.{what}" for what in ("connect", "query", "update")
]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(database_dsn, tmp_path) as started:
        yield started


def serve(
    running: Service, folder: Path, authority: Authority, *, client_ca: str | None = None
) -> str:
    """The address of a serving process with a certificate of the authority."""
    mine = authority.issue("server")
    settings = {"TLS_CERTIFICATE": mine.certificate, "TLS_KEY": mine.key}
    if client_ca is not None:
        settings["CLIENT_CA"] = client_ca
    named = {}
    for name, content in settings.items():
        path = folder / f"{name.lower()}.pem"
        path.write_text(content)
        named[f"DUCKMESH_FLIGHT_{name}"] = str(path)
    _, uri = running.serve_unawaited(**named)
    uri = uri.replace("grpc://", "grpc+tls://")
    client = authority.issue("probe")

    def answers() -> bool:
        secret = {"cert_chain": client.certificate, "private_key": client.key}
        try:
            with flight.connect(uri, tls_root_certs=authority.certificate, **secret) as probe:
                return bool(list(probe.list_actions()))
        except (flight.FlightError, pa.ArrowException, OSError):
            return False

    until(answers)
    return uri


def refused(uri: str, roots: str | None, client: Pair | None = None) -> bool:
    try:
        ask(uri, roots, client, seconds=1.5)
    except Error:
        return True
    return False


def ask(
    uri: str, roots: str | None, client: Pair | None = None, *, seconds: float = 30
) -> list[tuple[object, ...]]:
    options = {name: str(seconds) for name in TIMEOUTS}
    if roots is not None:
        options[ROOTS] = roots
    if client is not None:
        options |= {CHAIN: client.certificate, KEY: client.key}
    with (
        dbapi.connect(uri, db_kwargs=options, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")
        rows: list[tuple[object, ...]] = cursor.fetchall()
        return rows


def test_a_client_that_trusts_the_authority_is_served_and_no_other(
    running: Service, tmp_path: Path, authority: Authority
) -> None:
    uri = serve(running, tmp_path, authority)
    assert ask(uri, authority.certificate) == [(1,)]
    for roots in (None, Authority("another").certificate):
        assert refused(uri, roots)
    assert refused(uri.replace("grpc+tls", "grpc"), None)


def test_mutual_tls_serves_only_certificates_of_the_client_authority(
    running: Service, tmp_path: Path, authority: Authority
) -> None:
    uri = serve(running, tmp_path, authority, client_ca=authority.certificate)
    assert ask(uri, authority.certificate, authority.issue("ada")) == [(1,)]
    strangers = (
        None,
        Authority().issue("ada"),
        authority.issue("ada", age=timedelta(days=30)),
    )
    for stranger in strangers:
        assert refused(uri, authority.certificate, stranger)
