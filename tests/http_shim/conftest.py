"""An HTTP door over the rooms of one process, and a client of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta

import httpx
import pytest

from duckmesh.quotas import NO_QUOTAS
from gateway.api_keys import ApiKeys
from gateway.dead_letters import DeadLetters
from gateway.history import History
from gateway.pins import SnapshotPins
from gateway.readiness import Readiness
from gateway.restores import Restores
from gateway.tables import TableAdministration
from gateway.tenancy import Tenancy
from gateway.tenant_quotas import TenantQuotas
from http_shim.door import HttpDoor, HttpOptions
from http_shim.rooms import HttpLimits, HttpRooms
from tests.publisher import publishing
from tests.rooms import Rooms

OpenHttp = Callable[..., HttpDoor]


@pytest.fixture
def open_http(rooms: Rooms) -> Iterator[OpenHttp]:
    """A function that opens a door over the rooms; every door is drained and closed in the end."""
    with ExitStack() as doors:

        def start(*, open_tenant: str | None = "acme", **limits: object) -> HttpDoor:
            reached = HttpRooms(
                reads=rooms.reads,
                writes=rooms.writes,
                sql_writes=rooms.sql_writes,
                authenticator=Tenancy(rooms.catalog, open_tenant=open_tenant),
                tables=TableAdministration(rooms.reads, rooms.writes, rooms.sql_writes),
                history=History(rooms.catalog, rooms.bus),
                api_keys=ApiKeys(rooms.catalog),
                dead_letters=DeadLetters(rooms.catalog, rooms.bus),
                pins=SnapshotPins(rooms.catalog),
                restores=Restores(rooms.catalog, rooms.bus, rooms.visibility),
                maintenance=rooms.maintenance(),
                catalog=rooms.catalog,
                readiness=Readiness(rooms.catalog, rooms.store),
                quotas=TenantQuotas(rooms.catalog, rooms.bus, NO_QUOTAS),
            )
            door = HttpDoor(HttpOptions(), reached, HttpLimits(**limits))
            doors.callback(door.close)
            doors.callback(_drained, door)
            return door

        yield start


def _drained(door: HttpDoor) -> None:
    assert door.drain(timedelta(seconds=5)), "a request did not end"


@pytest.fixture
def http(open_http: OpenHttp) -> Iterator[httpx.Client]:
    """A client of an open door, whose tenant is acme."""
    with httpx.Client(base_url=open_http().uri, timeout=30) as client:
        yield client


@pytest.fixture
def coordinator(rooms: Rooms) -> Iterator[None]:
    """Publishes what is accepted, for the length of the test."""
    with publishing(rooms):
        yield
