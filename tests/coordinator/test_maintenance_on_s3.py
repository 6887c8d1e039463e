"""Compaction, retention and partitions over objects that do not lie on this machine: real S3."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from catalog import compaction, tables
from catalog.compaction import RunState
from duckmesh.errors import ErrorCode, Unavailable
from gateway.ingest_modes import IngestMode
from gateway.restores import Restores
from object_store.open import open_store
from object_store.port import ObjectStore
from tests.coordinator.test_collect import DAY, WEEK, overwritten
from tests.coordinator.test_compact import newest, objects, values
from tests.coordinator.test_partitions import (
    ALL,
    COLUMNS,
    compact_all,
    events,
    partitions,
    publish_each,
    table_of,
)
from tests.faults.tcp_proxy import Fault, TcpProxy
from tests.rooms import Rooms, open_rooms
from tests.s3_fixtures import S3Bucket

READERS = 6
AT_ONCE_MAX = 4


class WatchedStore:
    """A store that tells how many downloads run at once; everything else it hands on."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._running = 0
        self.before_download: Callable[[], object] = lambda: None
        self.most_at_once = 0
        self.downloaded: list[str] = []

    def download(self, key: str, destination: Path) -> int:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.downloaded.append(key)
        try:
            self.before_download()
            return self._inner.download(key, destination)
        finally:
            with self._lock:
                self._running -= 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[TcpProxy]:
    address = urlsplit(s3_bucket.server.endpoint)
    with TcpProxy((str(address.hostname), address.port or 80)) as proxy:
        yield proxy


@pytest.fixture
def store(s3_bucket: S3Bucket, proxy: TcpProxy) -> WatchedStore:
    behind_proxy = replace(s3_bucket.server, endpoint=f"http://127.0.0.1:{proxy.port}")
    options = behind_proxy.options(
        connect_timeout=timedelta(seconds=2), retry_timeout=timedelta(seconds=2), max_retries=1
    )
    return WatchedStore(open_store(s3_bucket.url, options=options))


@pytest.fixture
def remote(database_dsn: str, tmp_path: Path, store: WatchedStore) -> Iterator[Rooms]:
    with open_rooms(database_dsn, tmp_path, store=store) as rooms:
        yield rooms


def a_table_of_days(rooms: Rooms) -> None:
    """Four days, each in two objects; nothing is merged yet."""
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    for day in range(4):
        publish_each(rooms, events(day), events(day), inline_file_max_bytes=0)


def test_partitions_are_merged_on_s3_and_only_what_a_query_needs_is_fetched(
    remote: Rooms, store: WatchedStore
) -> None:
    a_table_of_days(remote)
    before = newest(remote)
    compact_all(remote)
    assert len(partitions(remote)) == 4
    assert sorted(key.split("/")[2] for key in objects(remote))[::3] == [
        "ts_day=2026-01-01",
        "ts_day=2026-01-02",
        "ts_day=2026-01-03",
        "ts_day=2026-01-04",
    ]
    store.downloaded.clear()
    day = "ts >= '2026-01-02 00:00+00' AND ts < '2026-01-02 23:59+00'"
    assert remote.query(f"SELECT count(*) AS n FROM t WHERE {day}")["n"].to_pylist() == [6]
    assert [key.split("/")[2] for key in store.downloaded] == ["ts_day=2026-01-02"]
    assert remote.query(ALL) == remote.query_at(ALL, before.snapshot_id)


def test_a_query_fetches_its_files_in_parallel_and_queries_at_once_fetch_each_once(
    remote: Rooms, store: WatchedStore
) -> None:
    a_table_of_days(remote)
    together = threading.Barrier(2)
    # Every download waits for another one: one at a time would never end.
    store.before_download = lambda: together.wait(timeout=60)
    with ThreadPoolExecutor(READERS) as pool:
        counts = list(pool.map(lambda _: remote.query(ALL).num_rows, range(READERS)))
    assert counts == [24] * READERS
    assert len(store.downloaded) == len(set(store.downloaded)) == 8


