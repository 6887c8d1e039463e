"""The folder of a file cache: owned by one process, emptied after a reboot."""

import contextlib
import fcntl
import os
from pathlib import Path
from shutil import rmtree
from typing import Final

from duckmesh.errors import ErrorCode, Invalid
from object_store.failures import local_disk_failed

FETCHING: Final = ".fetching"
_LOCK: Final = ".duckmesh-file-cache"
"""Its presence says that the folder is ours to empty; its content, in which boot it was filled."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class RootLock:
    """A lock on the folder, which the kernel gives up with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def open_root(root: Path) -> RootLock:
    """Lock the folder, and remove what an earlier process left half done.

    Copies are not synced: their bytes are safe from a dying process, not from a dying machine. So
    they are removed when the machine has booted since, or when that cannot be told.
    Raises Invalid when the folder is another process's or holds other things, Unavailable.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _LOCK).exists() and any(root.iterdir()):
            raise _refused("the folder for the file cache holds other files; name an empty one")
        lock = _locked(root / _LOCK)
        try:
            _clean(root)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise local_disk_failed("", error) from error
    return lock


def _locked(path: Path) -> RootLock:
    lock = RootLock(descriptor := os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.release()
        message = "another process uses this folder as its file cache; give each its own"
        raise _refused(message) from None
    except BaseException:
        lock.release()
        raise
    return lock


def _clean(root: Path) -> None:
    boot = _boot_id()
    if not boot or (root / _LOCK).read_text() != boot:
        for folder in root.iterdir():
            if folder.is_dir() and not folder.is_symlink():
                rmtree(folder)
        # Only now: die in the loop, and the next start empties the rest.
        (root / _LOCK).write_text(boot)
    with contextlib.suppress(FileNotFoundError):
        rmtree(root / FETCHING)
    (root / FETCHING).mkdir()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _refused(message: str) -> Invalid:
    return Invalid(ErrorCode.INVALID_COMMAND, message)
