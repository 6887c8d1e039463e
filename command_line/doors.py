"""The doors of a serving process: opened together, drained together, closed together."""

import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from catalog.connection import Catalog
from command_line.maintaining import new_maintenance
from command_line.quota_defaults import quota_defaults
from duckmesh.settings import FlightSettings, HttpSettings, Settings
from flight_server.server import FlightDoor
from gateway.api_keys import ApiKeys
from gateway.audit_buffer import AuditBuffer
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
from gateway.visibility import Visibility
from gateway.writes import Writes
from http_shim.door import HttpDoor, HttpOptions, HttpTls
from http_shim.rooms import HttpLimits, HttpRooms
from ingest_bus.port import IngestBus
from object_store.port import ObjectStore

_LAST_PORT = 65_535
AUDIT_PATIENCE: Final = timedelta(seconds=2)
"""How long the end of a process waits for the catalog to take the last rows of the audit."""


@dataclass(frozen=True, slots=True)
class Doors:
    """What a serving process listens with. `drain`, then `close`, end them."""

    flight: FlightDoor
    http: HttpDoor | None
    audit: AuditBuffer

    @property
    def calls_in_flight(self) -> int:
        return self.flight.calls_in_flight + (self.http.calls_in_flight if self.http else 0)

    def drain(self, grace: timedelta) -> bool:
        """Drain all doors at once, then write what the audit has gathered.

        Whether every call has ended, after at most twice `grace` and the audit's patience.
        """
        ended: list[bool] = []
        http = self.http
        other = threading.Thread(
            target=lambda: ended.append(http is None or http.drain(grace)), name="drain-http"
        )
        other.start()
        flight_ended = self.flight.drain(grace)
        other.join()
        self.audit.close(AUDIT_PATIENCE)
        return flight_ended and ended == [True]

    def close(self) -> None:
        """Stop listening. Blocks until the last call has ended: `drain` first."""
        if self.http is not None:
            self.http.close()
        self.flight.close()


def open_http_door(
    settings: Settings,
    *,
    catalog: Catalog,
    bus: IngestBus,
    store: ObjectStore,
    visibility: Visibility,
    reads: Reads,
    writes: Writes,
    sql_writes: SqlWrites,
    authenticator: Authenticator,
    spool: Path,
) -> HttpDoor | None:
    """The HTTP door that the settings ask for; None when they turn it off.

    Raises Conflict when the port is taken, Invalid for a wrong host or certificate.
    """
    group = settings.http
    if not group.enabled:
        return None
    rooms = HttpRooms(
        reads=reads,
        writes=writes,
        sql_writes=sql_writes,
        authenticator=authenticator,
        tables=TableAdministration(reads, writes, sql_writes),
        history=History(catalog, bus),
        api_keys=ApiKeys(catalog),
        dead_letters=DeadLetters(catalog, bus),
        pins=SnapshotPins(catalog),
        restores=Restores(catalog, bus, visibility),
        maintenance=new_maintenance(settings, catalog, bus),
        catalog=catalog,
        readiness=Readiness(catalog, store),
        quotas=TenantQuotas(catalog, bus, quota_defaults(settings)),
    )
    limits = HttpLimits(
        requests_max=group.max_requests,
        body_max_bytes=group.max_body_bytes,
        json_max_bytes=group.max_json_bytes,
        records_max=group.max_records,
        spool=spool,
        idle=group.idle_timeout,
    )
    options = HttpOptions(host=group.host, port=http_port(settings), tls=_tls(group))
    return HttpDoor(options, rooms, limits)


def http_port(settings: Settings) -> int:
    """The port that the settings give the HTTP door; 0 takes a free one."""
    if settings.http.port is not None:
        return settings.http.port
    beside = settings.flight.port
    return beside + 1 if 0 < beside < _LAST_PORT else 0


def flight_uri(group: FlightSettings, port: int) -> str:
    """The Flight door's address as clients name it."""
    scheme = "grpc" if group.tls_certificate is None else "grpc+tls"
    host = f"[{group.host}]" if ":" in group.host else group.host
    return f"{scheme}://{host}:{port}"


def _tls(group: HttpSettings) -> HttpTls | None:
    if group.tls_certificate is None or group.tls_key is None:
        return None
    return HttpTls(certificate=group.tls_certificate, key=group.tls_key, client_ca=group.client_ca)
