"""Every ObjectStore keeps the promises of object_store/port.py: one suite, real stores."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh.errors import ErrorCode, Invalid, NotFound, Unavailable
from duckmesh.identifiers import new_file_id
from object_store.open import open_store
from object_store.options import StoreOptions
from object_store.port import ObjectStat, ObjectStore

MEBIBYTE = 1024 * 1024
PART_BYTES = 5 * MEBIBYTE
LARGE = bytes(range(256)) * (13 * MEBIBYTE // 256) + b"end"
SECRETS = ("127.0.0.1", "localhost", "http://", "pytest-of", "testing")


def _url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, StoreOptions]:
    if kind == "directory":
        return f"file://{tmp_path / 'lake'}", StoreOptions()
    bucket = request.getfixturevalue("s3_bucket")
    options = bucket.server.options(
        part_size_bytes=PART_BYTES,
        request_timeout=timedelta(seconds=20),
        retry_timeout=timedelta(seconds=40),
    )
    return (bucket.url if kind == "s3" else f"fsspec+{bucket.url}"), options


@pytest.fixture(params=["directory", "s3", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    url, options = _url(request.param, request, tmp_path)
    return open_store(url, options=options)


@pytest.fixture
def key() -> str:
    return f"acme/events-7/part-{new_file_id()}.parquet"


def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [stat.key for stat in store.list(prefix)]


def assert_absent(store: ObjectStore, key: str) -> None:
    with pytest.raises(NotFound):
        store.stat(key)
    assert key not in keys_of(store)


# put, get


@pytest.mark.parametrize("content", [b"", b"x", LARGE], ids=["empty", "small", "large"])
def test_what_is_put_is_got_whole(store: ObjectStore, key: str, content: bytes) -> None:
    store.put(key, content)
    assert store.get(key) == content
    assert store.stat(key) == ObjectStat(key, len(content))


def test_a_put_repeated_replaces_the_object_whole(store: ObjectStore, key: str) -> None:
    store.put(key, b"the first, longer try")
    store.put(key, b"the second try")
    assert store.get(key) == b"the second try"
    assert keys_of(store) == [key]


def test_a_reader_never_sees_part_of_an_object(store: ObjectStore, key: str) -> None:
    store.put(key, LARGE)
    done = threading.Event()
    sizes: set[int] = set()

    def read() -> None:
        while not done.is_set():
            sizes.add(store.stat(key).size_bytes)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(3):
            store.put(key, LARGE)
        done.set()
        reading.result()
    assert sizes == {len(LARGE)}


# get_range


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 4, b"0123"), (3, 3, b"345"), (8, 100, b"89"), (9, 1, b"9"), (0, 10, b"0123456789")],
)
def test_a_range_ends_where_the_object_ends(
    store: ObjectStore, key: str, start: int, length: int, expected: bytes
) -> None:
    store.put(key, b"0123456789")
    assert store.get_range(key, start=start, length=length) == expected


@pytest.mark.parametrize(("start", "length"), [(10, 1), (11, 5), (-1, 2), (0, 0), (3, -1)])
def test_a_range_outside_the_object_is_invalid(
    store: ObjectStore, key: str, start: int, length: int
) -> None:
    store.put(key, b"0123456789")
    with pytest.raises(Invalid):
        store.get_range(key, start=start, length=length)


def test_an_empty_object_has_no_range(store: ObjectStore, key: str) -> None:
    store.put(key, b"")
    with pytest.raises(Invalid):
        store.get_range(key, start=0, length=1)


# download


@pytest.mark.parametrize("content", [b"", b"some bytes", LARGE], ids=["empty", "small", "large"])
def test_a_download_is_whole_and_tells_its_size(
    store: ObjectStore, key: str, content: bytes, tmp_path: Path
) -> None:
    store.put(key, content)
    assert store.download(key, tmp_path / "copy") == len(content)
    assert (tmp_path / "copy").read_bytes() == content


def test_a_download_leaves_a_file_that_exists_untouched(
    store: ObjectStore, key: str, tmp_path: Path
) -> None:
    store.put(key, b"theirs")
    (tmp_path / "copy").write_bytes(b"mine")
    with pytest.raises(Invalid):
        store.download(key, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"mine"


def test_a_failed_download_leaves_no_file(store: ObjectStore, key: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.download(key, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_download_to_a_disk_that_refuses_is_unavailable(
    store: ObjectStore, key: str, tmp_path: Path
) -> None:
    store.put(key, b"some bytes")
    with pytest.raises(Unavailable):
        store.download(key, tmp_path / "no such folder" / "copy")


# missing


@pytest.mark.parametrize(
    "read",
    [
        lambda store, key: store.get(key),
        lambda store, key: store.stat(key),
        lambda store, key: store.get_range(key, start=0, length=1),
    ],
    ids=["get", "stat", "get_range"],
)
def test_a_missing_object_is_not_found(
    store: ObjectStore, key: str, read: Callable[[ObjectStore, str], Any]
) -> None:
    store.put(f"{key}.other", b"x")
    with pytest.raises(NotFound) as caught:
        read(store, key)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert caught.value.context["key"] == key
    assert not any(secret in str(caught.value.as_contract()) for secret in SECRETS)


def test_a_folder_is_not_an_object(store: ObjectStore, key: str) -> None:
    store.put(key, b"x")
    with pytest.raises(NotFound):
        store.stat("acme/events-7")
    with pytest.raises(NotFound):
        store.get("acme/events-7")


# delete


def test_a_deleted_object_is_gone(store: ObjectStore, key: str) -> None:
    store.put(key, b"x")
    store.delete(key)
    assert_absent(store, key)


def test_deleting_what_is_gone_succeeds(store: ObjectStore, key: str) -> None:
    store.delete(key)
    store.put(key, b"x")
    store.delete(key)
    store.delete(key)
    assert_absent(store, key)


# list


def test_a_listing_is_in_key_order_with_sizes(store: ObjectStore) -> None:
    written = ["t/a/x", "t/a-b/x", "t/a.b", "t/a=1/x", "t/B", "t/a/b/c", "t/_d", "t/a0", "t/z"]
    for index, key in enumerate(written):
        store.put(key, b"x" * index)
    listed = list(store.list("t"))
    assert [stat.key for stat in listed] == sorted(written)
    assert {stat.key: stat.size_bytes for stat in listed} == {
        key: index for index, key in enumerate(written)
    }


def test_a_listing_stays_in_its_folder(store: ObjectStore) -> None:
    for key in ("ab/x", "ab/c/y", "abc/x", "a/x", "ab.x"):
        store.put(key, b"x")
    assert keys_of(store, "ab") == keys_of(store, "ab/") == ["ab/c/y", "ab/x"]
    assert keys_of(store) == ["a/x", "ab.x", "ab/c/y", "ab/x", "abc/x"]


def test_a_prefix_without_objects_lists_nothing(store: ObjectStore) -> None:
    assert keys_of(store, "nobody") == []
    assert keys_of(store) == []


def test_a_listing_survives_deletes_meanwhile(store: ObjectStore) -> None:
    written = [f"t/{number:02}" for number in range(20)]
    for key in written:
        store.put(key, b"x")
    listing = store.list("t")
    seen = [next(listing).key]
    for key in written[5:15]:
        store.delete(key)
    seen += [stat.key for stat in listing]
    assert set(written[:5] + written[15:]) <= set(seen) <= set(written)
    assert all(one < other for one, other in pairwise(seen))


# writers


def store_one(store: ObjectStore) -> str:
    store.put("acme/one", b"x")
    return "acme/one"


def resident_bytes() -> int:
    """What the process holds now; the kernel's mark of the most it held starts anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def forget_peak() -> None:
    """Let the peak begin anew: what earlier tests of this process held is not this one's."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    return _memory("VmHWM")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def test_a_streamed_object_is_visible_only_at_commit(store: ObjectStore, key: str) -> None:
    writer = store.open_writer(key)
    for start in range(0, len(LARGE), 700_000):
        writer.file.write(LARGE[start : start + 700_000])
    assert_absent(store, key)
    writer.file.close()
    assert_absent(store, key)
    assert writer.commit() == len(LARGE)
    assert store.get(key) == LARGE


@pytest.mark.parametrize("content", [b"", b"little"], ids=["empty", "little"])
def test_a_small_streamed_object_is_whole(store: ObjectStore, key: str, content: bytes) -> None:
    writer = store.open_writer(key)
    writer.file.write(content)
    assert_absent(store, key)
    assert writer.commit() == len(content)
    assert store.get(key) == content


def test_an_object_that_ends_with_its_part_is_whole(store: ObjectStore, key: str) -> None:
    content = b"p" * (2 * 8 * PART_BYTES)
    writer = store.open_writer(key)
    writer.file.write(content)
    assert writer.commit() == len(content)
    assert store.get(key) == content


@pytest.mark.parametrize("written", [b"", b"little", LARGE], ids=["nothing", "little", "much"])
def test_an_aborted_object_never_shows(store: ObjectStore, key: str, written: bytes) -> None:
    writer = store.open_writer(key)
    writer.file.write(written)
    writer.abort()
    writer.abort()
    assert_absent(store, key)
    with pytest.raises(Unavailable):
        writer.commit()
    assert_absent(store, key)


@pytest.mark.parametrize("content", [b"little", LARGE], ids=["little", "much"])
def test_abort_after_commit_does_nothing(store: ObjectStore, key: str, content: bytes) -> None:
    writer = store.open_writer(key)
    writer.file.write(content)
    writer.commit()
    writer.abort()
    assert store.get(key) == content


def test_a_writer_that_is_dropped_leaves_no_object(store: ObjectStore, key: str) -> None:
    writer = store.open_writer(key)
    writer.file.write(LARGE)
    file = writer.file
    del writer
    file.close()
    assert_absent(store, key)


def test_the_writers_file_is_writable_and_not_seekable(store: ObjectStore, key: str) -> None:
    writer = store.open_writer(key)
    assert writer.file.writable()
    assert not writer.file.seekable()
    assert writer.file.write(memoryview(b"12345")) == 5
    assert writer.file.tell() == 5
    writer.file.close()
    with pytest.raises(ValueError, match="closed"):
        writer.file.write(b"more")
    writer.abort()


def test_the_memory_of_a_streamed_object_is_bounded(store: ObjectStore, key: str) -> None:
    piece = b"x" * (64 * 1024)
    # Threads of the client keep allocator arenas: the bound must be far above those.
    size_bytes = 768 * MEBIBYTE
    store.stat(store_one(store))  # The client is loaded: from here memory grows by what is written.
    forget_peak()
    before = resident_bytes()
    writer = store.open_writer(key)
    for _ in range(size_bytes // len(piece)):
        writer.file.write(piece)
    assert writer.commit() == size_bytes
    assert peak_resident_bytes() - before < size_bytes // 2
    assert store.stat(key).size_bytes == size_bytes


# pyarrow


TABLE = pa.table({"id": pa.array(range(200_000)), "text": [f"row {n}" for n in range(200_000)]})


def test_pyarrow_writes_parquet_through_a_writer(
    store: ObjectStore, key: str, tmp_path: Path
) -> None:
    writer = store.open_writer(key)
    with pq.ParquetWriter(writer.file, TABLE.schema) as parquet:
        for _ in range(3):
            parquet.write_table(TABLE)
    assert_absent(store, key)
    size_bytes = writer.commit()
    assert store.download(key, tmp_path / "copy.parquet") == size_bytes
    read = pq.read_table(tmp_path / "copy.parquet")
    assert read.num_rows == 600_000
    assert read.slice(400_000).combine_chunks().equals(TABLE.combine_chunks())


def test_an_exception_through_pyarrow_publishes_nothing(store: ObjectStore, key: str) -> None:
    writer = store.open_writer(key)

    def write_half() -> None:
        with pq.ParquetWriter(writer.file, TABLE.schema) as parquet:
            parquet.write_table(TABLE)
            raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="the client went away"):
        write_half()
    assert_absent(store, key)
    writer.abort()
    assert_absent(store, key)


# keys


@pytest.mark.parametrize(
    "unsafe",
    ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.uploading/x", "ä", "a b",
     "a\\b", "a\x00b", "a\n", "x" * 513, "-x", "s3://b/k", "a/%2e%2e/b"],
)  # fmt: skip
def test_an_unsafe_key_is_invalid_before_any_io(unsafe: str, tmp_path: Path) -> None:
    unreachable = StoreOptions(endpoint="http://127.0.0.1:1", allow_http=True, region="x")
    stores = [
        open_store(str(tmp_path / "lake")),
        open_store("s3://nobody", options=unreachable),
        open_store("fsspec+s3://nobody/x", options=unreachable),
    ]
    acts: list[Callable[[ObjectStore], Any]] = [
        lambda store: store.put(unsafe, b"x"),
        lambda store: store.open_writer(unsafe),
        lambda store: store.get(unsafe),
        lambda store: store.get_range(unsafe, start=0, length=1),
        lambda store: store.download(unsafe, tmp_path / "copy"),
        lambda store: store.stat(unsafe),
        lambda store: store.delete(unsafe),
        lambda store: store.local_path(unsafe),
    ]
    for store in stores:
        for act in acts:
            with pytest.raises(Invalid):
                act(store)
    assert list(tmp_path.iterdir()) == []


def test_an_unsafe_prefix_is_invalid(store: ObjectStore) -> None:
    for prefix in ("..", "/", "a/../b", ".uploading"):
        with pytest.raises(Invalid):
            store.list(prefix)


# local_path, probe, threads


def test_a_local_path_can_be_read_in_place(store: ObjectStore, key: str) -> None:
    nothing = store.local_path(f"{key}.nothing")
    assert nothing is None or not nothing.exists()
    store.put(key, b"in place")
    path = store.local_path(key)
    assert path is None or path.read_bytes() == b"in place"


def test_a_probe_leaves_nothing_behind(store: ObjectStore) -> None:
    store.probe()
    assert keys_of(store) == []


def test_a_probe_of_a_store_that_does_not_work_is_unavailable(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server = request.getfixturevalue("s3_server")
    no_such_bucket = f"duckmesh-none-{new_file_id()}"
    wrong = server.options(secret_access_key="wrong", max_retries=0)
    for store in (
        open_store(str(tmp_path / "file" / "lake")),
        open_store(f"s3://{no_such_bucket}", options=server.options()),
        open_store(f"fsspec+s3://{no_such_bucket}/x", options=server.options()),
        open_store(f"s3://{no_such_bucket}", options=wrong),
        open_store(f"fsspec+s3://{no_such_bucket}/x", options=wrong),
    ):
        with pytest.raises(Unavailable) as caught:
            store.probe()
        assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
        assert not any(secret in str(caught.value.as_contract()) for secret in SECRETS)


def test_all_methods_may_be_called_from_any_thread(store: ObjectStore) -> None:
    def live(number: int) -> None:
        key = f"t{number % 3}/part-{number}"
        writer = store.open_writer(f"{key}.big")
        writer.file.write(b"%d" % number * 1000)
        store.put(key, b"%d" % number)
        writer.commit()
        assert store.get(key) == b"%d" % number
        assert key in keys_of(store, key.split("/", maxsplit=1)[0])
        store.delete(key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(24)))
    assert len(keys_of(store)) == 24


# buckets


@pytest.mark.parametrize("scheme", ["s3", "fsspec+s3"])
def test_a_missing_bucket_is_created_when_that_is_allowed(
    request: pytest.FixtureRequest, scheme: str
) -> None:
    server = request.getfixturevalue("s3_server")
    url = f"{scheme}://duckmesh-new-{new_file_id()}/lake"
    for _ in range(2):  # The second time it is there already.
        store = open_store(url, options=server.options(auto_create_bucket=True))
        store.probe()
        assert keys_of(store) == []


def test_an_abort_leaves_no_multipart_upload_behind(request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue("s3_bucket")
    options = bucket.server.options(part_size_bytes=PART_BYTES)
    client = bucket.server.client()
    for url in (bucket.url, f"fsspec+{bucket.url}"):
        writer = open_store(url, options=options).open_writer("acme/large")
        writer.file.write(LARGE)
        writer.abort()
        assert not client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
