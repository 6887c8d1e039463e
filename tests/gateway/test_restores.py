"""Restore: a new snapshot that is equal to an old one, whatever happened in between."""

from datetime import timedelta
from pathlib import Path
from threading import Event

import pyarrow as pa
import pytest

from catalog.restores import Restored
from catalog.retention import Retention
from catalog.tenants import Tenant
from coordinator.collect import CollectOptions
from coordinator.compact import CompactionOptions
from coordinator.maintenance import Maintenance, MaintenanceOptions
from duckmesh.errors import Conflict, Denied, ErrorCode, NotFound, NotYetVisible
from duckmesh.identifiers import SnapshotId
from gateway.identity import Identity, Role
from gateway.ingest_modes import IngestMode
from gateway.restores import Restores
from tests.publisher import publishing
from tests.rooms import Rooms, open_rooms, rows


@pytest.fixture
def restores(rooms: Rooms) -> Restores:
    return Restores(rooms.catalog, rooms.bus, rooms.visibility)


def newest(rooms: Rooms) -> SnapshotId:
    return rooms.visibility.newest(rooms.acme.tenant_id).snapshot_id


def values(rooms: Rooms, table: str = "t", column: str = "v", **point: object) -> list[object]:
    found = rooms.query(f'SELECT "{column}" FROM "{table}" ORDER BY 1', **point)
    return found.column(0).to_pylist()


def written(rooms: Rooms, *numbers: int, table: str = "t", **options: object) -> None:
    rooms.write(table, rows(*numbers), **options)  # type: ignore[arg-type]
    rooms.publish_all()


def contents(rooms: Rooms, snapshot_id: SnapshotId) -> dict[str, pa.Table]:
    """Every table of a snapshot with its rows, in order, and its columns."""
    names = rooms.query_at("SHOW TABLES", snapshot_id).column("name").to_pylist()
    return {
        name: rooms.query_at(f'SELECT * FROM "{name}" ORDER BY ALL', snapshot_id) for name in names
    }


def restored(restores: Restores, rooms: Rooms, to: SnapshotId, *names: str) -> Restored:
    return restores.restore(rooms.acme, to, names or None)


def test_a_restored_tenant_is_equal_to_the_old_snapshot_whatever_came_in_between(
    rooms: Rooms, restores: Restores
) -> None:
    """Rows added and overwritten, tables dropped, made, replaced, altered, renamed; views too."""
    for name in ("t", "dropped", "altered", "renamed", "replaced", "emptied"):
        written(rooms, 1, 2, table=name)
    written(rooms, 3)
    rooms.execute("CREATE VIEW seen AS SELECT v FROM t WHERE v > 1")
    rooms.execute("CREATE VIEW ended AS SELECT v FROM t")
    old = newest(rooms)
    before = contents(rooms, old)

    written(rooms, 4)
    rooms.execute("DROP TABLE dropped")
    rooms.execute("ALTER TABLE altered ADD COLUMN note VARCHAR")
    rooms.execute("ALTER TABLE renamed RENAME TO other_name")
    written(rooms, 9, table="replaced", mode=IngestMode.REPLACE)
    rooms.execute("TRUNCATE emptied")
    rooms.publish_all()
    rooms.execute("CREATE TABLE new_one (x INTEGER)")
    rooms.execute("CREATE OR REPLACE VIEW seen AS SELECT 7 AS v")
    rooms.execute("DROP VIEW ended")
    rooms.execute("CREATE VIEW new_view AS SELECT 1 AS one")
    assert contents(rooms, newest(rooms)) != before

    done = restored(restores, rooms, old)
    assert contents(rooms, done.snapshot.snapshot_id) == before
    assert newest(rooms) == done.snapshot.snapshot_id > old
    # What was published stays: before the restore, and where it came from.
    assert contents(rooms, old) == before
    assert values(rooms, snapshot_id=SnapshotId(done.snapshot.snapshot_id - 1)) == [1, 2, 3, 4]


def test_a_restore_can_be_undone_by_a_restore(rooms: Rooms, restores: Restores) -> None:
    written(rooms, 1)
    old = newest(rooms)
    rooms.execute("ALTER TABLE t ADD COLUMN note VARCHAR")
    rooms.execute("INSERT INTO t VALUES (2, 'two')")
    rooms.publish_all()
    later = newest(rooms)
    after = contents(rooms, later)
    restored(restores, rooms, old)
    assert values(rooms) == [1]
    done = restored(restores, rooms, later)
    assert contents(rooms, done.snapshot.snapshot_id) == after


