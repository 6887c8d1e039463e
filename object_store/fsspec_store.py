"""FsspecStore: objects behind any fsspec URL, each call under a deadline."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import fsspec

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotFound, NotSupported
from duckmesh.identifiers import new_file_id
from object_store import keys
from object_store.deadline_calls import DeadlineCalls, Stalled
from object_store.failures import bad_range, missing, no_bucket, unavailable
from object_store.fsspec_writer import PART_BYTES, FsspecWriter, put_whole
from object_store.local_copy import new_local_file
from object_store.port import ObjectStat
from object_store.probe import probe

T = TypeVar("T")

_LOCAL: Final = frozenset({"file", "local"})


class FsspecStore:
    """An ObjectStore on an fsspec filesystem; s3fs is the one held to the conformance suite.

    Streamed objects rest on fsspec's `autocommit=False`, by which a file shows itself only at its
    commit. `probe` tells whether the filesystem keeps to that. A local path is refused: fsspec
    moves a file there without syncing it, and DirectoryStore does better.

    Every request runs under `call_timeout` in a thread that is abandoned when it stalls: s3fs sends
    the body of a request with no time limit of its own. After a stall the next call gets a fresh
    filesystem, since the stalled requests keep their places in the old one's connection pool.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any],
        *,
        call_timeout: timedelta,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """No I/O. `prepare`, when given, runs before the first call, such as to create a bucket."""
        protocol, _, path = url.partition("://")
        if not path:
            raise Invalid(ErrorCode.INVALID_COMMAND, "an fsspec URL reads protocol://path")
        if protocol in _LOCAL:
            message = "fsspec does not make local files durable: name the folder as file:///folder"
            raise NotSupported(ErrorCode.NOT_SUPPORTED, message)
        self._protocol = protocol
        self._root = path.strip("/")
        self._storage_options = dict(storage_options)
        self._prepare = prepare
        self._calls = DeadlineCalls(call_timeout, self._connect)

    def put(self, key: str, content: bytes) -> None:
        path = self._path(key)
        try:
            self.run("store the object", key, lambda fs: put_whole(fs, path, content))
        except NotFound as error:
            raise no_bucket(key) from error

    def open_writer(self, key: str) -> "FsspecWriter":
        return FsspecWriter(self, key, self._path(key))

    def get(self, key: str) -> bytes:
        return b"".join(self._parts(key))

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        path = self._path(key)
        if start < 0 or length < 1:
            raise bad_range(key, start, length)
        size_bytes = self.stat(key).size_bytes
        if start >= size_bytes:
            raise bad_range(key, start, length, size_bytes)
        end = min(start + length, size_bytes)
        return self._read(key, path, start, end)

    def download(self, key: str, destination: Path) -> int:
        with new_local_file(destination, keys.check(key)) as file:
            for part in self._parts(key):
                file.write(part)
            return file.tell()

    def stat(self, key: str) -> ObjectStat:
        path = self._path(key)
        info = self.run("look at the object", key, lambda fs: fs.info(path))
        if info["type"] != "file":
            raise missing(key)
        return ObjectStat(key, info["size"])

    def delete(self, key: str) -> None:
        path = self._path(key)
        self.run("delete the object", key, lambda fs: _remove(fs, path))

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        folder = keys.check_prefix(prefix)
        return self._listed(folder)

    def local_path(self, key: str) -> Path | None:
        keys.check(key)
        return None

    def probe(self) -> None:
        probe(self)
        self._probe_uncommitted()

    def run(self, act: str, key: str, call: Callable[[Any], T]) -> T:
        """Do one act on the filesystem under the deadline. Raises NotFound and Unavailable."""
        try:
            return self._calls.call(call)
        except DuckMeshError:
            raise
        except FileNotFoundError as error:
            raise missing(key) from error
        except Stalled:
            raise unavailable(act, key, "it did not answer in time") from None
        except PermissionError as error:
            raise unavailable(act, key, "it refused the credentials; check them") from error
        except Exception as error:  # fsspec names no root for what its filesystems raise.
            raise unavailable(act, key) from error

    def _probe_uncommitted(self) -> None:
        folder = f"_probe/{new_file_id()}"
        writer = self.open_writer(f"{folder}/uncommitted")
        try:
            writer.file.write(b"never shown")
            writer.send_all()
            if any(self.list(folder)):
                reason = "it shows unfinished objects; use an s3:// or file:// URL"
                raise unavailable("hide what is not committed", folder, reason)
        finally:
            writer.abort()

    def _parts(self, key: str) -> Iterator[bytes]:
        path = self._path(key)
        size_bytes = self.stat(key).size_bytes
        for start in range(0, size_bytes, PART_BYTES):
            yield self._read(key, path, start, min(start + PART_BYTES, size_bytes))

    def _read(self, key: str, path: str, start: int, end: int) -> bytes:
        def read(fs: Any) -> bytes:
            return cast("bytes", fs.cat_file(path, start=start, end=end))

        part = self.run("read the object", key, read)
        if len(part) != end - start:
            raise unavailable("read the object", key)
        return part

    def _listed(self, folder: str) -> Iterator[ObjectStat]:
        path = f"{self._root}/{folder}".rstrip("/")
        found = self.run("list its objects", folder, lambda fs: _files_below(fs, path))
        cut = len(self._root) + 1
        stats = [ObjectStat(name.lstrip("/")[cut:], size) for name, size in found]
        # Folder markers that other tools leave in a bucket are not objects of ours.
        yield from sorted(
            (stat for stat in stats if keys.is_key(stat.key)), key=lambda stat: stat.key
        )

    def _path(self, key: str) -> str:
        return f"{self._root}/{keys.check(key)}"

    def _connect(self) -> Any:
        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        return fsspec.filesystem(
            self._protocol,
            skip_instance_cache=True,
            use_listings_cache=False,
            **self._storage_options,
        )


def _files_below(fs: Any, path: str) -> list[tuple[str, int]]:
    try:
        found = fs.find(path, detail=True, withdirs=False)
    except FileNotFoundError:
        return []
    return [(name, info["size"]) for name, info in found.items() if info["type"] == "file"]


def _remove(fs: Any, path: str) -> None:
    # Gone already: that is what the caller asked for.
    with suppress(FileNotFoundError):
        fs.rm_file(path)
