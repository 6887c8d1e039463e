"""`duckmesh snapshots`: the published states of a tenant."""

from typing import Any

import click

from catalog import snapshots as published
from catalog.connection import Connection
from catalog.snapshots import Snapshot
from catalog.tables import tables_at
from catalog.tenants import find_tenant
from command_line.catalog_access import open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import SnapshotId, TenantId

_tenant = click.option("--tenant", help="The tenant; the default tenant when not given.")


@click.group()
def snapshots() -> None:
    """Look at a tenant's snapshots."""


@snapshots.command("list")
@_tenant
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="How many of the newest.",
)
@as_json
@click.pass_obj
def list_(invocation: Invocation, tenant: str | None, limit: int, as_json: bool) -> None:
    """List the newest snapshots, newest first."""
    settings = invocation.tool_settings()
    name = tenant or settings.auth.default_tenant
    with open_catalog(settings) as catalog, catalog.connect() as connection:
        owner = find_tenant(connection, name).tenant_id
        newest = published.newest(connection, owner)
        found = published.recent(connection, owner, through=newest.snapshot_id, limit=limit)
    if as_json:
        print_json([_fields(*each) for each in found])
        return
    print_rows(
        ("snapshot", "created", "watermark", "operation", "created by"),
        [tuple(_fields(*each).values()) for each in found],
        empty=f"tenant {name} has no snapshot yet",
    )


@snapshots.command()
@_tenant
@click.argument("snapshot_id", type=click.IntRange(min=1))
@as_json
@click.pass_obj
def show(invocation: Invocation, tenant: str | None, snapshot_id: int, as_json: bool) -> None:
    """Show one snapshot and the tables in it."""
    settings = invocation.tool_settings()
    name = tenant or settings.auth.default_tenant
    with open_catalog(settings) as catalog, catalog.connect() as connection:
        owner = find_tenant(connection, name).tenant_id
        fields = _fields(*_found(connection, owner, SnapshotId(snapshot_id)))
        tables = [
            {
                "name": table.name,
                "columns": len(table.schema.arrow),
                "schema_version": table.schema.version,
                "watermark": table.watermark,
            }
            for table in tables_at(connection, owner, SnapshotId(snapshot_id))
        ]
    if as_json:
        print_json({**fields, "tables": tables})
        return
    for label, value in fields.items():
        click.echo(f"{label}: {value}")
    click.echo()
    print_rows(
        ("table", "columns", "schema version", "newest token"),
        [tuple(each.values()) for each in tables],
        empty="it has no table",
    )


def _found(
    connection: Connection, owner: TenantId, wanted: SnapshotId
) -> tuple[Snapshot, str, str]:
    """Raises NotFound when the tenant has no such snapshot."""
    for each in published.recent(connection, owner, through=wanted, limit=1):
        if each[0].snapshot_id == wanted:
            return each
    raise NotFound(
        ErrorCode.SNAPSHOT_NOT_FOUND,
        f"the tenant has no snapshot {wanted}: `duckmesh snapshots list` names those it has",
        snapshot_id=wanted,
    )


def _fields(snapshot: Snapshot, operation: str, author: str) -> dict[str, Any]:
    return {
        "snapshot_id": snapshot.snapshot_id,
        "created_at": snapshot.created_at,
        "watermark": snapshot.max_visibility_token,
        "operation": operation,
        "created_by": author,
    }
