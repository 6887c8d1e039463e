"""Commits that are watched, while Postgres ends its backends, is killed, or starts anew."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from catalog.embedded_postgres import EmbeddedPostgres
from duckmesh.errors import ErrorCode, Unavailable
from ingest_bus.envelope import Receipt
from tests.bus_worlds import PATIENCE_SECONDS, until
from tests.ingest_bus.watched_house import (
    WARM,
    House,
    tokens_of,
)


def test_a_backend_that_ends_under_a_commit_is_unavailable_and_the_lane_goes_on(
    house: House,
) -> None:
    with house.held_back():
        broken = house.one_under_way(key="broken")
        behind = house.submit(house.row(key="behind"))
        (backend,) = house.commits_under_way()
        house.ask("SELECT pg_terminate_backend(%s)", backend)
        error = broken.exception(PATIENCE_SECONDS)
        assert isinstance(error, Unavailable)
        assert error.code is ErrorCode.CATALOG_UNAVAILABLE
    assert behind.exception(PATIENCE_SECONDS) is None or isinstance(behind.exception(), Unavailable)
    receipts = [house.accepted_at_last(key=key) for key in ("broken", "behind")]
    assert sorted(r.visibility_token for r in receipts) == [WARM + 1, WARM + 2]
    assert len(house.stored()) == WARM + 2


def test_backends_that_ended_while_they_lay_at_hand_cost_a_call_at_most_a_repetition(
    house: House,
) -> None:
    for round_ in range(3):
        house.end_backends()
        for n in range(4):
            house.accepted_at_last(key=f"{round_}-{n}")
    assert sorted(house.stored()) == list(range(1, WARM + 13))
    assert tokens_of([house.submit(house.row())]) == [WARM + 13]


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        ("watched", signal.SIGTERM),
        ("watched", signal.SIGKILL),
        ("watched", signal.SIGQUIT),
        ("on a thread", signal.SIGTERM),
        ("on a thread", signal.SIGKILL),
        ("on a thread", signal.SIGQUIT),
    ],
)
def test_a_backend_that_ended_while_it_lay_at_hand_is_unavailable(
    own_server: EmbeddedPostgres, way: str, sent: signal.Signals
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        with house.catalog.connect() as connection:
            backend = connection.info.backend_pid
        os.kill(backend, sent)
        until(lambda: not is_alive(backend))
        watch = house.watcher.watch if way == "watched" else None
        error = house.bus.submit([house.row()], watch=watch).exception(PATIENCE_SECONDS)
        assert house.accepted_at_last(key=f"after {sent}, {way}").inserted
        assert isinstance(error, Unavailable)


@pytest.mark.parametrize("way", ["watched", "on a thread"])
def test_a_connection_that_only_reads_is_unavailable_and_let_go(house: House, way: str) -> None:
    """As all are after a failover to a standby, until they are opened anew."""
    with house.catalog.connect() as connection:
        # It goes back, and is the first at hand.
        connection.execute("SET default_transaction_read_only = on")
    watch = house.watcher.watch if way == "watched" else None
    error = house.bus.submit([house.row(key="k")], watch=watch).exception(PATIENCE_SECONDS)
    assert isinstance(error, Unavailable)
    assert error.code is ErrorCode.CATALOG_UNAVAILABLE
    assert tokens_of([house.submit(house.row(key="k"))]) == [WARM + 1]
    assert len(house.stored()) == WARM + 1


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def kill_the_postmaster(server: EmbeddedPostgres, _backend: int) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.running)
    server.restart()


def kill_the_backend(_server: EmbeddedPostgres, backend: int) -> None:
    os.kill(backend, signal.SIGKILL)


def restart(server: EmbeddedPostgres, _backend: int) -> None:
    server.restart()


@pytest.mark.parametrize("kill", [kill_the_postmaster, kill_the_backend, restart])
def test_a_killed_postgres_is_unavailable_and_what_was_acknowledged_stays(
    own_server: EmbeddedPostgres, kill: Callable[[EmbeddedPostgres, int], None]
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        known = house.stored()
        kept = house.submit(house.row()).result(PATIENCE_SECONDS)[0]
        with contextlib.suppress(psycopg.OperationalError), house.held_back():
            broken = [house.one_under_way(key=f"under way {kill.__name__}")]
            broken += [house.submit(house.row()) for _ in range(3)]
            (backend,) = house.commits_under_way()
            kill(own_server, backend)
            assert isinstance(broken[0].exception(PATIENCE_SECONDS), Unavailable)
        for each in broken[1:]:
            error = each.exception(PATIENCE_SECONDS)
            assert error is None or isinstance(error, Unavailable)
        again = house.accepted_at_last(key=f"under way {kill.__name__}")
        stored = house.stored()
        accepted = [each.result()[0] for each in broken[1:] if each.exception() is None]
        for receipt in (kept, again, *accepted):
            assert stored[receipt.visibility_token] == receipt.event_id
        assert sorted(stored) == list(range(1, len(stored) + 1))
        assert len(known) < len(stored) <= len(known) + 5


def test_nothing_acknowledged_is_lost_or_doubled_over_restarts_under_load(
    own_server: EmbeddedPostgres,
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        receipts: dict[str, Receipt] = {}
        stop = threading.Event()

        def write_on(name: str) -> int:
            number = 0
            while not stop.is_set():
                key = f"{name}-{number}"
                receipts[key] = house.accepted_at_last(key=key, content=key.encode())
                number += 1
            return number

        with ThreadPoolExecutor(4) as threads:
            try:
                writers = [threads.submit(write_on, f"w{n}") for n in range(4)]
                for _ in range(3):
                    reached = len(receipts) + 40
                    until(lambda reached=reached: len(receipts) > reached)
                    own_server.restart()
                reached = len(receipts) + 40
                until(lambda: len(receipts) > reached)
            finally:
                stop.set()
            assert sum(w.result(PATIENCE_SECONDS) for w in writers) == len(receipts)
        rows = house.ask(
            "SELECT idempotency_key, visibility_token FROM ingest_event"
            " WHERE tenant_id = %s AND idempotency_key LIKE 'w_-%%'",
            house.acme,
        )
        assert len(rows) == len(receipts)
        assert dict(rows) == {key: r.visibility_token for key, r in receipts.items()}
        stored = house.stored()
        assert sorted(stored) == list(range(1, len(stored) + 1))
