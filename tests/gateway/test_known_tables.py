"""A process that has a table in memory while another changes it."""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotFound
from gateway.ingest_modes import IngestMode
from gateway.known_tables import KnownTables
from gateway.limits import IngestLimits
from gateway.staging import StagingLimits
from gateway.writes import Writes
from ingest_bus.envelope import Receipt
from ingest_bus.postgres import PostgresIngestBus
from tests.rooms import Rooms, rows

WIDER = pa.table({"v": pa.array([7], pa.int64()), "w": ["x"]})
Append = Callable[[Writes, pa.Table], Receipt]


@pytest.fixture
def elsewhere(rooms: Rooms) -> Iterator[Writes]:
    """The writes of another process, whose memory of tables lasts as long as the test."""
    bus = PostgresIngestBus(rooms.catalog)
    writes = Writes(rooms.catalog, bus, rooms.store, limits=IngestLimits(), staging=StagingLimits())
    writes._tables = writes.definitions._tables = KnownTables(rooms.catalog, monotonic=lambda: 0.0)
    yield writes
    bus.close()


def append_whole(rooms: Rooms) -> Append:
    def append(writes: Writes, table: pa.Table) -> Receipt:
        pending = writes.begin(rooms.acme, "t", table.schema, mode=IngestMode.APPEND)
        for batch in table.to_batches():
            pending.append(batch)
        return pending.commit()

    return append


def append_streamed(rooms: Rooms) -> Append:
    def append(writes: Writes, table: pa.Table) -> Receipt:
        target = writes.open_stream(rooms.acme, "t", table.schema)
        (batch,) = table.to_batches()
        answer = writes.append_batch(
            rooms.acme, target, batch, idempotency_key=None, at_once=True
        ).result(0)
        return answer[0]

    return append


@pytest.fixture(params=[append_whole, append_streamed], ids=["whole", "streamed"])
def append(request: pytest.FixtureRequest, rooms: Rooms, elsewhere: Writes) -> Append:
    """How a write is sent by a process that has seen the table before."""
    rooms.write("t", rows(1))
    done: Append = request.param(rooms)
    done(elsewhere, rows(2))
    return done


def refusal_of(append: Append, writes: Writes, table: pa.Table) -> DuckMeshError:
    with pytest.raises(DuckMeshError) as caught:
        append(writes, table)
    return caught.value


def test_a_table_that_was_dropped_elsewhere_is_not_found(
    rooms: Rooms, elsewhere: Writes, append: Append
) -> None:
    rooms.writes.definitions.drop_table(rooms.acme, "t")
    before = rooms.bus.last_token(rooms.acme.tenant_id)
    refused = refusal_of(append, elsewhere, rows(3))
    assert isinstance(refused, NotFound)
    assert refused.code is ErrorCode.TABLE_NOT_FOUND
    assert rooms.bus.last_token(rooms.acme.tenant_id) == before


def test_a_table_that_was_made_anew_elsewhere_gets_the_rows(
    rooms: Rooms, elsewhere: Writes, append: Append
) -> None:
    rooms.writes.definitions.drop_table(rooms.acme, "t")
    rooms.write("t", rows(10), mode=IngestMode.CREATE)
    append(elsewhere, rows(11))
    rooms.publish_all()
    assert rooms.query("SELECT v FROM t ORDER BY v")["v"].to_pylist() == [10, 11]


def test_columns_that_were_replaced_elsewhere_are_the_ones_that_rows_are_checked_against(
    rooms: Rooms, elsewhere: Writes, append: Append
) -> None:
    rooms.write("t", WIDER, mode=IngestMode.REPLACE)
    append(elsewhere, WIDER)
    rooms.publish_all()
    assert rooms.query("SELECT v, w FROM t").to_pylist() == [{"v": 7, "w": "x"}] * 2


def test_rows_for_columns_that_were_replaced_elsewhere_are_sent_back(
    rooms: Rooms, elsewhere: Writes, append: Append
) -> None:
    rooms.write("t", WIDER, mode=IngestMode.REPLACE)
    refused = refusal_of(append, elsewhere, rows(3))
    assert refused.code is ErrorCode.SCHEMA_INCOMPATIBLE
    with pytest.raises(Invalid, match="missing column w"):
        append(elsewhere, rows(3))


def test_what_a_process_changes_itself_it_knows_at_once(rooms: Rooms, append: Append) -> None:
    append(rooms.writes, rows(3))
    rooms.write("t", WIDER, mode=IngestMode.REPLACE)
    with pytest.raises(Invalid, match="missing column w"):
        append(rooms.writes, rows(3))
    rooms.writes.definitions.drop_table(rooms.acme, "t")
    with pytest.raises(NotFound):
        append(rooms.writes, WIDER)
