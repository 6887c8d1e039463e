"""`duckmesh dead-letters`: writes that were given up, and their new acceptance."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from command_line.catalog_access import open_bus, open_catalog, operator_of
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from gateway.dead_letters import REPLAYED_AT_ONCE, DeadLetters, NamedDeadLetter
from gateway.identity import Identity

_tenant = click.option("--tenant", help="The tenant; the default tenant when not given.")


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at writes that were given up, and accept them again."""


@dead_letters.command("list")
@_tenant
@click.option("--table", help="Those of this table alone.")
@click.option("--replayed", is_flag=True, help="Those that were replayed, too.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many."
)
@as_json
@click.pass_obj
def list_(
    invocation: Invocation,
    *,
    tenant: str | None,
    table: str | None,
    replayed: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List the dead letters, in the order of their tokens."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        letters = DeadLetters(catalog, open_bus(catalog))
        found: list[NamedDeadLetter] = []
        for each in _all(letters, who, replayed=replayed):
            if len(found) < limit and table in (None, each.table):
                found.append(each)
    if as_json:
        print_json([_fields(each) for each in found])
        return
    print_rows(
        ("token", "table", "rows", "accepted", "attempts", "replayed as", "reason"),
        [
            (
                each.dead.visibility_token,
                each.table,
                each.dead.row_count,
                each.dead.ingested_at,
                each.dead.attempts,
                each.dead.replay_token,
                each.dead.failure_reason,
            )
            for each in found
        ],
        empty=f"tenant {who.tenant} has no dead letter",
    )


@dead_letters.command()
@_tenant
@click.argument("token", type=click.IntRange(min=1))
@as_json
@click.pass_obj
def show(invocation: Invocation, tenant: str | None, token: int, as_json: bool) -> None:
    """Show one dead letter."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        fields = _fields(DeadLetters(catalog, open_bus(catalog)).one(who, VisibilityToken(token)))
    if as_json:
        print_json(fields)
        return
    for label, value in fields.items():
        click.echo(f"{label}: {'-' if value is None else value}")


@dead_letters.command()
@_tenant
@click.argument("tokens", type=click.IntRange(min=1), nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every dead letter that was not replayed.")
@click.option("--table", help="With --all: those of this table alone.")
@click.option("--dry-run", is_flag=True, help="Check and list them, and accept nothing.")
@as_json
@click.pass_obj
def replay(
    invocation: Invocation,
    *,
    tenant: str | None,
    tokens: tuple[int, ...],
    every: bool,
    table: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Accept dead letters again: each gets a new token, once.

    With one write of a transaction the whole transaction is accepted again. --all leaves out what
    was written to tables that are gone.
    """
    if every == bool(tokens) or (table is not None and not every):
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            "name the dead letters to replay by their tokens, or say --all (with --table)",
        )
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        letters = DeadLetters(catalog, open_bus(catalog))
        wanted = _wanted(letters, who, table) if every else list(map(VisibilityToken, tokens))
        done = _replayed(letters, who, wanted, dry_run=dry_run)
    _print_replays(done, dry_run=dry_run, as_json=as_json)


def _print_replays(done: list[dict[str, Any]], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": dry_run, "replayed": done})
        return
    print_rows(
        ("dead token", "new token", "rows", "was replayed before"),
        [tuple(each.values()) for each in done],
        empty="there is nothing to replay",
    )
    if dry_run and done:
        click.echo("nothing was accepted: this is a dry run", err=True)


def _wanted(letters: DeadLetters, who: Identity, table: str | None) -> list[VisibilityToken]:
    return [
        each.dead.visibility_token
        for each in _all(letters, who, replayed=False)
        if each.table is not None and table in (None, each.table)
    ]


def _replayed(
    letters: DeadLetters, who: Identity, tokens: Sequence[VisibilityToken], *, dry_run: bool
) -> list[dict[str, Any]]:
    """What was accepted, or would be; so many at a time, each all or none."""
    done: dict[VisibilityToken, dict[str, Any]] = {}
    for start in range(0, len(tokens), REPLAYED_AT_ONCE):
        some = [t for t in tokens[start : start + REPLAYED_AT_ONCE] if t not in done]
        if not some:
            continue
        done |= {row["dead_token"]: row for row in _some_replayed(letters, who, some, dry_run)}
    return list(done.values())


def _some_replayed(
    letters: DeadLetters, who: Identity, tokens: Sequence[VisibilityToken], dry_run: bool
) -> list[dict[str, Any]]:
    if dry_run:
        return [
            _outcome(each.dead.visibility_token, None, each.dead.row_count, duplicate=False)
            for each in letters.to_replay(who, tokens)
        ]
    return [
        _outcome(
            each.dead_token,
            each.receipt.visibility_token,
            each.receipt.row_count,
            duplicate=not each.receipt.inserted,
        )
        for each in letters.replay(who, tokens)
    ]


def _outcome(
    dead_token: VisibilityToken, token: VisibilityToken | None, row_count: int, *, duplicate: bool
) -> dict[str, Any]:
    return {
        "dead_token": dead_token,
        "visibility_token": token,
        "row_count": row_count,
        "duplicate": duplicate,
    }


def _all(letters: DeadLetters, who: Identity, *, replayed: bool) -> Iterator[NamedDeadLetter]:
    """Every dead letter, page by page."""
    above = BEFORE_ALL
    while page := letters.all(who, above=above, limit=1000, replayed=replayed):
        yield from page
        above = page[-1].dead.visibility_token


def _fields(each: NamedDeadLetter) -> dict[str, Any]:
    fields = asdict(each.dead)
    del fields["table_id"]
    return {
        "visibility_token": fields.pop("visibility_token"),
        "table": each.table,
        "operation": fields.pop("operation").value,
        **fields,
    }
