"""Retention and garbage collection: what is old goes, what anybody may still read stays."""

from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from catalog import pins, restores
from catalog.retention import Collected
from catalog.snapshots import Snapshot
from duckmesh.errors import NotFound
from duckmesh.identifiers import SnapshotId
from gateway.ingest_modes import IngestMode
from object_store import keys
from tests.coordinator.test_compact import Died, compact, newest, objects, publish_each, values
from tests.rooms import Rooms, rows

WEEK = timedelta(days=7)
DAY = timedelta(days=1)


def pin(rooms: Rooms, snapshot: Snapshot, *, lasting: timedelta | None = None) -> None:
    with rooms.catalog.connect() as connection:
        pins.pin(
            connection,
            rooms.acme.tenant_id,
            snapshot.snapshot_id,
            tag=None,
            lasting=lasting,
            created_by="test",
        )


def snapshot_ids(rooms: Rooms) -> list[int]:
    sql = "SELECT snapshot_id FROM duckmesh_system.snapshots ORDER BY snapshot_id"
    return [int(n) for n in rooms.query(sql)["snapshot_id"].to_pylist()]


def overwritten(rooms: Rooms, *numbers: int) -> list[Snapshot]:
    """A snapshot for each number, in which the table has that row alone, in an object."""
    found = []
    for number in numbers:
        rooms.write("t", rows(number), mode=IngestMode.CREATE_APPEND)
        rooms.write("t", rows(number), mode=IngestMode.REPLACE)
        materializer = rooms.materializer(inline_file_max_bytes=0)
        while materializer.publish_next() is not None:
            pass
        found.append(newest(rooms))
    return found


def test_old_snapshots_expire_and_their_files_are_deleted_after_the_safety_age(
    rooms: Rooms,
) -> None:
    overwritten(rooms, 1, 2, 3)
    assert rooms.collect() == Collected()
    rooms.advance(WEEK + DAY)
    assert rooms.collect(dry_run=True).files == 2
    done = rooms.collect()
    assert done.snapshots > 0
    assert done.files == 0
    assert snapshot_ids(rooms) == [newest(rooms).snapshot_id]
    assert len(objects(rooms)) == 3
    rooms.advance(timedelta(hours=3))
    assert rooms.collect().files == 2
    assert len(objects(rooms)) == 1
    assert rooms.collect() == Collected()
    assert values(rooms) == [3]


def test_a_query_at_an_expired_snapshot_is_told_that_it_has_expired(rooms: Rooms) -> None:
    first, *_ = overwritten(rooms, 1, 2, 3)
    rooms.advance(WEEK + DAY)
    rooms.collect()
    with pytest.raises(NotFound, match="expired") as refused:
        rooms.query("SELECT v FROM t", snapshot_id=first.snapshot_id)
    assert refused.value.code.value == "SNAPSHOT_NOT_FOUND"
    with pytest.raises(NotFound, match="expired"):
        rooms.query("SELECT v FROM t", snapshot_time=first.created_at)
    with pytest.raises(NotFound, match="expired"):
        rooms.query(f"SELECT v FROM t AT (VERSION => {first.snapshot_id})")
    with pytest.raises(NotFound, match="there is no snapshot"):
        rooms.query("SELECT v FROM t", snapshot_id=SnapshotId(10**9))


def test_a_question_sealed_for_an_expired_snapshot_gets_no_part_of_its_rows(rooms: Rooms) -> None:
    first, *_ = overwritten(rooms, 1, 2, 3)
    rooms.advance(WEEK + DAY)
    rooms.collect()
    rooms.advance(timedelta(hours=3))
    rooms.collect()
    with pytest.raises(NotFound, match="expired"):
        rooms.query_at("SELECT v FROM t", first.snapshot_id)


def test_retention_keeps_every_moment_of_its_span_and_a_least_number(rooms: Rooms) -> None:
    made = overwritten(rooms, 1, 2, 3, 4)
    rooms.advance(WEEK + DAY)
    rooms.collect(rooms.collector(kept_at_least=3))
    assert len(snapshot_ids(rooms)) == 3
    rooms.collect(rooms.collector(kept_for=timedelta(days=30)))
    assert len(snapshot_ids(rooms)) == 3
    rooms.collect()
    # The newest is older than the span, and is what that whole span would read.
    assert snapshot_ids(rooms) == [made[-1].snapshot_id]


