"""LISTEN and NOTIFY between processes; what is lost is made known."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from catalog.connection import Catalog, Connection
from tests.bus_worlds import until


class Notes:
    """A subscriber that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, payload: str) -> None:
        self.told.append(payload)


@pytest.fixture
def other_process(database_dsn: str) -> Iterator[Catalog]:
    with Catalog(database_dsn) as opened:
        yield opened


def listen(catalog: Catalog, channel: str = "news") -> Notes:
    """Subscribe, and wait until the subscription stands."""
    notes = Notes()
    catalog.subscribe(channel, notes)
    until(lambda: notes.told == [""])
    notes.told.clear()
    return notes


def test_a_subscriber_is_told_what_another_process_announces(
    catalog: Catalog, other_process: Catalog
) -> None:
    notes = listen(catalog)
    other_process.announce("news", "one")
    until(lambda: notes.told == ["one"])


def test_a_subscriber_hears_its_own_channel_alone(catalog: Catalog, other_process: Catalog) -> None:
    news, weather = listen(catalog), listen(catalog, "weather")
    until(lambda: news.told == [""])  # Told again when a channel is added.
    news.told.clear()
    other_process.announce("news", "one")
    other_process.announce("weather", "two")
    until(lambda: (news.told, weather.told) == (["one"], ["two"]))


def test_all_subscribers_of_a_channel_are_told(catalog: Catalog, other_process: Catalog) -> None:
    first, second = Notes(), Notes()
    catalog.subscribe("news", first)
    catalog.subscribe("news", second)
    until(lambda: first.told and second.told)
    other_process.announce("news", "one")
    until(lambda: first.told[-1] == second.told[-1] == "one")


def test_equal_announcements_that_wait_together_are_sent_once_and_the_last_is_always_sent(
    catalog: Catalog, other_process: Catalog
) -> None:
    notes = listen(catalog)
    for _ in range(500):
        other_process.announce("news", "same")
    other_process.announce("news", "last")
    until(lambda: "last" in notes.told)
    assert 1 <= notes.told.count("same") < 500


def end_sessions(connection: Connection, name: str) -> None:
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = %s",
        (name,),
    )


def test_a_subscriber_is_told_that_it_may_have_missed_some_when_its_connection_was_lost(
    catalog: Catalog, other_process: Catalog, connection: Connection
) -> None:
    notes = listen(catalog)
    end_sessions(connection, "duckmesh listen")
    until(lambda: notes.told == [""])
    other_process.announce("news", "after")
    until(lambda: notes.told[-1] == "after")


def test_an_announcer_whose_connection_was_lost_announces_again(
    catalog: Catalog, other_process: Catalog, connection: Connection
) -> None:
    notes = listen(catalog)
    other_process.announce("news", "before")
    until(lambda: notes.told == ["before"])
    end_sessions(connection, "duckmesh announce")

    def heard_again() -> bool:
        # What meets the dead connection is lost, as any notification may be.
        other_process.announce("news", "after")
        return "after" in notes.told

    until(heard_again)


def test_announcing_never_raises_and_never_waits_for_postgres(database_dsn: str) -> None:
    nowhere = psycopg.conninfo.make_conninfo(database_dsn, host="/nonexistent")
    with Catalog(nowhere, connect_timeout=timedelta(seconds=0.2)) as catalog:
        for n in range(1_000):
            catalog.announce("news", str(n))


def test_close_ends_the_threads(database_dsn: str) -> None:
    before = set(threading.enumerate())
    with Catalog(database_dsn) as catalog:
        listen(catalog)
        catalog.announce("news")
    left = {t.name for t in set(threading.enumerate()) - before if t.is_alive()}
    assert left & {"listen", "announce"} == set()
