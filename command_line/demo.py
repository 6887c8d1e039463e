"""`duckmesh demo`: real data in, real questions answered, and a check that it was all there."""

import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import click
import pyarrow as pa
import pyarrow.compute as pc

from command_line.demo_data import EXPECTED_ROWS, load_tables
from command_line.demo_ingest import (
    MIN_TOKEN_OPTION,
    TIMEOUT_OPTION,
    Connect,
    Ingest,
    Seen,
    Written,
    chunks_of,
)
from command_line.demo_queries import ask_all
from command_line.failures import CHECK_FAILED
from command_line.house import House
from command_line.invocation import Invocation
from command_line.output import print_rows
from command_line.stopping import stop_requests
from command_line.up import temporary_directory
from duckmesh.errors import ErrorCode, NotSupported, Unavailable
from duckmesh.settings import CONFIG_FILE_NAME, LogLevel, Profile, load_settings
from duckmesh.telemetry import configure_logging

_PATIENCE_MS: Final = 60_000


@click.command()
@click.option("--uri", help="Use the DuckMesh that runs here, instead of starting one.")
@click.option("--api-key", help="The key to show to it; none in open mode.")
@click.option("--keep", is_flag=True, help="Leave the started one running, until Ctrl-C.")
@click.option(
    "--writers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="ADBC connections that write at once.",
)
@click.pass_context
def demo(
    context: click.Context, uri: str | None, api_key: str | None, keep: bool, writers: int
) -> None:
    """Ingest every flight out of New York in 2013, then ask about them.

    Starts everything in a temporary directory and removes it at the end. Several ADBC clients write
    the five tables at once; queries through pandas and Polars name the last token. Ends with 1 when
    a row count is off. Run twice on one service it writes nothing twice.
    """
    if uri is not None and keep:
        raise click.UsageError("--keep is for the DuckMesh that the demo starts: leave --uri out")
    # An ordinary end, so that what was started is stopped and the directory removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    with ExitStack() as undo:
        if uri is None:
            uri = undo.enter_context(_own_house(context.obj))
            click.echo(f"DuckMesh is up at {uri} after {time.monotonic() - began:.1f} s")
        right = _run(_connector(uri, api_key), writers)
        click.echo(f"\n{'all is right' if right else 'SOMETHING IS OFF'}: ", nl=False)
        click.echo(f"{time.monotonic() - began:.1f} s in all")
        if keep:
            _stay(uri)
    if not right:
        context.exit(CHECK_FAILED)


@contextmanager
def _own_house(invocation: Invocation) -> Iterator[str]:
    """A DuckMesh of default settings in a temporary directory, whatever the user's say."""
    with temporary_directory() as place:
        config = place / CONFIG_FILE_NAME
        config.touch()
        settings = load_settings(
            profile=Profile.DEV,
            config_file=config,
            environment={},
            overrides={
                "data_dir": place / "data",
                "flight.port": 0,
                "logging.level": LogLevel.DEBUG if invocation.verbose else LogLevel.WARNING,
            },
        )
        configure_logging(settings.logging, service="demo", profile=settings.profile)
        with House(settings) as house:
            yield house.uri


def _connector(uri: str, api_key: str | None) -> Connect:
    try:
        from adbc_driver_flightsql import dbapi
    except ImportError as error:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "the demo needs the clients: pip install 'duckmesh[demo]'",
        ) from error
    shown = {} if api_key is None else {"adbc.flight.sql.authorization_header": f"Bearer {api_key}"}

    def connect(options: Mapping[str, str]) -> Any:
        return dbapi.connect(uri, db_kwargs={**shown, **options}, autocommit=True)

    return connect


def _run(connect: Connect, writers: int) -> bool:
    """The whole job. Whether every count was right."""
    from adbc_driver_manager import Error

    began = time.monotonic()
    tables = load_tables()
    rows = sum(table.num_rows for table in tables.values())
    click.echo(f"{rows:,} rows of {len(tables)} tables read in {time.monotonic() - began:.1f} s")
    try:
        written, seen = _ingest(connect, tables, writers)
        _print_writes(written, seen)
        last = max(each.token for each in written)
        return _ask(connect, last, tables)
    except Error as error:
        raise Unavailable(ErrorCode.NOT_READY, f"the service answered: {error}") from error


