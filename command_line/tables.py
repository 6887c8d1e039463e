"""`duckmesh tables`: what a tenant's newest snapshot holds."""

import click

from catalog import snapshots
from catalog.tables import tables_at
from catalog.tenants import find_tenant
from command_line.catalog_access import open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows


@click.command()
@click.option("--tenant", help="The tenant; the default tenant when not given.")
@as_json
@click.pass_obj
def tables(invocation: Invocation, tenant: str | None, as_json: bool) -> None:
    """List a tenant's tables as of its newest snapshot."""
    settings = invocation.tool_settings()
    name = tenant or settings.auth.default_tenant
    with open_catalog(settings) as catalog, catalog.connect() as connection:
        owner = find_tenant(connection, name)
        newest = snapshots.newest(connection, owner.tenant_id)
        found = tables_at(connection, owner.tenant_id, newest.snapshot_id)
    if as_json:
        print_json(
            {
                "tenant": name,
                "snapshot_id": newest.snapshot_id,
                "tables": [
                    {
                        "name": table.name,
                        "schema_version": table.schema.version,
                        "watermark": table.watermark,
                        "columns": [
                            {"name": field.name, "type": str(field.type)}
                            for field in table.schema.arrow
                        ],
                    }
                    for table in found
                ],
            }
        )
        return
    print_rows(
        ("table", "columns", "schema version", "newest token"),
        [
            (table.name, len(table.schema.arrow), table.schema.version, table.watermark)
            for table in found
        ],
        empty=f"tenant {name} has no table yet",
    )
