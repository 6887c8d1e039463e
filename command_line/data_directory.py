"""The directory that `duckmesh up` keeps everything in, and the record of the one that runs."""

import fcntl
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from duckmesh.errors import Conflict, ErrorCode, Unavailable

_LOCK_TRIES: Final = 5
_LOCK_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Running:
    """What a running `up` tells the other commands of this machine. Readable by its owner only."""

    pid: int
    uri: str
    dsn: str


class DataDirectory:
    """`postgres/`, `objects/` and `cache/` below `root`, for one `up` at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.postgres = self.root / "postgres"
        self.objects = self.root / "objects"
        self.cache = self.root / "cache"
        self._lock_file = self.root / "up.lock"
        self._record = self.root / "up.json"
        self._lock: int | None = None

    def take(self) -> None:
        """Make the directory this process's. Raises Conflict when another `up` has it.

        The kernel gives it back when the process ends, however it ends.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(
                ErrorCode.STORE_UNAVAILABLE,
                "the data directory cannot be written: change its permissions, "
                "or name another with --data-dir",
            ) from error
        if not _locked(lock):
            os.close(lock)
            found = self.running()
            where = f" and serves {found.uri}" if found is not None else ""
            raise Conflict(
                ErrorCode.SETTINGS_INVALID,
                f"another `duckmesh up` runs on this data directory{where}: "
                "stop it first, or name another with --data-dir",
            )
        self._lock = lock
        self._record.unlink(missing_ok=True)

    def tell(self, running: Running) -> None:
        """Write the record, whole or not at all."""
        handle, name = tempfile.mkstemp(dir=self.root)  # Born with mode 0600: it holds a password.
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(running), file)
        Path(name).replace(self._record)

    def give_back(self) -> None:
        """Remove the record and the lock. Repeatable."""
        lock, self._lock = self._lock, None
        if lock is not None:
            self._record.unlink(missing_ok=True)
            os.close(lock)

    def running(self) -> Running | None:
        """The record of the `up` that has this directory now; None when none has."""
        try:
            lock = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # A shared lock is refused exactly while an `up` lives. It is gone again at once.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._read_record()
        finally:
            os.close(lock)
        return None

    def _read_record(self) -> Running | None:
        try:
            return Running(**json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _locked(lock: int) -> bool:
    """Take the lock. It is tried again shortly: `running` holds it for a moment as it looks."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return True
    return False
