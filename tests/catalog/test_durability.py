"""Whether what was acknowledged stays, though Postgres was told not to wait for its disk."""

import os
import signal
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from catalog import tenants
from catalog.connection import Catalog
from catalog.durability import waits_for_its_disk
from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from duckmesh.errors import Unavailable
from ingest_bus.postgres import PostgresIngestBus
from tests.bus_worlds import until, write


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, which forgets what it committed within the last seconds."""
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s", "shared_buffers": "32MB"}
    data_dir = tmp_path_factory.mktemp("careless") / "data"
    with EmbeddedPostgres(data_dir, settings=settings) as started:
        migrate_up(started.dsn)
        yield started


def test_what_was_acknowledged_survives_though_the_server_does_not_wait_for_its_disk(
    careless: EmbeddedPostgres,
) -> None:
    with Catalog(careless.dsn) as catalog:
        with catalog.connect() as connection:
            acme = tenants.ensure_tenant(connection, "acme", created_by="test").tenant_id
        bus = PostgresIngestBus(catalog)
        token = bus.publish([write(acme)])[0].visibility_token
        os.kill(careless.pid, signal.SIGKILL)
        until(lambda: not careless.running)
        bus.close()
    careless.restart()
    with Catalog(careless.dsn) as catalog:
        bus = PostgresIngestBus(catalog)
        assert bus.last_token(acme) == token
        bus.close()


@pytest.mark.parametrize(
    ("told", "used"),
    [
        ("off", "on"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
        ("local", "local"),
    ],
)
def test_a_commit_waits_for_the_disk_and_for_what_it_was_told_besides(
    database_dsn: str, told: str, used: str
) -> None:
    name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(database_dsn)["dbname"])
    statement = sql.SQL("ALTER DATABASE {} SET synchronous_commit = {}")
    with psycopg.connect(database_dsn, autocommit=True) as owner:
        owner.execute(statement.format(name, sql.SQL(told)))
    with Catalog(database_dsn) as catalog, catalog.connect() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == (used,)


def test_a_server_says_that_it_waits_for_its_disk(careless: EmbeddedPostgres) -> None:
    assert waits_for_its_disk(careless.dsn), "tests/command_line/test_readiness.py has another"


def test_a_server_that_is_not_there_is_unavailable(database_dsn: str) -> None:
    with pytest.raises(Unavailable):
        waits_for_its_disk(psycopg.conninfo.make_conninfo(database_dsn, host="/nonexistent"))
