"""Every promise of ingest_bus.port, for every bus."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from duckmesh.clock import Deadline
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Fenced
from duckmesh.identifiers import (
    EventId,
    SchemaVersion,
    TableId,
    TenantId,
    new_event_id,
    new_file_id,
)
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import (
    Backlog,
    Claim,
    EventState,
    Lag,
    Operation,
    Receipt,
    StagedFile,
    StagedPayload,
)
from ingest_bus.port import MAX_ATTEMPTS, IngestBus
from tests.bus_worlds import (
    LEASE,
    PATIENCE_SECONDS,
    World,
    claim,
    claimed,
    publish,
    together,
    tokens_of,
    until,
    write,
)

MOMENT = timedelta(milliseconds=20)
EVERYTHING = VisibilityToken(10**9)


@pytest.fixture
def bus(world: World) -> IngestBus:
    return world.bus


@pytest.fixture
def acme(world: World) -> TenantId:
    return world.tenant("acme")


def ids(held: Claim, *tokens: int) -> list[EventId]:
    """The ids of the claim's events, or of those with the given tokens."""
    return [
        event.envelope.event_id
        for event in held.events
        if not tokens or event.visibility_token in tokens
    ]


def refusal(call: Callable[[], Any], kind: type[DuckMeshError]) -> DuckMeshError:
    with pytest.raises(kind) as raised:
        call()
    return raised.value


# -- tokens and their order


def test_tokens_of_a_tenant_are_dense_and_begin_at_one(bus: IngestBus, acme: TenantId) -> None:
    receipts = [*bus.publish([write(acme), write(acme)]), *bus.publish([write(acme)])]
    assert [r.visibility_token for r in receipts] == [1, 2, 3]
    assert bus.last_token(acme) == 3


def test_each_tenant_has_its_own_order(world: World, bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 3)
    other = world.tenant("other")
    assert bus.publish([write(other)])[0].visibility_token == 1


def test_tokens_stay_dense_under_concurrent_publishers_in_two_processes(
    world: World, acme: TenantId
) -> None:
    buses = [world.bus, world.another_bus()]

    def publish_some(bus: IngestBus) -> list[int]:
        return [bus.publish([write(acme)])[0].visibility_token for _ in range(15)]

    answers = together(*[partial(publish_some, bus) for bus in buses for _ in range(4)])
    runs = [tokens for tokens in answers if isinstance(tokens, list)]
    assert sorted(itertools.chain(*runs)) == list(range(1, 121))
    assert all(tokens == sorted(tokens) for tokens in runs)


def test_a_failed_publish_leaves_no_hole(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="k", content=b"one")])
    refusal(lambda: bus.publish([write(acme), write(acme, key="k", content=b"two")]), Conflict)
    assert bus.publish([write(acme)])[0].visibility_token == 2


def test_when_a_token_can_be_read_every_smaller_one_can(world: World, acme: TenantId) -> None:
    publishers_done = threading.Event()
    observer = world.another_bus()

    def observe() -> int:
        readings = 0
        while not publishers_done.is_set():
            newest = observer.last_token(acme)
            seen = [e.visibility_token for e in observer.recent_events(acme, limit=1_000)]
            assert seen == list(range(len(seen), 0, -1))
            assert len(seen) >= newest
            readings += 1
        return readings

    def publish_some(bus: IngestBus) -> int:
        for size in (1, 2, 3) * 10:
            publish(bus, acme, size)
        return 0

    def publish_all() -> int:
        try:
            buses = [world.bus, world.another_bus()] * 2
            answers = together(*[partial(publish_some, bus) for bus in buses])
            return sum(isinstance(answer, Exception) for answer in answers)
        finally:
            publishers_done.set()

    failures, readings = together(publish_all, observe)
    assert failures == 0
    assert isinstance(readings, int)
    assert readings > 1
    assert observer.last_token(acme) == 4 * 60


# -- publish


def test_publish_returns_a_receipt_for_each_envelope_in_order(
    bus: IngestBus, acme: TenantId
) -> None:
    writes = [write(acme, row_count=n, key=f"k{9 - n}") for n in range(5)]
    receipts = bus.publish(writes)
    assert receipts == [
        Receipt(e.event_id, VisibilityToken(n + 1), n, inserted=True) for n, e in enumerate(writes)
    ]


def test_publish_of_nothing_is_nothing(bus: IngestBus) -> None:
    assert bus.publish([]) == []
    assert bus.submit([]).result() == []


