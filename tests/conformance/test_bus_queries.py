"""What every bus tells of what it holds, and how to wait for it (ingest_bus.port)."""

from datetime import timedelta

from duckmesh.identifiers import (
    TableId,
    TenantId,
)
from duckmesh.tokens import VisibilityToken
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import (
    Backlog,
    EventState,
    Lag,
)
from ingest_bus.port import IngestBus
from tests.bus_worlds import (
    EVERYTHING,
    LEASE,
    MOMENT,
    PATIENCE_SECONDS,
    World,
    claimed,
    ids,
    publish,
    together,
    tokens_of,
    until,
    write,
)

# -- lag


def test_the_lag_is_what_waits_of_all_tenants(world: World, bus: IngestBus, acme: TenantId) -> None:
    other = world.tenant("other")
    patience = timedelta(seconds=PATIENCE_SECONDS)
    assert bus.lag(tenants_max=5, patience=patience) == Lag()
    publish(bus, acme, 2)
    # Some buses' clocks stand still between two moves.
    world.advance(timedelta(seconds=1))
    publish(bus, other, 3)
    found = bus.lag(tenants_max=5, patience=patience)
    waiting = [bus.backlog(tenant) for tenant in (acme, other)]
    assert (found.events, found.bytes) == (5, sum(each.bytes for each in waiting))
    assert [(each.tenant_id, each.events) for each in found.tenants] == [(acme, 2), (other, 3)]
    assert found.oldest_seconds == found.tenants[0].oldest_seconds
    one = bus.lag(tenants_max=1, patience=patience)
    assert (one.events, [each.tenant_id for each in one.tenants]) == (5, [acme])


def test_the_lag_names_what_is_stuck(world: World, bus: IngestBus, acme: TenantId) -> None:
    patience = timedelta(seconds=PATIENCE_SECONDS)
    publish(bus, acme, 2)
    held = claimed(bus)
    assert bus.lag(tenants_max=1, patience=patience).expired_leases == 0
    bus.nack(held, ids(held, 1), "broken", dead=True)
    world.advance(LEASE + MOMENT)
    found = bus.lag(tenants_max=1, patience=patience)
    assert (found.events, found.expired_leases, found.dead_letters) == (1, 1, 1)


# -- reading


def test_the_last_token_is_zero_before_the_first(bus: IngestBus, acme: TenantId) -> None:
    assert bus.last_token(acme) == 0
    assert bus.recent_events(acme, limit=5) == []
    assert bus.backlog(acme) == Backlog(0, 0, None)
    assert not bus.has_unresolved(acme, None, through=EVERYTHING)


def test_has_unresolved_looks_at_the_named_tables_up_to_the_token(
    bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1, table=1)
    publish(bus, acme, 1, table=2)
    one, two, three = TableId(1), TableId(2), TableId(3)
    through = VisibilityToken
    assert bus.has_unresolved(acme, [one], through=through(1))
    assert not bus.has_unresolved(acme, [two], through=through(1))
    assert bus.has_unresolved(acme, [two, three], through=through(2))
    assert not bus.has_unresolved(acme, [three], through=through(2))
    assert not bus.has_unresolved(acme, [], through=through(2))
    assert bus.has_unresolved(acme, None, through=through(1))
    held = claimed(bus, limit=1)
    assert bus.has_unresolved(acme, [one], through=through(1))
    bus.ack(held, ids(held))
    assert not bus.has_unresolved(acme, None, through=through(1))
    assert bus.has_unresolved(acme, None, through=through(2))


def test_find_by_key_tells_the_event_or_none(bus: IngestBus, acme: TenantId) -> None:
    receipt = bus.publish([write(acme, key="k", row_count=3), write(acme)])[0]
    found = bus.find_by_key(acme, TableId(1), "k")
    assert found is not None
    assert (found.event_id, found.visibility_token) == (receipt.event_id, 1)
    assert (found.table_id, found.idempotency_key, found.row_count) == (1, "k", 3)
    assert (found.state, found.failure_reason) == (EventState.ACCEPTED, None)
    assert bus.find_by_key(acme, TableId(2), "k") is None
    assert bus.find_by_key(acme, TableId(1), "other") is None


