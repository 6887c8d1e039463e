"""FsspecWriter: one streamed object on an fsspec file that shows itself only at its commit."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, Final, Protocol, TypeVar, cast

from duckmesh.errors import DuckMeshError, NotFound
from object_store.failures import no_bucket, unavailable
from object_store.sink import Sink

T = TypeVar("T")

PART_BYTES: Final = 8 * 1024 * 1024


class Runs(Protocol):
    """What the writer asks of its store: an act on the filesystem, under the store's deadline."""

    def run(self, act: str, key: str, call: Callable[[Any], T]) -> T: ...


class FsspecWriter:
    """An ObjectWriter. Its memory: two parts.

    Die before the commit: parts that nobody sees, removed by the bucket's lifecycle rule.
    """

    def __init__(self, store: Runs, key: str, path: str) -> None:
        self._store, self._key, self._path = store, key, path
        self._pending = bytearray()
        self._size_bytes = 0
        self._remote: Any = None
        self._failure: DuckMeshError | None = None
        self._ended = False
        self._sink = Sink(self._accept)

    @property
    def file(self) -> BinaryIO:
        return cast("BinaryIO", self._sink)

    def commit(self) -> int:
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise unavailable("commit the object", self._key, "its writer has ended")
        if self._remote is None:
            content = bytes(self._pending)
            self._run(lambda fs: put_whole(fs, self._path, content))
        else:
            self.send_all()
            self._run(lambda _: self._remote.commit())
        self._end()
        return self._size_bytes

    def abort(self) -> None:
        if not self._ended and self._remote is not None:
            # What cannot be discarded now stays invisible.
            with suppress(DuckMeshError):
                self._run(lambda _: _discard(self._remote))
        self._end()

    def send_all(self) -> None:
        """Send what is pending and close the remote file, uncommitted."""
        self._send()
        self._run(lambda _: self._remote.close())

    def _end(self) -> None:
        self._ended, self._remote = True, None
        self._pending.clear()
        self._sink.close()

    def _accept(self, content: memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        for start in range(0, len(content), PART_BYTES):
            self._pending += content[start : start + PART_BYTES]
            if len(self._pending) >= PART_BYTES:
                self._send()
        self._size_bytes += len(content)

    def _send(self) -> None:
        content = bytes(self._pending)
        self._pending.clear()

        def send(fs: Any) -> None:
            if self._remote is None:
                self._remote = fs.open(self._path, "wb", autocommit=False, block_size=PART_BYTES)
            self._remote.write(content)

        self._run(send)

    def _run(self, call: Callable[[Any], None]) -> None:
        try:
            self._store.run("store the object", self._key, call)
        except NotFound as error:
            self._failure = no_bucket(self._key)
            raise self._failure from error
        except DuckMeshError as error:
            self._failure = error
            raise


def put_whole(fs: Any, path: str, content: bytes) -> None:
    fs.pipe_file(path, content)


def _discard(remote: Any) -> None:
    # fsspec's finalizer closes a file, which sends what is left: say that it is closed.
    with suppress(AttributeError):
        remote.closed = True
    remote.discard()
