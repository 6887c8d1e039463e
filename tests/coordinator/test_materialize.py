"""Accepted writes become visible: once, all together, in token order, whatever dies."""

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from catalog import files, snapshots, tables
from data_files.payload import encode_batches
from duckmesh.errors import Fenced, NotFound, Unavailable
from duckmesh.identifiers import SchemaVersion, new_event_id
from gateway.ingest_modes import IngestMode
from ingest_bus.envelope import Envelope, EventState, InlinePayload
from tests.rooms import Rooms, open_rooms, rows

STEPS = ("claimed", "put", "inserted", "resolved", "committed")


class Died(BaseException):
    """The process ends here: nothing after this line runs."""


def dying_at(wanted: str):
    def step(name: str) -> None:
        if name == wanted:
            raise Died(name)

    return step


def values(rooms: Rooms, table: str = "t", **point) -> list[int]:
    return rooms.query(f"SELECT v FROM {table} ORDER BY v", **point)["v"].to_pylist()


def test_an_accepted_write_is_invisible_until_it_is_published(rooms):
    rooms.write("t", rows(1, 2))
    assert values(rooms) == []
    rooms.publish_all()
    assert values(rooms) == [1, 2]


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_that_dies_at_any_step_loses_nothing_and_doubles_nothing(rooms, step):
    rooms.write("t", rows(1), key="a")
    rooms.write("t", rows(2))
    with pytest.raises(Died):
        rooms.materializer("dying", step=dying_at(step)).publish_next()
    rooms.write("t", rows(3))
    rooms.advance(timedelta(minutes=5))
    rooms.publish_all()
    assert values(rooms) == [1, 2, 3]
    assert rooms.bus.backlog(rooms.acme.tenant_id).events == 0


@pytest.mark.parametrize("step", STEPS)
def test_a_death_with_objects_in_the_store_leaves_only_orphans(rooms, step):
    """Large files are put before the commit; what no snapshot names is not read."""
    rooms.write("t", rows(*range(2_000)))
    with pytest.raises(Died):
        rooms.materializer("dying", step=dying_at(step), inline_file_max_bytes=10).publish_next()
    rooms.advance(timedelta(minutes=5))
    successor = rooms.materializer("successor", inline_file_max_bytes=10)
    while successor.publish_next() is not None:
        pass
    assert values(rooms) == list(range(2_000))


def test_a_coordinator_past_its_lease_publishes_nothing(rooms):
    rooms.write("t", rows(1))
    overtaken = []

    def sleep_past_the_lease(step: str) -> None:
        if step == "put":
            rooms.advance(timedelta(minutes=5))
            overtaken.append(rooms.materializer("second").publish_next())

    sleeper = rooms.materializer("first", step=sleep_past_the_lease)
    with pytest.raises(Fenced):
        sleeper.publish_next()
    assert overtaken
    assert overtaken[0] is not None
    assert values(rooms) == [1]


def test_a_coordinator_past_its_lease_is_fenced_even_when_nobody_took_over(rooms):
    rooms.write("t", rows(1))
    claim = rooms.bus.claim_batch("slow", limit=10, max_bytes=2**20, lease=timedelta(seconds=1))
    assert claim is not None
    rooms.advance(timedelta(minutes=5))
    with pytest.raises(Fenced):
        rooms.bus.ack(claim, [e.envelope.event_id for e in claim.events])
    assert values(rooms) == []


def test_all_tables_of_a_claim_appear_in_one_snapshot(rooms):
    rooms.write("a", rows(1))
    rooms.write("b", rows(2))
    before = rooms.visibility.newest(rooms.acme.tenant_id)
    born = rooms.materializer().publish_next()
    assert born is not None
    assert values(rooms, "a", snapshot_id=before.snapshot_id) == []
    assert values(rooms, "b", snapshot_id=before.snapshot_id) == []
    assert values(rooms, "a", snapshot_id=born.snapshot.snapshot_id) == [1]
    assert values(rooms, "b", snapshot_id=born.snapshot.snapshot_id) == [2]


def test_a_small_publication_lies_inline_and_a_large_one_in_the_store(rooms):
    rooms.write("t", rows(1))
    rooms.publish_all()
    rooms.write("t", rows(*range(50_000)))
    materializer = rooms.materializer(inline_file_max_bytes=1_000)
    born = materializer.publish_next()
    assert born is not None
    with rooms.catalog.connect() as connection:
        table = rooms.writes._find(rooms.acme, "t")
        listed = files.manifest(connection, born.snapshot.snapshot_id, [table.table_id])
    assert [f.path is None for f in listed] == [True, False]
    assert [f.record_count for f in listed] == [1, 50_000]


