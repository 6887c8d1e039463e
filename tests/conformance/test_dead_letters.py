"""The promises of ingest_bus.port about dead letters, for every bus."""

from datetime import timedelta
from functools import partial

import pytest

from duckmesh.errors import Conflict, ErrorCode, NotFound
from duckmesh.identifiers import EventId, SchemaVersion, TableId, TenantId
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import Claim, EventState, InlinePayload, Operation, Replay
from ingest_bus.port import IngestBus
from tests.bus_worlds import World, claim, claimed, publish, together, tokens_of, write


def ids(held: Claim) -> list[EventId]:
    return [event.envelope.event_id for event in held.events]


def bury_all(bus: IngestBus, reason: str = "broken") -> None:
    """Dead-letter everything that can be claimed."""
    while (held := claim(bus)) is not None:
        bus.nack(held, ids(held), reason, dead=True)


def tokens(*numbers: int) -> list[VisibilityToken]:
    return [VisibilityToken(number) for number in numbers]


def pairs(replays: list[Replay]) -> list[tuple[int, int, bool]]:
    return [(r.dead_token, r.receipt.visibility_token, r.receipt.inserted) for r in replays]


def test_dead_letters_are_listed_in_token_order_with_their_reason(
    bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme, key="k", table=7, row_count=3), write(acme), write(acme)])
    held = claimed(bus, limit=1)
    bus.ack(held, ids(held))
    bury_all(bus, "cannot be read")
    found = bus.dead_letters(acme, limit=10)
    assert [(d.visibility_token, d.failure_reason) for d in found] == [
        (2, "cannot be read"),
        (3, "cannot be read"),
    ]
    assert [d.visibility_token for d in bus.dead_letters(acme, above=tokens(2)[0], limit=1)] == [3]
    assert len(bus.dead_letters(acme, limit=1)) == 1


def test_named_dead_letters_come_with_their_groups(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2)
    bus.publish([write(acme), write(acme)], as_one=True)
    bury_all(bus)
    found = bus.dead_letters(acme, limit=10, named=tokens(2, 4, 9))
    assert [d.visibility_token for d in found] == [2, 3, 4]
    assert bus.dead_letters(acme, limit=10, named=[]) == []


def test_a_dead_letter_says_what_the_write_was(bus: IngestBus, acme: TenantId) -> None:
    bus.publish(
        [
            write(
                acme,
                key="k",
                table=7,
                version=2,
                row_count=3,
                operation=Operation.OVERWRITE,
                trace_id="t",
            )
        ]
    )
    bury_all(bus)
    (dead,) = bus.dead_letters(acme, limit=10)
    assert (dead.table_id, dead.schema_version, dead.operation) == (7, 2, Operation.OVERWRITE)
    assert (dead.idempotency_key, dead.row_count, dead.byte_count) == ("k", 3, 4)
    assert (dead.attempts, dead.trace_id, dead.group_last_token) == (1, "t", None)
    assert dead.replay_token is None


def test_a_replay_is_a_new_acceptance_with_a_new_token(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, content=b"one"), write(acme, content=b"two")])
    bury_all(bus)
    publish(bus, acme, 1)
    replays = bus.replay(acme, tokens(2, 1))
    assert pairs(replays) == [(1, 4, True), (2, 5, True)]
    assert bus.last_token(acme) == 5
    held = claimed(bus)
    assert tokens_of(held) == [3, 4, 5]
    payloads = [event.envelope.payload for event in held.events[1:]]
    assert payloads == [InlinePayload(b"one"), InlinePayload(b"two")]
    assert [e.envelope.event_id for e in held.events[1:]] == [r.receipt.event_id for r in replays]
    assert [event.attempts for event in held.events] == [0, 0, 0]


