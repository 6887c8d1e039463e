"""Calls in flight: bounded, watched, drained."""

import threading
from datetime import timedelta

import pytest

from duckmesh.errors import ErrorCode, Overloaded, Unavailable
from flight_server.calls import CallsInFlight
from tests.processes import until

SOON = timedelta(seconds=5)
NOW = timedelta(0)


class Caller:
    def __init__(self):
        self.gone = False
        self.asked = 0

    def is_cancelled(self):
        self.asked += 1
        return self.gone


@pytest.fixture
def calls():
    calls = CallsInFlight(2)
    yield calls
    calls.close()


def test_a_place_is_free_again_when_its_call_has_left(calls):
    first, _second = calls.enter(), calls.enter()
    with pytest.raises(Overloaded) as caught:
        calls.enter()
    assert caught.value.code is ErrorCode.TOO_MANY_QUERIES
    assert caught.value.context["retry_after_seconds"] > 0
    first.leave()
    first.leave()
    calls.enter()
    assert calls.count == 2


def test_a_caller_who_goes_is_noticed_once(calls):
    caller, noticed, other = Caller(), threading.Semaphore(0), threading.Semaphore(0)
    place = calls.enter()
    place.on_cancel(caller, noticed.release)
    calls.enter().on_cancel(Caller(), other.release)
    caller.gone = True
    assert noticed.acquire(timeout=5)
    assert not noticed.acquire(timeout=0.1), "cancelled twice"
    assert not other.acquire(blocking=False), "another call was cancelled"


def test_the_context_of_a_call_that_left_is_never_touched_again(calls):
    ended, watched, seen = Caller(), Caller(), threading.Event()
    place = calls.enter()
    place.on_cancel(ended, lambda: None)
    place.leave()
    asked = ended.asked
    calls.enter().on_cancel(watched, seen.set)
    watched.gone = True
    assert seen.wait(5)
    assert ended.asked == asked


def test_a_cancel_that_fails_does_not_stop_the_others(calls):
    first, second, noticed = Caller(), Caller(), threading.Event()

    def fail():
        raise RuntimeError

    calls.enter().on_cancel(first, fail)
    calls.enter().on_cancel(second, noticed.set)
    first.gone = True
    second.gone = True
    assert noticed.wait(5)


def test_a_drain_waits_for_calls_and_admits_no_more(calls):
    place = calls.enter()
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(calls.drain(SOON)))
    thread.start()
    with pytest.raises(Unavailable, match="shutting down"):  # noqa: PT012 - the moment is unknown
        while thread.is_alive():
            calls.enter().leave()
    calls.enter(finishes=True).leave()
    place.leave()
    thread.join(5)
    assert outcome == [True]


def test_a_drain_cancels_what_outlasts_its_grace(calls):
    place = calls.enter()
    place.on_cancel(Caller(), place.leave)
    assert calls.drain(timedelta(milliseconds=10))


def test_a_drain_gives_up_on_a_call_that_does_not_heed(calls):
    calls.enter().on_cancel(Caller(), lambda: None)
    assert not calls.drain(timedelta(milliseconds=10))


def test_a_part_of_the_places_is_not_for_work():
    calls = CallsInFlight(16)
    working = [calls.enter() for _ in range(14)]
    for place in working:
        place.work()
        place.work()
    metadata = calls.enter()
    with pytest.raises(Overloaded) as caught:
        metadata.work()
    assert caught.value.code is ErrorCode.TOO_MANY_QUERIES
    working[0].leave()
    metadata.work()
    calls.close()


def test_what_a_call_holds_is_released_when_it_leaves_or_has_left(calls):
    released = []
    place = calls.enter()
    place.on_leave(lambda: released.append((1, calls.count)))
    assert not released
    place.leave()
    place.on_leave(lambda: released.append((2, calls.count)))
    assert released == [(1, 1), (2, 0)]


def test_the_poller_wakes_again_after_a_long_rest(calls, monkeypatch):
    monkeypatch.setattr("flight_server.calls._QUIET_ROUNDS_MAX", 0)
    for _ in range(3):
        caller, noticed = Caller(), threading.Semaphore(0)
        place = calls.enter()
        place.on_cancel(caller, noticed.release)
        caller.gone = True
        assert noticed.acquire(timeout=5)
        place.leave()
        threading.Event().wait(0.1)


def test_each_of_a_crowd_is_asked_after_and_nobody_more_often_than_the_rest():
    calls = CallsInFlight(100)
    callers = [Caller() for _ in range(64)]
    gone = []
    for caller in callers:
        calls.enter().on_cancel(caller, lambda caller=caller: gone.append(caller))
    until(lambda: min(each.asked for each in callers) >= 2)
    asked = [each.asked for each in callers]
    assert max(asked) - min(asked) <= 2
    callers[17].gone = callers[42].gone = True
    until(lambda: len(gone) == 2)
    assert set(gone) == {callers[17], callers[42]}
    calls.close()