def test_an_overwrite_keeps_the_old_rows_until_the_new_ones_are_published(rooms):
    rooms.write("t", rows(1, 2))
    rooms.publish_all()
    old = rooms.visibility.newest(rooms.acme.tenant_id)
    rooms.write("t", rows(7), mode=IngestMode.REPLACE)
    assert values(rooms) == [1, 2]
    rooms.write("t", rows(8))
    rooms.publish_all()
    assert values(rooms) == [7, 8]
    assert values(rooms, snapshot_id=old.snapshot_id) == [1, 2]


def test_an_overwrite_with_other_columns_changes_the_schema_at_its_snapshot(rooms):
    rooms.write("t", rows(1, 2))
    rooms.publish_all()
    old = rooms.visibility.newest(rooms.acme.tenant_id)
    rooms.write("t", pa.table({"name": ["x"]}), mode=IngestMode.REPLACE)
    assert values(rooms) == [1, 2]
    rooms.write("t", pa.table({"name": ["y"]}), mode=IngestMode.APPEND)
    rooms.publish_all()
    assert rooms.query("SELECT name FROM t ORDER BY name")["name"].to_pylist() == ["x", "y"]
    assert values(rooms, snapshot_id=old.snapshot_id) == [1, 2]


def test_writes_before_an_overwrite_in_the_same_claim_are_gone_with_it(rooms):
    rooms.write("t", rows(1))
    rooms.write("t", rows(2), mode=IngestMode.REPLACE)
    rooms.write("t", rows(3))
    assert rooms.materializer().publish_next() is not None
    assert values(rooms) == [2, 3]


def test_a_poison_event_is_dead_lettered_and_the_rest_proceeds(rooms):
    good = rooms.write("t", rows(1))
    table = rooms.writes._find(rooms.acme, "t")
    poison = _publish_garbage(rooms, table)
    last = rooms.write("t", rows(3))
    rooms.publish_all()
    assert values(rooms, min_token=last.visibility_token) == [1, 3]
    states = {
        e.visibility_token: e.state for e in rooms.bus.recent_events(rooms.acme.tenant_id, limit=10)
    }
    assert states[good.visibility_token] is EventState.COMMITTED
    assert states[poison] is EventState.FAILED
    assert states[last.visibility_token] is EventState.COMMITTED


def test_a_dead_letter_at_the_end_resolves_its_token(rooms):
    rooms.write("t", rows(1))
    poison = _publish_garbage(rooms, rooms.writes._find(rooms.acme, "t"))
    rooms.publish_all()
    assert values(rooms, min_token=poison) == [1]


def _publish_garbage(rooms: Rooms, table):
    """An event whose payload is no Arrow, past the door's checks."""
    from duckmesh.identifiers import new_event_id
    from ingest_bus.envelope import Envelope, InlinePayload

    envelope = Envelope(
        new_event_id(),
        rooms.acme.tenant_id,
        table.table_id,
        SchemaVersion(1),
        InlinePayload(b"this is no Arrow message"),
        1,
        24,
    )
    return rooms.bus.publish([envelope])[0].visibility_token


def test_an_unforeseen_fault_blames_one_event_and_spares_the_others(rooms, monkeypatch):
    from coordinator import materialize

    for number in range(5):
        rooms.write("t", rows(number))
    real = materialize.gather

    def gather(events, schema_of):
        if any(event.visibility_token == 3 for event in events):
            raise ZeroDivisionError
        return real(events, schema_of)

    monkeypatch.setattr(materialize, "gather", gather)
    materializer = rooms.materializer()
    for _ in range(40):
        try:
            materializer.publish_next()
        except ZeroDivisionError:
            rooms.advance(timedelta(minutes=5))
    assert values(rooms) == [0, 1, 3, 4]


def test_writes_of_a_dropped_table_are_resolved_with_it(rooms):
    rooms.write("t", rows(1))
    last = rooms.write("u", rows(2))
    rooms.writes.definitions.drop_table(rooms.acme, "t")
    rooms.publish_all()
    assert values(rooms, "u", min_token=last.visibility_token) == [2]
    with pytest.raises(NotFound):
        values(rooms)


