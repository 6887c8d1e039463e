"""The shell's own commands, which begin with a backslash."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

import click
import pyarrow as pa

from command_line.flight_client import NO_OPTIONS, CallOptions, FlightClient, Rows
from command_line.sql_answers import AnswerFormat, Style, write_answer
from command_line.sql_completion import Names, quoted_name
from duckmesh.errors import ErrorCode, Invalid, NotFound

_MAIN: Final = "main"
_ON_OFF: Final = ("on", "off")


def _terminal() -> IO[bytes]:
    return sys.stdout.buffer


@dataclass(slots=True)
class ShellState:
    """What the commands of one shell change."""

    client: FlightClient
    style: Style
    options: CallOptions = NO_OPTIONS
    timing: bool = True
    output: IO[bytes] | None = None
    """Where rows go, when not to the terminal."""
    terminal: IO[bytes] = field(default_factory=_terminal)
    answered_snapshot: int | None = None
    """The snapshot that the last query read."""
    leaving: bool = False

    @property
    def out(self) -> IO[bytes]:
        return self.output or self.terminal

    def close_output(self) -> None:
        """Rows go to the terminal again. Repeatable."""
        if self.output is not None:
            self.output.close()
            self.output = None


Act = Callable[[ShellState, str], None]


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """One command: what follows its name, what it does, and the words that may follow."""

    takes: str
    means: str
    act: Act
    words: Sequence[str] = ()


def run_command(state: ShellState, line: str) -> None:
    """Do what a line with a backslash says. Raises Invalid for a word that is no command."""
    name, _, rest = line.strip().rstrip(";").partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise Invalid(ErrorCode.INVALID_COMMAND, f"there is no command {name}: \\? lists them")
    command.act(state, rest.strip())


def fetch_names(client: FlightClient) -> Names:
    """The tables and views that completion offers, with their columns."""
    found = client.rows(
        "SELECT table_schema, table_name, column_name FROM information_schema.columns "
        "ORDER BY table_schema, table_name, ordinal_position",
        options=CallOptions(consistency="latest"),
    )
    columns: dict[str, list[str]] = {}
    for row in found.to_pylist():
        name = row["table_name"]
        if row["table_schema"] != _MAIN:
            name = f"{row['table_schema']}.{name}"
        columns.setdefault(name, []).append(row["column_name"])
    return Names(columns)


# --- looking -------------------------------------------------------------------------------------


def _describe(state: ShellState, name: str) -> None:
    if not name:
        _show(state, _tables(state))
        return
    path = ".".join(quoted_name(part.strip('"')) for part in name.split("."))
    _show(state, state.client.rows(f"DESCRIBE {path}", options=state.options))


def _tables(state: ShellState) -> pa.Table:
    """All tables and views; sizes of the tables."""
    listed = state.client.rows(
        "SELECT table_name, table_type FROM information_schema.tables "
        "WHERE table_schema = 'main' ORDER BY table_name",
        options=state.options,
    )
    sizes = state.client.rows(
        "SELECT table_name, row_count, file_count, size_bytes, max_visibility_token "
        "FROM duckmesh_system.tables",
        options=state.options,
    )
    of_name = {row["table_name"]: row for row in sizes.to_pylist()}
    whole = {"BASE TABLE": "table", "VIEW": "view"}
    rows = [
        {
            "name": row["table_name"],
            "kind": whole.get(row["table_type"], row["table_type"].lower()),
            "rows": of_name.get(row["table_name"], {}).get("row_count"),
            "files": of_name.get(row["table_name"], {}).get("file_count"),
            "bytes": of_name.get(row["table_name"], {}).get("size_bytes"),
            "newest token": of_name.get(row["table_name"], {}).get("max_visibility_token"),
        }
        for row in listed.to_pylist()
    ]
    numbers = ("rows", "files", "bytes", "newest token")
    schema = pa.schema(
        [("name", pa.string()), ("kind", pa.string()), *((each, pa.int64()) for each in numbers)]
    )
    return pa.Table.from_pylist(rows, schema)


def _views(state: ShellState, _: str) -> None:
    found = state.client.rows(
        "SELECT table_name AS view, string_agg(column_name, ', ' ORDER BY ordinal_position) "
        "AS columns FROM information_schema.tables JOIN information_schema.columns "
        "USING (table_schema, table_name) WHERE table_schema = 'main' AND table_type = 'VIEW' "
        "GROUP BY table_name ORDER BY table_name",
        options=state.options,
    )
    _show(state, found)


def _show(state: ShellState, table: pa.Table) -> None:
    write_answer(Rows(table.schema, None, iter(table.to_batches())), state.out, state.style)
    state.out.flush()


def _token(state: ShellState, _: str) -> None:
    token = state.client.last_token
    click.echo(f"token {token}" if token else "this session has written nothing", err=True)


def _snapshot(state: ShellState, wanted: str) -> None:
    if wanted == "latest":
        state.options = replace(state.options, snapshot_id=None)
    elif wanted:
        state.options = replace(state.options, snapshot_id=_number(wanted, "a snapshot's number"))
    chosen, read = state.options.snapshot_id, state.answered_snapshot
    if chosen is not None:
        click.echo(f"queries read snapshot {chosen}; \\snapshot latest ends that", err=True)
    else:
        last = "" if read is None else f"; the last one read {read}"
        click.echo(f"queries read the newest snapshot{last}", err=True)


# --- showing -------------------------------------------------------------------------------------


def _timing(state: ShellState, wanted: str) -> None:
    state.timing = _switched(state.timing, wanted)
    click.echo(f"timing is {'on' if state.timing else 'off'}", err=True)


def _expanded(state: ShellState, wanted: str) -> None:
    state.style.expanded = _switched(state.style.expanded, wanted)
    click.echo(f"expanded display is {'on' if state.style.expanded else 'off'}", err=True)


def _format(state: ShellState, wanted: str) -> None:
    if wanted:
        if wanted not in list(AnswerFormat):
            raise Invalid(
                ErrorCode.INVALID_COMMAND, f"give one of the formats {', '.join(AnswerFormat)}"
            )
        state.style.form = AnswerFormat(wanted)
    click.echo(f"format is {state.style.form}", err=True)


def _limit(state: ShellState, wanted: str) -> None:
    if wanted:
        state.style.row_limit = _number(wanted, "how many rows a table shows, 0 for all")
    click.echo(f"a table shows {state.style.row_limit or 'all'} rows", err=True)


def _output(state: ShellState, name: str) -> None:
    state.close_output()
    if not name:
        click.echo("rows go to the terminal", err=True)
        return
    try:
        state.output = Path(name).expanduser().open("wb")
    except OSError as error:
        raise NotFound(
            ErrorCode.NOT_FOUND, "the file cannot be written: correct its name or its folder"
        ) from error
    click.echo("rows go to the file; \\o ends that", err=True)


def _help(_: ShellState, __: str) -> None:
    width = max(len(f"{name} {each.takes}") for name, each in COMMANDS.items())
    for name, each in COMMANDS.items():
        click.echo(f"  {f'{name} {each.takes}':<{width}}  {each.means}", err=True)
    click.echo("A statement ends with `;`. Ctrl-C cancels it; Ctrl-D leaves.", err=True)


def _leave(state: ShellState, _: str) -> None:
    state.leaving = True


def _switched(now: bool, wanted: str) -> bool:
    if wanted and wanted not in _ON_OFF:
        raise Invalid(ErrorCode.INVALID_COMMAND, "give on, off or nothing")
    return not now if not wanted else wanted == "on"


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise Invalid(ErrorCode.INVALID_COMMAND, f"give {what}")
    return int(text)


COMMANDS: Final[Mapping[str, ShellCommand]] = {
    "\\d": ShellCommand(
        "[NAME]", "the tables and views, or the columns of one", _describe, ("TABLE",)
    ),
    "\\dv": ShellCommand("", "the views, and their columns", _views),
    "\\x": ShellCommand("[on|off]", "a line for each value of a row", _expanded, _ON_OFF),
    "\\format": ShellCommand("[FORMAT]", ", ".join(AnswerFormat), _format, tuple(AnswerFormat)),
    "\\limit": ShellCommand("[N]", "how many rows a table shows; 0 is all", _limit),
    "\\timing": ShellCommand("[on|off]", "how long a statement took", _timing, _ON_OFF),
    "\\o": ShellCommand("[FILE]", "rows go to a file, or to the terminal again", _output),
    "\\token": ShellCommand("", "the session's last visibility token", _token),
    "\\snapshot": ShellCommand(
        "[ID|latest]", "read one snapshot from now on, or the newest again", _snapshot, ("latest",)
    ),
    "\\?": ShellCommand("", "these commands", _help),
    "\\q": ShellCommand("", "leave", _leave),
}


def completions() -> Iterator[tuple[str, Sequence[str]]]:
    """Each command, and the words that may follow it."""
    return ((name, command.words) for name, command in COMMANDS.items())
