"""TLS and mutual TLS, with certificates made for the test."""

import shutil
import subprocess

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pytest

from flight_server.server import Tls

OPTIONS = adbc_driver_flightsql.DatabaseOptions

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes keys with openssl")


@pytest.fixture(scope="module")
def identity_files(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=duckmesh-test"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate.read_text(), key.read_text()


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
    certificate, key = identity_files
    door = open_door(tls=Tls(certificate=certificate.encode(), key=key.encode()))
    assert ask(door.port, **{OPTIONS.TLS_ROOT_CERTS.value: certificate}) == [(1,)]
    with pytest.raises(adbc_driver_manager.Error):
        ask(door.port)


def test_mutual_tls_asks_the_client_for_its_certificate(open_door, identity_files):
    certificate, key = identity_files
    tls = Tls(certificate=certificate.encode(), key=key.encode(), client_ca=certificate.encode())
    door = open_door(tls=tls)
    trusting = {OPTIONS.TLS_ROOT_CERTS.value: certificate}
    mine = {OPTIONS.MTLS_CERT_CHAIN.value: certificate, OPTIONS.MTLS_PRIVATE_KEY.value: key}
    assert ask(door.port, **trusting, **mine) == [(1,)]
    with pytest.raises(adbc_driver_manager.Error):
        ask(door.port, **trusting)
