"""The interactive shell of `duckmesh sql`."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer  # type: ignore[import-untyped]

from command_line.flight_client import Outcome
from command_line.server_address import xdg_directory
from command_line.shell_commands import ShellState, completions, fetch_names, run_command
from command_line.sql_answers import AnswerFormat, footer, write_answer
from command_line.sql_completion import KnownNames, SqlCompleter
from command_line.sql_text import is_blank, split_statements
from duckmesh.errors import Cancelled, DuckMeshError

_PROMPT: Final = "duckmesh> "
_MORE: Final = "        > "
_HISTORY_FILE: Final = "sql_history"


class Shell:
    """Reads statements from a person, runs them, and goes on after a failure.

    Ctrl-C empties the line, or cancels the statement that runs; Ctrl-D leaves.
    """

    def __init__(self, state: ShellState) -> None:
        self._state = state
        self._names = KnownNames(lambda: fetch_names(state.client))
        self._prompt: PromptSession[str] = PromptSession(
            history=_history(),
            lexer=PygmentsLexer(SqlLexer),
            completer=SqlCompleter(self._names, dict(completions())),
            complete_in_thread=True,
            multiline=Condition(lambda: not is_whole(get_app().current_buffer.text)),
            prompt_continuation=_MORE,
            enable_open_in_editor=True,
        )

    def run(self) -> None:
        """Until the person leaves."""
        click.echo("\\? lists the shell's commands; a statement ends with `;`.", err=True)
        try:
            while not self._state.leaving:
                self._once()
        except EOFError:
            pass
        finally:
            self._state.close_output()

    def _once(self) -> None:
        try:
            text = self._prompt.prompt(FormattedText([("bold", _PROMPT)]))
        except KeyboardInterrupt:
            return
        self._guarded(lambda: self._obey(text))

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Cancelled:
            click.secho("cancelled", fg="yellow", err=True)
        except KeyboardInterrupt:
            click.echo(err=True)
        except DuckMeshError as error:
            click.secho(f"error {error.code.value}: ", fg="red", nl=False, err=True)
            click.echo(error.message, err=True)

    def _obey(self, text: str) -> None:
        if text.lstrip().startswith("\\"):
            run_command(self._state, text)
            return
        for statement in split_statements(text)[0]:
            self._execute(statement)

    def _execute(self, statement: str) -> None:
        state = self._state
        began = time.monotonic()
        with state.client.execute(statement, options=state.options) as answer:
            if isinstance(answer, Outcome):
                self._names.forget()
            told = write_answer(answer, state.out, state.style)
        state.out.flush()
        if told.is_query:
            state.answered_snapshot = told.snapshot_id
        seconds = time.monotonic() - began if state.timing else None
        if state.output is not None or state.style.form is AnswerFormat.TABLE or seconds:
            click.secho(footer(told, seconds), dim=True, err=True)


def is_whole(text: str) -> bool:
    """Whether Enter runs the text: it is a command, nothing, or ends with a `;`."""
    return text.lstrip().startswith("\\") or is_blank(text) or not split_statements(text)[1]


def _history() -> History:
    """The lines of earlier shells, which their owner alone may read."""
    folder = xdg_directory("XDG_STATE_HOME", ".local/state", os.environ)
    file: Path = folder / _HISTORY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600, exist_ok=True)
        with suppress(PermissionError):
            file.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))
