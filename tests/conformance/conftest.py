"""The worlds in which every bus is held to the port's promises."""

from collections.abc import Iterator

import pytest

from duckmesh.identifiers import TenantId
from ingest_bus.port import IngestBus
from tests.bus_worlds import MemoryWorld, PostgresWorld, World


@pytest.fixture(params=["memory", "postgres"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "memory":
        opened: World = MemoryWorld()
    else:
        opened = PostgresWorld(request.getfixturevalue("database_dsn"))
    yield opened
    opened.close()


@pytest.fixture
def bus(world: World) -> IngestBus:
    return world.bus


@pytest.fixture
def acme(world: World) -> TenantId:
    return world.tenant("acme")
