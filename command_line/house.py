"""Everything on one machine: Postgres, a directory of objects, a coordinator, a serving process."""

import os
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import SecretStr

from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from command_line.children import ChildProcess, environment_of
from command_line.data_directory import DataDirectory, Running
from command_line.ports import check_port_is_free
from duckmesh.errors import DuckMeshError
from duckmesh.settings import Settings, variable_of
from duckmesh.telemetry import get_logger

_READY_WITHIN: Final = timedelta(seconds=60)
_GRACE_SECONDS: Final = 5.0
_STOP_WITHIN: Final = timedelta(seconds=2 * _GRACE_SECONDS + 5)
_WATCH_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0
_log = get_logger(__name__)


class House:
    """A whole DuckMesh in `settings.data_dir`. The user's own DSN and store win over embedded ones.

    All of its processes end with this one, also when this one is killed. A process that dies is
    started again. One thread calls `start` and `stop`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = DataDirectory(settings.data_dir)
        self._stopping = threading.Event()
        self._open = ExitStack()
        self.uri = ""
        """Where clients connect; it stays the same when the serving process is restarted."""
        self.http_uri = ""
        """The same of the HTTP door; empty when it is turned off."""

    def start(self, stop: threading.Event | None = None) -> None:
        """Start everything, and wait until it serves; `stop` ends the wait.

        Raises Conflict when another `up` has the data directory or the port is taken, and what
        Postgres, the migrations or a child raise. A start that fails leaves nothing running.
        """
        stop = stop or threading.Event()
        with ExitStack() as undo:
            self._directory.take()
            undo.callback(self._directory.give_back)
            check_port_is_free(self._settings.flight)
            dsn = self._start_catalog(undo)
            migrate_up(dsn)
            self._start_children(dsn, undo, stop)
            self._directory.tell(Running(os.getpid(), self.uri, dsn))
            self._open = undo.pop_all()

    def stop(self) -> None:
        """Stop everything, the doors first. Blocks for at most half a minute, and for Postgres.

        Repeatable.
        """
        self._stopping.set()
        self._open.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- Postgres

    def _start_catalog(self, undo: ExitStack) -> str:
        if self._settings.catalog.dsn is not None:
            return self._settings.catalog.dsn.get_secret_value()
        postgres = EmbeddedPostgres(self._directory.postgres)
        postgres.start()
        undo.callback(postgres.stop)
        watcher = threading.Thread(target=self._watch, args=(postgres,), name="watch-postgres")
        watcher.start()
        # Ended before Postgres is stopped: a restart must not meet a stop.
        undo.callback(watcher.join)
        undo.callback(self._stopping.set)
        return postgres.dsn

    def _watch(self, postgres: EmbeddedPostgres) -> None:
        """Start Postgres again when it dies; what was committed is there again then."""
        pause = _WATCH_SECONDS
        while not self._stopping.wait(pause):
            if postgres.running:
                pause = _WATCH_SECONDS
                continue
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            _log.warning("postgres_died")
            try:
                postgres.restart()
            except DuckMeshError as error:
                _log.warning("postgres_restart_failed", error_code=error.code.value)

    # --- the children

    def _start_children(self, dsn: str, undo: ExitStack, stop: threading.Event) -> None:
        environment = environment_of(self._settings_for(dsn), config=self._empty_config())
        grace = ["--grace-seconds", str(_GRACE_SECONDS)]
        coordinator = ChildProcess(["coordinate", *grace], environment)
        server = ChildProcess(["serve", *grace], environment, on_ready=_keep_port)
        # Stopped in the opposite order: first the door, then the one who publishes.
        for child in (coordinator, server):
            child.start()
            undo.callback(child.stop, _STOP_WITHIN)
        self.uri, _, self.http_uri = server.await_ready(_READY_WITHIN, stop).partition(" ")
        coordinator.await_ready(_READY_WITHIN, stop)

    def _settings_for(self, dsn: str) -> Settings:
        """The children's settings: the parent's, with the embedded parts named."""
        settings = self._settings
        url = settings.store.url or self._directory.objects.as_uri()
        return settings.model_copy(
            update={
                "data_dir": self._directory.root,
                "catalog": settings.catalog.model_copy(update={"dsn": SecretStr(dsn)}),
                "store": settings.store.model_copy(update={"url": url}),
            }
        )

    def _empty_config(self) -> Path:
        path = self._directory.root / "children.toml"
        path.write_text("# `duckmesh up` hands its settings on in the environment.\n", "utf-8")
        return path


def _keep_port(uris: str, environment: dict[str, str]) -> None:
    """A free port was taken once; a restarted server listens on the same."""
    for door, uri in zip(("flight", "http"), uris.split(), strict=False):
        environment[variable_of(f"{door}.port")] = uri.rpartition(":")[2]
