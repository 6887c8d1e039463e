"""Maintenance in real processes: killed in the middle, two at once, beside writers and readers."""

import signal
from pathlib import Path

import pyarrow as pa
import pytest

from catalog import tables, tenants
from catalog.connection import Catalog
from catalog.table_schema import TableSchema
from tests.processes import PlainClient, ProductProcess, Service, service, until
from tests.rooms import rows

EAGER = {
    "DUCKMESH_MAINTENANCE_COMPACTION_INTERVAL_SECONDS": "0.05",
    "DUCKMESH_MAINTENANCE_COMPACTION_REST_SECONDS": "0",
    "DUCKMESH_MAINTENANCE_COMPACTION_MIN_FILES": "2",
    "DUCKMESH_COORDINATOR_INLINE_FILE_MAX_BYTES": "0",
    "DUCKMESH_COORDINATOR_LEASE_SECONDS": "2",
}


def _count(client: PlainClient, sql: str) -> int:
    return int(client.query(sql)["n"][0].as_py())


def _compactions(client: PlainClient) -> int:
    sql = "SELECT count(*) AS n FROM duckmesh_system.snapshots WHERE operation = 'compact'"
    return _count(client, sql)


def _write(client: PlainClient, first: int, count: int) -> int:
    """Writes of which every fourth is awaited: each of these leaves a file."""
    token = 0
    for number in range(first, first + count):
        batch = rows(number, number).to_batches()[0]
        token = client.put("t", batch, key=f"k{number}")["visibility_token"]
        if number % 4 == 0:
            client.query("SELECT count(*) FROM t", token=token)
    return token


@pytest.fixture
def running(database_dsn: str, tmp_path: Path):
    with Catalog(database_dsn) as catalog, catalog.connect() as connection:
        tenant = tenants.ensure_tenant(connection, "acme", created_by="test")
        schema = TableSchema.first(rows(1).schema)
        tables.create_table(
            connection, tenant.tenant_id, "t", schema, creation_key=None, created_by="test"
        )
    with service(database_dsn, tmp_path, **EAGER) as running:
        yield running


def maintainer(running: Service, name: str) -> ProductProcess:
    return running._start(["maintain"], DUCKMESH_COORDINATOR_CONSUMER_ID=name)


def test_compactors_killed_in_the_middle_lose_and_double_nothing(running: Service) -> None:
    _, uri = running.serve()
    running.coordinate("c1", DUCKMESH_MAINTENANCE_IN_COORDINATOR="false")
    client = PlainClient(uri)
    _write(client, 0, 8)
    survivor = maintainer(running, "m0")
    for attempt in range(2):
        victim = maintainer(running, f"m{attempt + 1}")
        before = _compactions(client)
        token = _write(client, 8 + attempt * 16, 16)
        until(lambda seen=before: _compactions(client) > seen)  # type: ignore[misc]
        victim.send(signal.SIGKILL)
    expected = 40
    found = client.query("SELECT count(*) AS n, count(DISTINCT v) AS d FROM t", token=token)
    assert found.to_pylist() == [{"n": 2 * expected, "d": expected}]
    assert survivor.stop() == 0
    client.close()


def test_readers_of_an_older_snapshot_read_the_same_beside_compactors(running: Service) -> None:
    _, uri = running.serve()
    running.coordinate("c1")
    running.coordinate("c2")
    client = PlainClient(uri)
    token = _write(client, 0, 10)
    first = _answer(client, token)
    for start in range(10, 30, 10):
        token = _write(client, start, 10)
        found = client.query("SELECT count(*) AS n FROM t", token=token)
        assert found["n"].to_pylist() == [2 * (start + 10)]
    until(lambda: _compactions(client) > 0)
    again = client.query(f"SELECT v FROM t AT (VERSION => {first[0]}) ORDER BY v")
    assert again["v"].to_pylist() == first[1]
    client.close()


def _answer(client: PlainClient, token: int) -> tuple[int, list[int]]:
    """The newest snapshot that has the token, and its values."""
    found = client.query("SELECT max(snapshot_id) AS n FROM duckmesh_system.snapshots", token=token)
    snapshot_id = int(found["n"][0].as_py())
    rows_then: pa.Table = client.query(
        f"SELECT v FROM t AT (VERSION => {snapshot_id}) ORDER BY v", token=token
    )
    return snapshot_id, [int(v) for v in rows_then["v"].to_pylist()]