def test_publish_accepts_all_or_none(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="k", content=b"one")])
    refusal(
        lambda: bus.publish([write(acme, key="new"), write(acme, key="k", content=b"two")]),
        Conflict,
    )
    assert bus.last_token(acme) == 1
    assert bus.find_by_key(acme, TableId(1), "new") is None


def test_on_return_of_publish_every_process_can_read_it(world: World, acme: TenantId) -> None:
    receipt = world.bus.publish([write(acme)])[0]
    assert [e.event_id for e in world.another_bus().recent_events(acme, limit=9)] == [
        receipt.event_id
    ]


def test_a_key_seen_before_adds_nothing_and_returns_the_original_receipt(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    first = bus.publish([write(acme, key="k", row_count=7)])[0]
    again = world.another_bus().publish([write(acme, key="k", row_count=7)])[0]
    assert again == replace(first, inserted=False)
    assert bus.last_token(acme) == 1


@pytest.mark.parametrize("dead", [False, True])
def test_a_key_still_answers_when_its_event_is_resolved(
    bus: IngestBus, acme: TenantId, dead: bool
) -> None:
    first = bus.publish([write(acme, key="k")])[0]
    held = claimed(bus)
    if dead:
        bus.nack(held, ids(held), "broken", dead=True)
    else:
        bus.ack(held, ids(held))
    assert bus.publish([write(acme, key="k")]) == [replace(first, inserted=False)]


def test_of_equal_keys_in_one_call_the_first_is_the_original(
    bus: IngestBus, acme: TenantId
) -> None:
    writes = [write(acme, key="k"), write(acme, key="a"), write(acme, key="k")]
    receipts = bus.publish(writes)
    assert [(r.event_id, r.visibility_token, r.inserted) for r in receipts] == [
        (writes[0].event_id, 1, True),
        (writes[1].event_id, 2, True),
        (writes[0].event_id, 1, False),
    ]


def test_a_key_belongs_to_its_table_and_tenant(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    other = world.tenant("other")
    receipts = [
        *bus.publish([write(acme, key="k"), write(acme, key="k", table=2, content=b"else")]),
        *bus.publish([write(other, key="k", content=b"other")]),
    ]
    assert all(r.inserted for r in receipts)


def test_a_key_with_another_payload_hash_is_a_conflict(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="k", content=b"one")])
    error = refusal(lambda: bus.publish([write(acme, key="k", content=b"two")]), Conflict)
    assert error.code is ErrorCode.IDEMPOTENCY_CONFLICT
    assert error.context["idempotency_key"] == "k"
    assert bus.last_token(acme) == 1


def test_concurrent_publishes_of_one_key_accept_one(world: World, acme: TenantId) -> None:
    buses = [world.bus, world.another_bus()] * 4
    answers = together(*[partial(bus.publish, [write(acme, key="k")]) for bus in buses])
    receipts = [answer[0] for answer in answers if isinstance(answer, list)]
    assert len(receipts) == 8
    assert sum(r.inserted for r in receipts) == 1
    assert {(r.event_id, r.visibility_token) for r in receipts} == {(receipts[0].event_id, 1)}
    assert world.bus.last_token(acme) == 1


def test_concurrent_publishes_of_one_key_with_other_rows_accept_one_and_refuse_the_rest(
    world: World, acme: TenantId
) -> None:
    buses = [world.bus, world.another_bus()] * 4
    answers = together(
        *[
            partial(bus.publish, [write(acme, key="k", content=b"%d" % n)])
            for n, bus in enumerate(buses)
        ]
    )
    assert sum(isinstance(answer, list) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 7
    assert world.bus.last_token(acme) == 1


def test_two_processes_publishing_the_same_keys_in_other_orders_do_not_deadlock(
    world: World, acme: TenantId
) -> None:
    def publish_batches(bus: IngestBus, *, step: int) -> int:
        inserted = 0
        for batch in range(10):
            writes = [write(acme, key=f"{batch}-{n}") for n in range(20)][::step]
            inserted += sum(r.inserted for r in bus.publish(writes))
        return inserted

    first, second = together(
        partial(publish_batches, world.bus, step=1),
        partial(publish_batches, world.another_bus(), step=-1),
    )
    assert isinstance(first, int)
    assert isinstance(second, int)
    assert first + second == 200 == world.bus.last_token(acme)


def test_another_callers_failure_never_fails_this_one(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="taken", content=b"one")])
    bus.fence(acme, TableId(2), below=SchemaVersion(2))
    faulty = {0: {"key": "taken", "content": b"two"}, 1: {"table": 2, "version": 1}}
    answers = [bus.submit([write(acme, **faulty.get(n % 4, {}))]) for n in range(40)]
    tokens = [f.result()[0].visibility_token for n, f in enumerate(answers) if n % 4 > 1]
    assert tokens == list(range(2, 22))
    for n, answer in enumerate(answers):
        if n % 4 < 2:
            assert isinstance(answer.exception(), Conflict)