def test_a_merge_fetches_what_it_reads_in_parallel_and_with_a_bound(
    remote: Rooms, store: WatchedStore
) -> None:
    remote.execute(f"CREATE TABLE t ({COLUMNS})")
    publish_each(remote, *(events(day) for day in range(8)), inline_file_max_bytes=0)
    together = threading.Barrier(2)
    store.before_download = lambda: together.wait(timeout=60)
    assert [done.files_in for done in compact_all(remote)] == [8]
    assert len(store.downloaded) == 8
    assert 2 <= store.most_at_once <= AT_ONCE_MAX
    store.before_download = lambda: None
    assert remote.query(ALL).num_rows == 24


def test_a_store_that_is_away_fails_queries_and_merges_with_an_error_to_retry(
    remote: Rooms, proxy: TcpProxy
) -> None:
    a_table_of_days(remote)
    proxy.switch(Fault.REFUSE)
    for act in (lambda: remote.query(ALL), lambda: compact_all(remote)):
        with pytest.raises(Unavailable) as caught:
            act()
        assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
        assert caught.value.retryable
    table = table_of(remote)
    with remote.catalog.connect() as connection:
        (run,) = compaction.recent_runs(connection, table.tenant_id, table.table_id, limit=9)
    assert (run.state, run.failure) == (RunState.FAILED, "STORE_UNAVAILABLE")
    proxy.switch(Fault.PASS)
    compact_all(remote)
    assert len(partitions(remote)) == 4
    assert remote.query(ALL).num_rows == 24


def test_retention_deletes_objects_of_s3_that_no_snapshot_reads(remote: Rooms) -> None:
    overwritten(remote, 1, 2, 3)
    remote.advance(WEEK + DAY)
    remote.collect()
    assert len(objects(remote)) == 3
    remote.advance(timedelta(hours=3))
    assert remote.collect().files == 2
    assert len(objects(remote)) == 1
    assert values(remote) == [3]


def test_a_table_of_s3_is_restored_with_its_spec_and_its_partitions(remote: Rooms) -> None:
    a_table_of_days(remote)
    compact_all(remote)
    before, rows = newest(remote), remote.query(ALL)
    remote.write("t", events(9), mode=IngestMode.REPLACE)
    remote.publish_all()
    remote.execute("DROP TABLE t")
    Restores(remote.catalog, remote.bus, remote.visibility).restore(
        remote.acme, before.snapshot_id, None
    )
    assert remote.query(ALL) == rows
    assert [set(each) for each in partitions(remote)] == [{"2:day"}] * 4
    assert remote.reads.tables(remote.acme)[0].partition_spec == ("day(ts)",)


def test_a_keyed_table_of_s3_has_each_key_once(remote: Rooms) -> None:
    """Staged writes are looked at where they lie: a key that comes twice in one counts once."""
    remote.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
    for generation in range(2):
        ids = [number % 100_000 for number in range(130_000)]
        rows = pa.table({"id": ids, "v": range(generation, 130_000 + generation)})
        remote.write("k", rows, mode=IngestMode.APPEND)
        remote.publish_all()
    asked = "SELECT count(*) AS n, count(DISTINCT id) AS ids, sum(v) AS total FROM k"
    expected = [{"n": 100_000, "ids": 100_000, "total": sum(range(30_001, 130_001))}]
    assert remote.query(asked).to_pylist() == expected
    with remote.catalog.connect() as connection:
        table = tables.find_table(connection, remote.acme.tenant_id, "k")
    assert table is not None
    merged = remote.compactor().compact(remote.acme.tenant_id, table.table_id, eager=True)
    assert merged is not None
    assert (merged.files_in, merged.files_out) == (2, 1)
    assert remote.query(asked).to_pylist() == expected
