"""The service that all clients speak to, and the table at the end of a run."""

import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from catalog import tenants
from catalog.connection import Catalog
from gateway import tenancy
from gateway.identity import EVERY_ROLE
from tests.clients.results import CLIENTS, Place
from tests.processes import service

TENANT = "acme"


@pytest.fixture(scope="session")
def place(session_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Three serving processes, with a key, in open mode and with TLS, and a coordinator."""
    folder = tmp_path_factory.mktemp("matrix")
    key = new_key(session_database_dsn)
    certificate, private_key = new_certificate(folder)
    tls = {
        "DUCKMESH_FLIGHT_TLS_CERTIFICATE": str(certificate),
        "DUCKMESH_FLIGHT_TLS_KEY": str(private_key),
    }
    with service(session_database_dsn, folder, DUCKMESH_AUTH_OPEN_MODE="false") as running:
        keyed = _port(running.serve()[1])
        in_open_mode = _port(running.serve(DUCKMESH_AUTH_OPEN_MODE="true")[1])
        with_tls = _port(running.serve(**tls)[1])
        running.coordinate("matrix")
        yield Place("127.0.0.1", keyed, in_open_mode, with_tls, str(certificate), key)


def _port(uri: str) -> int:
    return int(uri.rpartition(":")[2])


def new_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for 127.0.0.1, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "duckmesh-test")])
    names = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def new_key(dsn: str) -> str:
    """The secret of a new API key with every role."""
    catalog = Catalog(dsn, pool_max=2)
    try:
        with catalog.connect() as connection:
            tenants.ensure_tenant(connection, TENANT, created_by="test")
        name = f"matrix-{secrets.token_hex(4)}"
        return tenancy.create_key(catalog, TENANT, name=name, roles=sorted(EVERY_ROLE))[1]
    finally:
        catalog.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix: one row for each client that had a case in this run."""
    outcomes: dict[str, Counter[str]] = {}
    versions: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            told = dict(report.user_properties)
            if (name := told.get("client")) is None:
                continue
            outcomes.setdefault(name, Counter())[outcome] += 1
            versions[name] = told.get("version", "?")
            if "not_run" in told:
                reasons[name] = told["not_run"]
    if not outcomes:
        return
    write = terminalreporter.write_line
    terminalreporter.section("client matrix")
    write(f"{'client':<24} {'version':<12} {'passed':>6} {'failed':>6} {'not run':>7}  why not")
    for client in CLIENTS:
        if (count := outcomes.get(client.name)) is None:
            continue
        missing = len(client.cases()) if client.name in reasons else count["skipped"]
        failed = 0 if client.name in reasons else count["failed"] + count["error"]
        write(
            f"{client.name:<24} {versions[client.name]:<12} {count['passed']:>6} {failed:>6} "
            f"{missing:>7}  {reasons.get(client.name, '')[:120]}"
        )
