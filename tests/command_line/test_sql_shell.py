"""The shell of `duckmesh sql`, on a terminal of its own."""

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line.client_house import running_service
from tests.processes import until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\x1b[=>]|\r")
_PATIENCE_SECONDS = 20
PROMPT = "duckmesh>"  # The blank behind it is a move of the cursor.


@pytest.fixture(scope="module")
def uri(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(module_database_dsn, tmp_path_factory.mktemp("shell")) as found:
        yield found


class Terminal:
    """A shell in a process of its own, as a person sees it."""

    def __init__(self, uri: str, state: Path) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "command_line.main", "sql", "--uri", uri],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={
                **os.environ,
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "XDG_STATE_HOME": str(state),
                "COLUMNS": "120",
                "LINES": "40",
            },
        )
        os.close(theirs)

    def sees(self, text: str) -> str:
        """All that is shown up to and with this text, since the last time."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while text not in (plain := _ESCAPES.sub("", self._seen)):
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"no {text!r} in {plain!r}")
        before, _, self._seen = plain.partition(text)
        return before + text

    def types(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def enters(self, text: str, *, sees: str) -> str:
        self.types(text + "\r")
        return self.sees(sees)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 0.5)
        if not ready:
            return self.process.poll() is None
        try:
            found = os.read(self._ours, 65536)
        except OSError:
            return False
        self._seen += found.decode(errors="replace")
        return bool(found)

    def ends(self) -> int:
        """Its exit code; what it still says is read, so that it can end."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        return self.process.wait(1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(uri: str, tmp_path: Path) -> Iterator[Terminal]:
    shown = Terminal(uri, tmp_path / "state")
    try:
        shown.sees(PROMPT)
        yield shown
    finally:
        shown.close()


def test_a_session_of_a_person(terminal: Terminal, tmp_path: Path) -> None:
    terminal.enters("CREATE TABLE talk (id INT,", sees="\n        >")
    terminal.enters("word VARCHAR);", sees="(done, ")
    terminal.enters("INSERT INTO talk VALUES (1, 'one'), (2, NULL);", sees="(2 rows, token ")
    terminal.enters("\\token", sees="\ntoken ")
    shown = terminal.enters("SELECT * FROM talk ORDER BY id;", sees="(2 rows, snapshot ")
    assert re.search(r"│ +2 │ NULL", shown)
    assert "INTEGER" in shown
    assert "newest token" in terminal.enters("\\d", sees="│ table")
    assert "word" in terminal.enters("\\d talk", sees="│ VARCHAR     │ YES")
    terminal.enters("SELECT nope FROM talk;", sees="error QUERY_EXECUTION_FAILED: Binder Error")
    terminal.enters("\\nope", sees="error INVALID_COMMAND: there is no command \\nope")
    terminal.enters("\\x", sees="expanded display is on")
    terminal.enters("SELECT 7 AS seven;", sees="── row 1 ──")
    terminal.enters("\\snapshot 1", sees="queries read snapshot 1;")
    terminal.enters("SELECT count(*) FROM talk;", sees="error TABLE_NOT_FOUND")
    terminal.enters("\\snapshot latest", sees="queries read the newest snapshot")
    terminal.enters("\\format ndjson", sees="format is ndjson")
    file = tmp_path / "rows.ndjson"
    terminal.enters(f"\\o {file}", sees="rows go to the file")
    terminal.enters("SELECT id FROM talk ORDER BY id;", sees="(2 rows, ")
    terminal.enters("\\o", sees="rows go to the terminal")
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"id": 1}, {"id": 2}]
    terminal.enters("\\dv", sees=PROMPT)
    terminal.types("\\q\r")
    assert terminal.ends() == 0


def test_ctrl_c_cancels_the_statement_and_ctrl_d_leaves(terminal: Terminal, tmp_path: Path) -> None:
    terminal.types("SELECT 'half of it")
    terminal.sees("half of it")
    terminal.types("\x03")  # At the prompt it empties the line.
    terminal.sees(PROMPT)
    file = tmp_path / "endless"
    terminal.enters("\\format ndjson", sees="format is ndjson")
    terminal.enters(f"\\o {file}", sees="rows go to the file")
    terminal.types("SELECT range AS n FROM range(1_000_000_000_000);\r")
    until(lambda: file.stat().st_size > 0, seconds=_PATIENCE_SECONDS)
    terminal.process.send_signal(signal.SIGINT)
    terminal.sees("cancelled")
    terminal.enters("\\o", sees="rows go to the terminal")
    terminal.enters("SELECT 40 + 2 AS answer;", sees='{"answer":42}')
    terminal.sees(PROMPT)
    terminal.types("\x04")
    assert terminal.ends() == 0


def test_the_history_is_kept_and_its_owner_s_alone(uri: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for typed in ("SELECT 123 AS kept;", "\x1b[A"):
        shown = Terminal(uri, state)
        try:
            shown.sees(PROMPT)
            shown.enters(typed, sees="123 │")
            shown.sees(PROMPT)  # Typed before it, Ctrl-D would be the terminal's.
            shown.types("\x04")
            assert shown.ends() == 0
        finally:
            shown.close()
    file = state / "duckmesh" / "sql_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "SELECT 123 AS kept;" in file.read_text()
