"""Compaction merges files, and nothing else changes: rows, watermark, schema, older snapshots."""

import threading
from datetime import UTC, datetime, timedelta
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import compaction, snapshots, tables
from catalog.compaction import RunState
from catalog.tables import Table
from coordinator.compact import Compacted, Compactor
from coordinator.fold import FOLD_FROM_FILES
from coordinator.pace import Stopped
from duckmesh.identifiers import SnapshotId
from gateway.ingest_modes import IngestMode
from tests.rooms import Rooms, rows

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Died(Exception):
    """A process that ends between two steps."""


def table_of(rooms: Rooms, name: str = "t") -> Table:
    with rooms.catalog.connect() as connection:
        found = tables.find_table(connection, rooms.acme.tenant_id, name)
    assert found is not None
    return found


def compact(rooms: Rooms, compactor: Compactor, name: str = "t") -> Compacted | None:
    return compactor.compact(rooms.acme.tenant_id, table_of(rooms, name).table_id)


def newest(rooms: Rooms) -> snapshots.Snapshot:
    return rooms.visibility.newest(rooms.acme.tenant_id)


def file_counts(rooms: Rooms, snapshot_id: SnapshotId, name: str = "t") -> list[int]:
    sql = f"SELECT row_count FROM duckmesh_system.data_files WHERE table_name = '{name}'"
    return [int(n) for n in rooms.query_at(sql, snapshot_id)["row_count"].to_pylist()]


def objects(rooms: Rooms) -> list[str]:
    return [each.key for each in rooms.store.list("acme")]


def runs(rooms: Rooms) -> list[compaction.Run]:
    table = table_of(rooms)
    with rooms.catalog.connect() as connection:
        return compaction.recent_runs(connection, table.tenant_id, table.table_id, limit=100)


def publish_each(rooms: Rooms, *tables_of_rows: pa.Table) -> None:
    for each in tables_of_rows:
        rooms.write("t", each)
        rooms.publish_all()


def values(rooms: Rooms, snapshot_id: SnapshotId | None = None) -> list[int]:
    sql = "SELECT v FROM t ORDER BY v"
    found = rooms.query(sql) if snapshot_id is None else rooms.query_at(sql, snapshot_id)
    return [int(v) for v in found["v"].to_pylist()]


def test_compaction_keeps_the_logical_rows_and_the_watermark(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n, n + 100) for n in range(FOLD_FROM_FILES)))
    before = newest(rooms)
    done = compact(rooms, rooms.compactor())
    assert done is not None
    assert done.snapshot is not None
    assert (done.files_in, done.files_out) == (FOLD_FROM_FILES, 1)
    after = newest(rooms)
    assert after.snapshot_id == done.snapshot.snapshot_id
    assert after.max_visibility_token == before.max_visibility_token
    assert values(rooms) == values(rooms, before.snapshot_id)
    assert file_counts(rooms, after.snapshot_id) == [2 * FOLD_FROM_FILES]
    assert file_counts(rooms, before.snapshot_id) == [2] * FOLD_FROM_FILES
    assert [run.state for run in runs(rooms)] == [RunState.PUBLISHED]
    assert compact(rooms, rooms.compactor()) is None


def test_rows_are_in_the_order_of_their_event_time_whatever_the_sort_may_hold(rooms: Rooms) -> None:
    random = Random(7)  # noqa: S311 - repeatable
    minutes = [random.randrange(100_000) for _ in range(5_000)]
    times = [NOON + timedelta(minutes=m) for m in minutes]
    for at in range(0, 5_000, 500):
        chunk: list[object] = list(times[at : at + 499])
        chunk.append(None)
        rooms.write("t", rows(*range(at, at + 500), at=chunk))
        rooms.publish_all()
    before = newest(rooms)
    done = compact(rooms, rooms.compactor(sort_bytes=4_096))
    assert done is not None
    (key,) = objects(rooms)
    written = pq.read_table(pa.BufferReader(rooms.store.get(key)))["at"].to_pylist()
    assert written == [*sorted(t for t in written if t is not None), *[None] * 10]
    assert len(written) == 5_000
    found = rooms.query("SELECT * FROM t ORDER BY v")
    assert found.equals(rooms.query_at("SELECT * FROM t ORDER BY v", before.snapshot_id))


def test_files_of_older_schema_versions_read_the_same_after_compaction(rooms: Rooms) -> None:
    small = pa.table({"v": pa.array([1, 2], pa.int32()), "gone": ["a", "b"]})
    publish_each(rooms, small)
    rooms.execute("ALTER TABLE t ADD COLUMN extra VARCHAR")
    rooms.execute("ALTER TABLE t DROP COLUMN gone")
    rooms.execute("ALTER TABLE t RENAME COLUMN v TO w")
    rooms.execute("ALTER TABLE t ALTER COLUMN w TYPE BIGINT")
    rooms.execute("INSERT INTO t VALUES (2147483648, 'x')")
    rooms.publish_all()
    before = newest(rooms)
    sql = "SELECT * FROM t ORDER BY w"
    expected = rooms.query(sql)
    done = compact(rooms, rooms.compactor())
    assert done is not None
    assert done.files_in == 2
    assert rooms.query(sql).equals(expected)
    assert rooms.query_at(sql, before.snapshot_id).equals(expected)
    rooms.execute("ALTER TABLE t ADD COLUMN later BIGINT")
    assert rooms.query(sql).column_names == ["w", "extra", "later"]
    assert rooms.query("SELECT * EXCLUDE (later) FROM t ORDER BY w").equals(expected)