# --- writing -------------------------------------------------------------------------------------


def _ingest(
    connect: Connect, tables: Mapping[str, pa.Table], writers: int
) -> tuple[list[Written], dict[str, Seen]]:
    chunks = list(chunks_of(tables))
    rows = sum(chunk.rows.num_rows for chunk in chunks)
    written: list[Written] = []
    seen: dict[str, Seen] = {}
    began = time.monotonic()
    with _progress(rows, f"{writers} writers") as advance:
        for outcome in Ingest(connect, chunks, writers=writers).run():
            if isinstance(outcome, Written):
                written.append(outcome)
                advance(outcome)
            else:
                seen[outcome.table] = outcome
    seconds = max(each.acked_at for each in written) - began
    click.echo(
        f"{rows:,} rows durable in {len(written)} writes after {seconds:.2f} s "
        f"({rows / seconds:,.0f} rows/s)\n"
    )
    return written, seen


@contextmanager
def _progress(rows: int, label: str) -> Iterator[Callable[[Written], None]]:
    """A bar on a terminal, a line per write elsewhere."""
    if sys.stdout.isatty():
        with click.progressbar(length=rows, label=label, show_eta=False) as bar:

            def advance(write: Written) -> None:
                bar.update(write.rows)

            yield advance
        return
    done = 0

    def say(write: Written) -> None:
        nonlocal done
        done += write.rows
        click.echo(
            f"  {done:>9,} of {rows:,} rows: {write.rows:,} of {write.table}, token {write.token}"
        )

    click.echo(f"{label}:")
    yield say


def _print_writes(written: Sequence[Written], seen: Mapping[str, Seen]) -> None:
    rows = []
    for table in EXPECTED_ROWS:
        own = [each for each in written if each.table == table]
        acks = [1000 * (each.acked_at - each.sent_at) for each in own]
        last = seen[table]
        rows.append(
            (
                table,
                sum(each.rows for each in own),
                len(own),
                last.token,
                statistics.median(acks),
                1000 * last.seconds,
            )
        )
    print_rows(
        ("table", "rows", "writes", "last token", "ack p50 (ms)", "write to visible (ms)"),
        rows,
        empty="",
    )


# --- asking --------------------------------------------------------------------------------------


def _ask(connect: Connect, last_token: int, tables: Mapping[str, pa.Table]) -> bool:
    """Ask at the last token; compare what is there with what was sent."""
    click.echo(f"\nevery query below names token {last_token}")
    options = {MIN_TOKEN_OPTION: str(last_token), TIMEOUT_OPTION: str(_PATIENCE_MS)}
    with connect(options) as connection:
        answered = True
        for answer in ask_all(connection):
            click.echo(f"\n{answer.question} ({answer.library})\n{answer.text}")
            answered = answered and answer.rows > 0
        return _check(connection, tables) and answered


def _check(connection: Any, tables: Mapping[str, pa.Table]) -> bool:
    """Count what is there. Prints each count; whether all are right."""
    click.echo("")
    rows = []
    for table, expected in EXPECTED_ROWS.items():
        with connection.cursor() as cursor:
            cursor.execute(f'SELECT count(*) FROM "{table}"')  # noqa: S608 - a name of ours
            (found,) = cursor.fetchone()
        right = found == expected == tables[table].num_rows
        rows.append((table, tables[table].num_rows, found, "ok" if right else "WRONG"))
    rows.append(_miles(connection, tables["flights"]))
    print_rows(("check", "sent", "found", ""), rows, empty="")
    return all(row[-1] == "ok" for row in rows)


def _miles(connection: Any, flights: pa.Table) -> tuple[str, int, int, str]:
    """The miles flown: a sum tells lost, doubled and changed rows that a count might not."""
    sent = int(pc.sum(flights["distance"]).as_py())
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(distance)::BIGINT FROM flights")
        (found,) = cursor.fetchone()
    return "miles flown", sent, found, "ok" if found == sent else "WRONG"


def _stay(uri: str) -> None:
    with stop_requests() as stop:
        click.echo(f"still up at {uri}; Ctrl-C stops it and removes its data")
        stop.wait()
