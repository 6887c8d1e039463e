"""The service that all clients speak to, and the table at the end of a run."""

import secrets
from collections import Counter
from collections.abc import Iterator

import pytest

from catalog import tenants
from catalog.connection import Catalog
from gateway import tenancy
from gateway.identity import EVERY_ROLE
from tests.certificates import Authority
from tests.clients.results import CLIENTS, Place
from tests.processes import service

TENANT = "acme"
SETTINGS = {
    "DUCKMESH_AUTH_OPEN_MODE": "false",
    # What clients do is judged here, and not how fast a shared machine is.
    "DUCKMESH_QUERY_CONSISTENCY_TIMEOUT_MS": "30000",
    "DUCKMESH_QUERY_MAX_CONSISTENCY_TIMEOUT_MS": "60000",
}


@pytest.fixture(scope="session")
def place(session_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Three serving processes, with a key, in open mode and with TLS, and a coordinator."""
    folder = tmp_path_factory.mktemp("matrix")
    key = new_key(session_database_dsn)
    authority = Authority()
    pair = authority.issue("duckmesh-test")
    files = {"trusted": authority.certificate, "certificate": pair.certificate, "key": pair.key}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="ascii")
    tls = {
        "DUCKMESH_FLIGHT_TLS_CERTIFICATE": str(folder / "certificate"),
        "DUCKMESH_FLIGHT_TLS_KEY": str(folder / "key"),
    }
    with service(session_database_dsn, folder, **SETTINGS) as running:
        keyed = _port(running.serve()[1])
        in_open_mode = _port(running.serve(DUCKMESH_AUTH_OPEN_MODE="true")[1])
        with_tls = _port(running.serve(**tls)[1])
        running.coordinate("matrix")
        yield Place("127.0.0.1", keyed, in_open_mode, with_tls, str(folder / "trusted"), key)


def _port(uri: str) -> int:
    return int(uri.rpartition(":")[2])


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
    for outcome in ("passed", "failed", "skipped", "xfailed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            told = dict(report.user_properties)
            if (name := told.get("client")) is None:
                continue
            outcomes.setdefault(name, Counter())[outcome] += 1
            if "version" in told:
                versions[name] = told["version"]
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
        # A client that cannot be installed fails, or is skipped: none of its cases ran.
        installed = client.name in versions
        missing = count["skipped"] + count["xfailed"] if installed else sum(count.values())
        failed = count["failed"] + count["error"] if installed else 0
        version, reason = versions.get(client.name, "?"), reasons.get(client.name, "")[:120]
        write(
            f"{client.name:<24} {version:<12} {count['passed']:>6} {failed:>6} {missing:>7}  "
            f"{reason}"
        )
