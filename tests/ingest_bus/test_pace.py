"""Coordinators are woken at once for a few writes, and less often for many."""

from ingest_bus.pace import Pace


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_busy_process_wakes_the_coordinators_less_often_until_it_is_at_leisure_again():
    clock = Clock()
    pace = Pace(monotonic=clock)
    first = pace.next()
    many = [pace.next() for _ in range(100)]
    assert many[0] == first
    assert many[-1] > first
    clock.now += 1
    assert pace.next() == many[-1], "the second before was busy"
    clock.now += 1
    assert pace.next() == first


def test_what_was_long_ago_does_not_count():
    clock = Clock()
    pace = Pace(monotonic=clock)
    first = pace.next()
    for _ in range(100):
        pace.next()
    clock.now += 60
    assert pace.next() == first
