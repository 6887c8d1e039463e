"""What every bus promises to consumers: claims, verdicts, fencing (ingest_bus.port)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from duckmesh.errors import Fenced
from duckmesh.identifiers import (
    TenantId,
    new_event_id,
    new_file_id,
)
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import (
    Backlog,
    Claim,
    EventState,
    Operation,
    StagedFile,
    StagedPayload,
)
from ingest_bus.port import MAX_ATTEMPTS, IngestBus
from tests.bus_worlds import (
    EVERYTHING,
    LEASE,
    MOMENT,
    World,
    claim,
    claimed,
    ids,
    publish,
    together,
    tokens_of,
    write,
)

# -- claim_batch


def test_nothing_to_claim_is_none(world: World, bus: IngestBus, acme: TenantId) -> None:
    assert claim(bus) is None
    publish(bus, acme, 1)
    held = claimed(bus)
    bus.ack(held, ids(held))
    assert claim(bus) is None
    assert claim(world.another_bus()) is None


def test_a_claim_carries_the_envelopes_as_they_were_published_in_token_order(
    bus: IngestBus, acme: TenantId
) -> None:
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    staged = StagedFile(
        new_file_id(), "acme/t/part-1.parquet", 5, 99, early, late, {"a": {"min": 1}}
    )
    writes = [
        write(acme, content=b"\x00\xff\x01", min_event_time=early, max_event_time=late),
        write(acme, table=2, payload=StagedPayload((staged, replace(staged, stats={}))), version=4),
        write(acme, operation=Operation.OVERWRITE, key="clé", trace_id="trace", row_count=2**40),
    ]
    bus.publish(writes)
    held = claimed(bus)
    assert [e.envelope for e in held.events] == [replace(e, payload_hash=None) for e in writes]
    assert tokens_of(held) == [1, 2, 3]
    assert (held.tenant_id, held.consumer_id, held.attempt) == (acme, "consumer", 1)
    assert (held.after_token, held.last_token) == (0, 3)
    assert [e.attempts for e in held.events] == [0, 0, 0]


def test_at_most_one_claim_of_a_tenant_is_live(world: World, acme: TenantId) -> None:
    publish(world.bus, acme, 10)
    buses = [world.bus, world.another_bus()] * 4
    claims = together(*[partial(claim, bus, limit=1) for bus in buses])
    assert [type(held) for held in claims].count(Claim) == 1
    assert claims.count(None) == 7


def test_tenants_are_claimed_apart_and_the_longest_waiting_first(
    world: World, bus: IngestBus
) -> None:
    names = [world.tenant(name) for name in ("first", "second", "third")]
    for tenant in names:
        publish(bus, tenant, 4)
    served = []
    for _ in range(6):
        held = claimed(bus, limit=2)
        bus.ack(held, ids(held))
        served.append(held.tenant_id)
        world.advance(timedelta(seconds=1))
    assert served[:3] == served[3:]
    assert set(served) == set(names)


def test_concurrent_consumers_hold_different_tenants(world: World) -> None:
    expected = {world.tenant(f"tenant-{n}") for n in range(4)}
    for tenant in expected:
        publish(world.bus, tenant, 1)
    buses = [world.bus, world.another_bus()] * 2
    held: set[TenantId] = set()

    def claim_until_one(bus: IngestBus) -> TenantId:
        answer = None
        while answer is None:
            answer = claim(bus)
        return answer.tenant_id

    for tenant_id in together(*[partial(claim_until_one, bus) for bus in buses]):
        assert not isinstance(tenant_id, Exception)
        held.add(tenant_id)
    assert held == expected


def test_a_claim_has_at_most_limit_events(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 5)
    held = claimed(bus, limit=2)
    assert (tokens_of(held), held.last_token) == ([1, 2], 2)
    bus.ack(held, ids(held))
    following = claimed(bus, limit=2)
    assert (tokens_of(following), following.after_token) == ([3, 4], 2)


def test_a_claim_has_at_most_max_bytes_of_inline_payload(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 5, content=b"x" * 100)
    assert tokens_of(claimed(bus, max_bytes=399)) == [1, 2, 3]


def test_the_first_event_alone_may_be_larger_than_max_bytes(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2, content=b"x" * 100)
    assert tokens_of(claimed(bus, max_bytes=50)) == [1]


def test_staged_payloads_do_not_count_as_inline_bytes(bus: IngestBus, acme: TenantId) -> None:
    staged = StagedPayload((StagedFile(new_file_id(), "acme/t/a.parquet", 1, 10**9),))
    publish(bus, acme, 3, payload=staged, byte_count=10**9)
    assert tokens_of(claimed(bus, max_bytes=50)) == [1, 2, 3]


def test_staged_payloads_are_those_of_events_that_wait_and_of_dead_letters(
    bus: IngestBus, acme: TenantId
) -> None:
    for key in ("acme/t/a", "acme/t/b", "acme/t/c"):
        payload = StagedPayload((StagedFile(new_file_id(), key, 1, 10),))
        publish(bus, acme, 1, payload=payload)
    publish(bus, acme, 1)
    assert _keys(bus.staged_payloads(acme)) == ["acme/t/a", "acme/t/b", "acme/t/c"]
    claim = claimed(bus, limit=2)
    events = [event.envelope.event_id for event in claim.events]
    bus.nack(claim, events[:1], "refused", dead=True)
    bus.ack(claim, events[1:])
    assert _keys(bus.staged_payloads(acme)) == ["acme/t/a", "acme/t/c"]
    assert bus.staged_payloads(TenantId(acme + 1)) == []


def _keys(payloads: list[StagedPayload]) -> list[str]:
    return sorted(file.key for payload in payloads for file in payload.files)


def die(world: World, *, times: int = 1) -> list[list[int]]:
    """A consumer claims and is not heard of again; what it held, each time."""
    seen = []
    for _ in range(times):
        seen.append(tokens_of(claimed(world.bus)))
        world.advance(LEASE + MOMENT)
    return seen


def test_a_head_event_whose_claims_end_in_death_comes_alone(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 3)
    assert die(world, times=MAX_ATTEMPTS) == [[1, 2, 3], [1, 2, 3], [1], [1], [1]]


def test_after_max_attempts_deaths_the_head_event_is_dead_lettered_and_the_rest_proceed(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 3)
    die(world, times=MAX_ATTEMPTS)
    assert bus.has_unresolved(acme, None, through=VisibilityToken(1))
    held = claimed(bus)
    assert tokens_of(held) == [2, 3]
    assert not bus.has_unresolved(acme, None, through=VisibilityToken(1))
    bus.ack(held, ids(held))
    newest_first = bus.recent_events(acme, limit=3)
    assert [e.state for e in newest_first] == [
        EventState.COMMITTED,
        EventState.COMMITTED,
        EventState.FAILED,
    ]
    assert "death" in (newest_first[-1].failure_reason or "")


def test_the_deaths_of_a_buried_event_are_not_held_against_the_next(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 3)
    die(world, times=MAX_ATTEMPTS)
    assert die(world, times=MAX_ATTEMPTS) == [[2, 3], [2, 3], [2], [2], [2]]
    assert tokens_of(claimed(bus)) == [3]


def test_a_lone_dead_event_of_one_tenant_does_not_hide_the_work_of_another(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    die(world, times=MAX_ATTEMPTS)
    other = world.tenant("other")
    publish(bus, other, 1)
    held = claimed(bus)
    bus.ack(held, ids(held))
    publish(bus, other, 1)
    # The other was served last, so the tenant with the dead event comes first.
    assert claimed(bus).tenant_id == other
    assert claim(bus) is None
    assert bus.backlog(acme).events == 0


def test_progress_clears_the_blame(world: World, bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 3)
    die(world, times=2)
    alone = claimed(bus)
    assert tokens_of(alone) == [1]
    bus.ack(alone, ids(alone))
    held = claimed(bus)
    assert (tokens_of(held), held.attempt) == ([2, 3], 1)


def test_a_nack_is_not_a_death(world: World, bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 3)
    for _ in range(MAX_ATTEMPTS - 1):
        held = claimed(bus)
        assert tokens_of(held) == [1, 2, 3]
        bus.nack(held, ids(held), "the store is slow")
        world.advance(timedelta(minutes=1))


# -- ack


def test_acked_events_are_committed(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    bus.ack(held, ids(held))
    assert {e.state for e in bus.recent_events(acme, limit=9)} == {EventState.COMMITTED}
    assert not bus.has_unresolved(acme, None, through=EVERYTHING)


def test_a_claim_ends_when_each_of_its_events_is_acked_or_nacked(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 4)
    held = claimed(bus, limit=3)
    bus.ack(held, ids(held, 1))
    bus.nack(held, ids(held, 2), "broken", dead=True)
    assert claim(world.another_bus()) is None
    bus.ack(held, ids(held, 3))
    assert tokens_of(claimed(world.another_bus())) == [4]
    with pytest.raises(Fenced):
        bus.ack(held, ids(held))


def test_an_ack_names_only_events_of_its_claim(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2)
    beyond = bus.recent_events(acme, limit=1)[0].event_id
    held = claimed(bus, limit=1)
    bus.ack(held, [*ids(held), beyond, new_event_id()])
    assert tokens_of(claimed(bus)) == [2]


def test_the_acked_token_never_passes_a_hole(world: World, bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 4)
    held = claimed(bus)
    bus.ack(held, ids(held, 1, 3, 4))
    bus.nack(held, ids(held, 2), "later")
    assert bus.has_unresolved(acme, None, through=VisibilityToken(2))
    assert bus.backlog(acme).events == 1
    publish(bus, acme, 1)
    world.advance(timedelta(minutes=1))
    following = claimed(bus)
    assert (following.after_token, following.last_token) == (1, 5)
    assert tokens_of(following) == [2, 5]
    bus.ack(following, ids(following, 5))
    bus.nack(following, ids(following, 2), "later still")
    world.advance(timedelta(minutes=1))
    last = claimed(bus)
    assert (last.after_token, last.last_token, tokens_of(last)) == (1, 2, [2])
    bus.ack(last, ids(last))
    publish(bus, acme, 1)
    assert claimed(bus).after_token == 2


def test_the_acked_token_passes_the_dead(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 4)
    held = claimed(bus, limit=3)
    bus.nack(held, ids(held, 2), "broken", dead=True)
    bus.ack(held, ids(held, 1, 3))
    assert claimed(bus).after_token == 3


# -- nack


def test_a_nacked_event_comes_again_with_its_attempts(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    assert bus.nack(held, ids(held, 1), "the store is slow") == set()
    bus.ack(held, ids(held, 2))
    record = bus.recent_events(acme, limit=2)[1]
    assert (record.state, record.failure_reason) == (EventState.ACCEPTED, "the store is slow")
    world.advance(timedelta(minutes=1))
    assert [e.attempts for e in claimed(bus).events] == [1]


def test_a_nacked_event_is_not_claimed_again_at_once(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    for _ in range(MAX_ATTEMPTS - 1):
        world.advance(timedelta(minutes=1))
        held = claimed(bus)
        bus.nack(held, ids(held), "the store is slow")
    assert claim(bus) is None


def test_an_event_is_dead_lettered_at_its_max_attempts_th_nack(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    refused = set()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        held = claimed(bus)
        dead = bus.nack(held, ids(held, 1), f"attempt {attempt}")
        refused = set(ids(held, 1))
        assert dead == (refused if attempt == MAX_ATTEMPTS else set())
        bus.release(held)
        world.advance(timedelta(minutes=1))
    record = bus.recent_events(acme, limit=2)[1]
    assert (record.state, record.failure_reason) == (EventState.FAILED, "attempt 5")
    assert tokens_of(claimed(bus)) == [2]


def test_a_nack_with_dead_dead_letters_at_once_and_resolves_the_token(
    bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    assert bus.nack(held, ids(held, 1), "cannot be read", dead=True) == set(ids(held, 1))
    assert not bus.has_unresolved(acme, None, through=VisibilityToken(1))
    assert bus.has_unresolved(acme, None, through=VisibilityToken(2))
    bus.ack(held, ids(held, 2))
    assert bus.backlog(acme) == Backlog(0, 0, None)


# -- fencing


LATE_CALLS: dict[str, Callable[[IngestBus, Claim], Any]] = {
    "ack": lambda bus, held: bus.ack(held, ids(held)),
    "nack": lambda bus, held: bus.nack(held, ids(held), "late", dead=True),
    "extend_lease": lambda bus, held: bus.extend_lease(held, LEASE),
}


@pytest.mark.parametrize("call", LATE_CALLS)
def test_a_consumer_whose_lease_ran_out_is_fenced_and_changes_nothing(
    world: World, bus: IngestBus, acme: TenantId, call: str
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    world.advance(LEASE + MOMENT)
    before = bus.recent_events(acme, limit=9), bus.backlog(acme)
    with pytest.raises(Fenced):
        LATE_CALLS[call](bus, held)
    assert (bus.recent_events(acme, limit=9), bus.backlog(acme)) == before
    assert tokens_of(claimed(bus)) == [1, 2]


@pytest.mark.parametrize("call", LATE_CALLS)
def test_a_consumer_that_was_replaced_is_fenced_and_changes_nothing(
    world: World, acme: TenantId, call: str
) -> None:
    bus, other = world.bus, world.another_bus()
    publish(bus, acme, 2)
    held = claimed(bus)
    world.advance(LEASE + MOMENT)
    replacement = claimed(other)
    assert replacement.epoch > held.epoch
    with pytest.raises(Fenced):
        LATE_CALLS[call](bus, held)
    other.ack(replacement, ids(replacement))
    assert bus.backlog(acme).events == 0


def test_extend_lease_holds_a_live_claim_from_now_on(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    held = claimed(bus)
    for _ in range(3):
        world.advance(LEASE * 0.9)
        bus.extend_lease(held, LEASE)
    assert claim(bus) is None
    assert bus.requeue_expired() == 0
    bus.ack(held, ids(held))


def test_requeue_expired_ends_the_claims_whose_lease_has_run_out_and_counts_them(
    world: World, bus: IngestBus
) -> None:
    for name in ("first", "second"):
        publish(bus, world.tenant(name), 1)
        claimed(bus)
    assert bus.requeue_expired() == 0
    world.advance(LEASE + MOMENT)
    third = world.tenant("third")
    publish(bus, third, 1)
    live = claimed(bus)
    assert live.tenant_id == third
    assert bus.requeue_expired() == 2
    assert bus.requeue_expired() == 0
    bus.ack(live, ids(live))


def test_an_epoch_grows_with_every_claim_and_every_requeue(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    first = claimed(bus)
    world.advance(LEASE + MOMENT)
    assert bus.requeue_expired() == 1
    second = claimed(bus)
    assert second.epoch >= first.epoch + 2
    bus.release(second)
    assert claimed(bus).epoch > second.epoch


# -- release


def test_a_released_claim_may_be_claimed_again_at_once(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    bus.ack(held, ids(held, 1))
    bus.release(held)
    assert tokens_of(claimed(world.another_bus())) == [2]
    with pytest.raises(Fenced):
        bus.ack(held, ids(held))


def test_a_release_is_without_blame(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2)
    for _ in range(2 * MAX_ATTEMPTS):
        held = claimed(bus)
        assert (tokens_of(held), held.attempt) == ([1, 2], 1)
        assert [e.attempts for e in held.events] == [0, 0]
        bus.release(held)


def test_a_release_with_a_delay_rests_the_tenant(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    bus.release(claimed(bus), delay=timedelta(minutes=5))
    assert claim(bus) is None
    world.advance(timedelta(minutes=5))
    assert tokens_of(claimed(bus)) == [1]


def test_a_release_leaves_a_claim_alone_that_is_no_longer_live(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    world.advance(LEASE + MOMENT)
    bus.release(held, delay=timedelta(days=1))
    replacement = claimed(bus)
    assert replacement.attempt == 2
    bus.release(held, delay=timedelta(days=1))
    bus.ack(replacement, ids(replacement))
