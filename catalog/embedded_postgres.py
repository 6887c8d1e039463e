"""A private Postgres for `duckmesh up` and the tests: started, watched and stopped by this process.

Linux only: that the server ends when this process is killed is a promise of Linux's.
"""

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from catalog.postgres_binaries import (
    LOG_TAIL_BYTES,
    RunAs,
    choose_identity,
    die_with_parent,
    environment,
    failed,
    find_binaries,
)
from catalog.postgres_directory import POLL_SECONDS, SUPERUSER, PostgresDirectory
from duckmesh.errors import ErrorCode, Unavailable
from duckmesh.statements import Statements

DEFAULT_SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "128MB",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "synchronous_commit": "on",
    "fsync": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The bus's tables turn over entirely within minutes: dead rows are swept as they come.
    "autovacuum_naptime": "5s",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_limit": "2000",
}
_FAST_STOP_SECONDS: Final = 60
_IMMEDIATE_STOP_SECONDS: Final = 10
_RUN_DIR_PREFIX: Final = "duckmesh-"
_SOCKET_DIR_MAX_CHARS: Final = 80  # A socket's path has at most 107 bytes.
_LOG_MAX_BYTES: Final = 10 * 1024 * 1024

_log = logging.getLogger(__name__)
_statements = Statements("catalog", "embedded_postgres.sql")