def test_the_token_of_a_dead_letter_stays_resolved_and_its_replays_is_pending(
    bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    bury_all(bus)
    bus.replay(acme, tokens(1))
    assert not bus.has_unresolved(acme, None, through=VisibilityToken(1))
    assert bus.has_unresolved(acme, [TableId(1)], through=VisibilityToken(2))
    held = claimed(bus)
    bus.ack(held, ids(held))
    assert not bus.has_unresolved(acme, None, through=VisibilityToken(2))


def test_a_dead_letter_is_replayed_once(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2)
    bury_all(bus)
    first = bus.replay(acme, tokens(1))
    assert pairs(bus.replay(acme, tokens(1))) == [(1, 3, False)]
    assert pairs(bus.replay(acme, tokens(1, 2))) == [(1, 3, False), (2, 4, True)]
    assert bus.replay(acme, tokens(1))[0].receipt.event_id == first[0].receipt.event_id
    assert bus.last_token(acme) == 4


def test_of_concurrent_replays_one_accepts(world: World, acme: TenantId) -> None:
    publish(world.bus, acme, 3)
    bury_all(world.bus)
    buses = [world.bus, world.another_bus()]
    answers = together(*[partial(b.replay, acme, tokens(3, 1, 2)) for b in buses * 3])
    accepted = [r for answer in answers if isinstance(answer, list) for r in answer]
    assert len(accepted) == 18
    assert sum(r.receipt.inserted for r in accepted) == 3
    assert world.bus.last_token(acme) == 6


def test_replays_and_publishes_with_the_same_keys_do_not_deadlock(
    world: World, acme: TenantId
) -> None:
    keys = [f"k{at}" for at in range(8)]
    world.bus.publish([write(acme, key=key) for key in keys])
    bury_all(world.bus)
    other = world.another_bus()
    calls = [partial(world.bus.replay, acme, tokens(*range(1, 9)))]
    calls += [
        partial(other.publish, [write(acme, key=k) for k in order] + [write(acme, key=f"n{at}")])
        for at, order in enumerate([keys, keys[::-1], keys])
    ]
    answers = together(*calls)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert world.bus.last_token(acme) == 8 + 8 + 3


def test_replayed_dead_letters_are_listed_on_request_and_count_no_more(
    bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    bury_all(bus)
    bus.replay(acme, tokens(1))
    assert [d.visibility_token for d in bus.dead_letters(acme, limit=10)] == [2]
    found = bus.dead_letters(acme, limit=10, replayed=True)
    assert [(d.visibility_token, d.replay_token) for d in found] == [(1, 3), (2, None)]
    assert bus.lag(tenants_max=1, patience=timedelta(seconds=5)).dead_letters == 1


def test_a_replay_may_die_and_be_replayed_again(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 1)
    bury_all(bus)
    bus.replay(acme, tokens(1))
    bury_all(bus, "again")
    assert [d.visibility_token for d in bus.dead_letters(acme, limit=10)] == [2]
    assert pairs(bus.replay(acme, tokens(2))) == [(2, 3, True)]
    held = claimed(bus)
    assert held.events[0].envelope.payload == InlinePayload(b"rows")


def test_a_key_stands_for_the_replay(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="k")])
    bury_all(bus)
    (replay,) = bus.replay(acme, tokens(1))
    (again,) = bus.publish([write(acme, key="k")])
    assert (again.inserted, again.visibility_token) == (False, 2)
    assert again.event_id == replay.receipt.event_id
    record = bus.find_by_key(acme, TableId(1), "k")
    assert record is not None
    assert (record.visibility_token, record.state) == (2, EventState.ACCEPTED)


def test_a_group_is_replayed_as_a_group(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 1)
    bus.publish([write(acme), write(acme), write(acme)], as_one=True)
    bury_all(bus)
    assert pairs(bus.replay(acme, tokens(3))) == [(2, 5, True), (3, 6, True), (4, 7, True)]
    held = claimed(bus, limit=1)
    assert tokens_of(held) == [5, 6, 7]
    assert {event.group_last_token for event in held.events} == {7}


def test_two_groups_replayed_together_stay_two(bus: IngestBus, acme: TenantId) -> None:
    for _ in range(2):
        bus.publish([write(acme), write(acme)], as_one=True)
    bury_all(bus)
    bus.replay(acme, tokens(1, 4))
    held = claimed(bus)
    assert [e.group_last_token for e in held.events] == [6, 6, 8, 8]


@pytest.mark.parametrize("token", [1, 2, 99])
def test_what_is_no_dead_letter_is_not_replayed_and_then_nothing_is(
    world: World, bus: IngestBus, acme: TenantId, token: int
) -> None:
    publish(bus, acme, 3)
    held = claimed(bus, limit=1)
    bus.ack(held, ids(held))
    held = claimed(bus, limit=2)
    bus.nack(held, ids(held)[1:], "broken", dead=True)
    with pytest.raises(NotFound) as raised:
        bus.replay(acme, tokens(3, token))
    assert raised.value.code is ErrorCode.NOT_FOUND
    assert bus.last_token(acme) == 3
    with pytest.raises(NotFound):
        bus.replay(world.tenant("other"), tokens(3))


def test_a_replay_below_the_schema_fence_is_sent_back(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 1, table=1)
    publish(bus, acme, 1, table=2)
    bury_all(bus)
    bus.fence(acme, TableId(2), below=SchemaVersion(2))
    with pytest.raises(Conflict) as raised:
        bus.replay(acme, tokens(1, 2))
    assert raised.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert raised.value.context["visibility_token"] == 2
    assert bus.last_token(acme) == 2
    assert pairs(bus.replay(acme, tokens(1))) == [(1, 3, True)]
