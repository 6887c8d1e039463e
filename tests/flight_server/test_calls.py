"""Calls in flight: bounded, watched, drained."""

import threading
from datetime import timedelta

import pytest

from duckmesh.errors import ErrorCode, Overloaded, Unavailable
from flight_server.calls import CallsInFlight
from grpc_transport.frames import Fault, Kind
from tests.http2 import Peer

SOON = timedelta(seconds=5)
NOW = timedelta(0)
BRIEF = timedelta(milliseconds=10)


@pytest.fixture
def calls():
    return CallsInFlight(2)


@pytest.fixture
def peer():
    return Peer()


def test_a_place_is_free_again_when_its_call_has_left(calls, peer):
    first, _second = calls.enter(peer.call()), calls.enter(peer.call())
    with pytest.raises(Overloaded) as caught:
        calls.enter(peer.call())
    assert caught.value.code is ErrorCode.TOO_MANY_QUERIES
    assert caught.value.context["retry_after_seconds"] > 0
    first.leave()
    first.leave()
    calls.enter(peer.call())
    assert calls.count == 2


def test_a_caller_who_goes_is_noticed_once(calls, peer):
    noticed = []
    rpc, other = peer.call(), peer.call()
    calls.enter(rpc).on_cancel(lambda: noticed.append("caller"))
    calls.enter(other).on_cancel(lambda: noticed.append("other"))
    peer.leave(rpc)
    peer.leave(rpc)
    rpc.cancel()
    assert noticed == ["caller"]


def test_a_caller_who_has_gone_already_is_noticed_at_once(calls, peer):
    noticed = []
    rpc = peer.call()
    peer.leave(rpc)
    calls.enter(rpc).on_cancel(lambda: noticed.append("caller"))
    assert noticed == ["caller"]


def test_each_of_a_crowd_is_noticed_when_its_connection_ends(peer):
    calls = CallsInFlight(100)
    gone = []
    for number in range(64):
        place = calls.enter(peer.call())
        place.on_cancel(lambda number=number: gone.append(number))
    peer.connection.lost()
    assert sorted(gone) == list(range(64))


def test_a_cancel_that_fails_does_not_stop_the_others(calls, peer):
    noticed = []

    def fail():
        raise RuntimeError

    calls.enter(peer.call()).on_cancel(fail)
    calls.enter(peer.call()).on_cancel(lambda: noticed.append("second"))
    peer.connection.lost()
    assert noticed == ["second"]


def test_a_cancel_that_fails_in_a_drain_does_not_stop_the_others(calls, peer):
    noticed = threading.Event()

    def fail():
        raise RuntimeError

    place = calls.enter(peer.call())
    place.on_cancel(fail)
    place.on_cancel(place.leave)
    place.on_leave(noticed.set)
    assert calls.drain(BRIEF)
    assert noticed.is_set()


def test_a_drain_waits_for_calls_and_admits_no_more(calls, peer):
    place, late = calls.enter(peer.call()), peer.call()
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(calls.drain(SOON)))
    thread.start()
    with pytest.raises(Unavailable, match="shutting down"):  # noqa: PT012 - the moment is unknown
        while thread.is_alive():
            calls.enter(late).leave()
    calls.enter(late, finishes=True).leave()
    place.leave()
    thread.join(5)
    assert outcome == [True]


def test_a_drain_cancels_what_outlasts_its_grace(calls, peer):
    place = calls.enter(peer.call())
    place.on_cancel(place.leave)
    assert calls.drain(BRIEF)


def test_a_drain_cancels_each_call_once(calls, peer):
    cancelled = []
    calls.enter(peer.call()).on_cancel(lambda: cancelled.append("deaf"))
    assert not calls.drain(BRIEF)
    assert cancelled == ["deaf"]


def test_a_drain_cancels_nothing_of_a_call_that_has_left(calls, peer):
    cancelled = []
    place = calls.enter(peer.call())
    place.on_cancel(lambda: cancelled.append("left"))
    place.leave()
    calls.enter(peer.call()).on_cancel(lambda: cancelled.append("deaf"))
    assert not calls.drain(BRIEF)
    assert set(cancelled) == {"deaf"}


def test_a_drain_gives_up_on_a_call_that_does_not_heed_and_ends_it(calls, peer):
    rpc = peer.call()
    calls.enter(rpc).on_cancel(lambda: None)
    peer.heard()
    assert not calls.drain(BRIEF)
    assert rpc.is_cancelled
    (reset,) = peer.heard()
    assert (reset.kind, reset.stream_id) == (Kind.RST_STREAM, rpc.stream_id)
    assert reset.number == Fault.CANCEL


def test_a_drain_without_calls_ends_at_once(calls):
    assert calls.drain(NOW)


def test_a_part_of_the_places_is_not_for_work(peer):
    calls = CallsInFlight(16)
    working = [calls.enter(peer.call()) for _ in range(14)]
    for place in working:
        place.work()
        place.work()
    metadata = calls.enter(peer.call())
    with pytest.raises(Overloaded) as caught:
        metadata.work()
    assert caught.value.code is ErrorCode.TOO_MANY_QUERIES
    working[0].leave()
    metadata.work()


def test_what_a_call_holds_is_released_when_it_leaves_or_has_left(calls, peer):
    released = []
    place = calls.enter(peer.call())
    place.on_leave(lambda: released.append((1, calls.count)))
    assert not released
    place.leave()
    place.on_leave(lambda: released.append((2, calls.count)))
    assert released == [(1, 1), (2, 0)]
