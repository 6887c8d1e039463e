"""A process of ours that `duckmesh up` keeps running: started, watched, restarted, stopped."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from catalog.postgres_binaries import die_with_parent
from command_line.readiness import READY
from duckmesh.errors import ErrorCode, Unavailable
from duckmesh.settings import (
    CONFIG_FILE_VARIABLE,
    ENVIRONMENT_PREFIX,
    FIELDS,
    Settings,
    variable_of,
)
from duckmesh.telemetry import get_logger

_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 10.0
_PROVEN_SECONDS: Final = 30.0
"""A child that lived this long before it died is restarted with the shortest pause again."""

_log = get_logger(__name__)


def environment_of(settings: Settings, *, config: Path) -> dict[str, str]:
    """An environment in which `load_settings` gives exactly `settings`.

    `config` is an empty settings file: a duckmesh.toml in the working directory, edited later, must
    not reach a child that is restarted.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
    }
    environment[CONFIG_FILE_VARIABLE] = str(config)
    for key in FIELDS:
        group, _, name = key.rpartition(".")
        value = getattr(getattr(settings, group) if group else settings, name)
        if value is not None:
            environment[variable_of(key)] = _as_text(value)
    return environment


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


class ChildProcess:
    """`duckmesh COMMAND` in a process of its own, restarted with backoff whenever it dies.

    It ends with this process, also when that is killed. One thread owns it: the kernel ties the
    death signal to the *thread* that forked, so that thread stays as long as the child may live.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        on_ready: Callable[[str, dict[str, str]], None] = lambda *_: None,
    ) -> None:
        """`on_ready` is told what each start printed behind `ready`, in the owning thread.

        It may change the environment, which the next start is given.
        """
        self._name = command[0]
        self._command = [sys.executable, "-P", "-m", "command_line.main", *command]
        self._environment = dict(environment)
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._ready: str | None = None
        self._thread = threading.Thread(target=self._keep, name=f"keep-{self._name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """The pid of the live process; None between two."""
        with self._lock:
            alive = self._process is not None and self._process.poll() is None
            return self._process.pid if self._process is not None and alive else None

    def start(self) -> None:
        """Begin; `await_ready` tells how it went."""
        self._thread.start()

    def await_ready(self, patience: timedelta, stop: threading.Event) -> str:
        """Block until the first start is ready; return what it printed behind `ready`.

        Raises Unavailable (NOT_READY) when it ends, or takes longer; its own log says why.
        """
        until = time.monotonic() + patience.total_seconds()
        while not self._settled.wait(0.05) and not stop.is_set() and time.monotonic() < until:
            pass
        if self._ready is None:
            raise Unavailable(
                ErrorCode.NOT_READY,
                f"`duckmesh {self._name}` did not become ready; its lines above say why",
            )
        return self._ready

    def stop(self, patience: timedelta) -> bool:
        """Send SIGTERM, after `patience` SIGKILL. Whether the first was enough. Repeatable."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        if self._thread.ident is None:
            return True
        self._thread.join(patience.total_seconds())
        if not self._thread.is_alive():
            return True
        _log.warning("child_killed", child=self._name)
        self._signal(signal.SIGKILL)
        self._thread.join()
        return False

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run_once()
            if self._stopping.is_set() or self._ready is None:
                break
            if time.monotonic() - began > _PROVEN_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            _log.warning("child_died", child=self._name, exit_code=code, pause_seconds=pause)
            self._stopping.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        self._settled.set()

    def _run_once(self) -> int:
        with self._lock:
            if self._stopping.is_set():
                return 0
            self._process = process = self._spawn()
        assert process.stdout is not None  # noqa: S101 - asked for below
        for line in process.stdout:
            word, _, what = line.strip().partition(" ")
            if word == READY:
                self._ready = what
                self._on_ready(what, self._environment)
                self._settled.set()
        return process.wait()

    def _spawn(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(  # noqa: S603 - this Python, this package
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=self._environment,
            text=True,
            # Its own session: Ctrl-C reaches the parent, who stops the children in order.
            start_new_session=True,
            # SIGKILL, for it holds no state that is not durable elsewhere.
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - see there
        )
