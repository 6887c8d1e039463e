"""`duckmesh lag`: how far what is visible is behind what is accepted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import click

from catalog import snapshots
from catalog.connection import Catalog
from catalog.tenants import Tenant, find_tenant, list_tenants
from command_line.catalog_access import open_bus, open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from command_line.stopping import stop_requests
from ingest_bus.port import IngestBus


@dataclass(frozen=True, slots=True)
class Lag:
    """One tenant's distance between accepted and visible."""

    tenant: str
    last_token: int
    watermark: int
    pending_writes: int
    pending_bytes: int
    oldest_pending_seconds: float | None


@click.command()
@click.option("--tenant", help="This tenant alone.")
@click.option(
    "--watch",
    "watch_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    help="Show it again every so often, until Ctrl-C.",
)
@as_json
@click.pass_obj
def lag(
    invocation: Invocation, tenant: str | None, watch_seconds: float | None, as_json: bool
) -> None:
    """Show each tenant's last token, its watermark, and what waits between them."""
    with open_catalog(invocation.tool_settings()) as catalog, stop_requests() as stop:
        bus = open_bus(catalog)
        while True:
            _print([_lag_of(catalog, bus, each) for each in _named(catalog, tenant)], as_json)
            if watch_seconds is None or stop.wait(watch_seconds):
                return
            click.echo()


def _print(found: Sequence[Lag], as_json: bool) -> None:
    if as_json:
        print_json([asdict(each) for each in found])
        return
    print_rows(
        ("tenant", "last token", "watermark", "pending writes", "pending bytes", "oldest (s)"),
        [tuple(asdict(each).values()) for each in found],
        empty="there is no tenant yet",
    )


def _named(catalog: Catalog, tenant: str | None) -> list[Tenant]:
    with catalog.connect() as connection:
        return list_tenants(connection) if tenant is None else [find_tenant(connection, tenant)]


def _lag_of(catalog: Catalog, bus: IngestBus, tenant: Tenant) -> Lag:
    # The watermark first: read later, it could pass the last token that was read before it.
    with catalog.connect() as connection:
        watermark = snapshots.newest(connection, tenant.tenant_id).max_visibility_token
    backlog = bus.backlog(tenant.tenant_id)
    oldest = backlog.oldest_ingested_at
    return Lag(
        tenant=tenant.name,
        last_token=bus.last_token(tenant.tenant_id),
        watermark=watermark,
        pending_writes=backlog.events,
        pending_bytes=backlog.bytes,
        oldest_pending_seconds=(
            None if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())
        ),
    )