# -- submit


def test_tokens_follow_the_order_of_one_callers_submits(bus: IngestBus, acme: TenantId) -> None:
    def submit_many() -> list[int]:
        answers = [bus.submit([write(acme)]) for _ in range(100)]
        return [answer.result()[0].visibility_token for answer in answers]

    for tokens in together(submit_many, submit_many):
        assert isinstance(tokens, list)
        assert tokens == sorted(tokens)
    assert bus.last_token(acme) == 200


def test_a_publish_after_a_submit_of_the_same_caller_has_the_later_token(
    bus: IngestBus, acme: TenantId
) -> None:
    for _ in range(20):
        submitted = bus.submit([write(acme)])
        published = bus.publish([write(acme)])
        assert submitted.result()[0].visibility_token < published[0].visibility_token


def test_what_was_submitted_cannot_be_taken_back(bus: IngestBus, acme: TenantId) -> None:
    answers = [bus.submit([write(acme)]) for _ in range(20)]
    assert not any(answer.cancel() for answer in answers)
    assert [a.result()[0].visibility_token for a in answers] == list(range(1, 21))


# -- groups


def group(bus: IngestBus, tenant_id: TenantId, count: int, **fields: Any) -> list[int]:
    envelopes = [write(tenant_id, **fields) for _ in range(count)]
    return [r.visibility_token for r in bus.publish(envelopes, as_one=True)]


def test_no_token_lies_between_those_of_a_group(world: World, acme: TenantId) -> None:
    buses = [world.bus, world.another_bus()]

    def publish_some(bus: IngestBus) -> list[list[int]]:
        publish(bus, acme, 2)
        return [group(bus, acme, 5) for _ in range(5)]

    for groups in together(*[partial(publish_some, bus) for bus in buses for _ in range(3)]):
        assert isinstance(groups, list)
        for tokens in groups:
            assert tokens == list(range(tokens[0], tokens[0] + 5))
    assert world.bus.last_token(acme) == 6 * 27


def test_a_claim_never_holds_a_part_of_a_group(bus: IngestBus, acme: TenantId) -> None:
    publish(bus, acme, 2)
    group(bus, acme, 4, content=b"x" * 100)
    publish(bus, acme, 2)
    for limit, max_bytes, wanted in (
        (1, 2**20, [1]),
        (3, 2**20, [2, 3, 4, 5, 6]),
        (100, 150, [7, 8]),
    ):
        held = claimed(bus, limit=limit, max_bytes=max_bytes)
        assert tokens_of(held) == wanted
        assert [e.group_last_token for e in held.events] == [
            6 if 3 <= token <= 6 else None for token in wanted
        ]
        bus.ack(held, ids(held))
    group(bus, acme, 3, content=b"x" * 100)
    assert tokens_of(claimed(bus, limit=1, max_bytes=50)) == [9, 10, 11]


def test_a_group_ends_where_its_events_end_also_when_keys_were_seen_before(
    bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme, key="old")])
    receipts = bus.publish(
        [write(acme, key="old"), write(acme), write(acme, key="new"), write(acme, key="old")],
        as_one=True,
    )
    assert [r.visibility_token for r in receipts] == [1, 2, 3, 1]
    assert [r.inserted for r in receipts] == [False, True, True, False]
    publish(bus, acme, 1)
    assert [e.group_last_token for e in claimed(bus).events] == [None, 3, 3, None]


