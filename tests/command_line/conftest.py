"""Commands in this process for what they print, and in processes of their own for what they do."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Self

import psutil
import pytest
import structlog
from click.testing import CliRunner, Result

from command_line.main import program
from duckmesh.settings import CONFIG_FILE_VARIABLE, ENVIRONMENT_PREFIX

DEADLINE_SECONDS = 60


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No settings but the test's own; the log goes where it went before, afterwards."""
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) and not name.startswith("DUCKMESH_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv(CONFIG_FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    logging.disable(logging.NOTSET)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """`run("keys", "list", DUCKMESH_X="…")`: the command in this process."""

    def run_command(*arguments: str, **environment: str) -> Result:
        return CliRunner(env=environment).invoke(program, arguments)

    return run_command


@pytest.fixture
def on_catalog(run: Run, database_dsn: str) -> Run:
    """`run`, on a migrated catalog of the test's own."""

    def run_command(*arguments: str, **environment: str) -> Result:
        return run(*arguments, DUCKMESH_CATALOG_DSN=database_dsn, **environment)

    return run_command


def document(result: Result) -> Any:
    """What a command with --json printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Process:
    """A `duckmesh` command in a process of its own. Leaving the block kills what is left of it."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "command_line.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._lines: Queue[str | None] = Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.pid = self._process.pid
        self._family: list[psutil.Process] = []

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def line(self, containing: str) -> str:
        """The next line of standard output that holds this text."""
        while True:
            try:
                line = self._lines.get(timeout=DEADLINE_SECONDS)
            except Empty:
                pytest.fail(f"no line with {containing!r}; errors: {self.errors}")
            if line is None:
                pytest.fail(f"it ended before a line with {containing!r}; errors: {self.errors}")
            if containing in line:
                return line.rstrip("\n")

    def rest(self) -> list[str]:
        """The lines of standard output up to its end."""
        return [line.rstrip("\n") for line in iter(self._lines.get, None)]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(DEADLINE_SECONDS)

    def descendants(self) -> list[psutil.Process]:
        self._family = psutil.Process(self.pid).children(recursive=True)
        return self._family

    def descendant(self, *words: str) -> psutil.Process:
        """The one whose command line holds these words."""
        (found,) = [
            each
            for each in self.descendants()
            if all(any(word in part for part in each.cmdline()) for word in words)
        ]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line)


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until it holds, up to the deadline."""
    waiting = threading.Event()
    for _ in range(DEADLINE_SECONDS * 20):
        if holds():
            return
        waiting.wait(0.05)
    pytest.fail(f"not in time: {what}")
