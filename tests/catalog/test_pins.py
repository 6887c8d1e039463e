"""Pins and tags: what they hold, how they move, and when they end."""

from datetime import timedelta

import psycopg
import pytest

from catalog import pins, snapshots
from catalog.connection import Catalog, Connection
from catalog.tables import Table
from catalog.tenants import Tenant, ensure_tenant
from duckmesh.errors import ErrorCode, NotFound
from tests.bus_worlds import together
from tests.catalog.publications import a_file, publish_files


def pinned(connection: Connection, tenant: Tenant, snapshot_id: int, **options: object) -> pins.Pin:
    values: dict[str, object] = {"tag": None, "lasting": None, "created_by": "test"}
    return pins.pin(connection, tenant.tenant_id, snapshot_id, **(values | options))  # type: ignore[arg-type]


def test_a_pin_holds_its_snapshot_until_it_is_taken_away(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    first = publish_files(connection, events, 1, a_file(events, 1))
    publish_files(connection, events, 2, a_file(events, 2))
    pin = pinned(connection, acme, first.snapshot_id)
    assert (pin.tag, pin.expires_at) == (None, None)
    assert pins.held(connection, acme.tenant_id) == {first.snapshot_id}
    pinned(connection, acme, first.snapshot_id)
    assert len(pins.pins_of(connection, acme.tenant_id, limit=10)) == 1
    assert pins.unpin(connection, acme.tenant_id, snapshot_id=first.snapshot_id) == (
        first.snapshot_id
    )
    assert pins.held(connection, acme.tenant_id) == set()
    with pytest.raises(NotFound):
        pins.unpin(connection, acme.tenant_id, snapshot_id=first.snapshot_id)


def test_a_tag_names_its_snapshot_and_moves_when_it_is_set_again(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    first = publish_files(connection, events, 1, a_file(events, 1))
    second = publish_files(connection, events, 2, a_file(events, 2))
    pinned(connection, acme, first.snapshot_id, tag="month-end")
    assert pins.by_tag(connection, acme.tenant_id, "month-end") == first
    pinned(connection, acme, second.snapshot_id, tag="month-end")
    assert pins.by_tag(connection, acme.tenant_id, "month-end") == second
    assert pins.held(connection, acme.tenant_id) == {second.snapshot_id}
    assert pins.tags_of(connection, acme.tenant_id, [second.snapshot_id]) == {
        second.snapshot_id: ["month-end"]
    }
    pins.unpin(connection, acme.tenant_id, tag="month-end")
    with pytest.raises(NotFound) as raised:
        pins.by_tag(connection, acme.tenant_id, "month-end")
    assert raised.value.code is ErrorCode.SNAPSHOT_NOT_FOUND


def test_a_pin_ends_with_its_time(connection: Connection, acme: Tenant, events: Table) -> None:
    first = publish_files(connection, events, 1, a_file(events, 1))
    pinned(connection, acme, first.snapshot_id, tag="brief", lasting=timedelta(hours=1))
    assert pins.held(connection, acme.tenant_id) == {first.snapshot_id}
    connection.execute("SELECT set_config('duckmesh.clock_offset', '3601 seconds', false)")
    assert pins.held(connection, acme.tenant_id) == set()
    assert pins.pins_of(connection, acme.tenant_id, limit=10) == []
    with pytest.raises(NotFound):
        pins.by_tag(connection, acme.tenant_id, "brief")
    assert pins.forget_expired(connection, acme.tenant_id) == 1


def test_nobody_pins_another_tenants_snapshot(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    other = ensure_tenant(connection, "other", created_by="test")
    first = publish_files(connection, events, 1, a_file(events, 1))
    with pytest.raises(NotFound) as raised:
        pinned(connection, other, first.snapshot_id)
    assert raised.value.code is ErrorCode.SNAPSHOT_NOT_FOUND
    pinned(connection, acme, first.snapshot_id, tag="mine")
    with pytest.raises(NotFound):
        pins.by_tag(connection, other.tenant_id, "mine")
    with pytest.raises(NotFound):
        pins.unpin(connection, other.tenant_id, tag="mine")


def test_a_pin_waits_for_who_holds_the_head(
    catalog: Catalog, connection: Connection, acme: Tenant, events: Table
) -> None:
    """So retention, which expires under that lock, never expires what is being pinned."""
    first = publish_files(connection, events, 1, a_file(events, 1))
    with connection.transaction():
        snapshots.lock_head(connection, acme.tenant_id)
        with catalog.connect() as other:
            other.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                pinned(other, acme, first.snapshot_id)
            other.execute("RESET lock_timeout")


def test_concurrent_calls_leave_one_tag(
    catalog: Catalog, connection: Connection, acme: Tenant, events: Table
) -> None:
    found = [publish_files(connection, events, at, a_file(events, at)) for at in range(1, 5)]

    def tag(snapshot_id: int) -> pins.Pin:
        with catalog.connect() as borrowed:
            return pinned(borrowed, acme, snapshot_id, tag="latest-good")

    answers = together(*[lambda s=s: tag(s.snapshot_id) for s in found])
    assert all(isinstance(answer, pins.Pin) for answer in answers)
    assert len(pins.pins_of(connection, acme.tenant_id, limit=10)) == 1