class EmbeddedPostgres:
    """One Postgres server over one data directory, alive for as long as this process at most.

    Beside the data directory lie its password (`.password`, 0600) and its lock (`.lock`). The
    server listens on a Unix socket in a private directory, and asks for the password (SCRAM).
    One thread at a time calls `start`, `stop` and `restart`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        database: str = "duckmesh",
        settings: Mapping[str, str] | None = None,
        run_as: RunAs | None = None,
    ) -> None:
        self._directory = PostgresDirectory(data_dir)
        self._database = database
        self._settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self._binaries = find_binaries()
        self._identity = run_as or choose_identity()
        self._lock: int | None = None
        self._run_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = threading.Event()

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

    @property
    def dsn(self) -> str:
        """The address of the database, password included: for a connection, never for a log."""
        return self._dsn_of(self._database)

    @property
    def pid(self) -> int:
        """The postmaster's pid."""
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._process is not None and not self._exited.is_set()

    @property
    def log_file(self) -> Path:
        """Where the server writes its log, inside the data directory."""
        return self._directory.log_file

    def start(self) -> None:
        """Start the server, creating the data directory at the first call.

        Blocks until connections are accepted, with no limit while the server lives: the recovery
        of a large WAL takes its time. A start that fails leaves nothing running and nothing half
        made, and may be repeated. Raises Conflict when another process runs this directory,
        Invalid when the directory is not one that these programs can run, and Unavailable, with
        the end of the server's log as a note, when the server does not come up.
        """
        if self.running:
            return
        self.stop()  # A server that died by itself left its lock and its socket.
        self._lock = self._directory.take_lock()
        try:
            self._identity.check_reaches(self._directory.path, self._binaries)
            self._run_dir = self._make_run_dir(self._lock)
            self._directory.create(self._binaries, self._identity, self._run_dir)
            self._run()
            self._create_database()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server (a fast shutdown: sessions are ended, everything is written), and unlock.

        Blocks until its postmaster has gone. Repeatable; does nothing when nothing runs.
        """
        self._end(signal.SIGINT)
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restart(self) -> None:
        """Break the server off (an immediate shutdown, as in a crash) and start it again.

        The DSN stays the same. Blocks until recovery is over; raises as `start` does. A server
        that died by itself is started again as well.
        """
        self._started()
        self._end(signal.SIGQUIT)
        self._run()

    def _make_run_dir(self, lock: int) -> Path:
        """A fresh private directory for the socket; that of a killed predecessor is removed."""
        former = Path(os.pread(lock, 4096, 0).decode())
        if former.name.startswith(_RUN_DIR_PREFIX) and not former.is_symlink():
            shutil.rmtree(former, ignore_errors=True)
        place = tempfile.gettempdir()
        if len(place) > _SOCKET_DIR_MAX_CHARS:
            place = "/tmp"  # noqa: S108 - mkdtemp below makes the directory private
        run_dir = Path(tempfile.mkdtemp(prefix=_RUN_DIR_PREFIX, dir=place))
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(run_dir).encode(), 0)
        self._identity.give(run_dir)
        return run_dir

    def _run(self) -> None:
        """Start the postmaster, once nothing of a former one lives, and wait until it is ready."""
        server_lock = self._directory.await_predecessor()
        try:
            self._directory.clear_pid_file()
            self._clear_socket()
            self._identity.give(self._directory.path)
            self._spawn(server_lock)
        finally:
            # The server's processes hold the lock from here on, and nobody else.
            os.close(server_lock)
        self._await_ready()

    def _clear_socket(self) -> None:
        """Remove a killed server's socket and the file that names its pid."""
        for left in self._run_dir.iterdir() if self._run_dir else ():
            left.unlink()

    def _command(self) -> list[str | Path]:
        options = {
            **self._settings,
            "listen_addresses": "",
            "unix_socket_directories": str(self._run_dir),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
        }
        parts = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        return [
            *self._identity.prefix,
            self._binaries / "postgres",
            "-D",
            self._directory.path,
            *parts,
        ]

    def _spawn(self, server_lock: int) -> None:
        self._exited = threading.Event()
        spawned: Future[subprocess.Popen[bytes]] = Future()
        # The kernel sends the parent's death signal when the *thread* that forked ends, not the
        # process. So one thread forks, and stays until the server has gone.
        threading.Thread(
            target=self._keep,
            args=(server_lock, spawned, self._exited),
            name="embedded-postgres",
            daemon=True,
        ).start()
        try:
            self._process = spawned.result()
        except OSError as error:
            raise failed("Postgres could not be started", b"") from error

    def _keep(
        self,
        server_lock: int,
        spawned: "Future[subprocess.Popen[bytes]]",
        exited: threading.Event,
    ) -> None:
        try:
            with self._open_log() as log:
                process = subprocess.Popen(  # noqa: S603 - the program that find_binaries named
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(),
                    pass_fds=(server_lock,),
                    # Its own session: Ctrl-C reaches us first, who still need the server.
                    start_new_session=True,
                    preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509 - see there
                    **self._identity.popen_options,
                )
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits for it
            spawned.set_exception(error)
            return
        spawned.set_result(process)
        process.wait()
        exited.set()

    def _open_log(self) -> BinaryIO:
        if self.log_file.is_file() and self.log_file.stat().st_size > _LOG_MAX_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._identity.give(self.log_file)
        return os.fdopen(descriptor, "ab")

    def _await_ready(self) -> None:
        """Wait for the word that the postmaster writes into its pid file, as pg_ctl does."""
        pid_file = self._directory.pid_file
        pid = str(self._started().pid)
        while not self._exited.wait(POLL_SECONDS):
            try:
                lines = pid_file.read_text(encoding="utf-8").split("\n")
            except FileNotFoundError:
                continue
            if len(lines) > 7 and lines[0] == pid and lines[7].strip() == "ready":
                return
        raise failed("Postgres ended while it started", self._log_tail())

    def _log_tail(self) -> bytes:
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - LOG_TAIL_BYTES))
            return log.read()

    def _end(self, first: signal.Signals) -> None:
        """Send `first`, then what is stronger, until the postmaster has gone. Data survives all."""
        process, self._process = self._process, None
        if process is None:
            return
        for sent, patience_seconds in (
            (first, _FAST_STOP_SECONDS),
            (signal.SIGQUIT, _IMMEDIATE_STOP_SECONDS),
            (signal.SIGKILL, None),
        ):
            if not self._exited.is_set():
                process.send_signal(sent)
            if self._exited.wait(patience_seconds):
                return
            _log.warning("Postgres does not end at %s", sent.name)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise Unavailable(
                ErrorCode.CATALOG_UNAVAILABLE, "the embedded Postgres is not running: start it"
            )
        return self._process

    # --- the database ----------------------------------------------------------------------------

    def _dsn_of(self, database: str) -> str:
        self._started()
        return (
            f"postgresql://{SUPERUSER}:{quote(self._directory.password(), safe='')}@/"
            f"{quote(database, safe='')}?host={quote(str(self._run_dir), safe='')}"
        )

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self._dsn_of("postgres"), autocommit=True) as connection:
                found = connection.execute(
                    _statements["database_exists"], {"database": self._database}
                ).fetchone()
                if found is None or not found[0]:
                    connection.execute(
                        sql.SQL(_statements["create_database"]).format(
                            database=sql.Identifier(self._database)
                        )
                    )
        except psycopg.Error as error:
            raise failed(
                "Postgres runs but refused its own password or the new database",
                self._log_tail(),
            ) from error
