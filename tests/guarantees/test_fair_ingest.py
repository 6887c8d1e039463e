"""One tenant's flood of writes does not stand before another's single ones."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import adbc_driver_flightsql.dbapi as flightsql

from catalog.connection import Catalog
from gateway import tenancy
from tests.processes import service

FLOOD = Path(__file__).with_name("flood.py")


def test_a_flood_of_one_tenant_leaves_anothers_writes_their_turn(
    database_dsn: str, tmp_path: Path
) -> None:
    """32 clients share their tenant's commits; the other tenant's client waits for none of them."""
    with (
        Catalog(database_dsn) as catalog,
        service(database_dsn, tmp_path, DUCKMESH_AUTH_OPEN_MODE="false") as running,
    ):
        _, uri = running.serve(DUCKMESH_QUERY_WORKERS="0")
        running.coordinate("c1")
        secrets = {name: _new_tenant(catalog, uri, name) for name in ("loud", "quiet")}
        loud = _writing(uri, secrets["loud"], clients=32, seconds=10)
        quiet = _writing(uri, secrets["quiet"], clients=1, seconds=6)
        crowd, single = _took(loud), _took(quiet)
    assert len(crowd) > 100
    assert len(single) > 20
    # In one queue with the 32 it would wait as long as each of them.
    assert statistics.median(single) < statistics.median(crowd)


def _new_tenant(catalog: Catalog, uri: str, name: str) -> str:
    tenancy.ensure_tenant(catalog, name, principal="test")
    _, secret = tenancy.create_key(
        catalog, name, name="writer", roles=["ingest_writer", "table_admin"]
    )
    shown = {"username": "x", "password": secret}
    with (
        flightsql.connect(uri, db_kwargs=shown, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE t (v BIGINT)")
    return secret


def _writing(uri: str, secret: str, *, clients: int, seconds: float) -> "subprocess.Popen[str]":
    arguments = [sys.executable, str(FLOOD), uri, secret, str(clients), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _took(writing: "subprocess.Popen[str]") -> list[float]:
    said, _ = writing.communicate(timeout=120)
    assert writing.returncode == 0
    found: list[float] = json.loads(said)
    return found
