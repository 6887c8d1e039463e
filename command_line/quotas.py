"""`duckmesh tenants quota`: what a tenant may take."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, TypeVar

import click

from catalog.tenants import find_tenant
from command_line.catalog_access import open_bus, open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from command_line.quota_defaults import quota_defaults
from duckmesh.quotas import LEAST, VALUE_MAX, Quota, Quotas
from gateway import tenant_quotas
from gateway.tenant_quotas import QuotaUse, TenantQuotas

_Command = TypeVar("_Command", bound=Callable[..., Any])

MEANINGS: Final = {
    Quota.INGEST_ROWS_PER_SECOND: "Rows that each serving process takes in per second.",
    Quota.INGEST_BYTES_PER_SECOND: "Bytes of Arrow data that each takes in per second.",
    Quota.PENDING_EVENTS: "Writes that are accepted and not visible yet.",
    Quota.PENDING_BYTES: "Bytes that such writes carry.",
    Quota.STORAGE_BYTES: "Bytes of the files of the newest snapshot.",
    Quota.TABLES: "Tables.",
    Quota.CONCURRENT_QUERIES: "Queries that each serving process runs at once.",
    Quota.QUEUED_QUERIES: "Queries that wait for their turn in each serving process.",
    Quota.QUERY_TIME_MS: "Milliseconds that one query may run.",
    Quota.QUERY_MEMORY_BYTES: "Bytes of memory of a worker's queries.",
    Quota.QUERY_ROWS: "Rows of one answer.",
    Quota.QUERY_BYTES: "Bytes of one answer.",
}


def quota_options(quotas: Iterable[Quota], prefix: str = "") -> Callable[[_Command], _Command]:
    """An option for each quota, such as `--ingest-rows-per-second`."""

    def add(command: _Command) -> _Command:
        for quota in reversed(list(quotas)):
            option = click.option(
                f"--{prefix}{quota.value.replace('_', '-')}",
                quota.value,
                type=click.IntRange(LEAST[quota], VALUE_MAX),
                metavar="NUMBER",
                help=MEANINGS[quota],
            )
            command = option(command)
        return command

    return add


def given(values: dict[str, int | None]) -> Quotas:
    """The quotas that options gave."""
    return Quotas.of({name: value for name, value in values.items() if value is not None})


@click.group()
def quota() -> None:
    """Show, set and reset a tenant's quotas. Serving processes heed a change within a second."""


@quota.command()
@click.argument("name")
@as_json
@click.pass_obj
def show(invocation: Invocation, name: str, as_json: bool) -> None:
    """Show each quota, and how much of it is used."""
    _print(invocation, name, as_json=as_json)


@quota.command("set")
@click.argument("name")
@quota_options(Quota)
@as_json
@click.pass_obj
def set_(invocation: Invocation, /, name: str, *, as_json: bool, **values: int | None) -> None:
    """Set quotas; those that are not given stay as they are."""
    asked = given(values)
    if not asked.own():
        raise click.UsageError("name a quota at least, such as --ingest-rows-per-second 1000")
    with open_catalog(invocation.tool_settings()) as catalog:
        tenant_quotas.set_quotas(catalog, name, asked)
    _print(invocation, name, as_json=as_json)


@quota.command()
@click.argument("name")
@click.option(
    "--quota",
    "names",
    multiple=True,
    type=click.Choice([each.value for each in Quota]),
    help="This quota alone. May be repeated.",
)
@as_json
@click.pass_obj
def reset(invocation: Invocation, name: str, names: tuple[str, ...], as_json: bool) -> None:
    """Give quotas, or all of them, the settings' defaults again."""
    asked: Collection[Quota] | None = [Quota(each) for each in names] or None
    with open_catalog(invocation.tool_settings()) as catalog:
        tenant_quotas.reset_quotas(catalog, name, asked)
    _print(invocation, name, as_json=as_json)


def _print(invocation: Invocation, name: str, *, as_json: bool) -> None:
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        with catalog.connect() as connection:
            tenant = find_tenant(connection, name)
        bus = open_bus(catalog)
        try:
            found = TenantQuotas(catalog, bus, quota_defaults(settings)).of_tenant(tenant.tenant_id)
        finally:
            bus.close()
    if as_json:
        print_json([_fields(each) for each in found])
        return
    print_rows(
        ("quota", "limit", "used", "own"),
        [(each.quota.value, each.limit, each.used, each.is_own) for each in found],
        empty="there is no quota",
    )


def _fields(each: QuotaUse) -> dict[str, Any]:
    return {
        "quota": each.quota.value,
        "limit": each.limit,
        "used": each.used,
        "own": each.is_own,
    }
