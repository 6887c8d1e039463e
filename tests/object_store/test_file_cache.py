"""FileCache: one fetch per file, bounded bytes, nothing evicted that is pinned."""

import errno
import random
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from duckmesh.errors import Corrupt, ErrorCode, Invalid, Unavailable
from object_store.directory import DirectoryStore
from object_store.file_cache import FileCache, Wanted

KIB = 1024
LIMIT_SECONDS = 20


class Origin:
    """Where files come from, counting how often each is fetched."""

    def __init__(self) -> None:
        self.fetched: Counter[str] = Counter()

    def wanted(self, name: str, size_bytes: int = KIB) -> Wanted:
        def fetch(path: Path) -> None:
            self.fetched[name] += 1
            path.write_bytes(name.encode().ljust(size_bytes, b"."))

        return Wanted(name, size_bytes, fetch)


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(root: Path) -> Iterator[FileCache]:
    cache = FileCache(root, capacity_bytes=10 * KIB)
    yield cache
    cache.close()


def copies(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("*/*") if path.parent.name != ".fetching")


def leftovers(root: Path) -> list[Path]:
    return list((root / ".fetching").iterdir())


def failing(error: BaseException) -> Callable[[Path], None]:
    def fetch(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    return fetch


# what a caller gets


def test_paths_come_in_the_order_wanted(cache: FileCache, origin: Origin, root: Path) -> None:
    names = ["c", "a", "b", "a"]
    with cache.pinned("acme", [origin.wanted(name) for name in names]) as pinned:
        assert pinned.paths == tuple(root / "acme" / name for name in names)
        assert [path.read_bytes()[:1].decode() for path in pinned.paths] == names
        assert {stat.S_IMODE(path.stat().st_mode) for path in pinned.paths} == {0o444}
    assert origin.fetched == {"a": 1, "b": 1, "c": 1}


def test_a_tenants_folder_is_there_before_its_first_file(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    assert cache.folder("acme") == root / "acme"
    made = (root / "acme").stat()
    with cache.pinned("acme", [origin.wanted("a")]) as pinned:
        assert pinned.paths[0].parent.stat().st_ino == made.st_ino
    assert cache.folder("acme") == root / "acme"
    with pytest.raises(Invalid):
        cache.folder("../acme")


def test_nothing_wanted_is_nothing_pinned(cache: FileCache) -> None:
    with cache.pinned("acme", []) as pinned:
        assert pinned.paths == ()


def test_a_second_call_hits(cache: FileCache, origin: Origin) -> None:
    for _ in range(3):
        cache.pinned("acme", [origin.wanted("a"), origin.wanted("b")]).release()
    assert origin.fetched == {"a": 1, "b": 1}
    usage = cache.usage()
    assert (usage.hits, usage.misses, usage.files, usage.size_bytes) == (4, 2, 2, 2 * KIB)


def test_tenants_do_not_share_names(cache: FileCache, origin: Origin) -> None:
    other = Origin()
    one = cache.pinned("acme", [origin.wanted("a")])
    two = cache.pinned("other", [other.wanted("a")])
    assert one.paths != two.paths
    assert (origin.fetched["a"], other.fetched["a"]) == (1, 1)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/passwd", ".fetching", "a\x00", "ä"])
def test_an_unsafe_name_is_invalid(cache: FileCache, origin: Origin, name: str, root: Path) -> None:
    with pytest.raises(Invalid):
        cache.pinned("acme", [origin.wanted("good"), origin.wanted(name)])
    with pytest.raises(Invalid):
        cache.pinned(name, [origin.wanted("good")])
    assert not origin.fetched
    assert copies(root) == []


def test_a_store_fills_the_cache(cache: FileCache, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "lake")
    store.put("acme/t-1/part-1.parquet", b"content")
    want = Wanted("part-1", 7, lambda path: void(store.download("acme/t-1/part-1.parquet", path)))
    with cache.pinned("acme", [want]) as pinned:
        assert pinned.paths[0].read_bytes() == b"content"


def void(_: object) -> None:
    """A download tells its size, which a fetch does not."""


# failures


def test_a_failed_fetch_pins_nothing_and_leaves_nothing(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    refusal = Unavailable(ErrorCode.STORE_UNAVAILABLE, "away")
    wants = [origin.wanted("a"), Wanted("b", KIB, failing(refusal)), origin.wanted("c")]
    with pytest.raises(Unavailable) as caught:
        cache.pinned("acme", wants)
    assert caught.value is refusal
    # Another of the call's fetches may still be under way: it ends as a file that nobody pins.
    wait_until(lambda: cache.usage().size_bytes == KIB * len(copies(root)))
    assert "b" not in copies(root)
    wait_until(lambda: leftovers(root) == [])
    # Nothing stayed pinned: all of it can be evicted.
    with cache.pinned("acme", [origin.wanted(f"n{n}") for n in range(10)]):
        assert copies(root) == sorted(f"n{n}" for n in range(10))


def test_a_file_that_failed_can_be_asked_for_again(cache: FileCache, origin: Origin) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.pinned("acme", [Wanted("a", KIB, failing(ZeroDivisionError()))])
    with cache.pinned("acme", [origin.wanted("a")]) as pinned:
        assert pinned.paths[0].stat().st_size == KIB


def test_a_failure_stops_the_rest_of_its_call(cache: FileCache) -> None:
    """A store that hangs for its time limit must not cost that for each of many files."""
    tried = []

    def fetch(_: Path) -> None:
        tried.append(1)
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "away")

    with pytest.raises(Unavailable):
        cache.pinned("acme", [Wanted(f"n{n}", 1, fetch) for n in range(500)])
    assert len(tried) <= 9
    assert cache.usage().files == 0


@pytest.mark.parametrize("size_bytes", [KIB - 1, KIB + 1, 0])
def test_a_copy_of_another_size_is_corrupt(cache: FileCache, root: Path, size_bytes: int) -> None:
    want = Wanted("a", KIB, lambda path: void(path.write_bytes(b"x" * size_bytes)))
    with pytest.raises(Corrupt):
        cache.pinned("acme", [want])
    assert copies(root) == leftovers(root) == []


def test_one_name_for_two_sizes_is_corrupt_while_the_first_is_read(
    cache: FileCache, origin: Origin
) -> None:
    with cache.pinned("acme", [origin.wanted("a")]) as pinned:
        with pytest.raises(Corrupt):
            cache.pinned("acme", [origin.wanted("a", 2 * KIB)])
        assert pinned.paths[0].stat().st_size == KIB
    cache.pinned("acme", [origin.wanted("a")]).release()
    assert origin.fetched["a"] == 1


def test_a_full_disk_evicts_what_nobody_reads_and_tries_again(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    def fetch(path: Path) -> None:
        if len(copies(root)) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"x" * KIB)

    held = cache.pinned("acme", [origin.wanted("held")])
    cache.pinned("acme", [origin.wanted(f"n{n}") for n in range(5)]).release()
    with cache.pinned("acme", [Wanted("new", KIB, fetch)]):
        assert copies(root) == ["held", "new"]
    held.release()


def test_a_disk_full_of_pinned_files_is_unavailable(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    full = failing(OSError(errno.ENOSPC, "No space left on device"))
    with cache.pinned("acme", [origin.wanted("held")]):
        with pytest.raises(Unavailable, match="disk is full") as caught:
            cache.pinned("acme", [Wanted("new", KIB, full)])
        assert str(root) not in str(caught.value.as_contract())
        assert copies(root) == ["held"]


# eviction and pins


def test_the_least_recently_used_go_first(cache: FileCache, origin: Origin, root: Path) -> None:
    for name in "abcdefghij":
        cache.pinned("acme", [origin.wanted(name)]).release()
    cache.pinned("acme", [origin.wanted("a")]).release()
    cache.pinned("acme", [origin.wanted("new", 2 * KIB)]).release()
    assert copies(root) == [*sorted("adefghij"), "new"]
    assert cache.usage().evictions == 2


def test_pinned_files_stay_beyond_the_capacity_and_go_when_released(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    held = cache.pinned("acme", [origin.wanted(f"h{n}") for n in range(20)])
    cache.pinned("acme", [origin.wanted("other")]).release()
    assert all(path.exists() for path in held.paths)
    assert "other" not in copies(root)
    held.release()
    held.release()
    assert len(copies(root)) == 10
    assert cache.usage().size_bytes == 10 * KIB


def test_a_file_pinned_twice_stays_until_both_let_go(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    one = cache.pinned("acme", [origin.wanted("a")])
    two = cache.pinned("acme", [origin.wanted("a")])
    one.release()
    one.release()
    cache.pinned("acme", [origin.wanted("big", 10 * KIB)]).release()
    assert "a" in copies(root)
    two.release()
    cache.pinned("acme", [origin.wanted("bigger", 10 * KIB)]).release()
    assert "a" not in copies(root)


# concurrency


def test_many_callers_who_miss_one_file_fetch_it_once(cache: FileCache) -> None:
    gate, entered, count = threading.Event(), threading.Event(), []

    def fetch(path: Path) -> None:
        count.append(1)
        entered.set()
        assert gate.wait(LIMIT_SECONDS)
        path.write_bytes(b"x" * KIB)

    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(cache.pinned, "acme", [Wanted("a", KIB, fetch)]) for _ in range(10)]
        assert entered.wait(LIMIT_SECONDS)
        wait_until(lambda: cache.usage().hits == 9)
        gate.set()
        assert {call.result().paths[0].read_bytes() for call in calls} == {b"x" * KIB}
    assert len(count) == 1


def test_those_who_wait_share_the_failure(cache: FileCache) -> None:
    gate = threading.Event()

    def fetch(_: Path) -> None:
        assert gate.wait(LIMIT_SECONDS)
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "away")

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(cache.pinned, "acme", [Wanted("a", KIB, fetch)]) for _ in range(4)]
        wait_until(lambda: cache.usage().hits == 3)
        gate.set()
        for call in calls:
            with pytest.raises(Unavailable):
                call.result()
    assert cache.usage().files == 0


def test_missing_files_are_fetched_in_parallel(cache: FileCache) -> None:
    together = threading.Barrier(6)

    def fetch(path: Path) -> None:
        together.wait(LIMIT_SECONDS)
        path.write_bytes(b"x")

    cache.pinned("acme", [Wanted(f"n{n}", 1, fetch) for n in range(6)]).release()


def test_a_busy_pool_does_not_stop_a_call(cache: FileCache, origin: Origin) -> None:
    gate = threading.Event()

    def stuck(path: Path) -> None:
        assert gate.wait(LIMIT_SECONDS)
        path.write_bytes(b"x")

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.pinned, "slow", [Wanted(f"s{n}", 1, stuck) for n in range(30)])
        wait_until(lambda: cache.usage().misses == 30)
        with cache.pinned("acme", [origin.wanted(name) for name in "abc"]) as pinned:
            assert len(pinned.paths) == 3
        gate.set()
        slow.result().release()


def test_a_hit_does_not_wait_for_anothers_fetch(cache: FileCache, origin: Origin) -> None:
    cache.pinned("acme", [origin.wanted("here")]).release()
    gate = threading.Event()

    def stuck(path: Path) -> None:
        assert gate.wait(LIMIT_SECONDS)
        path.write_bytes(b"x")

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.pinned, "acme", [Wanted("slow", 1, stuck)])
        wait_until(lambda: cache.usage().misses == 2)
        cache.pinned("acme", [origin.wanted("here")]).release()
        assert not slow.done()
        gate.set()
        slow.result()


