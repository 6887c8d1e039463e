"""Tables with a partition spec: compaction cuts files by it, and rows stay what they are."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from catalog import compaction, files, snapshots, tables
from catalog.tables import Table
from coordinator.compact import Compacted
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.partitions import MANY, Partition, spec_as_json
from gateway.ingest_modes import IngestMode
from tests.rooms import Rooms

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY_OF_NOON = 20_454


def events(*days: int, per_day: int = 3, region: str = "eu") -> pa.Table:
    """Some rows of each of these days after noon, the days interleaved."""
    at = [NOON + timedelta(days=day, milliseconds=n) for n in range(per_day) for day in days]
    return pa.table(
        {
            "id": pa.array([1000 * day + n for n in range(per_day) for day in days], pa.int64()),
            "ts": pa.array(at, pa.timestamp("us", tz="UTC")),
            "region": pa.array([region] * len(at), pa.string()),
        }
    )


COLUMNS = "id BIGINT, ts TIMESTAMPTZ, region VARCHAR"
ALL = "SELECT * FROM t ORDER BY id, ts, region"


def table_of(rooms: Rooms, name: str = "t") -> Table:
    with rooms.catalog.connect() as connection:
        found = tables.find_table(connection, rooms.acme.tenant_id, name)
    assert found is not None
    return found


def newest(rooms: Rooms) -> snapshots.Snapshot:
    return rooms.visibility.newest(rooms.acme.tenant_id)


def live(rooms: Rooms, name: str = "t") -> list[tuple[files.DataFile, Partition]]:
    with rooms.catalog.connect() as connection:
        found = files.manifest(
            connection, newest(rooms).snapshot_id, [table_of(rooms, name).table_id]
        )
        known = files.stats_of(connection, [file.file_id for file in found])
    return [(file, known[file.file_id].partition) for file in found]


def partitions(rooms: Rooms) -> list[Partition]:
    return [partition for _, partition in live(rooms)]


def days(rooms: Rooms) -> list[int]:
    return sorted(each["2:day"] - DAY_OF_NOON for each in partitions(rooms))


def publish_each(rooms: Rooms, *writes: pa.Table, inline_file_max_bytes: int = 2**20) -> None:
    for each in writes:
        rooms.write("t", each, mode=IngestMode.APPEND)
        materializer = rooms.materializer(inline_file_max_bytes=inline_file_max_bytes)
        while materializer.publish_next() is not None:
            pass


def compact_all(rooms: Rooms, **options: int) -> list[Compacted]:
    """Merge and cut whatever can be, until nothing is left."""
    done = []
    compactor = rooms.compactor(**options)
    table_id = table_of(rooms).table_id
    while (one := compactor.compact(rooms.acme.tenant_id, table_id, eager=True)) is not None:
        done.append(one)
        assert len(done) < 100, "compaction comes to no end"
    return done


def test_compaction_writes_files_of_one_partition_each_in_their_own_folder(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts), region)")
    publish_each(rooms, events(0, 1), events(1, 2))
    publish_each(rooms, events(0, region="a/../b"), inline_file_max_bytes=0)
    before, rows = newest(rooms), rooms.query(ALL)
    assert partitions(rooms) == [MANY, MANY, {"2:day": DAY_OF_NOON, "3:identity": "a/../b"}]
    compact_all(rooms)
    assert rooms.query(ALL) == rows == rooms.query_at(ALL, before.snapshot_id)
    assert newest(rooms).max_visibility_token == before.max_visibility_token
    assert len(live(rooms)) == 4
    folders = {file.path.split("/", 2)[2].rsplit("/", 1)[0] for file, _ in live(rooms)}
    assert folders == {
        "ts_day=2026-01-01/region_identity=eu",
        "ts_day=2026-01-02/region_identity=eu",
        "ts_day=2026-01-03/region_identity=eu",
        "ts_day=2026-01-01/region_identity=a_.._b-900ea8b7",
    }


def test_partitions_are_merged_each_for_itself_and_sorted_by_time(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    publish_each(rooms, *(events(0, 1) for _ in range(4)), inline_file_max_bytes=0)
    compact_all(rooms)
    publish_each(rooms, *(events(1) for _ in range(4)), inline_file_max_bytes=0)
    kept = [file.file_id for file, each in live(rooms) if each["2:day"] == DAY_OF_NOON]
    rows = rooms.query(ALL)
    compact_all(rooms)
    assert days(rooms) == [0, 1]
    assert [f.file_id for f, each in live(rooms) if each["2:day"] == DAY_OF_NOON] == kept
    assert rooms.query(ALL) == rows
    for file, _ in live(rooms):
        with rooms.store.local_path(file.path).open("rb") as content:
            at = pa.parquet.read_table(content)["ts"].to_pylist()
        assert at == sorted(at)


def test_rows_of_more_partitions_than_a_merge_cuts_are_cut_by_the_next(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (bucket(8, id), day(ts))")
    publish_each(rooms, events(*range(7), per_day=20), inline_file_max_bytes=0)
    rows = rooms.query(ALL)
    done = compact_all(rooms, partitions_max=5)
    assert len(done) > 3
    assert MANY not in partitions(rooms)
    keys = [tuple(each.values()) for each in partitions(rooms)]
    assert len(set(keys)) == len(keys)
    assert rooms.query(ALL) == rows


def test_the_sort_of_partitions_may_be_larger_than_memory(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    publish_each(rooms, *(events(*range(5), per_day=400) for _ in range(4)))
    rows = rooms.query(ALL)
    compact_all(rooms, sort_bytes=20_000)
    assert days(rooms) == [0, 1, 2, 3, 4]
    assert rooms.query(ALL) == rows


def test_a_large_object_of_several_partitions_is_cut_though_it_is_alone(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    publish_each(rooms, events(0, 1, per_day=30_000), inline_file_max_bytes=0)
    compactor = rooms.compactor(target_bytes=64 * 2**10)
    assert live(rooms)[0][0].file_size_bytes > 32 * 2**10
    assert [each.table_id for each in compactor.crowded()] == [table_of(rooms).table_id]
    compactor.turn()
    assert set(days(rooms)) == {0, 1}
    assert rooms.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [60_000]


def test_a_spec_may_change_and_files_remember_theirs(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    publish_each(rooms, events(0, 1), inline_file_max_bytes=0)
    compact_all(rooms)
    days_only, rows = newest(rooms), rooms.query(ALL)
    rooms.execute("ALTER TABLE t SET PARTITIONED BY (month(ts), bucket(2, id))")
    assert newest(rooms).snapshot_id > days_only.snapshot_id
    assert [set(each) for each in partitions(rooms)] == [{"2:day"}] * 2
    publish_each(rooms, events(31, 62), inline_file_max_bytes=0)
    both = rooms.query(ALL)
    compact_all(rooms)
    assert {frozenset(each) for each in partitions(rooms)} == {
        frozenset({"2:month", "1:bucket[2]"})
    }
    assert rooms.query(ALL) == both
    assert rooms.query_at(ALL, days_only.snapshot_id) == rows
    rooms.execute("ALTER TABLE t RESET PARTITIONED BY")
    publish_each(rooms, events(3), inline_file_max_bytes=0)
    assert partitions(rooms)[-1] == {}


def test_a_renamed_column_stays_the_one_that_cuts(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    rooms.execute("ALTER TABLE t RENAME COLUMN ts TO happened")
    with pytest.raises(Invalid, match="partitioned by column 'happened'"):
        rooms.execute("ALTER TABLE t DROP COLUMN happened")
    moved = events(0, 1).rename_columns(["id", "happened", "region"])
    publish_each(rooms, moved, inline_file_max_bytes=0)
    compact_all(rooms)
    assert days(rooms) == [0, 1]
    described = rooms.reads.tables(rooms.acme)
    assert described[0].partition_spec == ("day(happened)",)


def test_a_write_of_too_many_partitions_is_refused_and_leaves_nothing(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE t (id BIGINT) PARTITIONED BY (id)")
    many = pa.table({"id": pa.array(range(1001), pa.int64())})
    pending = rooms.writes.begin(rooms.acme, "t", many.schema, mode=IngestMode.APPEND)
    pending.append(many.to_batches()[0])
    with pytest.raises(Invalid) as caught:
        pending.commit()
    pending.abort()
    assert caught.value.code is ErrorCode.TOO_MANY_PARTITIONS
    target = rooms.writes.open_stream(rooms.acme, "t", many.schema)
    with pytest.raises(Invalid, match="at most 1000 partitions"):
        rooms.writes.append_batch(
            rooms.acme, target, many.to_batches()[0], idempotency_key=None, at_once=True
        )
    rooms.publish_all()
    assert rooms.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [0]


def test_a_bulk_load_in_order_is_cut_while_it_is_written(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS}) PARTITIONED BY (day(ts))")
    rooms.write(
        "t",
        pa.concat_tables([events(day, per_day=130_000) for day in (0, 1)]),
        mode=IngestMode.APPEND,
    )
    rooms.publish_all()
    found = partitions(rooms)
    assert found[0] == {"2:day": DAY_OF_NOON}
    assert MANY in found
    compact_all(rooms, target_bytes=2**30)
    assert set(days(rooms)) == {0, 1}
    assert rooms.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [260_000]


def test_a_table_without_a_spec_knows_no_partitions(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE t ({COLUMNS})")
    publish_each(rooms, events(0, 1), events(1, 2), inline_file_max_bytes=0)
    compact_all(rooms)
    assert partitions(rooms) == [{}]
    with rooms.catalog.connect() as connection:
        spec = compaction.arrangement(connection, table_of(rooms).table_id).spec
    assert spec_as_json(spec) == []
