"""What the bus in Postgres promises beyond the port: transactions joined, rows kept, races lost."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import psycopg
import pytest

from catalog import sessions, snapshots
from catalog.connection import Catalog
from catalog.snapshots import Publication
from duckmesh.errors import Conflict, Fenced, Unavailable
from duckmesh.identifiers import (
    SchemaVersion,
    TableId,
    TenantId,
    new_batch_id,
    new_session_id,
)
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import EventState, WritingSession
from ingest_bus.memory import MemoryIngestBus
from ingest_bus.port import IngestBus
from ingest_bus.postgres import PostgresIngestBus
from tests.bus_worlds import (
    LEASE,
    PATIENCE_SECONDS,
    MemoryWorld,
    PostgresWorld,
    claim,
    claimed,
    ids,
    publish,
    together,
    tokens_of,
    until,
    write,
)


def someone_waits_for_a_lock(world: PostgresWorld) -> bool:
    return world.ask(
        "SELECT count(*) > 0 FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ) == [(True,)]


# -- the record of a session


def token_of(world: PostgresWorld, session: WritingSession) -> int | None:
    tenant_id = world.tenant()
    with world.catalog.connect() as connection:
        record = sessions.find(connection, tenant_id, session.session_id).record
    return None if record is None else record.last_token


def test_a_write_moves_its_sessions_record_and_no_other(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    ada, ben = (WritingSession(new_session_id(), name) for name in ("ada", "ben"))
    bus.publish([write(acme, session=ada), write(acme), write(acme, session=ada)])
    assert (token_of(world, ada), token_of(world, ben)) == (3, None)
    bus.publish([write(acme)])
    bus.publish([write(acme, session=ben)])
    assert (token_of(world, ada), token_of(world, ben)) == (3, 5)


def test_a_duplicate_moves_its_session_to_the_originals_token(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    bus.publish([write(acme, key="k")])
    ada = WritingSession(new_session_id(), "ada")
    bus.publish([write(acme, key="k", session=ada)])
    assert token_of(world, ada) == 3
    bus.publish([write(acme, session=ada)])
    bus.publish([write(acme, key="k", session=ada)])
    assert token_of(world, ada) == 4, "it never moves back"


def test_a_refused_write_leaves_the_record_alone(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    ada = WritingSession(new_session_id(), "ada")
    bus.publish([write(acme, key="k", content=b"one")])
    with pytest.raises(Conflict):
        bus.publish([write(acme, key="k", content=b"two", session=ada)])
    assert token_of(world, ada) is None


def test_another_tenant_cannot_move_the_record(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    ada = WritingSession(new_session_id(), "ada")
    bus.publish([write(acme, session=ada)])
    other = world.tenant("other")
    publish(bus, other, 8)
    bus.publish([write(other, session=ada)])
    assert token_of(world, ada) == 1


def test_sessions_of_concurrent_groups_do_not_deadlock(
    world: PostgresWorld, acme: TenantId
) -> None:
    pair = [WritingSession(new_session_id(), name) for name in ("ada", "ben")]
    buses = [world.bus, world.another_bus()]

    def publish_some(bus: IngestBus, order: list[WritingSession]) -> int:
        for _ in range(20):
            bus.publish([write(acme, session=each) for each in order])
        return 0

    calls = [partial(publish_some, bus, order) for bus in buses for order in (pair, pair[::-1])]
    assert together(*calls) == [0] * 4
    assert max(token_of(world, each) or 0 for each in pair) == 160


# -- a publish in a transaction of the catalog


def test_a_publish_in_a_transaction_is_accepted_when_it_commits(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    with world.transaction() as transaction:
        receipts = bus.publish([write(acme), write(acme)], as_one=True, within=transaction)
        assert [r.visibility_token for r in receipts] == [2, 3]
        assert world.another_bus().last_token(acme) == 1
    assert bus.last_token(acme) == 3


def test_a_publish_in_a_transaction_that_rolls_back_leaves_no_hole(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    ada = WritingSession(new_session_id(), "ada")
    with world.transaction() as transaction:
        bus.publish([write(acme, key="k", session=ada)], as_one=True, within=transaction)
        raise psycopg.Rollback
    assert bus.find_by_key(acme, TableId(1), "k") is None
    assert token_of(world, ada) is None
    assert bus.publish([write(acme, key="k")])[0].visibility_token == 1


# -- acks and fences in a transaction of the catalog


def test_an_ack_in_a_transaction_happens_when_it_commits(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    with world.transaction() as transaction:
        assert bus.joins(transaction)
        bus.ack(held, ids(held), within=transaction)
        assert world.another_bus().backlog(acme).events == 2
    assert bus.backlog(acme).events == 0


def test_an_ack_in_a_transaction_that_rolls_back_leaves_nothing(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    before = bus.recent_events(acme, limit=9)
    with world.transaction() as transaction:
        bus.ack(held, ids(held)[:1], within=transaction)
        bus.nack(held, ids(held)[1:], "broken", dead=True, within=transaction)
        raise psycopg.Rollback
    assert bus.recent_events(acme, limit=9) == before
    assert world.ask("SELECT count(*) FROM ingest_claim_item") == [(0,)]
    bus.ack(held, ids(held))
    assert bus.backlog(acme).events == 0


def test_a_fenced_ack_undoes_the_publication_it_was_to_join(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    held = claimed(bus)
    world.advance(LEASE * 2)
    replacement = claimed(bus)
    late = Publication(acme, held.epoch, held.after_token, held.last_token, created_by="zombie")

    def publish_and_ack() -> None:
        with world.transaction() as transaction:
            snapshots.commit_snapshot(transaction, late)
            bus.ack(held, ids(held), within=transaction)

    with pytest.raises(Fenced):
        publish_and_ack()
    with world.catalog.connect() as connection:
        assert snapshots.newest(connection, acme).max_visibility_token == 0
    bus.ack(replacement, ids(replacement))


def test_a_claim_that_a_crash_of_postgres_forgot_publishes_nothing(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    held = claimed(bus)
    with world.catalog.connect() as connection:
        # As the database is when it comes back without the claim's commit.
        connection.execute("DELETE FROM ingest_claim_batch")
        connection.execute(
            "UPDATE ingest_lease SET epoch = epoch - 1, attempt = 0, consumer_id = NULL, "
            "batch_id = NULL, lease_until = NULL, claimed_at = NULL"
        )
    replacement = claimed(bus, limit=1)
    assert replacement.epoch == held.epoch
    late = Publication(acme, held.epoch, held.after_token, held.last_token, created_by="forgotten")

    def publish_and_ack() -> None:
        with world.transaction() as transaction:
            snapshots.commit_snapshot(transaction, late)
            bus.ack(held, ids(held), within=transaction)

    for call in (publish_and_ack, partial(bus.extend_lease, held, LEASE)):
        with pytest.raises(Fenced):
            call()
    bus.release(held)
    with world.catalog.connect() as connection:
        assert snapshots.newest(connection, acme).max_visibility_token == 0
    bus.ack(replacement, ids(replacement))
    assert tokens_of(claimed(bus)) == [2]


def test_a_claim_whose_ack_is_under_way_cannot_be_taken_even_when_its_lease_runs_out(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    held = claimed(bus)
    with world.transaction() as transaction:
        bus.ack(held, ids(held), within=transaction)
        world.advance(LEASE * 2)
        assert claim(world.another_bus()) is None
    assert claim(bus) is None
    assert bus.recent_events(acme, limit=1)[0].state is EventState.COMMITTED


def test_requeue_expired_waits_for_an_ack_under_way_and_then_leaves_it(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    held = claimed(bus)
    with ThreadPoolExecutor(1) as thread:
        with world.transaction() as transaction:
            bus.ack(held, ids(held), within=transaction)
            world.advance(LEASE * 2)
            requeued = thread.submit(bus.requeue_expired)
            until(lambda: someone_waits_for_a_lock(world))
        assert requeued.result(PATIENCE_SECONDS) == 0


def test_a_bus_in_memory_joins_no_transaction(world: PostgresWorld) -> None:
    with world.transaction() as transaction:
        assert not MemoryWorld().bus.joins(transaction)
    assert not world.bus.joins(object())
    assert isinstance(MemoryWorld().bus, MemoryIngestBus)


def test_a_fence_in_a_transaction_stands_when_it_commits_and_publishes_wait_for_that(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    with ThreadPoolExecutor(1) as thread:
        with world.transaction() as transaction:
            bus.fence(acme, TableId(1), below=SchemaVersion(2), within=transaction)
            waiting = thread.submit(world.another_bus().publish, [write(acme, version=1)])
            until(lambda: someone_waits_for_a_lock(world))
            assert not waiting.done()
        assert isinstance(waiting.exception(PATIENCE_SECONDS), Conflict)


def test_a_fence_in_a_transaction_that_rolls_back_leaves_nothing(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    with world.transaction() as transaction:
        bus.fence(acme, TableId(1), below=SchemaVersion(2), within=transaction)
        raise psycopg.Rollback
    assert bus.publish([write(acme, version=1)])[0].visibility_token == 1
    assert world.another_bus().publish([write(acme, version=1)])[0].visibility_token == 2


def test_a_fence_that_another_process_raised_is_met_whoever_raised_it(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1, version=1)
    with world.transaction() as transaction:
        # As a process of an earlier version does it, which knows no epoch.
        transaction.execute("SELECT FROM token_counter FOR UPDATE")
        transaction.execute("INSERT INTO schema_fence VALUES (%s, 1, 2)", (acme,))
    with pytest.raises(Conflict):
        bus.publish([write(acme, version=1)])
    assert bus.publish([write(acme, version=2), write(acme, table=2)])[0].visibility_token == 2
    assert bus.last_token(acme) == 3


# -- tenants that are quiet


def idle(world: PostgresWorld, tenant: TenantId) -> bool:
    return world.ask("SELECT idle FROM token_counter WHERE tenant_id = %s", tenant) == [(True,)]


def gone_quiet(world: PostgresWorld, bus: IngestBus, tenant: TenantId) -> None:
    publish(bus, tenant, 1)
    held = claimed(bus)
    bus.ack(held, ids(held))
    bus.requeue_expired()
    assert not idle(world, tenant), "it was claimed from a moment ago"
    world.advance(timedelta(seconds=11))
    bus.requeue_expired()
    assert idle(world, tenant)


def test_a_quiet_tenant_is_passed_over_until_its_next_write(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    gone_quiet(world, bus, acme)
    assert claim(bus) is None
    publish(bus, acme, 1)
    assert not idle(world, acme)
    assert len(claimed(bus).events) == 1


def test_a_tenant_whose_writes_wait_is_never_passed_over(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    world.advance(timedelta(hours=1))
    bus.requeue_expired()
    assert not idle(world, acme)
    assert len(claimed(bus).events) == 1


def test_a_write_that_meets_the_moment_of_rest_is_looked_for(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    """Each holds the counter row once: the later one sees what the earlier one did."""
    publish(bus, acme, 1)
    held = claimed(bus)
    bus.ack(held, ids(held))
    with ThreadPoolExecutor(1) as threads, world.transaction() as transaction:
        # Rest has come, and has not committed, when the write is sent.
        transaction.execute("UPDATE token_counter SET idle = true")
        writing = threads.submit(publish, bus, acme, 1)
        until(lambda: someone_waits_for_a_lock(world))
        transaction.execute("COMMIT")
        writing.result(PATIENCE_SECONDS)
    assert not idle(world, acme)
    held = claimed(bus)
    bus.ack(held, ids(held))
    world.advance(timedelta(seconds=11))
    with world.transaction() as transaction:
        # The other way round: a write under way keeps its tenant awake, and is not waited for.
        transaction.execute("UPDATE token_counter SET last_token = last_token + 1")
        bus.requeue_expired()
    assert not idle(world, acme)


# -- what is kept, and for how long


def test_a_dead_letter_keeps_its_payload_and_a_committed_event_does_not(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2, content=b"kept")
    held = claimed(bus)
    bus.nack(held, ids(held)[:1], "broken", dead=True)
    bus.ack(held, ids(held)[1:])
    assert world.ask("SELECT state, payload FROM ingest_event ORDER BY visibility_token") == [
        ("failed", b"kept"),
        ("committed", None),
    ]


def test_a_refusal_is_noted_with_its_claim(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    held = claimed(bus)
    bus.nack(held, ids(held), "the store is slow")
    assert world.ask(
        "SELECT i.reason, i.attempt, i.dead_lettered, b.state FROM ingest_claim_item i "
        "JOIN ingest_claim_batch b USING (batch_id)"
    ) == [("the store is slow", 1, False, "released")]


def test_committed_events_go_with_their_age_and_dead_or_waiting_ones_stay(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme), write(acme), write(acme, key="k"), write(acme)])
    held = claimed(bus, limit=3)
    bus.nack(held, ids(held)[:1], "broken", dead=True)
    bus.ack(held, ids(held)[1:])
    week = timedelta(days=7)
    world.advance(week + timedelta(minutes=1))
    bus.expire_keys(older_than=timedelta(days=30), limit=10)
    assert [e.visibility_token for e in bus.recent_events(acme, limit=9)] == [4, 3, 2, 1]
    # The key goes first; its event, now unnamed, with it: one key, two events.
    assert bus.expire_keys(older_than=week, limit=10) == 2
    assert [e.visibility_token for e in bus.recent_events(acme, limit=9)] == [4, 1]
    assert tokens_of(claimed(bus)) == [4]


def test_receipts_without_keys_are_forgotten_as_fast_as_they_come(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme) for _ in range(8)])
    held = claimed(bus)
    bus.ack(held, ids(held))
    world.advance(timedelta(days=8))
    publish(bus, acme, 1)
    # A full count says that there is more, though no key is left: the duty goes on.
    counts = [bus.expire_keys(older_than=timedelta(days=7), limit=3) for _ in range(3)]
    assert counts == [3, 3, 2]
    assert [e.visibility_token for e in bus.recent_events(acme, limit=9)] == [9]


def test_ended_claims_are_forgotten_with_the_keys_of_a_short_window(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    held = claimed(bus)
    bus.ack(held, ids(held))
    world.advance(timedelta(hours=2))
    for window, left in ((timedelta(hours=3), 1), (timedelta(hours=1), 0)):
        bus.expire_keys(older_than=window, limit=10)
        assert world.ask("SELECT count(*) FROM ingest_claim_batch") == [(left,)]


# -- races


def test_a_duplicate_whose_key_expires_under_it_is_accepted_as_new(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme, key="k")])
    world.advance(timedelta(days=8))
    with ThreadPoolExecutor(1) as thread:
        with world.transaction() as transaction:
            # The publish passes its keys and then stands at the counter row.
            transaction.execute("SELECT FROM token_counter FOR UPDATE")
            waiting = thread.submit(bus.publish, [write(acme), write(acme, key="k")])
            until(lambda: someone_waits_for_a_lock(world))
            assert world.another_bus().expire_keys(older_than=timedelta(days=7), limit=9) == 1
        receipts = waiting.result(PATIENCE_SECONDS)
    assert [(r.visibility_token, r.inserted) for r in receipts] == [(2, True), (3, True)]


def test_a_write_that_postgres_cannot_store_fails_alone(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 1)
    with ThreadPoolExecutor(1) as thread:
        with world.transaction() as transaction:
            transaction.execute("SELECT FROM token_counter FOR UPDATE")
            first = thread.submit(bus.publish, [write(acme)])
            until(lambda: someone_waits_for_a_lock(world))
            faults = [
                bus.submit([write(acme, trace_id="\x00")]),
                bus.submit([write(acme, key="\ud800")]),
            ]
            good = [bus.submit([write(acme)]) for _ in range(3)]
        assert first.result(PATIENCE_SECONDS)[0].visibility_token == 2
        assert [g.result(PATIENCE_SECONDS)[0].visibility_token for g in good] == [3, 4, 5]
    assert all(fault.exception(PATIENCE_SECONDS) is not None for fault in faults)


def test_acks_nacks_and_claims_of_many_consumers_lose_and_repeat_nothing(
    world: PostgresWorld, acme: TenantId
) -> None:
    buses = [world.bus, world.another_bus()]
    total = 120

    def produce() -> None:
        for n in range(total):
            publish(world.bus, acme, 1, key=f"k{n}")

    def consume(bus: IngestBus) -> list[int]:
        acked: list[int] = []
        while bus.last_token(acme) < total or bus.has_unresolved(
            acme, None, through=VisibilityToken(total)
        ):
            held = claim(bus, limit=7)
            if held is None:
                continue
            for turn, event in enumerate(held.events):
                if turn % 3 == 2:
                    bus.release(held)
                    break
                bus.ack(held, [event.envelope.event_id])
                acked.append(event.visibility_token)
        return acked

    _, *runs = together(produce, *[partial(consume, bus) for bus in buses * 2])
    acked = [token for run in runs if isinstance(run, list) for token in run]
    assert sorted(acked) == list(range(1, total + 1))


# -- the backend


def test_a_backend_that_cannot_be_reached_is_unavailable(database_dsn: str) -> None:
    nowhere = psycopg.conninfo.make_conninfo(database_dsn, host="/nonexistent")
    with Catalog(nowhere, connect_timeout=timedelta(seconds=0.5)) as catalog:
        bus = PostgresIngestBus(catalog)
        for call in (
            lambda: bus.publish([write(TenantId(1))]),
            lambda: bus.submit([write(TenantId(1))]).result(),
            lambda: claim(bus),
            lambda: bus.last_token(TenantId(1)),
            bus.requeue_expired,
        ):
            with pytest.raises(Unavailable):
                call()
        bus.close()


def test_an_event_that_was_acked_is_in_no_later_claim_however_many_consumers_race(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 60)
    acked: list[int] = []
    claimed_after: list[set[int]] = []

    def consume() -> None:
        while bus.has_unresolved(acme, None, through=VisibilityToken(60)):
            before = set(acked)
            held = claim(bus, limit=3)
            if held is None:
                continue
            claimed_after.append(before & set(tokens_of(held)))
            # A part of the claim, and the rest is free at once: for whoever asks just now.
            bus.ack(held, ids(held)[:2])
            acked.extend(tokens_of(held)[:2])
            bus.release(held)

    answers = together(*[consume] * 6)
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert sorted(acked) == list(range(1, 61))
    assert not any(claimed_after)


def test_a_claim_does_not_read_what_was_committed_before(
    world: PostgresWorld, acme: TenantId
) -> None:
    for _ in range(5):
        publish(world.bus, acme, 1_000)
        held = claimed(world.bus, limit=1_000)
        world.bus.ack(held, ids(held))
    publish(world.bus, acme, 1)
    values = {
        "skip": [],
        "only": None,
        "attempts_max": 2,
        "batch_id": new_batch_id(),
        "consumer_id": "c1",
        "lease": LEASE,
        "limit": 5_000,
        "max_bytes": 2**26,
        "gave_verdict": False,
    }
    with world.transaction() as transaction:
        # As after any load: all that the planner knows of is committed.
        transaction.execute("ANALYZE ingest_event")
        rows = transaction.execute(
            "EXPLAIN " + Statements("ingest_bus", "postgres.sql")["claim_next"], values
        ).fetchall()
    plan = "\n".join(row[0] for row in rows)
    assert "claimed_at" in plan
    assert "Seq Scan on ingest_event" not in plan, plan


def test_no_event_that_waits_is_stepped_over(world: PostgresWorld, acme: TenantId) -> None:
    publish(world.bus, acme, 2)
    skip = Statements("ingest_bus", "postgres.sql")["skip_resolved"]
    with world.transaction() as transaction:
        assert transaction.execute(skip, {"tenant_id": acme, "last_token": 2}).rowcount == 0
    assert tokens_of(claimed(world.bus)) == [1, 2]