@pytest.mark.parametrize("step", ["leased", "held", "written", "swapped"])
def test_a_compactor_that_dies_at_any_step_changes_nothing(rooms: Rooms, step: str) -> None:
    publish_each(rooms, *(rows(n) for n in range(5)))
    before = newest(rooms)

    def die(name: str) -> None:
        if name == step:
            raise Died

    with pytest.raises(Died):
        compact(rooms, rooms.compactor("dies", step=die))
    assert newest(rooms) == before
    assert values(rooms) == list(range(5))
    done = compact(rooms, rooms.compactor("lives"))
    assert done is not None
    assert values(rooms) == list(range(5))
    assert runs(rooms)[0].state is RunState.PUBLISHED


def test_the_first_to_publish_wins_and_the_loser_leaves_no_object(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(5)))

    def overwrite(name: str) -> None:
        if name == "written":
            rooms.write("t", rows(77), mode=IngestMode.REPLACE)
            rooms.publish_all()

    done = compact(rooms, rooms.compactor(step=overwrite))
    assert done is not None
    assert done.lost
    assert values(rooms) == [77]
    assert objects(rooms) == []
    assert [run.state for run in runs(rooms)] == [RunState.LOST]


def test_a_compactor_that_dies_after_the_swap_leaves_its_objects_alone(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(5)))

    def die(name: str) -> None:
        if name == "committed":
            raise Died

    with pytest.raises(Died):
        compact(rooms, rooms.compactor(step=die))
    assert values(rooms) == list(range(5))
    assert len(objects(rooms)) == 1
    assert [run.state for run in runs(rooms)] == [RunState.PUBLISHED]


def test_publications_leave_held_files_alone_and_are_not_fenced(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(FOLD_FROM_FILES)))

    def publish(name: str) -> None:
        if name == "written":
            publish_each(rooms, rows(100), rows(101))

    done = compact(rooms, rooms.compactor(step=publish))
    assert done is not None
    assert not done.lost
    assert sorted(file_counts(rooms, newest(rooms).snapshot_id)) == [1, 1, FOLD_FROM_FILES]
    assert values(rooms) == [*range(FOLD_FROM_FILES), 100, 101]


def test_two_compactors_do_not_do_the_same_work(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(5)))
    others: list[Compacted | None] = []

    def meanwhile(name: str) -> None:
        if name == "written":
            others.append(compact(rooms, rooms.compactor("second")))

    done = compact(rooms, rooms.compactor("first", step=meanwhile))
    assert done is not None
    assert not done.lost
    assert others == [None]


def test_a_compactor_that_slept_past_its_lease_changes_nothing(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(5)))
    others: list[Compacted | None] = []

    def oversleep(name: str) -> None:
        if name == "written":
            rooms.advance(timedelta(minutes=5))
            others.append(compact(rooms, rooms.compactor("second")))

    done = compact(rooms, rooms.compactor("first", step=oversleep))
    assert done is not None
    assert done.lost
    assert [other is not None and not other.lost for other in others] == [True]
    assert values(rooms) == list(range(5))
    assert len(objects(rooms)) == 1


def test_a_stopped_compactor_ends_at_once_and_leaves_nothing(rooms: Rooms) -> None:
    publish_each(rooms, *(rows(n) for n in range(5)))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        compact(rooms, rooms.compactor(stop=stop))
    assert objects(rooms) == []
    assert runs(rooms)[0].failure == "the process ended"
    assert rooms.compactor(stop=stop).turn() == []


def test_large_results_are_cut_at_the_target_size(rooms: Rooms) -> None:
    random = Random(3)  # noqa: S311 - repeatable
    for _ in range(4):
        rooms.write("t", rows(*(random.getrandbits(62) for _ in range(250_000))))
        rooms.publish_all()
    before = newest(rooms)
    expected = values(rooms)
    done = compact(rooms, rooms.compactor(target_bytes=5 * 2**20))
    assert done is not None
    assert (done.files_in, done.files_out) == (4, 2)
    assert sum(file_counts(rooms, newest(rooms).snapshot_id)) == 1_000_000
    assert values(rooms) == expected == values(rooms, before.snapshot_id)


def test_a_turn_takes_every_table(rooms: Rooms) -> None:
    for name in ("a", "b"):
        for number in range(4):
            rooms.write(name, rows(number))
            rooms.publish_all()
    done = rooms.compactor().turn()
    assert len(done) == 2
    assert rooms.compactor().turn() == []
    assert rooms.query("SELECT sum(v) AS s FROM a")["s"].to_pylist() == [6]
