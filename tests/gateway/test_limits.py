"""The refusal before collapse, and its end."""

import threading

import pyarrow as pa
import pytest

from duckmesh.errors import ErrorCode, Invalid, Overloaded
from gateway.ingest_modes import IngestMode
from gateway.limits import IngestLimits
from gateway.staging import StagingLimits
from gateway.writes import Writes
from tests.processes import until
from tests.rooms import Rooms, rows


def writes_with(rooms: Rooms, **limits: int) -> Writes:
    return Writes(
        rooms.catalog,
        rooms.bus,
        rooms.store,
        limits=IngestLimits(**limits),
        staging=StagingLimits(),
    )


def append(writes: Writes, rooms: Rooms, table: pa.Table) -> None:
    pending = writes.begin(rooms.acme, "t", table.schema, mode=IngestMode.CREATE_APPEND)
    for batch in table.to_batches():
        pending.append(batch)
    pending.commit()


@pytest.mark.parametrize("cap", [{"max_pending_events": 3}, {"max_pending_bytes": 500}])
def test_writes_are_refused_while_too_much_waits_and_taken_again_after(
    rooms: Rooms, cap: dict[str, int]
) -> None:
    writes = writes_with(rooms, **cap)
    refusals: list[Overloaded] = []

    def refused() -> bool:
        try:
            append(writes, rooms, rows(*range(20)))
        except Overloaded as error:
            refusals.append(error)
        return bool(refusals)

    until(refused)
    (refusal,) = refusals
    assert refusal.code is ErrorCode.QUOTA_EXCEEDED
    assert refusal.retryable
    assert refusal.context["retry_after_seconds"] == 1
    other = rooms.identity("other")
    writes.begin(other, "t", rows(1).schema, mode=IngestMode.CREATE).abort()

    accepted = rooms.bus.backlog(rooms.acme.tenant_id).events
    rooms.publish_all()

    def taken() -> bool:
        try:
            append(writes, rooms, rows(1))
        except Overloaded:
            return False
        return True

    until(taken)
    rooms.publish_all()
    assert rooms.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [20 * accepted + 1]


def test_each_refusal_is_an_exception_of_its_own(rooms: Rooms) -> None:
    """One that is raised by many threads would gather the tracebacks of all of them."""
    writes = writes_with(rooms, max_pending_events=1)
    append(writes, rooms, rows(1))
    append(writes, rooms, rows(2))
    seen: list[Overloaded] = []
    lock = threading.Lock()

    def refused() -> bool:
        try:
            writes.begin(rooms.acme, "t", rows(1).schema, mode=IngestMode.APPEND).abort()
        except Overloaded as error:
            with lock:
                seen.append(error)
        return len(seen) >= 5

    until(refused)
    assert len({id(error) for error in seen}) == len(seen)


def test_a_write_beyond_the_limit_is_refused_while_it_comes(rooms: Rooms) -> None:
    writes = writes_with(rooms, write_max_bytes=1000)
    pending = writes.begin(rooms.acme, "t", rows(1).schema, mode=IngestMode.CREATE)
    (batch,) = rows(*range(100)).to_batches()
    pending.append(batch)
    with pytest.raises(Invalid, match="at most 1000 bytes") as caught:
        pending.append(batch)
    pending.abort()
    assert caught.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert rooms.reads.tables(rooms.acme) == []
