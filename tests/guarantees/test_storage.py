"""Whatever ingest, compaction and garbage collection do at the same time, nobody sees it.

A small model remembers what each snapshot held when it was published. Random interleavings of
writes, publications, merges, pins, expiry and deletion are run beside readers of every snapshot
that has not expired.
"""

from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from catalog import pins
from duckmesh.errors import NotFound
from duckmesh.identifiers import SnapshotId
from gateway.ingest_modes import IngestMode
from tests.coordinator.test_compact import compact, newest, objects
from tests.rooms import Rooms, open_rooms, rows

SAFETY = timedelta(hours=2)


class Storage(RuleBasedStateMachine):
    """One table of one tenant, and what each of its snapshots is to hold."""

    rooms: Rooms

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[IngestMode, list[int]]] = []
        self.expected: dict[SnapshotId, list[int]] = {}
        self.pinned: set[SnapshotId] = set()
        self.rooms.execute("DROP TABLE IF EXISTS t")
        self.rooms.execute("CREATE TABLE t (v BIGINT)")
        self._note([])

    def _note(self, values: list[int]) -> None:
        self.expected[newest(self.rooms).snapshot_id] = sorted(values)

    @property
    def current(self) -> list[int]:
        return self.expected[max(self.expected)]

    @rule(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=4), replace=st.booleans())
    def write(self, numbers: list[int], replace: bool) -> None:
        mode = IngestMode.REPLACE if replace and len(numbers) == 1 else IngestMode.CREATE_APPEND
        self.rooms.write("t", rows(*numbers), mode=mode)
        self.waiting.append((mode, numbers))

    @precondition(lambda self: self.waiting)
    @rule(inline=st.booleans())
    def publish(self, inline: bool) -> None:
        materializer = self.rooms.materializer(inline_file_max_bytes=2**20 if inline else 0)
        while materializer.publish_next() is not None:
            pass
        values = list(self.current)
        for mode, numbers in self.waiting:
            values = numbers if mode is IngestMode.REPLACE else values + numbers
        self.waiting.clear()
        self._note(values)

    @rule()
    def merge(self) -> None:
        done = compact(self.rooms, self.rooms.compactor(rest=timedelta(0)))
        if done is not None:
            self._note(self.current)

    @rule()
    def merge_beside_a_publication(self) -> None:
        def publish(step: str) -> None:
            if step == "written":
                self.write([7], replace=False)
                self.publish(inline=True)

        done = compact(self.rooms, self.rooms.compactor(rest=timedelta(0), step=publish))
        if done is not None and not done.lost:
            self._note(self.current)

    @rule()
    def pin(self) -> None:
        snapshot_id = min(self.expected)
        with self.rooms.catalog.connect() as connection:
            pins.pin(
                connection,
                self.rooms.acme.tenant_id,
                snapshot_id,
                tag=None,
                lasting=None,
                created_by="test",
            )
        self.pinned.add(snapshot_id)

    @rule(kept=st.integers(1, 4), wait=st.booleans())
    def collect(self, kept: int, wait: bool) -> None:
        if wait:
            self.rooms.advance(SAFETY + timedelta(minutes=1))
        self.rooms.collect(
            self.rooms.collector(
                kept_for=timedelta(0), kept_at_least=kept, orphan_grace=timedelta(days=365)
            )
        )
        kept_ids = self._kept()
        for snapshot_id in list(self.expected):
            if snapshot_id not in kept_ids:
                assert snapshot_id not in self.pinned
                del self.expected[snapshot_id]

    def _kept(self) -> set[int]:
        with psycopg.connect(self.rooms.dsn) as connection:
            return {row[0] for row in connection.execute("SELECT snapshot_id FROM snapshot")}

    @invariant()
    def every_unexpired_snapshot_reads_what_it_held(self) -> None:
        for snapshot_id, values in self.expected.items():
            found = self.rooms.query_at("SELECT v FROM t ORDER BY v", snapshot_id)
            assert found["v"].to_pylist() == values

    @invariant()
    def the_newest_snapshot_never_expires(self) -> None:
        assert newest(self.rooms).snapshot_id == max(self.expected)


@pytest.fixture
def shared_rooms(database_dsn: str, tmp_path: Path):
    with open_rooms(database_dsn, tmp_path) as rooms:
        yield rooms


def test_gc_never_removes_a_file_an_unexpired_snapshot_reaches(shared_rooms: Rooms) -> None:
    class OnRooms(Storage):
        rooms = shared_rooms

    case = settings(
        max_examples=12,
        stateful_step_count=15,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnRooms, settings=case)


def test_compaction_keeps_the_logical_rows(shared_rooms: Rooms) -> None:
    for number in range(10):
        shared_rooms.write("t", rows(number))
        shared_rooms.publish_all()
    before = newest(shared_rooms)
    done = compact(shared_rooms, shared_rooms.compactor())
    assert done is not None
    sql = "SELECT v FROM t ORDER BY v"
    assert shared_rooms.query(sql).equals(shared_rooms.query_at(sql, before.snapshot_id))


def test_a_running_query_is_not_disturbed_by_compaction_and_collection(shared_rooms: Rooms) -> None:
    for number in range(4):
        shared_rooms.write("t", rows(*range(number * 1000, number * 1000 + 1000)))
        shared_rooms.publish_all()
    snapshot = newest(shared_rooms)
    sql = "SELECT v FROM t ORDER BY v"
    with shared_rooms.reads.run(shared_rooms.acme, sql, snapshot.snapshot_id) as answer:
        compact(shared_rooms, shared_rooms.compactor())
        shared_rooms.collect(shared_rooms.collector(kept_for=timedelta(0)))
        assert answer.reader.read_all()["v"].to_pylist() == list(range(4000))
    # The files are spared for as long as a sealed question may come; its snapshot has expired.
    with pytest.raises(NotFound, match="expired"):
        shared_rooms.query(sql, snapshot_id=snapshot.snapshot_id)
    assert objects(shared_rooms)
