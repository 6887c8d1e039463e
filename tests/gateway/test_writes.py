"""Accepting a write: whole or not at all, and what stays behind when it is not."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import Conflict, Denied, ErrorCode, Invalid, NotFound, Unavailable
from gateway.identity import Identity, Role
from gateway.ingest_modes import IngestMode
from gateway.limits import IngestLimits
from gateway.pending_write import PendingWrite
from gateway.staging import StagingLimits
from gateway.writes import Writes
from ingest_bus.envelope import Envelope, Receipt
from ingest_bus.postgres import PostgresIngestBus
from tests.rooms import Rooms, rows

SMALL_LIMIT = 1_000
LARGE = rows(*range(1_000))
OTHER_COLUMNS = pa.table({"a": pa.array(range(1_000), pa.int64()), "b": ["x"] * 1_000})


def writes_over(rooms: Rooms, bus: PostgresIngestBus) -> Writes:
    """Writes that stage all but a few rows in the store."""
    return Writes(
        rooms.catalog,
        bus,
        rooms.store,
        limits=IngestLimits(),
        staging=StagingLimits(inline_max_bytes=SMALL_LIMIT),
    )


def begin(
    rooms: Rooms, writes: Writes, table: pa.Table, mode: IngestMode, key: str | None = None
) -> PendingWrite:
    pending = writes.begin(rooms.acme, "t", table.schema, mode=mode, idempotency_key=key)
    for batch in table.to_batches():
        pending.append(batch)
    return pending


def objects(rooms: Rooms) -> list[str]:
    return [each.key for each in rooms.store.list("acme/")]


def count(rooms: Rooms) -> int:
    rooms.publish_all()
    return int(rooms.query("SELECT count(*) AS n FROM t")["n"][0].as_py())


class BrokenBus(PostgresIngestBus):
    """The database goes away around the commit: `accepted` says on which side of it."""

    accepted = True
    failures = 1

    def publish(self, envelopes: Sequence[Envelope], **more: Any) -> list[Receipt]:
        if self.failures:
            self.failures -= 1
            if self.accepted:
                super().publish(envelopes, **more)
            raise Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "the connection broke")
        return super().publish(envelopes, **more)


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "not accepted"])
@pytest.mark.parametrize("mode", list(IngestMode))
def test_a_write_of_unknown_outcome_is_there_once_after_its_retry(
    rooms: Rooms, mode: IngestMode, accepted: bool
) -> None:
    if mode in (IngestMode.APPEND, IngestMode.REPLACE):
        rooms.write("t", rows())
    bus = BrokenBus(rooms.catalog)
    bus.accepted = accepted
    writes = writes_over(rooms, bus)
    broken = begin(rooms, writes, LARGE, mode, "k")
    with pytest.raises(Unavailable):
        broken.commit()
    broken.abort()
    assert len(objects(rooms)) == 1, "an accepted write may name the staged object"
    receipt = begin(rooms, writes, LARGE, mode, "k").commit()
    assert receipt.inserted is not accepted
    assert receipt.row_count == 1_000
    assert count(rooms) == 1_000
    bus.close()


def test_a_refused_write_removes_what_it_staged(rooms: Rooms) -> None:
    writes = writes_over(rooms, rooms.bus)
    begin(rooms, writes, LARGE, IngestMode.CREATE, "k").commit()
    kept = objects(rooms)
    other = begin(rooms, writes, LARGE.slice(1), IngestMode.APPEND, "k")
    with pytest.raises(Conflict) as caught:
        other.commit()
    other.abort()
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    assert objects(rooms) == kept
    again = begin(rooms, writes, LARGE, IngestMode.APPEND, "k").commit()
    assert not again.inserted
    assert objects(rooms) == kept, "a duplicate removes its own copy, and not the original"
    assert count(rooms) == 1_000


def test_an_aborted_write_leaves_neither_table_nor_object_nor_token(rooms: Rooms) -> None:
    writes = writes_over(rooms, rooms.bus)
    begin(rooms, writes, LARGE, IngestMode.CREATE).abort()
    assert objects(rooms) == []
    assert rooms.bus.last_token(rooms.acme.tenant_id) == 0
    with pytest.raises(NotFound):
        writes.begin(rooms.acme, "t", LARGE.schema, mode=IngestMode.APPEND)


def test_a_store_that_fails_midway_leaves_nothing(rooms: Rooms) -> None:
    class FailingStore(type(rooms.store)):  # type: ignore[misc]
        def open_writer(self, key: str):  # noqa: ARG002 - the port's signature
            raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the store is down")

    store = FailingStore(rooms.store.local_path("acme/any").parent.parent)
    writes = Writes(
        rooms.catalog,
        rooms.bus,
        store,
        limits=IngestLimits(),
        staging=StagingLimits(inline_max_bytes=SMALL_LIMIT),
    )
    many = rows(*range(600_000))
    pending = writes.begin(rooms.acme, "t", many.schema, mode=IngestMode.CREATE)

    def send() -> None:
        for batch in many.to_batches(max_chunksize=100_000):
            pending.append(batch)
        pending.commit()

    with pytest.raises(Unavailable, match="the store is down"):
        send()
    pending.abort()
    assert rooms.bus.last_token(rooms.acme.tenant_id) == 0
    assert rooms.reads.tables(rooms.acme) == []


def test_create_finds_its_own_table_again_by_its_key(rooms: Rooms) -> None:
    first = rooms.write("t", rows(1), mode=IngestMode.CREATE, key="k")
    again = rooms.write("t", rows(1), mode=IngestMode.CREATE, key="k")
    assert (again.visibility_token, again.inserted) == (first.visibility_token, False)
    for key in (None, "other"):
        with pytest.raises(Conflict) as caught:
            rooms.write("t", rows(1), mode=IngestMode.CREATE, key=key)
        assert caught.value.code is ErrorCode.TABLE_EXISTS
    assert count(rooms) == 1


@pytest.mark.parametrize("mode", [IngestMode.CREATE, IngestMode.CREATE_APPEND])
def test_of_concurrent_creations_one_wins_or_all_append(rooms: Rooms, mode: IngestMode) -> None:
    pending = [begin(rooms, rooms.writes, rows(n), mode) for n in range(6)]
    refusals: set[ErrorCode] = set()

    def commit(write: PendingWrite) -> bool:
        try:
            write.commit()
        except Conflict as error:
            refusals.add(error.code)
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = sum(pool.map(commit, pending))
    assert refusals <= {ErrorCode.TABLE_EXISTS}
    assert won == (1 if mode is IngestMode.CREATE else 6)
    assert count(rooms) == won


def test_an_append_that_began_before_a_replacement_is_sent_back_and_works_on_retry(
    rooms: Rooms,
) -> None:
    rooms.write("t", rows(1))
    late = begin(rooms, rooms.writes, rows(2), IngestMode.APPEND)
    stream = rooms.writes.open_stream(rooms.acme, "t", rows(3).schema)
    wider = pa.table({"v": pa.array([7], pa.int64()), "w": ["x"]})
    rooms.write("t", wider, mode=IngestMode.REPLACE)
    with pytest.raises(Conflict) as caught:
        late.commit()
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    (batch,) = rows(3).to_batches()
    answer = rooms.writes.append_batch(rooms.acme, stream, batch, idempotency_key=None)
    with pytest.raises(Conflict) as caught:
        answer.result(30)
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    with pytest.raises(Invalid, match="missing column w"):
        rooms.write("t", rows(2), mode=IngestMode.APPEND)
    rooms.write("t", wider, mode=IngestMode.APPEND)
    rooms.publish_all()
    assert rooms.query("SELECT v, w FROM t").to_pylist() == [{"v": 7, "w": "x"}] * 2


class RefusingBus(PostgresIngestBus):
    """Refuses the next write for good, as a fence does."""

    refuse = True

    def publish(self, envelopes: Sequence[Envelope], **more: Any) -> list[Receipt]:
        if self.refuse:
            self.refuse = False
            raise Conflict(ErrorCode.SCHEMA_INCOMPATIBLE, "send them again")
        return super().publish(envelopes, **more)


def test_rows_staged_for_a_replacement_are_read_back_after_another_replacement_failed(
    rooms: Rooms,
) -> None:
    """The failed one leaves an unused schema version; files name columns by their field ids."""
    rooms.write("t", LARGE)
    bus = RefusingBus(rooms.catalog)
    writes = writes_over(rooms, bus)
    failed = begin(rooms, writes, OTHER_COLUMNS, IngestMode.REPLACE)
    with pytest.raises(Conflict):
        failed.commit()
    failed.abort()
    begin(rooms, writes, OTHER_COLUMNS, IngestMode.REPLACE).commit()
    rooms.publish_all()
    got = rooms.query("SELECT count(a) AS a, sum(a) AS s, count(b) AS b FROM t").to_pylist()
    assert got == [{"a": 1_000, "s": sum(range(1_000)), "b": 1_000}]
    bus.close()


def test_rows_staged_for_a_replacement_are_read_back_when_the_columns_came_and_went(
    rooms: Rooms,
) -> None:
    rooms.write("t", LARGE)
    writes = writes_over(rooms, rooms.bus)
    slow = begin(rooms, writes, OTHER_COLUMNS, IngestMode.REPLACE)
    for table in (pa.table({"c": [1]}), OTHER_COLUMNS):
        begin(rooms, writes, table, IngestMode.REPLACE).commit()
    slow.commit()
    rooms.publish_all()
    got = rooms.query("SELECT count(a) AS a, count(b) AS b FROM t").to_pylist()
    assert got == [{"a": 1_000, "b": 1_000}]


def test_of_concurrent_replacements_the_table_holds_exactly_one(rooms: Rooms) -> None:
    rooms.write("t", rows(0))
    refusals: set[ErrorCode] = set()
    pending = [
        begin(rooms, rooms.writes, pa.table({f"c{n % 2}": [n] * n}), IngestMode.REPLACE)
        for n in range(1, 7)
    ]

    def commit(write: PendingWrite) -> bool:
        try:
            write.commit()
        except Conflict as error:
            refusals.add(error.code)
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert any(pool.map(commit, pending))
    assert refusals <= {ErrorCode.SCHEMA_INCOMPATIBLE}
    rooms.publish_all()
    (values,) = rooms.query("SELECT * FROM t").columns
    numbers = values.to_pylist()
    assert numbers == [numbers[0]] * numbers[0]


def test_what_is_accepted_and_not_yet_published_goes_with_its_table(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    before = rooms.visibility.newest(rooms.acme.tenant_id).snapshot_id
    rooms.write("t", rows(2))
    rooms.execute("DROP TABLE t")
    rooms.publish_all()
    assert rooms.query_at("SELECT v FROM t", before)["v"].to_pylist() == [1]
    with pytest.raises(NotFound):
        rooms.query("SELECT v FROM t")
    assert rooms.bus.backlog(rooms.acme.tenant_id).events == 0


def test_a_dropped_table_refuses_what_began_before(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    late = begin(rooms, rooms.writes, rows(2), IngestMode.APPEND)
    stream = rooms.writes.open_stream(rooms.acme, "t", rows(3).schema)
    assert rooms.writes.definitions.drop_table(rooms.acme, "t")
    with pytest.raises(NotFound) as caught:
        late.commit()
    assert caught.value.code is ErrorCode.TABLE_NOT_FOUND
    (batch,) = rows(3).to_batches()
    answer = rooms.writes.append_batch(rooms.acme, stream, batch, idempotency_key=None)
    with pytest.raises(Conflict):
        answer.result(30)
    with pytest.raises(NotFound):
        rooms.writes.definitions.drop_table(rooms.acme, "t")
    assert not rooms.writes.definitions.drop_table(rooms.acme, "t", if_exists=True)
    rooms.write("t", pa.table({"x": ["new"]}), mode=IngestMode.CREATE)
    rooms.publish_all()
    assert rooms.query("SELECT * FROM t").to_pylist() == [{"x": "new"}]


def test_what_is_refused_at_the_beginning_changes_nothing(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    before = rooms.bus.last_token(rooms.acme.tenant_id)
    reader = Identity(rooms.acme.tenant_id, "acme", "reader", None, frozenset({Role.QUERY_READER}))
    with pytest.raises(Denied):
        rooms.write("t", rows(1), identity=reader)
    with pytest.raises(Denied):
        rooms.writes.open_stream(reader, "t", rows(1).schema)
    with pytest.raises(Denied):
        rooms.writes.definitions.drop_table(reader, "t")
    with pytest.raises(NotFound):
        rooms.write("absent", rows(1), mode=IngestMode.APPEND)
    for name in ("", "  ", "a\nb", "x" * 201):
        with pytest.raises(Invalid):
            rooms.write(name, rows(1))
    for key in ("", "x" * 513, "a\x00b"):
        with pytest.raises(Invalid):
            rooms.write("t", rows(1), key=key)
    with pytest.raises(Invalid):
        rooms.write("new", pa.table({}))
    with pytest.raises(Invalid):
        rooms.write("new", pa.table({"a": pa.nulls(1)}))
    assert rooms.bus.last_token(rooms.acme.tenant_id) == before
    assert [table.name for table in rooms.reads.tables(rooms.acme)] == ["t"]


@pytest.mark.parametrize(
    "name", ["../../escape", "a/b", ".hidden", "Ünïcode", 'qu"ote', "semi;colon", "select"]
)
def test_any_name_of_a_table_stays_in_its_tenants_folder(rooms: Rooms, name: str) -> None:
    writes = writes_over(rooms, rooms.bus)
    pending = writes.begin(rooms.acme, name, LARGE.schema, mode=IngestMode.CREATE)
    for batch in LARGE.to_batches():
        pending.append(batch)
    pending.commit()
    rooms.publish_all()
    assert len(objects(rooms)) == 1
    quoted = '"' + name.replace('"', '""') + '"'
    assert rooms.query(f"SELECT count(*) AS n FROM {quoted}")["n"].to_pylist() == [1_000]


def test_a_large_batch_of_a_stream_is_staged_in_its_turn(rooms: Rooms) -> None:
    rooms.write("t", rows(0))
    writes = writes_over(rooms, rooms.bus)
    stream = writes.open_stream(rooms.acme, "t", LARGE.schema)
    batches = [rows(1).to_batches()[0], LARGE.to_batches()[0], rows(2).to_batches()[0]]
    answers = [
        writes.append_batch(rooms.acme, stream, batch, idempotency_key=f"k{n}")
        for n, batch in enumerate(batches)
    ]
    tokens = [answer.result(30)[0].visibility_token for answer in answers]
    assert tokens == [2, 3, 4]
    again = writes.append_batch(rooms.acme, stream, batches[1], idempotency_key="k1")
    assert not again.result(30)[0].inserted
    assert len(objects(rooms)) == 1
    assert count(rooms) == 1_003
