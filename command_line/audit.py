"""`duckmesh audit`: who asked what, and who changed what. Read from the catalog, by an operator."""

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from catalog import acts as recorded
from catalog import queries as audited
from catalog.connection import Connection
from catalog.tenants import find_tenant
from command_line.catalog_access import open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from duckmesh.identifiers import TenantId

_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SQL_SHOWN_CHARS: Final = 80


class _Since(click.ParamType[datetime]):
    """A moment, or how long ago one was."""

    name = "since"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        if span := _SPAN.fullmatch(str(value)):
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail("give a span such as 90s, 15m, 2h, 7d, or a time in ISO 8601", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _asked(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both listings have."""
    for option in (
        as_json,
        click.option(
            "--limit",
            type=click.IntRange(1, 100_000),
            default=50,
            show_default=True,
            help="How many of the newest.",
        ),
        click.option(
            "--since",
            type=_Since(),
            metavar="WHEN",
            help="No older ones: 15m, 2h, 7d, or a time in ISO 8601 (UTC without a zone).",
        ),
        click.option("--tenant", help="This tenant alone; every tenant when not given."),
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Show who asked what, and who changed what."""


@audit.command()
@_asked
@click.pass_obj
def queries(
    invocation: Invocation, tenant: str | None, since: datetime | None, limit: int, as_json: bool
) -> None:
    """List the newest statements of either door, newest first."""
    with open_catalog(invocation.tool_settings()) as catalog, catalog.connect() as connection:
        owner = _owner(connection, tenant)
        found = audited.recent(connection, tenant_id=owner, since=since, limit=limit)
    if as_json:
        print_json([{"tenant": each.tenant, **asdict(each.query)} for each in found])
        return
    print_rows(
        ("started", "tenant", "principal", "outcome", "rows", "ms", "statement"),
        [
            (
                each.query.started_at,
                each.tenant,
                each.query.principal,
                each.query.outcome,
                each.query.row_count,
                each.query.run_seconds * 1000,
                _line(each.query.sql),
            )
            for each in found
        ],
        empty="no statement was audited",
    )


@audit.command()
@_asked
@click.pass_obj
def acts(
    invocation: Invocation, tenant: str | None, since: datetime | None, limit: int, as_json: bool
) -> None:
    """List the newest administrative acts, refused ones too, newest first."""
    with open_catalog(invocation.tool_settings()) as catalog, catalog.connect() as connection:
        owner = _owner(connection, tenant)
        found = recorded.recent(connection, tenant_id=owner, since=since, limit=limit)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    print_rows(
        ("at", "tenant", "principal", "act", "target", "outcome"),
        [
            (each.at, each.tenant, each.principal, each.act, _line(each.target), each.outcome)
            for each in found
        ],
        empty="no act was recorded",
    )


def _owner(connection: Connection, tenant: str | None) -> TenantId | None:
    return None if tenant is None else find_tenant(connection, tenant).tenant_id


def _line(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= _SQL_SHOWN_CHARS else f"{shown[: _SQL_SHOWN_CHARS - 3]}..."
