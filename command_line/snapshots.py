"""`duckmesh snapshots`: the published states of a tenant."""

from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from catalog import snapshots as published
from catalog.connection import Catalog, Connection
from catalog.pins import by_tag
from catalog.restores import RestorePlan
from catalog.snapshots import Snapshot
from catalog.tables import tables_at
from catalog.tenants import find_tenant
from command_line.catalog_access import open_bus, open_catalog, operator_of
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import SnapshotId, TenantId, check_tag
from gateway.identity import Identity
from gateway.pins import SnapshotPins
from gateway.restores import Restores
from gateway.visibility import Visibility

_tenant = click.option("--tenant", help="The tenant; the default tenant when not given.")
_lasting = click.option(
    "--days", type=click.FloatRange(0, 36_500, min_open=True), help="For so many days."
)


@click.group()
def snapshots() -> None:
    """Look at a tenant's snapshots, keep them, and go back to them."""


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


@snapshots.command()
@_tenant
@as_json
@click.pass_obj
def pins(invocation: Invocation, tenant: str | None, as_json: bool) -> None:
    """List the pins and tags."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        found = SnapshotPins(catalog).all(who)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    print_rows(
        ("snapshot", "tag", "created by", "created", "expires"),
        [
            (each.snapshot_id, each.tag, each.created_by, each.created_at, each.expires_at)
            for each in found
        ],
        empty=f"tenant {who.tenant} has no pin",
    )


@snapshots.command()
@_tenant
@click.argument("snapshot_id", type=click.IntRange(min=1))
@_lasting
@as_json
@click.pass_obj
def pin(
    invocation: Invocation,
    tenant: str | None,
    snapshot_id: int,
    days: float | None,
    as_json: bool,
) -> None:
    """Keep a snapshot past retention, until it is unpinned or for some days."""
    _pin(invocation, tenant, SnapshotId(snapshot_id), None, days, as_json=as_json)


@snapshots.command()
@_tenant
@click.argument("tag_name", metavar="TAG")
@click.argument("snapshot_id", type=click.IntRange(min=1), required=False)
@_lasting
@as_json
@click.pass_obj
def tag(
    invocation: Invocation,
    *,
    tenant: str | None,
    tag_name: str,
    snapshot_id: int | None,
    days: float | None,
    as_json: bool,
) -> None:
    """Keep a snapshot, the newest when none is named, under a name to read it by.

    A tag that is set again moves.
    """
    wanted = None if snapshot_id is None else SnapshotId(snapshot_id)
    _pin(invocation, tenant, wanted, tag_name, days, as_json=as_json)


def _pin(
    invocation: Invocation,
    tenant: str | None,
    wanted: SnapshotId | None,
    tag: str | None,
    days: float | None,
    *,
    as_json: bool,
) -> None:
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        if wanted is None:
            with catalog.connect() as connection:
                wanted = published.newest(connection, who.tenant_id).snapshot_id
        lasting = None if days is None else timedelta(days=days)
        made = SnapshotPins(catalog).pin(who, wanted, tag=tag, lasting=lasting)
    if as_json:
        print_json(asdict(made))
        return
    named = "" if tag is None else f" as {tag}"
    until = "" if made.expires_at is None else f" until {made.expires_at:%Y-%m-%d %H:%M %Z}"
    click.echo(f"snapshot {made.snapshot_id} is kept{named}{until}")


@snapshots.command()
@_tenant
@click.argument("named", metavar="SNAPSHOT_OR_TAG")
@as_json
@click.pass_obj
def unpin(invocation: Invocation, tenant: str | None, named: str, as_json: bool) -> None:
    """Take a tag away, or the pin of a snapshot that has no tag."""
    settings = invocation.tool_settings()
    number, tag = _number_or_tag(named)
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        held = SnapshotPins(catalog).unpin(who, snapshot_id=number, tag=tag)
    if as_json:
        print_json({"snapshot_id": held, "tag": tag, "unpinned": True})
        return
    click.echo(f"unpinned {named} (snapshot {held})")


@snapshots.command()
@_tenant
@click.argument("named", metavar="SNAPSHOT_OR_TAG")
@click.option("--table", "names", multiple=True, help="This table alone. May be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and change nothing.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0, 600),
    default=10.0,
    show_default=True,
    help="Seconds to wait until what is accepted is visible.",
)
@as_json
@click.pass_obj
def restore(
    invocation: Invocation,
    *,
    tenant: str | None,
    named: str,
    names: tuple[str, ...],
    dry_run: bool,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Publish a new snapshot that is equal to an old one. Everything published stays readable."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        bus = open_bus(catalog)
        restores = Restores(catalog, bus, Visibility(catalog, bus))
        wanted = _wanted(catalog, who, named)
        if dry_run:
            outcome = _restored(restores.plan(who, wanted, names or None), wanted, None)
        else:
            done = restores.restore(
                who, wanted, names or None, timeout=timedelta(seconds=timeout_seconds)
            )
            outcome = _restored(done.plan, wanted, done.snapshot.snapshot_id)
    if as_json:
        print_json(outcome)
        return
    for label, value in outcome.items():
        click.echo(f"{label}: {', '.join(value) if isinstance(value, list) else value}")


def _restored(plan: RestorePlan, wanted: SnapshotId, born: SnapshotId | None) -> dict[str, Any]:
    return {
        "dry_run": born is None,
        "restored_snapshot_id": wanted,
        "snapshot_id": born,
        "rewound_tables": [table.name for table in plan.rewound],
        "recreated_tables": [table.name for table in plan.made_anew],
        "ended_tables": [table.name for table in plan.ended],
    }


def _number_or_tag(named: str) -> tuple[SnapshotId | None, str | None]:
    """A tag never begins with a digit."""
    return (SnapshotId(int(named)), None) if named.isdecimal() else (None, named)


def _wanted(catalog: Catalog, who: Identity, named: str) -> SnapshotId:
    number, _ = _number_or_tag(named)
    if number is not None:
        return number
    with catalog.connect() as connection:
        return by_tag(connection, who.tenant_id, check_tag(named)).snapshot_id


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
