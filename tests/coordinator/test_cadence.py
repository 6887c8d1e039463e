"""How long a coordinator gathers."""

import threading
import time
from datetime import timedelta

import pytest

from coordinator.cadence import Cadence

HOUR = timedelta(hours=1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def after_a_round(clock: Clock, interval: timedelta, seconds: float) -> float:
    cadence = Cadence(interval, monotonic=clock)
    cadence.begin_round()
    clock.now += seconds
    return cadence.gathering_seconds()


def test_publishing_takes_an_eighth_of_the_time(clock: Clock) -> None:
    assert after_a_round(clock, HOUR, 0.01) == pytest.approx(0.07)
    assert after_a_round(clock, HOUR, 0.1) == pytest.approx(0.7)


def test_one_slow_round_among_many_does_not_stretch_the_gathering(clock: Clock) -> None:
    cadence = Cadence(HOUR, monotonic=clock)
    for _ in range(20):
        cadence.begin_round()
        clock.now += 0.01
        cadence.want()
        cadence.gather()
    cadence.begin_round()
    clock.now += 0.03
    assert cadence.gathering_seconds() == pytest.approx(8 * 0.0125 - 0.03)


def test_rounds_that_stay_slow_are_given_their_time(clock: Clock) -> None:
    cadence = Cadence(HOUR, monotonic=clock)
    for seconds in [0.01] + [0.1] * 60:
        cadence.begin_round()
        clock.now += seconds
        cadence.want()
        cadence.gather()
    cadence.begin_round()
    clock.now += 0.1
    assert cadence.gathering_seconds() == pytest.approx(0.7, rel=0.01)


def test_the_flush_interval_is_the_longest_from_one_round_to_the_next(clock: Clock) -> None:
    assert after_a_round(clock, timedelta(milliseconds=150), 0.04) == pytest.approx(0.11)
    assert after_a_round(clock, timedelta(milliseconds=150), 0.2) < 0
    assert after_a_round(clock, timedelta(0), 0.01) < 0


def test_who_waits_ends_a_gathering() -> None:
    cadence = Cadence(HOUR)
    cadence.begin_round()
    time.sleep(0.5)
    assert cadence.gathering_seconds() > 2
    threading.Timer(0.1, cadence.want).start()
    began = time.monotonic()
    cadence.gather()
    assert time.monotonic() - began < 2


def test_who_waited_before_the_round_is_served_by_it() -> None:
    cadence = Cadence(timedelta(milliseconds=150))
    cadence.want()
    cadence.begin_round()
    time.sleep(0.02)
    began = time.monotonic()
    cadence.gather()
    assert time.monotonic() - began > 0.05
