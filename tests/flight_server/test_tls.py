"""TLS and mutual TLS, with certificates made for the test."""

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pytest

from flight_server.server import Tls
from tests.certificates import Authority

OPTIONS = adbc_driver_flightsql.DatabaseOptions


@pytest.fixture(scope="module")
def identity_files():
    """The certificate of an authority, and a certificate for 127.0.0.1 with its key."""
    authority = Authority()
    pair = authority.issue("duckmesh-test")
    return authority.certificate, pair.certificate, pair.key


def ask(port, **options):
    with (
        adbc_driver_flightsql.dbapi.connect(
            f"grpc+tls://127.0.0.1:{port}", db_kwargs=options, autocommit=True
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")
        return cursor.fetchall()


def test_a_client_that_trusts_the_certificate_is_served(open_door, identity_files):
    authority, certificate, key = identity_files
    door = open_door(tls=Tls(certificate=certificate.encode(), key=key.encode()))
    assert ask(door.port, **{OPTIONS.TLS_ROOT_CERTS.value: authority}) == [(1,)]
    with pytest.raises(adbc_driver_manager.Error):
        ask(door.port)


def test_mutual_tls_asks_the_client_for_its_certificate(open_door, identity_files):
    authority, certificate, key = identity_files
    tls = Tls(certificate=certificate.encode(), key=key.encode(), client_ca=authority.encode())
    door = open_door(tls=tls)
    trusting = {OPTIONS.TLS_ROOT_CERTS.value: authority}
    mine = {OPTIONS.MTLS_CERT_CHAIN.value: certificate, OPTIONS.MTLS_PRIVATE_KEY.value: key}
    assert ask(door.port, **trusting, **mine) == [(1,)]
    with pytest.raises(adbc_driver_manager.Error):
        ask(door.port, **trusting)
