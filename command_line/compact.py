"""`duckmesh compact`: merge small files now."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from catalog import acts
from catalog.connection import Catalog
from catalog.tables import find_table, places, table_not_found
from catalog.tenants import Tenant, find_tenant
from command_line.catalog_access import open_bus, open_catalog
from command_line.invocation import Invocation
from command_line.maintaining import new_maintenance
from command_line.output import as_json, print_json, print_rows
from command_line.stopping import stop_requests
from coordinator.compact import Compacted, Compactor
from coordinator.pace import Stopped
from duckmesh.identifiers import TableId
from duckmesh.imports import do_without_pandas


@dataclass(frozen=True, slots=True)
class Merge:
    """One merge of a table's files."""

    table: str
    state: str
    files_in: int
    files_out: int | None
    bytes_in: int
    bytes_out: int | None
    snapshot_id: int | None


@click.command()
@click.option("--tenant", help="The tenant; the default tenant when not given.")
@click.option("--table", help="This table alone.")
@click.option("--dry-run", is_flag=True, help="Say what would be merged, and merge nothing.")
@as_json
@click.pass_obj
def compact(
    invocation: Invocation, tenant: str | None, table: str | None, dry_run: bool, as_json: bool
) -> None:
    """Merge a tenant's small files into large ones, whether or not it is worth it yet.

    The rows stay what they are, and older snapshots keep their files. Ctrl-C leaves what is merged
    so far.
    """
    settings = invocation.tool_settings()
    do_without_pandas()
    with open_catalog(settings) as catalog, stop_requests() as stop:
        with catalog.connect() as connection:
            owner = find_tenant(connection, tenant or settings.auth.default_tenant)
        compactor = new_maintenance(settings, catalog, open_bus(catalog)).compactor(stop)
        named = _tables(catalog, compactor, owner, table)
        done = list(_merges(compactor, owner, named, dry_run=dry_run))
        if done and not dry_run:
            with catalog.connect() as connection:
                acts.record(
                    connection,
                    "compact",
                    table or owner.name,
                    tenant_id=owner.tenant_id,
                    principal=acts.OPERATOR,
                    detail={"merges": len(done), "files": sum(each.files_in for each in done)},
                )
    if as_json:
        print_json([asdict(each) for each in done])
        return
    print_rows(
        ("table", "state", "files", "into", "bytes", "into", "snapshot"),
        [tuple(asdict(each).values()) for each in done],
        empty="nothing to merge",
    )


def _tables(
    catalog: Catalog, compactor: Compactor, owner: Tenant, table: str | None
) -> dict[TableId, str]:
    with catalog.connect() as connection:
        if table is not None:
            found = find_table(connection, owner.tenant_id, table)
            if found is None:
                raise table_not_found(table)
            return {found.table_id: found.name}
    crowded = [t.table_id for t in compactor.crowded() if t.tenant_id == owner.tenant_id]
    with catalog.connect() as connection:
        named = places(connection, owner.tenant_id, crowded)
    return {table_id: named[table_id].name for table_id in crowded}


def _merges(
    compactor: Compactor, owner: Tenant, named: dict[TableId, str], *, dry_run: bool
) -> Iterator[Merge]:
    for table_id, name in named.items():
        if dry_run:
            if (planned := compactor.plan(table_id, eager=True)) is not None:
                yield _merge(name, planned, "planned")
            continue
        try:
            while (done := compactor.compact(owner.tenant_id, table_id, eager=True)) is not None:
                yield _merge(name, done, "lost" if done.lost else "published")
                if done.lost:
                    break
        except Stopped:
            return


def _merge(name: str, done: Compacted, state: str) -> Merge:
    born = done.snapshot
    return Merge(
        table=name,
        state=state,
        files_in=done.files_in,
        files_out=None if born is None else done.files_out,
        bytes_in=done.bytes_in,
        bytes_out=None if born is None else done.bytes_out,
        snapshot_id=None if born is None else born.snapshot_id,
    )
