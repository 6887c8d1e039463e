"""`duckmesh integrity`: whether every file of a tenant's snapshots is there."""

from dataclasses import asdict

import click

from catalog import acts
from catalog.tenants import find_tenant
from command_line.catalog_access import open_bus, open_catalog
from command_line.failures import CHECK_FAILED
from command_line.invocation import Invocation
from command_line.maintaining import new_maintenance
from command_line.output import as_json, print_json, print_rows
from command_line.stopping import stop_requests


@click.command()
@click.option("--tenant", help="The tenant; the default tenant when not given.")
@as_json
@click.pass_context
def integrity(context: click.Context, tenant: str | None, as_json: bool) -> None:
    """Check that every file of a tenant's snapshots is there, and as large as it was written.

    Changes nothing. Exits with 1 when a file is damaged; each leaves a row of the audit.
    """
    invocation: Invocation = context.obj
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog, stop_requests() as stop:
        with catalog.connect() as connection:
            owner = find_tenant(connection, tenant or settings.auth.default_tenant)
        check = new_maintenance(settings, catalog, open_bus(catalog)).integrity(stop)
        report = check.check(owner, principal=acts.OPERATOR)
    if as_json:
        print_json({"tenant": owner.name, **asdict(report)})
    else:
        click.echo(
            f"{report.files_checked:,} files checked, {report.missing:,} missing, "
            f"{report.mismatched:,} of another size"
        )
        if report.damaged:
            print_rows(
                ("table", "file", "damage", "expected bytes", "found bytes"),
                [tuple(asdict(each).values()) for each in report.damaged],
                empty="",
            )
    if report.damaged:
        context.exit(CHECK_FAILED)