def test_only_the_named_tables_are_restored(rooms: Rooms, restores: Restores) -> None:
    written(rooms, 1, table="a")
    written(rooms, 1, table="b")
    old = newest(rooms)
    written(rooms, 2, table="a")
    written(rooms, 2, table="b")
    rooms.execute("CREATE TABLE c (x INTEGER)")
    done = restored(restores, rooms, old, "A")
    assert [t.name for t in done.plan.rewound] == ["a"]
    assert (values(rooms, "a"), values(rooms, "b"), values(rooms, "c", "x")) == ([1], [1, 2], [])


def test_a_dropped_table_comes_back_alone(rooms: Rooms, restores: Restores) -> None:
    written(rooms, 1, 2)
    old = newest(rooms)
    rooms.execute("DROP TABLE t")
    done = restored(restores, rooms, old, "t")
    assert [t.name for t in done.plan.made_anew] == ["t"]
    assert values(rooms) == [1, 2]
    written(rooms, 3)
    assert values(rooms) == [1, 2, 3]


def test_a_table_that_was_renamed_is_restored_beside_its_new_name(
    rooms: Rooms, restores: Restores
) -> None:
    written(rooms, 1)
    old = newest(rooms)
    rooms.execute("ALTER TABLE t RENAME TO u")
    written(rooms, 2, table="u")
    restored(restores, rooms, old, "t")
    assert (values(rooms, "t"), values(rooms, "u")) == ([1], [1, 2])


def test_the_watermark_stays_and_tokens_read_as_ever(rooms: Rooms, restores: Restores) -> None:
    written(rooms, 1)
    old = newest(rooms)
    receipt = rooms.write("t", rows(2))
    rooms.publish_all()
    before = rooms.visibility.newest(rooms.acme.tenant_id)
    done = restored(restores, rooms, old)
    assert done.snapshot.max_visibility_token == before.max_visibility_token
    # The write is visible: in the snapshots before the restore that undid it.
    assert values(rooms, min_token=receipt.visibility_token) == [1]
    after = rooms.write("t", rows(3))
    rooms.publish_all()
    assert values(rooms, min_token=after.visibility_token) == [1, 3]


def test_what_was_accepted_before_a_restore_is_undone_though_nobody_saw_it(
    rooms: Rooms, restores: Restores
) -> None:
    written(rooms, 1)
    old = newest(rooms)
    rooms.write("t", rows(2))
    with publishing(rooms):
        restored(restores, rooms, old)
    rooms.publish_all()
    assert values(rooms) == [1]


def test_a_restore_that_cannot_wait_for_what_was_accepted_changes_nothing(
    rooms: Rooms, restores: Restores
) -> None:
    written(rooms, 1)
    old = newest(rooms)
    rooms.write("t", rows(2))
    with pytest.raises(NotYetVisible):
        restores.restore(rooms.acme, old, timeout=timedelta(0))
    assert newest(rooms) == old


def test_a_write_that_began_before_its_table_was_made_anew_reaches_the_new_one(
    rooms: Rooms, restores: Restores, tmp_path: Path
) -> None:
    """Another serving process still knows the ended table: its rows are not lost with it."""
    written(rooms, 1)
    old = newest(rooms)
    rooms.execute("DROP TABLE t")
    written(rooms, 2)
    with open_rooms(rooms.dsn, tmp_path / "other") as other:
        other.write("t", rows(2))
        rooms.publish_all()
        restored(restores, rooms, old)
        other.write("t", rows(3))
    rooms.publish_all()
    assert values(rooms) == [1, 3]


def test_a_write_with_other_columns_than_the_restored_ones_is_refused(
    rooms: Rooms, restores: Restores, tmp_path: Path
) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT NOT NULL)")
    written(rooms, 1)
    old = newest(rooms)
    rooms.execute("ALTER TABLE t ALTER COLUMN v DROP NOT NULL")
    with open_rooms(rooms.dsn, tmp_path / "other") as other:
        other.write("t", rows(2))
        rooms.publish_all()
        restored(restores, rooms, old)
        with pytest.raises(Conflict) as raised:
            other.write("t", rows(3))
        assert raised.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
        other.write("t", rows(4))
    rooms.publish_all()
    assert values(rooms) == [1, 4]


def test_a_key_of_an_undone_write_is_still_known(rooms: Rooms, restores: Restores) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT)")
    old = newest(rooms)
    written(rooms, 1, key="k")
    restored(restores, rooms, old)
    assert rooms.write("t", rows(1), key="k").inserted is False
    rooms.publish_all()
    assert values(rooms) == []


