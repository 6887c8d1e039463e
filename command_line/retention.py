"""`duckmesh retention`: expire snapshots and give storage back now."""

import threading
from dataclasses import asdict

import click

from catalog import acts
from catalog.tenants import find_tenant
from command_line.catalog_access import open_bus, open_catalog
from command_line.invocation import Invocation
from command_line.maintaining import new_maintenance
from command_line.output import as_json, print_json, print_rows


@click.command()
@click.option("--tenant", help="The tenant; the default tenant when not given.")
@click.option("--orphans/--no-orphans", default=True, help="Whether to look for orphans too.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@as_json
@click.pass_obj
def retention(
    invocation: Invocation, tenant: str | None, orphans: bool, dry_run: bool, as_json: bool
) -> None:
    """Expire a tenant's old snapshots, and delete the files and objects that nothing reads.

    A file goes a while after its last snapshot; maintenance.gc_safety_age_seconds says how long.
    """
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        with catalog.connect() as connection:
            owner = find_tenant(connection, tenant or settings.auth.default_tenant)
        maintenance = new_maintenance(settings, catalog, open_bus(catalog))
        collector = maintenance.collector(threading.Event())
        done = collector.collect(owner, orphans=orphans, dry_run=dry_run)
        if not dry_run:
            with catalog.connect() as connection:
                acts.record(
                    connection,
                    "retention",
                    owner.name,
                    tenant_id=owner.tenant_id,
                    principal=acts.OPERATOR,
                    detail=asdict(done),
                )
    if as_json:
        print_json({"tenant": owner.name, "dry_run": dry_run, **asdict(done)})
        return
    print_rows(
        ("snapshots", "files", "bytes", "orphans"),
        [tuple(asdict(done).values())],
        empty="nothing to give back",
    )