def test_a_pinned_snapshot_stays_with_its_files_until_the_pin_ends(rooms: Rooms) -> None:
    first, second, third = overwritten(rooms, 1, 2, 3)
    pin(rooms, first, lasting=timedelta(days=20))
    rooms.advance(WEEK + DAY)
    rooms.collect()
    rooms.advance(timedelta(hours=3))
    rooms.collect()
    assert values(rooms, first.snapshot_id) == [1]
    at_first = {"snapshot_time": first.created_at}
    assert rooms.query("SELECT v FROM t", **at_first)["v"].to_pylist() == [1]
    # Between the two, the second one was the newest: the pinned one must not answer for it.
    with pytest.raises(NotFound, match="expired"):
        rooms.query("SELECT v FROM t", snapshot_time=second.created_at)
    rooms.advance(timedelta(days=20))
    rooms.collect()
    rooms.advance(timedelta(hours=3))
    rooms.collect()
    assert snapshot_ids(rooms) == [third.snapshot_id]
    assert len(objects(rooms)) == 1


@pytest.mark.parametrize("step", ["expired", "found", "deleted", "forgotten"])
def test_a_collector_that_dies_between_two_steps_is_repeated(rooms: Rooms, step: str) -> None:
    overwritten(rooms, 1, 2, 3)
    rooms.advance(WEEK + DAY)
    rooms.collect()
    rooms.advance(timedelta(hours=3))

    def die(name: str) -> None:
        if name == step:
            raise Died

    with pytest.raises(Died):
        rooms.collect(rooms.collector(step=die))
    rooms.collect()
    assert values(rooms) == [3]
    assert len(objects(rooms)) == 1
    with psycopg.connect(rooms.dsn) as connection:
        row = connection.execute("SELECT count(*) FROM data_file").fetchone()
    assert row == (1,)


def test_an_object_that_two_files_name_goes_with_the_last_of_them(rooms: Rooms) -> None:
    first, *_ = overwritten(rooms, 1, 2)
    with rooms.catalog.connect() as connection:
        restores.restore(
            connection, rooms.acme.tenant_id, first.snapshot_id, ["t"], created_by="test"
        )
    rooms.advance(WEEK + DAY)
    rooms.collect()
    rooms.advance(timedelta(hours=3))
    rooms.collect()
    assert values(rooms) == [1]
    assert len(objects(rooms)) == 1


def test_orphans_are_deleted_after_their_grace_and_nothing_else_is(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(4)))
    waiting = _stage(rooms)
    orphan = keys.data_file_key("acme", "t", 1, _old_id())
    rooms.store.put(orphan, b"x")
    compact(rooms, rooms.compactor())
    live = objects(rooms)
    assert rooms.collect(rooms.collector(orphan_grace=DAY), dry_run=True).orphans == 1
    assert rooms.collect(rooms.collector(orphan_grace=DAY)).orphans == 1
    assert sorted(objects(rooms)) == sorted(key for key in live if key != orphan)
    rooms.advance(2 * DAY)
    assert rooms.collect(rooms.collector(orphan_grace=DAY)).orphans == 0
    rooms.publish_all()
    assert rooms.query("SELECT count(*) AS n FROM big")["n"].to_pylist() == [waiting]


def _old_id() -> UUID:
    """A file id that was drawn in the year 2020."""
    return UUID(int=(1_577_836_800_000 << 80) | (7 << 76) | (2 << 62) | 5)


def _stage(rooms: Rooms) -> int:
    """A staged write that waits for its publication; returns its rows."""
    count = 300_000
    rooms.write("big", rows(*range(count)))
    return count


def test_committed_claims_and_events_are_forgotten_and_receipts_stay_for_their_window(
    rooms: Rooms,
) -> None:
    for number in range(5):
        rooms.write("t", rows(number), key=f"k{number}")
        rooms.publish_all()
    week = timedelta(days=7)
    rooms.advance(2 * DAY)
    rooms.bus.expire_keys(older_than=week, limit=100)
    with psycopg.connect(rooms.dsn) as connection:
        counted = connection.execute(
            "SELECT (SELECT count(*) FROM ingest_claim_batch), (SELECT count(*) FROM ingest_event)"
        ).fetchone()
    assert counted == (0, 5)
    assert rooms.write("t", rows(0), key="k0").inserted is False
    rooms.advance(week)
    rooms.bus.expire_keys(older_than=week, limit=100)
    rooms.bus.expire_keys(older_than=week, limit=100)
    with psycopg.connect(rooms.dsn) as connection:
        row = connection.execute("SELECT count(*) FROM ingest_event").fetchone()
    assert row == (0,)
    assert values(rooms) == [0, 1, 2, 3, 4]
