"""The Postgres bus in its world, for what only that bus can promise."""

import contextlib
from collections.abc import Iterator

import pytest

from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from duckmesh.identifiers import TenantId
from ingest_bus.port import IngestBus
from tests.bus_worlds import PostgresWorld
from tests.ingest_bus.watched_house import House


@pytest.fixture
def world(database_dsn: str) -> Iterator[PostgresWorld]:
    opened = PostgresWorld(database_dsn)
    yield opened
    opened.close()


@pytest.fixture
def bus(world: PostgresWorld) -> IngestBus:
    return world.bus


@pytest.fixture
def acme(world: PostgresWorld) -> TenantId:
    return world.tenant("acme")


@pytest.fixture
def house(database_dsn: str) -> Iterator[House]:
    with contextlib.closing(House(database_dsn)) as opened:
        yield opened


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A Postgres of this module's own, with its disk's safety on: it is killed."""
    data_dir = tmp_path_factory.mktemp("killed") / "data"
    with EmbeddedPostgres(data_dir, settings={"shared_buffers": "32MB"}) as started:
        migrate_up(started.dsn)
        yield started
