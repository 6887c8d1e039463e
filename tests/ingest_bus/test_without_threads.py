"""Where the system gives no thread, at its limit of processes or of memory: no lane stands still.

What is committed is acknowledged, and what cannot be waited for is refused as retryable.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from duckmesh.errors import ErrorCode, Unavailable
from tests.bus_worlds import PATIENCE_SECONDS, until
from tests.ingest_bus.watched_house import WARM, House, is_as_told, no_threads, tokens_of


@contextlib.contextmanager
def no_announcer() -> Iterator[None]:
    """The thread that tells the coordinators does not begin within the block."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "announce":
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


# -- who must not block refuses


@pytest.mark.parametrize(
    "unusual", [{"key": "warm"}, {"content": b"x" * 200_000}], ids=["a known key", "many bytes"]
)
def test_what_takes_a_thread_is_refused_and_its_lane_goes_on(
    house: House, unusual: dict[str, object]
) -> None:
    settled = threading.Event()
    with no_threads(house.bus._groups):
        with house.held_back():
            first = house.one_under_way()
            refused = house.submit(house.row(**unusual), settled=settled.set)
        error = refused.exception(PATIENCE_SECONDS)
        assert isinstance(error, Unavailable)
        assert error.code is ErrorCode.NOT_READY
        assert settled.wait(PATIENCE_SECONDS)
        assert tokens_of([first, house.submit(house.row())]) == [WARM + 1, WARM + 2]
    assert house.accepted_at_last(**unusual).inserted is ("key" not in unusual)


def test_a_commit_that_nobody_can_wait_for_is_unavailable_and_its_lane_goes_on(
    house: House,
) -> None:
    house.stop_watching()
    with no_threads(house.bus._groups), house.held_back():
        left = [house.submit(house.row(key=f"k{n}")) for n in range(3)]
        for each in left:
            error = each.exception(0)
            assert isinstance(error, Unavailable)
            assert error.retryable
    receipts = [house.accepted_at_last(key=f"k{n}") for n in range(3)]
    stored = house.stored()
    assert all(stored[r.visibility_token] == r.event_id for r in receipts)
    assert sorted(stored) == list(range(1, WARM + 4))


# -- behind the commit


def test_commits_that_cannot_be_announced_are_acknowledged_once(database_dsn: str) -> None:
    with no_announcer(), contextlib.closing(House(database_dsn)) as house:
        watched = house.submit(house.row())
        assert tokens_of([watched]) == [WARM + 1]
        with ThreadPoolExecutor(4) as callers:
            with house.held_back():
                calls = [callers.submit(house.bus.publish, [house.row()])]
                until(lambda: len(house.commits_under_way()) == 1)
                calls += [callers.submit(house.bus.publish, [house.row()]) for _ in range(3)]
                until(lambda: len(house.bus._groups._lanes[house.acme].waiting) == 3)
            assert sorted(tokens_of(calls)) == list(range(WARM + 2, WARM + 6))
        assert is_as_told(house, calls)
        assert len(house.stored()) == WARM + 5, "none of them is there twice"


def test_an_announcer_that_could_not_begin_begins_later(database_dsn: str) -> None:
    with contextlib.ExitStack() as undo:
        refused = undo.enter_context(contextlib.ExitStack())
        refused.enter_context(no_announcer())
        house = undo.enter_context(contextlib.closing(House(database_dsn)))
        other = undo.enter_context(contextlib.closing(House(database_dsn)))
        heard = threading.Event()
        other.catalog.subscribe("duckmesh_accepted", lambda _: heard.set())
        assert heard.wait(PATIENCE_SECONDS), "it hears that it may have missed some"
        heard.clear()
        refused.close()
        house.bus.publish([house.row()])
        assert heard.wait(PATIENCE_SECONDS)
