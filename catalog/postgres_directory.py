"""A data directory of an embedded Postgres: made whole or not at all, run by one server at a time.

Three locks keep it to one server, each freed by the kernel when its holder dies, so that neither
kill -9 nor a recycled pid confuses them:

- `<data dir>.lock` is held by the supervisor. It is not inherited.
- `<data dir>/PG_VERSION` is held by the server's processes, who inherit it. It outlives a killed
  supervisor or postmaster for as long as one backend does.
- Postgres's own `postmaster.pid`, which names a pid only. It is believed only when that pid is
  a Postgres in this directory.

The lock order is as written.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from catalog.postgres_binaries import (
    RunAs,
    die_with_parent,
    environment,
    failed,
    major_version,
)
from duckmesh.clock import Deadline
from duckmesh.errors import Conflict, ErrorCode, Invalid, Unavailable

SUPERUSER: Final = "duckmesh"
POLL_SECONDS: Final = 0.02
_PREDECESSOR_SPAN: Final = timedelta(seconds=60)


class PostgresDirectory:
    """The data directory at `path`, with its password and its lock beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.password_file = self._beside(".password")
        self.log_file = self.path / "postgres.log"
        self.pid_file = self.path / "postmaster.pid"

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def take_lock(self) -> int:
        """A descriptor that keeps every other supervisor off until it is closed, or we die.

        Raises Conflict at once when another one holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._beside(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise Conflict(
                ErrorCode.CATALOG_UNAVAILABLE,
                "another DuckMesh process runs this data directory: stop it first, "
                "or name another data_dir",
            ) from None
        return lock

    def create(self, binaries: Path, identity: RunAs, scratch: Path) -> None:
        """Make the directory when there is none; refuse one that cannot be run.

        Call it under the lock. `scratch` is a private directory of `identity`.
        Raises Invalid for a directory of another version, another owner or without its password.
        """
        version_file = self.path / "PG_VERSION"
        if version_file.is_file():
            self._check_version(version_file.read_text(encoding="utf-8").strip(), binaries)
            if not self.password_file.is_file():
                raise Invalid(
                    ErrorCode.SETTINGS_INVALID,
                    "the data directory's password file is missing: put the .password file back "
                    "beside the data directory, or name another data_dir",
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise Invalid(
                ErrorCode.SETTINGS_INVALID,
                "the data directory holds files that are not Postgres's: name another data_dir",
            )
        else:
            self._write_password()
            self._initialise(binaries, identity, scratch)

    def _check_version(self, found: str, binaries: Path) -> None:
        ours = str(major_version(binaries))
        if found != ours:
            raise Invalid(
                ErrorCode.SETTINGS_INVALID,
                f"the data directory is of PostgreSQL {found}, the programs here are of {ours}: "
                f"convert it with pg_upgrade (from the programs of {found} to those of {ours}), "
                f"or install PostgreSQL {found}, or name another data_dir",
            )

    def _write_password(self) -> None:
        if self.password_file.is_file():
            return  # An initdb that was killed left it; it opens nothing yet.
        draft = self._beside(".password.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.password_file)

    def _initialise(self, binaries: Path, identity: RunAs, scratch: Path) -> None:
        """Run initdb beside the data directory, then rename: it is there whole, or not at all."""
        parent, prefix = self.path.parent, f".{self.path.name}.initdb-"
        for leftover in parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            identity.give(draft)
            self._run_initdb(draft, binaries, identity, scratch)
            draft.rename(self.path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _fsync_directory(parent)

    def _run_initdb(self, directory: Path, binaries: Path, identity: RunAs, scratch: Path) -> None:
        password_copy = scratch / "password"
        password_copy.touch(mode=0o600)
        password_copy.write_text(self.password(), encoding="utf-8")
        identity.give(password_copy)
        answer = subprocess.run(  # noqa: S603 - the program that find_binaries named
            [
                *identity.prefix,
                binaries / "initdb",
                f"--pgdata={directory}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_copy}",
                "--auth-local=scram-sha-256",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=die_with_parent(signal.SIGKILL),
            **identity.popen_options,
        )
        password_copy.unlink()
        if answer.returncode != 0:
            raise failed("Postgres could not create its data directory", answer.stdout)

    def password(self) -> str:
        return self.password_file.read_text(encoding="utf-8").strip()

    def await_predecessor(self) -> int:
        """Lock PG_VERSION: obtained only when no process of an earlier server is left.

        A supervisor killed a moment ago leaves a server that is shutting down, a killed
        postmaster leaves backends that are about to notice. Waits for them.
        """
        deadline = Deadline.after(_PREDECESSOR_SPAN)
        lock = os.open(self.path / "PG_VERSION", os.O_RDONLY)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if deadline.passed:
                    os.close(lock)
                    raise Unavailable(
                        ErrorCode.CATALOG_UNAVAILABLE,
                        "an earlier Postgres of this data directory is still shutting down: "
                        "start again when it has ended",
                    ) from None
                time.sleep(POLL_SECONDS)
            else:
                return lock

    def clear_pid_file(self) -> None:
        """Remove a postmaster.pid that a killed server left.

        Postgres refuses to start when the pid in it belongs to any process of the same user. We
        hold both locks, so no server of ours lives; only one that somebody started by hand can.
        """
        try:
            pid = int(self.pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            self.pid_file.unlink(missing_ok=True)
            return
        if _runs_in(pid, self.path):
            raise Conflict(
                ErrorCode.CATALOG_UNAVAILABLE,
                "a Postgres that DuckMesh did not start runs this data directory: stop it first",
            )
        self.pid_file.unlink()


def _runs_in(pid: int, data_dir: Path) -> bool:
    """Whether `pid` is a Postgres of `data_dir`: a postmaster works in its data directory."""
    process = Path("/proc", str(pid))
    try:
        name = (process / "comm").read_text(encoding="utf-8").strip()
        return name == "postgres" and (process / "cwd").samefile(data_dir)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return False  # Another user's process. Postgres runs as the owner of its directory.


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
