"""Leases of duties: one holder at a time, by Postgres's clock."""

from datetime import timedelta
from functools import partial

from catalog import leases
from catalog.connection import Catalog, Connection
from catalog.leases import Lease
from tests.bus_worlds import together

SPAN = timedelta(minutes=5)


def acquire(connection: Connection, holder: str) -> Lease | None:
    return leases.acquire(connection, "sweep", holder=holder, span=SPAN)


def move_clock(connection: Connection, span: timedelta) -> None:
    connection.execute(
        "SELECT set_config('duckmesh.clock_offset', %s, false)",
        (f"{span.total_seconds()} seconds",),
    )


def test_a_free_lease_is_taken_and_a_live_one_is_not(connection: Connection) -> None:
    assert acquire(connection, "first") == Lease("sweep", "first", 1)
    assert acquire(connection, "second") is None
    assert leases.acquire(connection, "compact", holder="second", span=SPAN) is not None


def test_of_concurrent_callers_one_holds_the_lease(catalog: Catalog) -> None:
    def take(holder: str) -> Lease | None:
        with catalog.connect() as connection:
            return acquire(connection, holder)

    answers = together(*[partial(take, f"holder-{n}") for n in range(8)])
    assert sum(isinstance(answer, Lease) for answer in answers) == 1
    assert answers.count(None) == 7


def test_a_renewal_keeps_the_epoch_and_lengthens_the_lease(connection: Connection) -> None:
    first = acquire(connection, "first")
    move_clock(connection, SPAN * 0.9)
    assert acquire(connection, "first") == first
    move_clock(connection, SPAN * 1.8)
    assert acquire(connection, "second") is None


def test_a_lease_that_ran_out_goes_to_another_with_a_larger_epoch(connection: Connection) -> None:
    first = acquire(connection, "first")
    move_clock(connection, SPAN * 1.01)
    assert acquire(connection, "second") == Lease("sweep", "second", 2)
    assert first is not None
    assert leases.release(connection, first) is False
    assert acquire(connection, "first") is None


def test_a_holder_that_slept_through_its_lease_gets_a_new_epoch(connection: Connection) -> None:
    acquire(connection, "first")
    move_clock(connection, SPAN * 1.01)
    assert acquire(connection, "first") == Lease("sweep", "first", 2)


def test_a_released_lease_is_free_at_once(connection: Connection) -> None:
    first = acquire(connection, "first")
    assert first is not None
    assert leases.release(connection, first) is True
    assert acquire(connection, "second") == Lease("sweep", "second", 2)
