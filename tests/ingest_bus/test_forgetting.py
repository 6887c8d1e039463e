"""Which events the bus forgets: it knows whose are old, and looks at no other tenant's."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from duckmesh.identifiers import TenantId
from ingest_bus.port import IngestBus
from tests.bus_worlds import (
    PATIENCE_SECONDS,
    PostgresWorld,
    claimed,
    ids,
    publish,
    tokens_of,
    write,
)

WEEK = timedelta(days=7)


def publish_all(bus: IngestBus, tenant_id: TenantId, count: int) -> None:
    publish(bus, tenant_id, count)
    held = claimed(bus)
    bus.ack(held, ids(held))


def forgotten(bus: IngestBus, *, limit: int = 100) -> int:
    return bus.expire_keys(older_than=WEEK, limit=limit)


def left(bus: IngestBus, tenant_id: TenantId) -> list[int]:
    return [event.visibility_token for event in bus.recent_events(tenant_id, limit=100)]


def test_events_of_a_tenant_that_had_none_left_are_forgotten_too(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    assert forgotten(bus) == 0
    publish_all(bus, acme, 3)
    world.advance(timedelta(days=8))
    assert [forgotten(bus), forgotten(bus)] == [3, 0]
    publish_all(bus, acme, 2)
    assert forgotten(bus) == 2
    assert left(bus, acme) == []


def test_only_old_events_are_forgotten_however_many_young_ones_follow(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    other = world.tenant("other")
    for tenant_id in (acme, other):
        publish_all(bus, tenant_id, 9)
    with world.transaction() as transaction:
        transaction.execute(
            "UPDATE ingest_event SET ingested_at = ingested_at - interval '8 days' "
            "WHERE tenant_id = %s AND visibility_token <= 4",
            (acme,),
        )
    assert [forgotten(bus, limit=3), forgotten(bus, limit=3), forgotten(bus)] == [3, 1, 0]
    assert left(bus, acme) == [9, 8, 7, 6, 5]
    assert left(bus, other) == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_an_event_that_waited_long_is_forgotten_once_it_is_committed(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 2)
    world.advance(timedelta(days=8))
    assert forgotten(bus) == 0
    held = claimed(bus)
    assert tokens_of(held) == [1, 2]
    bus.ack(held, ids(held))
    assert forgotten(bus) == 2


def test_dead_letters_in_front_stay_and_are_passed(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish(bus, acme, 4)
    held = claimed(bus)
    bus.nack(held, ids(held)[:2], "broken", dead=True)
    bus.ack(held, ids(held)[2:])
    world.advance(timedelta(days=8))
    assert forgotten(bus) == 2
    assert left(bus, acme) == [2, 1]
    publish_all(bus, acme, 1)
    assert forgotten(bus) == 1
    assert left(bus, acme) == [2, 1]


def test_an_event_whose_key_stays_is_forgotten_after_its_key(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    bus.publish([write(acme, key=f"k{number}") for number in range(3)])
    held = claimed(bus)
    bus.ack(held, ids(held))
    world.advance(timedelta(days=8))
    assert [forgotten(bus, limit=1) for _ in range(4)] == [1, 1, 1, 0]
    assert left(bus, acme) == []


def test_forgetting_waits_for_no_claim(
    world: PostgresWorld, bus: IngestBus, acme: TenantId
) -> None:
    publish_all(bus, acme, 1)
    world.advance(timedelta(days=8))
    with ThreadPoolExecutor(1) as thread, world.transaction() as claiming:
        claiming.execute("SELECT FROM ingest_lease FOR UPDATE")
        forgetting = thread.submit(forgotten, world.another_bus())
        assert forgetting.result(PATIENCE_SECONDS) == 1
    assert left(bus, acme) == []
