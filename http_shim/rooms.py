"""What the routes reach: the use cases behind the door, and the door's own limits."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fastapi import Request

from catalog.connection import Catalog
from coordinator.maintenance import Maintenance
from gateway.api_keys import ApiKeys
from gateway.credentials import Authenticator
from gateway.dead_letters import DeadLetters
from gateway.history import History
from gateway.pins import SnapshotPins
from gateway.readiness import Readiness
from gateway.reads import Reads
from gateway.restores import Restores
from gateway.sql_writes import SqlWrites
from gateway.tables import TableAdministration
from gateway.tenant_quotas import TenantQuotas
from gateway.writes import Writes
from http_shim.calls import RequestsInFlight

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How large, how many and how slow requests may be."""

    requests_max: int = 256
    body_max_bytes: int = 4 * 2**30
    json_max_bytes: int = 32 * MIB
    records_max: int = 10_000
    spool: Path | None = None
    """Where a file that is read in no order is kept meanwhile; the system's directory when None."""
    idle: timedelta = timedelta(seconds=30)
    """How long a sender may pause inside a body, and a reader before it takes the next bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRooms:
    """The rooms of one serving process, as its HTTP door uses them."""

    reads: Reads
    writes: Writes
    sql_writes: SqlWrites
    authenticator: Authenticator
    tables: TableAdministration
    history: History
    api_keys: ApiKeys
    dead_letters: DeadLetters
    pins: SnapshotPins
    restores: Restores
    maintenance: Maintenance
    catalog: Catalog
    readiness: Readiness
    quotas: TenantQuotas


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Everything a route needs, beside its request."""

    rooms: HttpRooms
    limits: HttpLimits
    calls: RequestsInFlight


def door_of(request: Request) -> Door:
    """The door that a request came through."""
    door = request.app.state.door
    assert isinstance(door, Door)  # noqa: S101 - the application is built with it
    return door
