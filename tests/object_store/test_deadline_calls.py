"""A call that stalls costs its caller the deadline, and nobody else anything."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from object_store.deadline_calls import DeadlineCalls, Stalled

DEADLINE = timedelta(seconds=0.1)


@pytest.fixture
def ever() -> Iterator[threading.Event]:
    """What a stalled call waits for; at the end of the test it comes."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def calls() -> DeadlineCalls:
    return DeadlineCalls(DEADLINE, object)


def test_a_call_returns_or_raises_what_it_did(calls: DeadlineCalls) -> None:
    assert calls.call(lambda _: 7) == 7
    with pytest.raises(ZeroDivisionError):
        calls.call(lambda _: 1 / 0)


def test_an_error_of_the_same_kind_as_a_deadline_is_the_calls_own(calls: DeadlineCalls) -> None:
    def fail(_: object) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        calls.call(fail)


def test_a_stalled_call_ends_at_its_deadline(calls: DeadlineCalls, ever: threading.Event) -> None:
    began = time.monotonic()
    with pytest.raises(Stalled):
        calls.call(lambda _: ever.wait())
    assert 0.1 <= time.monotonic() - began < 5


def test_a_stall_gives_up_the_connection(calls: DeadlineCalls, ever: threading.Event) -> None:
    first = calls.call(lambda connection: connection)
    assert calls.call(lambda connection: connection) is first
    with pytest.raises(Stalled):
        calls.call(lambda _: ever.wait())
    assert calls.call(lambda connection: connection) is not first


def test_connecting_is_under_the_deadline_too(ever: threading.Event) -> None:
    calls = DeadlineCalls(DEADLINE, ever.wait)
    for _ in range(2):
        with pytest.raises(Stalled):
            calls.call(lambda connection: connection)


def test_stalled_threads_do_not_pile_up(calls: DeadlineCalls) -> None:
    ever = threading.Event()
    before = threading.active_count()
    calls._timeout_seconds = 0.001
    for _ in range(200):
        with pytest.raises(Stalled):
            calls.call(lambda _: ever.wait())
    assert threading.active_count() - before <= 64
    ever.set()
    calls._timeout_seconds = 10
    deadline = time.monotonic() + 10
    while True:
        try:
            assert calls.call(lambda _: 7) == 7
            break
        except Stalled:
            assert time.monotonic() < deadline
