"""FileCache: local copies of immutable files, for DuckDB to read in place."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from duckmesh.errors import Corrupt, DuckMeshError
from duckmesh.identifiers import check_tenant_name, new_file_id
from object_store import keys
from object_store.cache_root import FETCHING, RootLock, open_root
from object_store.failures import disk_is_full, local_disk_failed

CAPACITY_FILES: Final = 20_000
FETCH_THREADS: Final = 8
"""They begin with the first fetch of several files at once, and stay."""


class Wanted(NamedTuple):
    """A file that a query reads."""

    name: str
    """A safe file name of one component, unique in its tenant; it never names other content."""
    size_bytes: int
    fetch: Callable[[Path], None]
    """Writes the content to this path, which does not exist yet."""


class CacheUsage(NamedTuple):
    """Figures for metrics, taken at one moment."""

    files: int
    size_bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    evictions: int


class _Name(NamedTuple):
    tenant: str
    name: str


@dataclass(slots=True, eq=False)
class _Entry:
    """A file of the cache. While `fetched` is not None it is on its way; pins spare it."""

    path: Path
    size_bytes: int
    fetched: "Future[None] | None"
    pins: int = 0


class _Miss(NamedTuple):
    name: _Name
    entry: _Entry
    want: Wanted
    fetched: "Future[None]"


class PinnedFiles:
    """Files held in place until `release`. Use it as a context manager, or release it yourself."""

    def __init__(self, paths: tuple[Path, ...], release: Callable[[], None]) -> None:
        self.paths = paths
        """In the order they were wanted in."""
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let the files be evicted. May be called again, from any thread."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class FileCache:
    """Copies of immutable files under `root/{tenant}/{name}`, read-only, bounded in size.

    The least recently used files that nobody pins are evicted to stay within `capacity_bytes` and
    `capacity_files`: inline files are tiny, and gone from every new snapshot within seconds, so
    that bytes alone would keep a million of them and of their books. What is pinned is never
    evicted: a query may read more than the capacity, and the excess goes when it is released. A
    fetch writes a hidden file, checks its size, and renames it into place: die
    anywhere, and the next start finds whole files and removes the rest.

    Copies outlive the process but not the machine: they are not synced, so after a reboot the cache
    begins empty. One process owns a root; a second one is refused.

    One lock guards the books. It is never held during a fetch, and a hit costs no system call.
    """

    def __init__(
        self, root: Path, *, capacity_bytes: int, capacity_files: int = CAPACITY_FILES
    ) -> None:
        """Take the root and its files. Raises Invalid when another process has it, Unavailable."""
        self._root = root.absolute()
        self._fetching = self._root / FETCHING
        self._capacity_bytes = capacity_bytes
        self._capacity_files = capacity_files
        self._lock = threading.Lock()
        # Least recently used first; held and being fetched alike.
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()
        self._bytes = 0
        # A set's own add and look-up are whole steps: no lock is held for it.
        self._folders: set[str] = set()
        self._hits = self._misses = self._evictions = 0
        self._root_lock: RootLock | None = open_root(self._root)
        try:
            self._rescan()
        except OSError as error:
            self._root_lock.release()
            raise local_disk_failed("", error) from error
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="duckmesh-fetch")

    def folder(self, tenant: str) -> Path:
        """Where the tenant's copies lie; it is made at its first call, and stays.

        Raises Invalid for an unsafe name, and Unavailable when it cannot be made.
        """
        check_tenant_name(tenant)
        folder = self._root / tenant
        if tenant not in self._folders:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise local_disk_failed(tenant, error) from error
            self._folders.add(tenant)
        return folder

    def pinned(self, tenant: str, wanted: Sequence[Wanted]) -> PinnedFiles:
        """The files on the local disk, held there until released. Blocks while any is fetched.

        A file that several callers miss at once is fetched once; the missing ones of a call are
        fetched in parallel. When one cannot be had, nothing stays pinned and the first failure is
        raised: what `fetch` raises, Corrupt when a copy has not `size_bytes`, Unavailable when the
        disk is full of pinned files, Invalid for an unsafe name.
        """
        self._check_names(tenant, wanted)
        entries, misses, on_their_way = self._pin(tenant, wanted)
        try:
            if misses:
                self._fetch_all(misses)
            for fetched in on_their_way:
                fetched.result()
        except BaseException:
            self._unpin(entries)
            raise
        paths = tuple(entry.path for entry in entries)
        return PinnedFiles(paths, lambda: self._unpin(entries))

    def usage(self) -> CacheUsage:
        with self._lock:
            return CacheUsage(
                files=len(self._entries),
                size_bytes=self._bytes,
                capacity_bytes=self._capacity_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )

    def close(self) -> None:
        """Give up the root, so that another may take it. The files stay. May be called again."""
        self._pool.shutdown()
        with self._lock:
            root_lock, self._root_lock = self._root_lock, None
        if root_lock is not None:
            root_lock.release()

    def _check_names(self, tenant: str, wanted: Sequence[Wanted]) -> None:
        """Refuse unsafe names. A name in the books was checked when it came there."""
        check_tenant_name(tenant)
        for want in wanted:
            if (tenant, want.name) not in self._entries:
                keys.check_component(want.name)

    def _pin(
        self, tenant: str, wanted: Sequence[Wanted]
    ) -> "tuple[list[_Entry], list[_Miss], list[Future[None]]]":
        """Pin what is there and enter what is not, in one step: one caller alone misses a file."""
        pinned: list[_Entry] = []
        misses: list[_Miss] = []
        on_their_way: list[Future[None]] = []
        with self._lock:
            for want in wanted:
                name = _Name(tenant, want.name)
                entry = self._entries.get(name)
                if entry is None or not self._fits(name, entry, want):
                    miss = self._enter(name, want)
                    misses.append(miss)
                    entry = miss.entry
                else:
                    self._entries.move_to_end(name)
                    self._hits += 1
                entry.pins += 1
                pinned.append(entry)
                if entry.fetched is not None:
                    on_their_way.append(entry.fetched)
                if entry.size_bytes != want.size_bytes:
                    on_their_way.append(_contradiction(want, entry.size_bytes))
            self._evict()
        return pinned, misses, on_their_way

    def _fits(self, name: _Name, entry: _Entry, want: Wanted) -> bool:
        """Whether the entry is the file wanted. A copy cut short, and not in use, is dropped."""
        if entry.size_bytes != want.size_bytes and entry.pins == 0:
            self._drop(name, entry)
            return False
        return True

    def _enter(self, name: _Name, want: Wanted) -> _Miss:
        """Put a file into the books before it is there. Its fetch holds a pin until it ends."""
        fetched: Future[None] = Future()
        entry = _Entry(self._root / name.tenant / name.name, want.size_bytes, fetched, pins=1)
        self._entries[name] = entry
        self._bytes += want.size_bytes
        self._misses += 1
        return _Miss(name, entry, want, fetched)

    def _unpin(self, entries: Sequence[_Entry]) -> None:
        with self._lock:
            for entry in entries:
                entry.pins -= 1
            self._evict()

    def _evict(self) -> None:
        """Evict what is beyond the capacity, as far as nobody pins it."""
        self._evict_to(self._capacity_bytes, self._capacity_files)

    def _evict_to(self, limit_bytes: int, limit_files: int) -> bool:
        """Remove what nobody pins, least recently used first, down to the limits. Under the lock:
        a file removed after its entry could be one that was fetched again in between."""
        victims: list[tuple[_Name, _Entry]] = []
        left_bytes, left_files = self._bytes, len(self._entries)
        # It ends at the last victim: a full cache must not cost every query a walk through it.
        for name, entry in self._entries.items():
            if left_bytes <= limit_bytes and left_files <= limit_files:
                break
            if entry.pins == 0:
                victims.append((name, entry))
                left_bytes -= entry.size_bytes
                left_files -= 1
        for name, entry in victims:
            self._drop(name, entry)
        self._evictions += len(victims)
        return bool(victims)

    def _drop(self, name: _Name, entry: _Entry) -> None:
        with suppress(OSError):
            entry.path.unlink(missing_ok=True)
        del self._entries[name]
        self._bytes -= entry.size_bytes

    def _fetch_all(self, misses: Sequence[_Miss]) -> None:
        """Fetch in this thread, with those of the pool that are free: so a busy pool delays a call,
        and never stops it. Returns when no fetch is left to begin; every one of them is settled.
        """
        left = deque(misses)
        failures: list[BaseException] = []

        def work() -> None:
            while left:
                with suppress(IndexError):
                    self._fetch(left.popleft(), failures)

        for _ in range(min(len(misses) - 1, FETCH_THREADS)):
            self._pool.submit(work)
        work()

    def _fetch(self, miss: _Miss, failures: list[BaseException]) -> None:
        """Fetch one file and settle it. After a failure in the same call the rest are not tried:
        a store that hangs then costs a call one time limit, not one for each file."""
        error = failures[0] if failures else self._attempt(miss)
        if error is not None:
            failures.append(error)
        self._settle(miss, error)

    def _attempt(self, miss: _Miss) -> BaseException | None:
        try:
            self._copy_in(miss)
        except BaseException as error:  # noqa: BLE001 - it is raised in every thread that waits
            return error
        return None

    def _settle(self, miss: _Miss, error: BaseException | None) -> None:
        with self._lock:
            miss.entry.pins -= 1
            miss.entry.fetched = None
            if error is not None:
                del self._entries[miss.name]
                self._bytes -= miss.entry.size_bytes
        # After the books are right: who is woken may ask for the file again.
        if error is None:
            miss.fetched.set_result(None)
        else:
            miss.fetched.set_exception(error)

    def _copy_in(self, miss: _Miss) -> None:
        try:
            try:
                self._copy(miss)
            except (OSError, DuckMeshError) as error:
                # A full disk may hold files that nobody reads: they make room, once.
                if not (disk_is_full(error) and self._evict_all()):
                    raise
                self._copy(miss)
        except OSError as error:
            raise local_disk_failed(miss.want.name, error) from error

    def _copy(self, miss: _Miss) -> None:
        temporary = self._fetching / str(new_file_id())
        try:
            miss.want.fetch(temporary)
            size_bytes = temporary.stat().st_size
            if size_bytes != miss.want.size_bytes:
                raise _wrong_size(miss.want, size_bytes)
            temporary.chmod(0o444)
            miss.entry.path.parent.mkdir(exist_ok=True)
            temporary.rename(miss.entry.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _evict_all(self) -> bool:
        with self._lock:
            return self._evict_to(0, 0)

    def _rescan(self) -> None:
        """Enter the files of an earlier life, oldest first: their age stands for their last use."""
        found = sorted(_copies(self._root), key=lambda copy: copy.modified_at)
        for copy in found:
            name = _Name(copy.path.parent.name, copy.path.name)
            self._entries[name] = _Entry(copy.path, copy.size_bytes, None)
            self._bytes += copy.size_bytes
        self._evict()
        self._evictions = 0


class _Copy(NamedTuple):
    path: Path
    size_bytes: int
    modified_at: float


def _copies(root: Path) -> Iterator[_Copy]:
    for folder in root.iterdir():
        if keys.is_component(folder.name) and folder.is_dir():
            for path in folder.iterdir():
                if keys.is_component(path.name) and path.is_file():
                    status = path.stat()
                    yield _Copy(path, status.st_size, status.st_mtime)


def _wrong_size(want: Wanted, size_bytes: int) -> Corrupt:
    return Corrupt(
        "a data file has another size than the catalog says",
        name=want.name,
        size_bytes=size_bytes,
        expected_bytes=want.size_bytes,
    )


def _contradiction(want: Wanted, size_bytes: int) -> "Future[None]":
    """Two callers use one name for files of two sizes: the second one fails, the first reads on."""
    failed: Future[None] = Future()
    failed.set_exception(_wrong_size(want, size_bytes))
    return failed
