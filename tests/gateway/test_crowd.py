"""A crowd: what its queries wait for beside other tenants, and what they do not wait for."""

import threading
from collections import Counter
from datetime import timedelta

import pytest

from duckmesh.errors import Cancelled, ErrorCode, Overloaded
from gateway.crowd import LOOK_SECONDS, YOUNG_SECONDS, Crowd
from gateway.turns import Share, Turns
from query_engine.engine import Interruption
from tests.processes import until


class Hall:
    """Turns beside a crowd, at a time that the test moves, and threads that wait for them."""

    def __init__(self, *, abreast: int = 1, per_tenant: int = 12, patience: float = 20) -> None:
        self.now = 100.0
        self.turns = Turns(
            running=16,
            waiting=64,
            patience=timedelta(seconds=patience),
            running_per_tenant=per_tenant,
            crowd=Crowd(abreast, monotonic=lambda: self.now),
        )
        self.begun: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stops: list[Interruption] = []

    def wait(self, tenant: str, clients: int = 1) -> None:
        """Have so many clients wait, and return when they stand in line."""
        before = self.turns.waiting
        for _ in range(clients):
            self._stops.append(stop := Interruption())
            thread = threading.Thread(target=self._take, args=(tenant, stop))
            thread.start()
            self._threads.append(thread)
        until(lambda: self.turns.waiting == before + clients)

    def _take(self, tenant: str, stop: Interruption) -> None:
        try:
            self.turns.of(tenant).take(stop)
        except Cancelled:
            return
        with self._lock:
            self.begun[tenant] += 1

    def later(self, seconds: float) -> None:
        self.now += seconds + 0.001

    def leave(self) -> None:
        """All who wait go away."""
        before = self.turns.taken
        for stop in self._stops:
            stop.interrupt()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        assert (self.turns.waiting, self.turns.taken) == (0, before)


def test_alone_a_tenant_begins_as_many_as_it_may() -> None:
    hall = Hall(per_tenant=4)
    for _ in range(4):
        assert hall.turns.of("greedy").take() == timedelta(0)
    assert hall.turns.taken == 4


def test_one_client_never_waits_for_a_crowd() -> None:
    hall = Hall()
    first = hall.turns.of("greedy")
    first.take()
    quiet = hall.turns.of("quiet")
    quiet.take()
    quiet.give_back()
    hall.wait("greedy", clients=20)
    for _ in range(50):
        assert quiet.take() == timedelta(0)
        quiet.give_back()
    hall.leave()


def test_a_crowd_waits_while_the_query_of_one_client_is_young() -> None:
    hall = Hall()
    greedy = hall.turns.of("greedy")
    greedy.take()
    quiet = hall.turns.of("quiet")
    quiet.take()
    hall.wait("greedy", clients=10)
    greedy.give_back()
    assert hall.turns.taken == 1
    # The processors are free again: one of the crowd begins, and no second beside it.
    quiet.give_back()
    until(lambda: hall.begun["greedy"] == 1)
    assert (hall.turns.taken, hall.turns.waiting) == (1, 9)
    hall.leave()


def test_a_crowd_is_not_put_off_for_long() -> None:
    hall = Hall()
    quiet = hall.turns.of("quiet")
    hall.turns.of("greedy").take()
    quiet.take()
    hall.wait("greedy", clients=5)
    for begun in range(1, 4):
        hall.later(LOOK_SECONDS)
        # The head of the queue looks by itself: nobody ends a query here.
        until(lambda begun=begun: hall.begun["greedy"] == begun)  # type: ignore[misc]
    hall.leave()


def test_long_queries_hold_up_nobody() -> None:
    hall = Hall()
    for tenant in ("greedy", "quiet"):
        hall.turns.of(tenant).take()
    hall.wait("greedy", clients=3)
    hall.later(YOUNG_SECONDS)
    until(lambda: hall.begun["greedy"] >= 1)
    hall.leave()


def test_tenants_that_ask_for_as_much_go_abreast() -> None:
    hall = Hall()
    for tenant in "abcd":
        assert hall.turns.of(tenant).take() == timedelta(0)
    assert hall.turns.taken == 4


def test_a_query_that_reads_on_is_not_held_up() -> None:
    hall = Hall()
    paused, quiet = hall.turns.of("greedy"), hall.turns.of("quiet")
    paused.take()
    quiet.take()
    hall.wait("greedy", clients=3)
    paused.give_back()
    assert hall.turns.taken == 1
    paused.take_again(timedelta(seconds=20))
    assert hall.turns.taken == 2
    paused.give_back()
    hall.leave()


def test_a_crowd_that_loses_patience_is_told_why_and_leaves_nothing() -> None:
    hall = Hall(patience=0.05)
    greedy, quiet = hall.turns.of("greedy"), hall.turns.of("quiet")
    greedy.take()
    quiet.take()
    with pytest.raises(Overloaded, match="beside those of other tenants") as refused:
        hall.turns.of("greedy").take()
    assert refused.value.code is ErrorCode.TOO_MANY_QUERIES
    greedy.give_back()
    quiet.give_back()
    assert (hall.turns.taken, hall.turns.waiting) == (0, 0)
    assert all(each.asking == 0 for each in hall.turns._crowd._accounts.values())


def test_a_tenant_without_a_queue_of_its_own_still_waits_for_others() -> None:
    hall = Hall()
    hall.turns.of("greedy").take()
    hall.turns.of("quiet").take()
    done = threading.Event()

    def take() -> None:
        hall.turns.of(Share("greedy", running_max=2, waiting_max=0)).take()
        done.set()

    thread = threading.Thread(target=take)
    thread.start()
    until(lambda: hall.turns.waiting == 1)
    # Its quotas are two queries and no queue: the second waits for the others, the third may not.
    with pytest.raises(Overloaded) as refused:
        hall.turns.of(Share("greedy", running_max=2, waiting_max=0)).take()
    assert refused.value.context["quota"] == "queued_queries"
    hall.later(LOOK_SECONDS)
    assert done.wait(20)
    thread.join(20)


def test_what_is_known_of_a_tenant_is_forgotten_when_it_is_gone() -> None:
    hall = Hall()
    for number in range(50):
        turn = hall.turns.of(f"t{number}")
        turn.take()
        turn.give_back()
        hall.later(2)
    assert len(hall.turns._crowd._accounts) <= 2