def test_recent_events_are_the_newest_first(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 5)
    assert [e.visibility_token for e in bus.recent_events(acme, limit=3)] == [5, 4, 3]


def test_the_backlog_counts_what_waits_to_be_resolved(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 3, content=b"x" * 10)
    oldest = bus.recent_events(acme, limit=9)[-1].ingested_at
    assert bus.backlog(acme) == Backlog(3, 30, oldest)
    held = claimed(bus)
    assert bus.backlog(acme).events == 3
    bus.ack(held, ids(held, 1, 2))
    left = bus.backlog(acme)
    assert (left.events, left.bytes) == (1, 10)
    assert left.oldest_ingested_at is not None
    assert left.oldest_ingested_at >= oldest


def test_what_waits_is_told_by_table(world: World, bus: IngestBus, acme: TenantId) -> None:
    assert bus.pending_tables(acme) == {}
    publish(bus, acme, 2, table=1, content=b"12345")
    publish(bus, acme, 1, table=2)
    publish(bus, world.tenant("other"), 1, table=3)
    pending = bus.pending_tables(acme)
    assert set(pending) == {1, 2}
    one = pending[TableId(1)]
    assert (one.events, one.bytes, one.last_token) == (2, 10, 2)
    assert pending[TableId(2)].last_token == 3
    world.advance(timedelta(minutes=5))
    assert bus.pending_tables(acme)[TableId(1)].oldest_age >= timedelta(minutes=5)
    held = claimed(bus)
    bus.ack(held, ids(held, 1, 2))
    assert set(bus.pending_tables(acme)) == {2}


# -- keys expire


def test_expire_keys_forgets_old_keys_and_counts_them(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme, key=f"old-{n}") for n in range(5)])
    week = timedelta(days=7)
    assert bus.expire_keys(older_than=week, limit=10) == 0
    world.advance(week + timedelta(minutes=1))
    assert bus.expire_keys(older_than=week, limit=3) == 3
    assert bus.expire_keys(older_than=week, limit=3) == 2
    assert bus.expire_keys(older_than=week, limit=3) == 0
    assert bus.find_by_key(acme, TableId(1), "old-0") is None


def test_an_expired_key_may_name_a_new_write(world: World, bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="k", content=b"one")])
    world.advance(timedelta(days=8))
    bus.expire_keys(older_than=timedelta(days=7), limit=10)
    receipt = bus.publish([write(acme, key="k", content=b"two")])[0]
    assert (receipt.visibility_token, receipt.inserted) == (2, True)
    assert tokens_of(claimed(bus)) == [1, 2]


# -- waiting


def await_quiet(bus: IngestBus) -> None:
    """Take the wake-ups that are left of what was before."""
    until(lambda: not bus.wait_for_work(timedelta(seconds=0.3)))


def test_wait_for_work_is_false_after_its_timeout(bus: IngestBus) -> None:
    await_quiet(bus)
    assert bus.wait_for_work(timedelta(milliseconds=10)) is False


def test_wait_for_work_ends_when_something_is_published_by_any_process(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    await_quiet(bus)
    woken, _ = together(
        lambda: bus.wait_for_work(timedelta(seconds=20)),
        lambda: publish(world.another_bus(), acme, 1),
    )
    assert woken is True


def test_wake_ends_a_wait_or_the_next_one(bus: IngestBus) -> None:
    await_quiet(bus)
    bus.wake()
    assert bus.wait_for_work(timedelta(seconds=20)) is True
    woken, _ = together(lambda: bus.wait_for_work(timedelta(seconds=20)), bus.wake)
    assert woken is True


def test_close_finishes_what_was_submitted(bus: IngestBus, acme: TenantId) -> None:
    answers: list[Acceptance] = [bus.submit([write(acme)]) for _ in range(50)]
    bus.close()
    assert all(answer.done() for answer in answers)
    assert [a.result()[0].visibility_token for a in answers] == list(range(1, 51))
