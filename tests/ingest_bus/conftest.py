"""The Postgres bus in its world, for what only that bus can promise."""

import contextlib
from collections.abc import Iterator

import pytest

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
