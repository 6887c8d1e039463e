"""What every bus promises to publishers: tokens, keys, groups, fences (ingest_bus.port)."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from duckmesh.clock import Deadline
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode
from duckmesh.identifiers import (
    SchemaVersion,
    TableId,
    TenantId,
)
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import (
    Envelope,
    EventState,
    Operation,
    Receipt,
)
from ingest_bus.port import MAX_ATTEMPTS, IngestBus
from tests.bus_worlds import (
    LEASE,
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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Operation.INSERT, Operation.OVERWRITE),
        (Operation.OVERWRITE, Operation.INSERT),
        (Operation.INSERT, Operation.DELETE),
    ],
)
def test_a_key_for_another_operation_is_a_conflict(
    world: World, bus: IngestBus, acme: TenantId, first: Operation, second: Operation
) -> None:
    """Taken for a repeat, the table would never be replaced, and the caller told that it was."""

    def of(operation: Operation) -> Envelope:
        overwrites = operation is Operation.OVERWRITE
        return write(acme, key="k", operation=operation, raises_fence=overwrites)

    receipt = bus.publish([of(first)])[0]
    for each in (bus, world.another_bus()):
        error = refusal(lambda each=each: each.publish([of(second)]), Conflict)
        assert error.code is ErrorCode.IDEMPOTENCY_CONFLICT
        assert bus.publish([of(first)]) == [replace(receipt, inserted=False)]
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


def test_what_is_submitted_is_answered_in_its_order(bus: IngestBus, acme: TenantId) -> None:
    answers = [bus.submit([write(acme)]) for _ in range(20)]
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