def test_under_concurrent_use_every_pinned_file_is_whole(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    def use(seed: int) -> None:
        choice = random.Random(seed)  # noqa: S311 - a test's dice
        for _ in range(60):
            names = choice.sample([f"n{n}" for n in range(30)], 4)
            with cache.pinned("acme", [origin.wanted(name) for name in names]) as pinned:
                for name, path in zip(names, pinned.paths, strict=True):
                    assert path.read_bytes() == name.encode().ljust(KIB, b".")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    usage = cache.usage()
    assert usage.size_bytes == KIB * len(copies(root)) <= 10 * KIB
    assert usage.hits + usage.misses == 8 * 60 * 4
    assert leftovers(root) == []


def test_a_hit_is_cheap(tmp_path: Path, origin: Origin) -> None:
    cache = FileCache(tmp_path / "large", capacity_bytes=1000 * KIB)
    wants = [origin.wanted(f"n{n}") for n in range(100)]
    cache.pinned("acme", wants).release()
    began = time.perf_counter()
    for _ in range(200):
        cache.pinned("acme", wants).release()
    milliseconds = (time.perf_counter() - began) / 200 * 1000
    assert milliseconds < 5, f"{milliseconds:.2f} ms for 100 files"
    cache.close()


# restarts


def test_copies_survive_a_restart(cache: FileCache, origin: Origin, root: Path) -> None:
    cache.pinned("acme", [origin.wanted("a"), origin.wanted("b")]).release()
    cache.close()
    again = FileCache(root, capacity_bytes=10 * KIB)
    with again.pinned("acme", [origin.wanted("b"), origin.wanted("a")]) as pinned:
        assert pinned.paths[0].read_bytes() == b"b".ljust(KIB, b".")
    assert origin.fetched == {"a": 1, "b": 1}
    assert again.usage().size_bytes == 2 * KIB
    again.close()


def test_a_restart_with_less_room_evicts(cache: FileCache, origin: Origin, root: Path) -> None:
    cache.pinned("acme", [origin.wanted(f"n{n}") for n in range(8)]).release()
    cache.close()
    again = FileCache(root, capacity_bytes=3 * KIB)
    assert len(copies(root)) == again.usage().files == 3
    again.close()


def test_tiny_files_are_bounded_by_their_number(origin: Origin, root: Path) -> None:
    cache = FileCache(root, capacity_bytes=1000 * KIB, capacity_files=3)
    held = cache.pinned("acme", [origin.wanted("held")])
    for n in range(8):
        cache.pinned("acme", [origin.wanted(f"n{n}")]).release()
    assert copies(root) == ["held", "n6", "n7"]
    assert cache.usage().evictions == 6
    # A query may read more files than the capacity; they go when it is done.
    many = cache.pinned("acme", [origin.wanted(f"m{n}") for n in range(5)])
    assert len(copies(root)) == 6
    many.release()
    held.release()
    assert cache.usage().files == len(copies(root)) == 3
    cache.close()
    again = FileCache(root, capacity_bytes=1000 * KIB, capacity_files=2)
    assert again.usage().files == 2
    again.close()


def test_a_copy_cut_short_on_disk_is_fetched_again(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    cache.pinned("acme", [origin.wanted("a")]).release()
    cache.close()
    copy = root / "acme" / "a"
    copy.chmod(0o644)
    copy.write_bytes(b"cut")
    again = FileCache(root, capacity_bytes=10 * KIB)
    with again.pinned("acme", [origin.wanted("a")]) as pinned:
        assert pinned.paths[0].stat().st_size == KIB
    again.close()


DIES = """
    import os, signal
    from pathlib import Path
    from object_store.file_cache import FileCache, Wanted
    cache = FileCache(Path({root!r}), capacity_bytes=10240)
    cache.pinned("acme", [Wanted("whole", 5, lambda path: path.write_bytes(b"whole"))])
    def half(path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    cache.pinned("acme", [Wanted("half", 1024, half)])
"""


def test_a_process_that_dies_in_a_fetch_leaves_whole_files_only(root: Path) -> None:
    program = textwrap.dedent(DIES).format(root=str(root))
    subprocess.run([sys.executable, "-c", program], check=False)
    assert len(leftovers(root)) == 1
    cache = FileCache(root, capacity_bytes=10 * KIB)
    assert copies(root) == ["whole"]
    assert leftovers(root) == []
    cache.close()


def test_after_a_reboot_the_cache_begins_empty(
    cache: FileCache, origin: Origin, root: Path
) -> None:
    cache.pinned("acme", [origin.wanted("a")]).release()
    cache.close()
    (root / ".duckmesh-file-cache").write_text("another boot")
    again = FileCache(root, capacity_bytes=10 * KIB)
    assert copies(root) == []
    again.close()


def test_one_process_owns_a_root(cache: FileCache, root: Path) -> None:
    with pytest.raises(Invalid, match="another process"):
        FileCache(root, capacity_bytes=KIB)
    cache.close()
    FileCache(root, capacity_bytes=KIB).close()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(Invalid, match="empty"):
        FileCache(tmp_path / "home", capacity_bytes=KIB)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