def test_a_group_that_kills_its_consumers_is_dead_lettered_whole(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    group(bus, acme, 3)
    publish(bus, acme, 1)
    for _ in range(MAX_ATTEMPTS):
        assert tokens_of(claimed(bus))[:3] == [1, 2, 3]
        world.advance(LEASE * 2)
    assert tokens_of(claimed(bus)) == [4]
    states = [e.state for e in bus.recent_events(acme, limit=10)]
    assert states == [EventState.ACCEPTED, *[EventState.FAILED] * 3]


def test_a_group_that_is_given_back_comes_again_whole(
    world: World, bus: IngestBus, acme: TenantId
) -> None:
    group(bus, acme, 3)
    held = claimed(bus)
    assert bus.nack(held, ids(held), "not now") == set()
    world.advance(timedelta(minutes=1))
    assert tokens_of(claimed(bus, limit=1)) == [1, 2, 3]


# -- the schema fence


def test_an_envelope_below_the_fence_is_a_conflict_that_names_the_version(
    bus: IngestBus, acme: TenantId
) -> None:
    bus.fence(acme, TableId(1), below=SchemaVersion(3))
    error = refusal(lambda: bus.publish([write(acme, version=2)]), Conflict)
    assert error.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert error.context["min_schema_version"] == 3
    assert bus.last_token(acme) == 0


def test_the_fence_lets_its_own_version_and_other_tables_pass(
    bus: IngestBus, acme: TenantId
) -> None:
    bus.fence(acme, TableId(1), below=SchemaVersion(3))
    publish(bus, acme, 1, version=3)
    publish(bus, acme, 1, version=4)
    publish(bus, acme, 1, table=2, version=1)
    assert bus.last_token(acme) == 3


def test_a_fence_is_never_lowered(bus: IngestBus, acme: TenantId) -> None:
    bus.fence(acme, TableId(1), below=SchemaVersion(3))
    bus.fence(acme, TableId(1), below=SchemaVersion(2))
    refusal(lambda: bus.publish([write(acme, version=2)]), Conflict)


def test_an_envelope_that_raises_the_fence_sends_later_older_ones_back(
    bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1, version=1)
    publish(bus, acme, 1, version=2, operation=Operation.OVERWRITE, raises_fence=True)
    error = refusal(lambda: bus.publish([write(acme, version=1)]), Conflict)
    assert error.context["min_schema_version"] == 2
    assert bus.last_token(acme) == 2


def test_a_duplicate_from_below_the_fence_still_gets_its_receipt(
    bus: IngestBus, acme: TenantId
) -> None:
    first = bus.publish([write(acme, key="k", version=1)])[0]
    bus.fence(acme, TableId(1), below=SchemaVersion(2))
    assert bus.publish([write(acme, key="k", version=1)]) == [replace(first, inserted=False)]


def test_a_refused_publish_raises_no_fence(bus: IngestBus, acme: TenantId) -> None:
    bus.publish([write(acme, key="k", content=b"one")])
    raising = write(acme, version=2, raises_fence=True)
    refusal(lambda: bus.publish([raising, write(acme, key="k", content=b"two")]), Conflict)
    publish(bus, acme, 1, version=1)


@pytest.mark.parametrize("by_envelope", [True, False])
def test_every_older_write_that_races_with_the_fence_is_before_it_or_refused(
    world: World, acme: TenantId, by_envelope: bool
) -> None:
    bus, other = world.bus, world.another_bus()
    publish(bus, acme, 1)

    def insert_some(bus: IngestBus) -> list[int]:
        tokens: list[int] = []
        deadline = Deadline.after(timedelta(seconds=PATIENCE_SECONDS))
        while not deadline.passed:
            try:
                tokens.append(bus.publish([write(acme, version=1)])[0].visibility_token)
            except Conflict:
                return tokens
        raise AssertionError("no fence was met")

    def raise_fence() -> list[int]:
        until(lambda: bus.last_token(acme) > 20)
        if by_envelope:
            raising = write(acme, version=2, operation=Operation.OVERWRITE, raises_fence=True)
            return [bus.publish([raising])[0].visibility_token]
        bus.fence(acme, TableId(1), below=SchemaVersion(2))
        return [bus.publish([write(acme, version=2)])[0].visibility_token]

    fenced_at, *runs = together(raise_fence, *[partial(insert_some, b) for b in (bus, other) * 3])
    assert isinstance(fenced_at, list)
    for tokens in runs:
        assert isinstance(tokens, list)
        assert all(token < fenced_at[0] for token in tokens)


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
    answers: list[Future[list[Receipt]]] = [bus.submit([write(acme)]) for _ in range(50)]
    bus.close()
    assert all(answer.done() for answer in answers)
    assert [a.result()[0].visibility_token for a in answers] == list(range(1, 51))
