"""Turns: bounded, fair across tenants, refused typed, and left by who has gone."""

import threading
from datetime import timedelta

import pytest

from duckmesh.errors import Cancelled, ErrorCode, Overloaded
from gateway.turns import Turns
from query_engine.engine import Interruption
from tests.processes import until


class Queue:
    """Threads that wait for turns of one `Turns`, and who got theirs in which order."""

    def __init__(
        self, *, running: int = 1, waiting: int = 8, per_tenant: int | None = None
    ) -> None:
        self.turns = Turns(
            running=running,
            waiting=waiting,
            patience=timedelta(seconds=20),
            running_per_tenant=per_tenant,
        )
        self.served: list[str] = []
        self.refused: list[str] = []
        self._threads: list[threading.Thread] = []

    def wait(self, name: str, *, again: bool = False) -> None:
        """Have a thread wait for a turn of tenant `name[0]`, and return when it stands in line."""
        before = self._in_line(name[0])
        thread = threading.Thread(target=self._take, args=(name, again))
        thread.start()
        self._threads.append(thread)
        until(lambda: self._in_line(name[0]) > before)

    def _in_line(self, tenant: str) -> int:
        return len(self.turns._queues.get(tenant, ()))

    def _take(self, name: str, again: bool) -> None:
        turns = self.turns.of(name[0])
        try:
            turns.take_again(timedelta(seconds=20)) if again else turns.take()
        except Overloaded:
            self.refused.append(name)
        else:
            self.served.append(name)

    def serve(self, tenant: str) -> None:
        """End a turn of a tenant, and return when the next one is served."""
        before = len(self.served)
        self.turns.of(tenant).give_back()
        until(lambda: len(self.served) > before)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def test_tenants_are_served_in_rotation() -> None:
    queue = Queue()
    queue.turns.of("a").take()
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.wait(name)
    for tenant in "aabca":
        queue.serve(tenant)
    assert queue.served == ["a1", "b1", "c1", "a2", "b2"]
    queue.serve("b")
    queue.join()
    assert queue.served[-1] == "a3"
    queue.turns.of("a").give_back()
    assert queue.turns.taken == queue.turns.waiting == 0


def test_a_tenant_with_all_its_turns_does_not_stop_another() -> None:
    queue = Queue(running=3, per_tenant=2)
    queue.turns.of("a").take()
    queue.turns.of("a").take()
    queue.wait("a1")
    assert queue.turns.of("b").take() < timedelta(seconds=10)
    assert queue.served == []
    queue.serve("a")
    queue.join()
    assert queue.served == ["a1"]


def test_a_query_that_reads_on_goes_before_its_tenants_new_ones() -> None:
    queue = Queue()
    queue.turns.of("a").take()
    queue.wait("a1")
    queue.wait("a2", again=True)
    queue.serve("a")
    queue.serve("a")
    queue.join()
    assert queue.served == ["a2", "a1"]


def test_a_full_queue_refuses_the_tenant_that_fills_it() -> None:
    queue = Queue(waiting=3)
    queue.turns.of("a").take()
    for name in ("a1", "a2", "a3"):
        queue.wait(name)
    with pytest.raises(Overloaded) as refused:
        queue.turns.of("a").take()
    assert refused.value.code is ErrorCode.TOO_MANY_QUERIES
    assert refused.value.context["retry_after_seconds"] == 1
    queue.wait("b1")
    until(lambda: queue.refused == ["a3"])
    for tenant in "aab":
        queue.serve(tenant)
    queue.join()
    assert queue.served == ["a1", "b1", "a2"]


def test_patience_ends_in_a_refusal_and_leaves_the_line() -> None:
    turns = Turns(running=1, waiting=2, patience=timedelta(seconds=0.05))
    turns.of("a").take()
    with pytest.raises(Overloaded):
        turns.of("b").take()
    assert (turns.taken, turns.waiting) == (1, 0)


def test_who_goes_while_waiting_takes_no_turn() -> None:
    turns = Turns(running=1, waiting=2, patience=timedelta(seconds=20))
    turns.of("a").take()
    stop = Interruption()
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            turns.of("b").take(stop)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: turns.waiting == 1)
    stop.interrupt()
    thread.join(20)
    assert len(outcome) == 1
    turns.of("a").give_back()
    assert (turns.taken, turns.waiting) == (0, 0)
