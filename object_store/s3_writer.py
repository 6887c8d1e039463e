"""S3Writer: one streamed object. Small ones become one PUT, large ones a multipart upload."""

import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import BinaryIO, Protocol, cast

from duckmesh.errors import DuckMeshError, NotFound
from object_store.failures import unavailable
from object_store.port import ObjectStat
from object_store.sink import Sink


class Uploads(Protocol):
    """What the writer asks of its store."""

    def upload(self, key: str, content: bytes | bytearray) -> None: ...
    def upload_parts(self, key: str, parts: Iterator[bytes]) -> None: ...
    def stat(self, key: str) -> ObjectStat: ...


class S3Writer:
    """An ObjectWriter. Its memory: the parts under way, and at most four more.

    S3 shows the object when the upload is completed, which only `commit` lets happen. Die before:
    invisible parts, removed by the bucket's lifecycle rule.
    """

    def __init__(self, store: Uploads, key: str, *, part_size_bytes: int) -> None:
        self._store, self._key, self._part_size_bytes = store, key, part_size_bytes
        self._pending = bytearray()
        self._size_bytes = 0
        self._upload: _PartedUpload | None = None
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
        self._end()
        try:
            if self._upload is None:
                self._store.upload(self._key, self._pending)
            else:
                if self._pending:
                    self._upload.feed(bytes(self._pending))
                self._upload.finish()
        except NotFound as error:
            self._accept_lost_answer(error)
        finally:
            self._pending = bytearray()
        return self._size_bytes

    def abort(self) -> None:
        self._end()
        self._pending = bytearray()
        if self._upload is not None:
            self._upload.abort()

    def _end(self) -> None:
        self._ended = True
        self._sink.close()

    def _accept(self, content: memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        for start in range(0, len(content), self._part_size_bytes):
            self._pending += content[start : start + self._part_size_bytes]
            if len(self._pending) >= self._part_size_bytes:
                self._feed_part()
        self._size_bytes += len(content)

    def _feed_part(self) -> None:
        part = bytes(self._pending[: self._part_size_bytes])
        del self._pending[: self._part_size_bytes]
        if self._upload is None:
            self._upload = _PartedUpload(
                lambda parts: self._store.upload_parts(self._key, parts), self._key
            )
        try:
            self._upload.feed(part)
        except DuckMeshError as error:
            self._failure = error
            raise

    def _accept_lost_answer(self, error: NotFound) -> None:
        """S3 knows no such upload: it was aborted, or completed by a try whose answer was lost.

        Keys are written once, so an object of this size under this key is the one written here.
        """
        try:
            found = self._store.stat(self._key).size_bytes
        except NotFound:
            found = None
        if found != self._size_bytes:
            raise unavailable("commit the object", self._key) from error


class _State(Enum):
    FEEDING = auto()
    FINISHING = auto()
    ABORTING = auto()
    ENDED = auto()


class _Aborted(BaseException):
    """Raised into the upload, so that the client sends its abort; never leaves this file."""


class _PartedUpload:
    """A multipart upload in a thread of its own, since the client pulls where writers push.

    One condition guards the slot and the state. The thread ends by itself within the client's
    time limits once the upload finishes, fails or is aborted. It is a daemon: a process that dies
    with an open upload does not wait for it.
    """

    def __init__(self, run: Callable[[Iterator[bytes]], None], key: str) -> None:
        self._run, self._key = run, key
        self._changed = threading.Condition()
        self._slot: bytes | None = None
        self._state = _State.FEEDING
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="duckmesh-upload", daemon=True)
        self._thread.start()

    def feed(self, part: bytes) -> None:
        """Hand over the next part; block while one is waiting. Raises Unavailable."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot is None or self._state is _State.ENDED)
            self._raise_failure()
            self._slot = part
            self._changed.notify_all()

    def finish(self) -> None:
        """Complete the upload and wait for it. Raises NotFound when S3 knows no such upload."""
        self._move_to(_State.FINISHING)
        self._thread.join()
        self._raise_failure()

    def abort(self) -> None:
        self._move_to(_State.ABORTING)
        self._thread.join()

    def _move_to(self, state: _State) -> None:
        with self._changed:
            if self._state is not _State.ENDED:
                self._state = state
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            if isinstance(self._failure, DuckMeshError):
                raise self._failure
            raise unavailable("store the object", self._key) from self._failure

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            self._run(self._pull())
        except BaseException as error:  # noqa: BLE001 - it is raised in the writer's thread
            failure = error
        with self._changed:
            self._state, self._failure, self._slot = _State.ENDED, failure, None
            self._changed.notify_all()

    def _pull(self) -> Iterator[bytes]:
        while (part := self._next_part()) is not None:
            yield part

    def _next_part(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._slot is not None or self._state is not _State.FEEDING
            )
            if self._state is _State.ABORTING:
                raise _Aborted
            part, self._slot = self._slot, None
            self._changed.notify_all()
            return part