def test_a_primary_key_and_types_come_back(rooms: Rooms, restores: Restores) -> None:
    rooms.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, price DECIMAL(18,2))")
    rooms.execute("INSERT INTO t VALUES (1, 2.50)")
    rooms.publish_all()
    old = newest(rooms)
    rooms.execute("DROP TABLE t")
    restored(restores, rooms, old)
    (table,) = rooms.reads.tables(rooms.acme)
    assert table.primary_key == ("id",)
    assert table.schema.field("price").type == pa.decimal128(18, 2)
    assert not table.schema.field("id").nullable


def test_objects_are_shared_and_not_copied(rooms: Rooms, restores: Restores) -> None:
    rooms.write("t", rows(*range(50)))
    rooms.materializer(inline_file_max_bytes=1).publish_next()
    old = newest(rooms)
    rooms.execute("TRUNCATE t")
    rooms.publish_all()
    objects = set(rooms.store.list("acme/"))
    done = restored(restores, rooms, old)
    assert (done.files_added, done.files_ended) == (1, 0)
    assert set(rooms.store.list("acme/")) == objects
    assert values(rooms) == list(range(50))


def test_folding_after_a_restore_keeps_the_rows(rooms: Rooms, restores: Restores) -> None:
    for value in range(5):
        written(rooms, value)
    old = newest(rooms)
    rooms.execute("ALTER TABLE t ADD COLUMN note VARCHAR")
    restored(restores, rooms, old)
    for value in range(5, 60):
        written(rooms, value)
    assert values(rooms) == list(range(60))


def test_a_plan_says_what_a_restore_would_do_and_changes_nothing(
    rooms: Rooms, restores: Restores
) -> None:
    written(rooms, 1)
    written(rooms, 1, table="u")
    old = newest(rooms)
    rooms.execute("DROP TABLE u")
    written(rooms, 1, table="w")
    last = newest(rooms)
    plan = restores.plan(rooms.acme, old)
    assert [t.name for t in plan.rewound] == ["t"]
    assert [t.name for t in plan.made_anew] == ["u"]
    assert [t.name for t in plan.ended] == ["w"]
    assert newest(rooms) == last


def test_what_cannot_be_restored_is_refused(rooms: Rooms, restores: Restores) -> None:
    written(rooms, 1)
    old = newest(rooms)
    with pytest.raises(NotFound) as raised:
        restored(restores, rooms, SnapshotId(old + 1000))
    assert raised.value.code is ErrorCode.SNAPSHOT_NOT_FOUND
    with pytest.raises(NotFound) as raised:
        restored(restores, rooms, old, "nope")
    assert raised.value.code is ErrorCode.TABLE_NOT_FOUND
    rooms.execute("DROP TABLE t")
    rooms.execute("CREATE VIEW t AS SELECT 1 AS v")
    with pytest.raises(Conflict):
        restored(restores, rooms, old, "t")
    other = rooms.identity("other")
    with pytest.raises(NotFound):
        restores.restore(other, old)
    reader = Identity(rooms.acme.tenant_id, "acme", "r", None, frozenset({Role.QUERY_READER}))
    with pytest.raises(Denied):
        restores.restore(reader, old)


def test_an_object_that_a_restored_table_reads_outlives_the_snapshots_before_it(
    rooms: Rooms, restores: Restores
) -> None:
    """Retention forgets the old rows of the catalog; the object goes with the last of them."""
    rooms.write("t", rows(*range(50)))
    rooms.materializer(inline_file_max_bytes=1).publish_next()
    old = newest(rooms)
    rooms.execute("TRUNCATE t")
    rooms.publish_all()
    restored(restores, rooms, old)
    rooms.execute("CREATE TABLE later (x INTEGER)")
    options = MaintenanceOptions(
        compaction=CompactionOptions(holder="test"),
        collect=CollectOptions(
            retention=Retention(kept_for=timedelta(days=7), kept_at_least=1),
            safety_age=timedelta(hours=2),
        ),
    )
    collector = Maintenance(rooms.catalog, rooms.bus, rooms.store, options=options).collector(
        Event()
    )
    tenant = Tenant(rooms.acme.tenant_id, rooms.acme.tenant, disabled=False)
    rooms.advance(timedelta(days=30))
    expired = collector.collect(tenant)
    rooms.advance(timedelta(days=30))
    deleted = collector.collect(tenant)
    assert expired.snapshots > 0
    assert expired.files + deleted.files == 1
    assert values(rooms) == list(range(50))
