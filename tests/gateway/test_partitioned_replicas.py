"""Replicas of partitioned tables: the same answers as the files give, at every snapshot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.reads import Reads
from tests.coordinator.test_partitions import COLUMNS, compact_all, events, publish_each
from tests.gateway.test_replicas import EAGER, answer, files_alone, newest, replicated
from tests.rooms import Rooms, open_rooms

QUERIES = (
    "SELECT * FROM t ORDER BY ALL",
    "SELECT count(*) AS n FROM t WHERE ts < '2026-01-02 00:00+00'",
    "SELECT count(*) AS n, sum(id) AS ids FROM t WHERE region = 'us'",
    "SELECT count(*) AS n FROM t WHERE id = 1001 OR ts >= '2026-01-03 00:00+00'",
)


@pytest.fixture
def rooms(database_dsn: str, tmp_path: Path) -> Iterator[Rooms]:
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as opened:
        yield opened


def check(rooms: Rooms, plain: Reads, seen: list[int]) -> int:
    """Compare the replica with the files at these snapshots; how many files came from it."""
    inside = 0
    for at in seen:
        for sql in QUERIES:
            found, from_replica = answer(rooms, sql, at)
            with plain.run(rooms.acme, sql, at) as running:
                assert found == running.reader.read_all(), (sql, at)
            inside += from_replica
    return inside


def test_a_replica_and_the_files_of_a_partitioned_table_answer_alike(rooms: Rooms) -> None:
    plain = files_alone(rooms)
    seen = []
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts), region)")
    for region in ("eu", "us"):
        publish_each(rooms, events(0, 1, region=region), events(2, region=region))
        seen.append(newest(rooms))
    replicated(rooms)
    assert check(rooms, plain, seen) > 0
    compact_all(rooms)
    seen.append(newest(rooms))
    assert check(rooms, plain, seen) > 0
    rooms.execute("ALTER TABLE t SET PARTITIONED BY (bucket(3, id))")
    publish_each(rooms, events(0, 3, region="us"), inline_file_max_bytes=0)
    compact_all(rooms)
    seen.append(newest(rooms))
    replicated(rooms)
    assert check(rooms, plain, seen) > 0