def test_a_failed_store_gives_the_claim_back_without_blame(rooms, monkeypatch):
    from duckmesh.errors import ErrorCode

    rooms.write("t", rows(*range(1_000)))
    materializer = rooms.materializer(inline_file_max_bytes=10)

    def full_disk(key: str, content: bytes) -> None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rooms.store, "put", full_disk)
        for _ in range(8):
            with pytest.raises(Unavailable):
                materializer.publish_next()
    assert materializer.publish_next() is not None
    assert values(rooms) == list(range(1_000))


def test_snapshots_record_every_change_of_the_manifest(rooms):
    rooms.write("t", rows(1))
    rooms.publish_all()
    rooms.write("t", rows(2), mode=IngestMode.REPLACE)
    rooms.publish_all()
    newest = rooms.visibility.newest(rooms.acme.tenant_id)
    with rooms.catalog.connect() as connection:
        seen = snapshots.recent(
            connection, rooms.acme.tenant_id, through=newest.snapshot_id, limit=10
        )
        changes = connection.execute(
            "SELECT change_type FROM snapshot_file ORDER BY snapshot_id, change_type"
        ).fetchall()
    assert [operation for _, operation, _ in seen] == [
        "publish",
        "publish",
        "create_table",
        "create_tenant",
    ]
    assert [change for (change,) in changes] == ["add", "add", "remove"]


def test_an_event_that_does_not_decode_takes_its_group_with_it(rooms):
    rooms.write("t", rows(0))
    rooms.write("u", rows(0))
    identity = rooms.acme
    with rooms.catalog.connect() as connection:
        tables_by_name = {
            name: tables.find_table(connection, identity.tenant_id, name) for name in ("t", "u")
        }

    def envelope(name: str, content: bytes) -> Envelope:
        table = tables_by_name[name]
        return Envelope(
            new_event_id(),
            identity.tenant_id,
            table.table_id,
            table.schema.version,
            InlinePayload(content),
            row_count=1,
            byte_count=len(content),
        )

    good = encode_batches(rows(1).to_batches())
    rooms.bus.publish([envelope("t", good), envelope("u", b"no rows")], as_one=True)
    rooms.bus.publish([envelope("t", good), envelope("u", good)], as_one=True)
    rooms.publish_all()
    assert values(rooms, "t") == [0, 1]
    assert values(rooms, "u") == [0, 1]
    states = [e.state for e in rooms.bus.recent_events(identity.tenant_id, limit=4)]
    assert states == [EventState.COMMITTED] * 2 + [EventState.FAILED] * 2


@pytest.mark.parametrize(
    ("staged_above", "inline_file_max_bytes"),
    [(2**20, 2**20), (2**20, 0), (0, 0)],
    ids=["inline", "objects", "staged"],
)
def test_a_table_dropped_under_its_publication_leaves_no_file(
    database_dsn: str, tmp_path: Path, staged_above: int, inline_file_max_bytes: int
) -> None:
    with open_rooms(database_dsn, tmp_path, inline_max_bytes=staged_above) as rooms:
        rooms.write("t", rows(*range(1_000)))
        rooms.write("u", rows(1))

        def drop(step: str) -> None:
            if step == "put":
                rooms.execute("DROP TABLE t")

        publisher = rooms.materializer(step=drop, inline_file_max_bytes=inline_file_max_bytes)
        assert publisher.publish_next() is not None
        assert values(rooms, "u") == [1]
        assert rooms.bus.backlog(rooms.acme.tenant_id).events == 0
        with rooms.catalog.connect() as connection:
            files_and_bytes = connection.execute(
                "SELECT count(*), sum(file_size_bytes) FROM data_file WHERE end_snapshot IS NULL"
            ).fetchone()
            live = connection.execute(
                "SELECT 1, live_bytes FROM publication_head WHERE tenant_id = %s",
                (rooms.acme.tenant_id,),
            ).fetchone()
            contents = connection.execute("SELECT count(*) FROM data_file_content").fetchone()
        assert files_and_bytes == live, "one file, and its bytes are all that the quota counts"
        assert contents == (1 if inline_file_max_bytes else 0,)
        rooms.advance(timedelta(days=2))
        rooms.collect()
        left = [each.key for each in rooms.store.list("acme/")]
        assert len(left) == (0 if inline_file_max_bytes else 1), "the others were orphans"
        assert values(rooms, "u") == [1]
