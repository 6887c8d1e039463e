"""The Postgres bus in its world, for what only that bus can promise."""

from collections.abc import Iterator

import pytest

from duckmesh.identifiers import TenantId
from ingest_bus.port import IngestBus
from tests.bus_worlds import PostgresWorld


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
