"""DirectoryStore: objects as read-only files of one folder, read in place."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from shutil import copyfileobj
from stat import S_ISREG
from typing import BinaryIO, Final, cast

from duckmesh.errors import DuckMeshError, NotFound
from duckmesh.identifiers import new_file_id
from object_store import keys
from object_store.failures import bad_range, from_os_error, missing, unavailable
from object_store.local_copy import new_local_file
from object_store.port import ObjectStat
from object_store.probe import probe
from object_store.sink import Sink

_UPLOADING: Final = ".uploading"
"""No key's component begins with a dot, so uploads are never listed, read or overwritten."""

_COPY_BYTES: Final = 1024 * 1024


class DirectoryStore:
    """An ObjectStore in a folder, for one machine or a shared file system with POSIX rename.

    An object is written under a hidden name in the same file system, synced, made read-only (0444)
    and renamed onto its key; the folder is synced after. Die before the rename: a stale upload that
    `sweep_uploads` removes. Die after: the object is there, whole.
    The file system sets the time limits: a local disk has none, a network mount its own.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._uploading = self._root / _UPLOADING
        self._synced: set[Path] = set()

    def put(self, key: str, content: bytes) -> None:
        writer = self.open_writer(key)
        try:
            writer.file.write(content)
            writer.commit()
        finally:
            writer.abort()

    def open_writer(self, key: str) -> "DirectoryWriter":
        path = self._path(key)
        with _translated("begin the object", key):
            self._uploading.mkdir(parents=True, exist_ok=True)
            return DirectoryWriter(self, key, path, self._uploading / str(new_file_id()))

    def get(self, key: str) -> bytes:
        with self._opened(key) as file, _translated("read the object", key):
            return file.read()

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        if start < 0 or length < 1:
            raise bad_range(keys.check(key), start, length)
        with self._opened(key) as file, _translated("read the object", key):
            size_bytes = os.fstat(file.fileno()).st_size
            if start >= size_bytes:
                raise bad_range(key, start, length, size_bytes)
            file.seek(start)
            return file.read(length)

    def download(self, key: str, destination: Path) -> int:
        with self._opened(key) as source, new_local_file(destination, key) as target:
            copyfileobj(source, target, _COPY_BYTES)
            return target.tell()

    def stat(self, key: str) -> ObjectStat:
        path = self._path(key)
        with _translated("look at the object", key):
            try:
                status = path.stat()
            except _NO_OBJECT:
                raise missing(key) from None
        if not S_ISREG(status.st_mode):
            raise missing(key)
        return ObjectStat(key, status.st_size)

    def delete(self, key: str) -> None:
        # Folders stay: removing one would race with a put that has just made it.
        path = self._path(key)
        with _translated("delete the object", key), contextlib.suppress(*_NO_OBJECT):
            path.unlink()

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        folder = keys.check_prefix(prefix)
        return self._walk(folder)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def probe(self) -> None:
        probe(self)

    def sweep_uploads(self, older_than: timedelta) -> int:
        """Remove the uploads that dead processes left behind; return how many.

        A living writer holds a lock on its file, whatever its age, and is spared. The age spares
        writers on other machines where the file system's locks do not reach.
        """
        oldest = time.time() - older_than.total_seconds()
        with _translated("sweep its stale uploads", _UPLOADING):
            if not self._uploading.is_dir():
                return 0
            return sum(_swept(path, oldest) for path in self._uploading.iterdir())

    def publish(self, upload: Path, path: Path) -> None:
        """Show a finished, synced upload under its final path, durably. Raises OSError."""
        self._make_folder(path.parent)
        upload.replace(path)
        _sync_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make the folder, and its name durable: each of its ancestors is synced once a process."""
        folder.mkdir(parents=True, exist_ok=True)
        if folder in self._synced:
            return
        made = folder
        while folder != self._root:
            folder = folder.parent
            _sync_folder(folder)
        # The folder above the root may be closed to us; then whoever made the root answers for it.
        with contextlib.suppress(PermissionError):
            _sync_folder(folder.parent)
        self._synced.add(made)

    def _path(self, key: str) -> Path:
        return self._root / keys.check(key)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        try:
            file = path.open("rb")
        except _NO_OBJECT:
            raise missing(key) from None
        except OSError as error:
            raise from_os_error("open the object", key, error) from error
        with file:
            yield file

    def _walk(self, folder: str) -> Iterator[ObjectStat]:
        """Objects below `folder` in key order: 'a-b/x' before 'a/x', as '-' comes before '/'."""
        for name, is_folder in self._entries(folder):
            key = folder + name
            if is_folder:
                yield from self._walk(key)
                continue
            # What was deleted since the folder was read is no longer there to list.
            with contextlib.suppress(NotFound):
                yield self.stat(key)

    def _entries(self, folder: str) -> Sequence[tuple[str, bool]]:
        found = []
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    is_folder = entry.is_dir()
                    if keys.is_component(entry.name):
                        found.append((entry.name + "/" * is_folder, is_folder))
        except _NO_OBJECT:
            return []
        except OSError as error:
            raise from_os_error("list its objects", folder, error) from error
        return sorted(found)


class DirectoryWriter:
    """An ObjectWriter into a hidden file, locked while this process lives."""

    def __init__(self, store: DirectoryStore, key: str, path: Path, upload: Path) -> None:
        self._store, self._key, self._path, self._upload = store, key, path, upload
        self._size_bytes = 0
        self._failure: DuckMeshError | None = None
        self._descriptor: int | None = os.open(
            upload, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        # A file system without locks leaves the sweep to go by age alone.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._sink = Sink(self._accept)

    @property
    def file(self) -> BinaryIO:
        return cast("BinaryIO", self._sink)

    def commit(self) -> int:
        if self._failure is not None:
            raise self._failure
        if self._descriptor is None:
            raise unavailable("commit the object", self._key, "its writer has ended")
        with _translated("commit the object", self._key):
            # The name must not reach the disk before the bytes do.
            os.fchmod(self._descriptor, 0o444)
            os.fsync(self._descriptor)
            self._store.publish(self._upload, self._path)
            self._end()
        return self._size_bytes

    def abort(self) -> None:
        if self._descriptor is None:
            return
        # A file that cannot be removed now is swept later: it was never visible.
        with contextlib.suppress(OSError):
            self._upload.unlink(missing_ok=True)
        self._end()

    def _end(self) -> None:
        self._sink.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _accept(self, content: memoryview) -> None:
        if self._descriptor is None:
            raise ValueError("write to a writer that has ended")
        try:
            with _translated("write the object", self._key):
                while content:
                    written = os.write(self._descriptor, content)
                    self._size_bytes += written
                    content = content[written:]
        except DuckMeshError as error:
            self._failure = error
            raise


_NO_OBJECT: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@contextmanager
def _translated(act: str, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(act, key, error) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swept(upload: Path, oldest: float) -> bool:
    """Remove one upload when it is old and no living process writes it."""
    try:
        descriptor = os.open(upload, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(descriptor).st_mtime > oldest:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        upload.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
