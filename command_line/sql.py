"""`duckmesh sql`: statements against a running server, from flags, files, a pipe or a person."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from command_line.flight_client import CallOptions, FlightClient, Parameters, connect
from command_line.invocation import Invocation
from command_line.server_address import find_server, server_options
from command_line.sql_answers import AnswerFormat, Style, footer, write_answer
from command_line.sql_text import statements_of
from duckmesh.errors import ErrorCode, Invalid


@click.command()
@click.option(
    "-c", "--command", "commands", metavar="SQL", multiple=True, help="Run this, and end."
)
@click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Run the statements of this file, and end.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([each.value for each in AnswerFormat]),
    help="How rows are printed; table when not given.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="How many rows a table shows; 0 shows all. Other formats give all.",
)
@click.option("-x", "--expanded", is_flag=True, help="A line for each value of a row.")
@click.option("--token", type=click.IntRange(min=1), help="Wait until this token is visible.")
@click.option("--snapshot", type=click.IntRange(min=1), help="Read this snapshot.")
@click.option(
    "--wait", is_flag=True, help="Read everything that was accepted before the query began."
)
@click.option(
    "--timeout",
    "timeout_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.001),
    help="How long to wait for --token or --wait; the server has its own limit.",
)
@click.option(
    "-p",
    "--param",
    "parameters",
    metavar="[NAME=]VALUE",
    multiple=True,
    help="A value for $NAME, or for the next ? of a statement. May be repeated.",
)
@server_options
@click.pass_obj
def sql(
    invocation: Invocation,
    /,
    *,
    commands: tuple[str, ...],
    files: tuple[Path, ...],
    form: str | None,
    as_json: bool,
    limit: int,
    expanded: bool,
    token: int | None,
    snapshot: int | None,
    wait: bool,
    timeout_seconds: float | None,
    parameters: tuple[str, ...],
    **server: Any,
) -> None:
    """Run SQL on a server: -c, -f, standard input, or an interactive shell on a terminal.

    Statements end with `;` and run one after the other; the first that fails ends the command.
    Rows go to standard output; times, tokens and errors to standard error.
    """
    style = Style(form=_form(form, as_json), row_limit=limit, expanded=expanded)
    options = _options(token, snapshot, wait, timeout_seconds)
    values = _parameters(parameters)
    texts = [*commands, *(_text_of(file) for file in files)]
    found = find_server(invocation, **server)
    with connect(found) as client:
        if not texts and sys.stdin.isatty():
            if values:
                raise click.UsageError("--param is for -c, -f and standard input")
            _talk(client, style, options)
            return
        statements = [each for text in texts or [sys.stdin.read()] for each in statements_of(text)]
        _run(client, statements, values, options, style)


def _talk(client: FlightClient, style: Style, options: CallOptions) -> None:
    # Imported here: what a person needs is much, and a script waits for none of it.
    from command_line.shell_commands import ShellState
    from command_line.sql_shell import Shell

    Shell(ShellState(client, style, options)).run()


def _run(
    client: FlightClient,
    statements: Sequence[str],
    parameters: Parameters,
    options: CallOptions,
    style: Style,
) -> None:
    out = sys.stdout.buffer
    for statement in statements:
        began = time.monotonic()
        with client.execute(statement, parameters=parameters, options=options) as answer:
            told = write_answer(answer, out, style)
        out.flush()
        if style.form is AnswerFormat.TABLE:
            click.echo(footer(told, time.monotonic() - began), err=True)


def _form(form: str | None, as_json: bool) -> AnswerFormat:
    if as_json and form not in (None, AnswerFormat.JSON.value):
        raise click.UsageError("--json is --format json: leave one of them out")
    return AnswerFormat.JSON if as_json else AnswerFormat(form or AnswerFormat.TABLE.value)


def _options(
    token: int | None, snapshot: int | None, wait: bool, timeout_seconds: float | None
) -> CallOptions:
    return CallOptions(
        token=token,
        snapshot_id=snapshot,
        consistency="strong" if wait else None,
        timeout_ms=None if timeout_seconds is None else max(1, int(1000 * timeout_seconds)),
    )


def _parameters(given: tuple[str, ...]) -> Parameters:
    named: dict[str, str] = {}
    positional: list[str] = []
    for each in given:
        name, equals, value = each.partition("=")
        if equals and name.isidentifier():
            named[name] = value
        else:
            positional.append(each.removeprefix("="))
    if named and positional:
        raise click.UsageError("--param: give all with names, or all without (=VALUE)")
    return Parameters(positional, named)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            ErrorCode.SQL_REQUIRED, f"{file.name} cannot be read as UTF-8 text: correct its name"
        ) from error
