"""The ObjectStore port. Its docstrings are the contract; tests/conformance/ proves them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from duckmesh.clock import Deadline

__all__ = ["Deadline", "ObjectStat", "ObjectStore", "ObjectWriter"]


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a store knows of an object without reading it."""

    key: str
    size_bytes: int


class ObjectWriter(Protocol):
    """One object in the making: a writable, non-seekable binary file that pyarrow can write to.

    Nothing is visible under the key before `commit`. `abort`, or dropping the writer in a dying
    process, leaves no object under the key. Closing `file` publishes nothing, so that an exception
    that passes through pyarrow publishes nothing. Memory used is bounded, whatever is written.
    """

    @property
    def file(self) -> BinaryIO: ...

    def commit(self) -> int:
        """Make the object visible, whole and durable; return its size in bytes.

        Called once; raises Unavailable after `abort`. A write that failed makes it fail as well.
        When it raises Unavailable the object may be there, whole, or not: the answer was lost.
        """
        ...

    def abort(self) -> None:
        """Forget what was written. May be called again, and after commit, when it does nothing."""
        ...


class ObjectStore(Protocol):
    """Immutable objects under safe keys (object_store.keys).

    Keys are written once: every key holds a fresh id, so no two writers share one. Writing a key
    again, as a retry does, replaces the object whole. Correctness never rests on conditional
    writes. A key that keys.check refuses raises Invalid before any I/O.
    A missing object raises NotFound (NOT_FOUND). A store that fails, stalls or cannot be reached
    raises Unavailable (STORE_UNAVAILABLE), within the configured time limits. Messages name the
    key, never a path, an endpoint or a credential. All methods may be called from any thread.
    """

    def put(self, key: str, content: bytes) -> None:
        """Store a small object. When it returns the object is whole and durable.

        A reader never sees part of it. Repeatable: after Unavailable, put it again.
        """
        ...

    def open_writer(self, key: str) -> ObjectWriter:
        """Begin a large object, streamed; visible only at `commit`."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object."""
        ...

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        """The bytes from `start`, at most `length`, fewer where the object ends.

        Raises Invalid when `start` is not inside the object, or `length` is below one.
        """
        ...

    def download(self, key: str, destination: Path) -> int:
        """Write the object to a local file that does not exist yet; return its size in bytes.

        Uses bounded memory. When it raises, no such file is left: Invalid when it exists already,
        which is then untouched, and Unavailable also when the local disk is full.
        """
        ...

    def stat(self, key: str) -> ObjectStat:
        """Size of the object; NotFound when there is none."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object. Deleting what is gone succeeds."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Every object below the folder `prefix` ('' for all), in key order.

        The closing '/' may be left out; `ab` is no prefix of `abc/x`. A prefix without objects
        yields nothing. Objects written or deleted meanwhile may or may not be listed.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """Where the object can be read in place on this machine, None when it must be fetched.

        No I/O: it does not tell whether the object exists.
        """
        ...

    def probe(self) -> None:
        """Write, read and delete one small object; raises Unavailable when that does not work."""
        ...
