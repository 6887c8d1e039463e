"""`duckmesh tenants`: the owners of tables."""

import click

from catalog.acts import OPERATOR
from catalog.tenants import list_tenants
from command_line.catalog_access import open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from command_line.quotas import quota
from gateway import tenancy, tenant_quotas


@click.group()
def tenants() -> None:
    """Create, list, disable and enable tenants; set their quotas."""


tenants.add_command(quota)


@tenants.command()
@click.argument("name")
@as_json
@click.pass_obj
def create(invocation: Invocation, name: str, as_json: bool) -> None:
    """Create a tenant. Does nothing when it exists."""
    with open_catalog(invocation.tool_settings()) as catalog:
        tenant = tenancy.ensure_tenant(catalog, name, principal=OPERATOR)
    if as_json:
        print_json({"tenant_id": tenant.tenant_id, "name": tenant.name})
        return
    click.echo(f"tenant {tenant.name} is there")


@tenants.command()
@click.argument("name")
@click.pass_obj
def disable(invocation: Invocation, name: str) -> None:
    """Shut a tenant out: its calls are refused within a second. Its data and keys stay."""
    with open_catalog(invocation.tool_settings()) as catalog:
        tenancy.switch_tenant(catalog, name, disabled=True)
    click.echo(f"tenant {name} is disabled")


@tenants.command()
@click.argument("name")
@click.pass_obj
def enable(invocation: Invocation, name: str) -> None:
    """Let a disabled tenant in again."""
    with open_catalog(invocation.tool_settings()) as catalog:
        tenancy.switch_tenant(catalog, name, disabled=False)
    click.echo(f"tenant {name} is enabled")


@tenants.command("list")
@as_json
@click.pass_obj
def list_(invocation: Invocation, as_json: bool) -> None:
    """List the tenants, with what their newest snapshots hold."""
    with open_catalog(invocation.tool_settings()) as catalog:
        with catalog.connect() as connection:
            found = list_tenants(connection)
        held = tenant_quotas.held_by(catalog, [each.tenant_id for each in found])
    if as_json:
        print_json(
            [
                {
                    "tenant_id": each.tenant_id,
                    "name": each.name,
                    "disabled": each.disabled,
                    "tables": held[each.tenant_id].tables,
                    "storage_bytes": held[each.tenant_id].live_bytes,
                }
                for each in found
            ]
        )
        return
    print_rows(
        ("tenant", "disabled", "tables", "storage bytes"),
        [
            (
                each.name,
                each.disabled,
                held[each.tenant_id].tables,
                held[each.tenant_id].live_bytes,
            )
            for each in found
        ],
        empty="there is no tenant yet: `duckmesh tenants create NAME` makes one",
    )
