"""`duckmesh migrate`: the catalog's schema."""

from typing import Any

import click

from catalog.migrate import MigrationState, known_migrations, migrate_down, migrate_up
from catalog.migrate import migration_status as read_status
from command_line.catalog_access import catalog_dsn
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows


@click.group()
def migrate() -> None:
    """Bring the catalog's schema up to date, or back."""


@migrate.command()
@as_json
@click.pass_obj
def up(invocation: Invocation, as_json: bool) -> None:
    """Apply every pending migration. Safe to repeat, also concurrently."""
    done = migrate_up(catalog_dsn(invocation.tool_settings()))
    if as_json:
        print_json([_as_json(state) for state in done])
        return
    for state in done:
        click.echo(f"applied {state.version} {state.name}")
    if not done:
        click.echo("the catalog is up to date")


@migrate.command()
@click.option(
    "--to",
    "to_version",
    type=click.IntRange(min=0),
    required=True,
    metavar="N",
    help="The version to stay; 0 removes everything.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be undone, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@click.pass_obj
def down(invocation: Invocation, to_version: int, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Undo the migrations above N, newest first. This drops tables with their rows."""
    dsn = catalog_dsn(invocation.tool_settings())
    if dry_run:
        undone = [
            state.version
            for state in reversed(read_status(dsn))
            if state.applied_at is not None and state.version > to_version
        ]
    else:
        if not yes:
            click.confirm(
                f"Drop every table above version {to_version}, with its rows?", abort=True
            )
        undone = migrate_down(dsn, to_version=to_version)
    if as_json:
        print_json({"undone": undone, "dry_run": dry_run})
        return
    for version in undone:
        click.echo(f"{'would undo' if dry_run else 'undid'} {version}")
    if not undone:
        click.echo(f"nothing lies above version {min(to_version, len(known_migrations()))}")


@migrate.command()
@as_json
@click.pass_obj
def status(invocation: Invocation, as_json: bool) -> None:
    """List the migrations, and when each was applied."""
    states = read_status(catalog_dsn(invocation.tool_settings()))
    if as_json:
        print_json([_as_json(state) for state in states])
        return
    print_rows(
        ("version", "name", "applied"),
        [(state.version, state.name, state.applied_at or "pending") for state in states],
        empty="this release has no migrations",
    )


def _as_json(state: MigrationState) -> dict[str, Any]:
    return {"version": state.version, "name": state.name, "applied_at": state.applied_at}
