"""`duckmesh bench`: how fast a running server is, seen from here."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

import click
from rich.console import Console

from command_line.bench_clients import checked_http
from command_line.bench_figures import Measured, print_document, print_table
from command_line.bench_measures import Bench, Size
from command_line.invocation import Invocation
from command_line.server_address import find_server, server_options

_MEASURES: Final = ("select-1", "writes", "streams", "visible", "bulk", "read", "http")


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=3600),
    default=3.0,
    show_default=True,
    help="How long each measure of small things takes.",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="How many clients ask at once; one alone is measured, too.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="The same for streams that stay open.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, 1_000_000_000),
    default=1_000_000,
    show_default=True,
    help="How many rows the bulk ingest writes, and the large read reads.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(_MEASURES),
    help="Measure this; may be repeated.",
)
@click.option(
    "--http-uri", help="The HTTP door, such as http://host:8080; not measured when not given."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="How the figures are printed.",
)
@server_options
@click.pass_obj
def bench(
    invocation: Invocation,
    /,
    *,
    seconds: float,
    clients: int,
    streams: int,
    rows: int,
    only: tuple[str, ...],
    http_uri: str | None,
    form: str,
    **server: Any,
) -> None:
    """Measure a running server: small writes, streams, bulk ingest, visibility and queries.

    Everything is written to tables of a name that nobody else has; they are dropped at the end,
    also after Ctrl-C. The key needs the roles to ingest, to query, and to administer tables. The
    clients are threads of this command: on the server's machine they take of its cores. Figures
    are counted here, from the call to its answer.
    """
    http = checked_http(http_uri)
    if "http" in only and http is None:
        raise click.UsageError("--only http needs --http-uri")
    size = Size(seconds=seconds, clients=clients, streams=streams, rows=rows)
    table = f"duckmesh_bench_{uuid4().hex[:12]}"
    measured = Bench(find_server(invocation, **server), http=http, table=table, size=size)
    lines = _measure(measured, only)
    if form == "json":
        print_document(lines, seconds=seconds, clients=clients, streams=streams, rows=rows)
    else:
        print_table(lines)


def _measure(measured: Bench, only: Sequence[str]) -> list[Measured]:
    lines: list[Measured] = []
    with measured.tables():
        chosen = {
            name: run for name, run in measured.measures().items() if not only or name in only
        }
        for number, (name, run) in enumerate(chosen.items(), start=1):
            with _shown(f"{number}/{len(chosen)} {name}"):
                lines += run()
    return lines


@contextmanager
def _shown(what: str) -> Iterator[None]:
    """What is being measured: a line that moves on a terminal, a line elsewhere."""
    if sys.stderr.isatty():
        with Console(stderr=True).status(what):
            yield
        return
    click.echo(what, err=True)
    yield
