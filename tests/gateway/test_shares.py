"""Turns by quota: of a tenant, of one of its keys, and of those who wait."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from duckmesh.errors import Overloaded
from duckmesh.quotas import NO_QUOTAS, Quotas
from gateway.turns import Share, Turns
from tests.processes import until


def turns(*, running: int = 8, patience: float = 20, per_tenant: int | None = None) -> Turns:
    return Turns(
        running=running,
        waiting=8,
        patience=timedelta(seconds=patience),
        running_per_tenant=per_tenant,
    )


def waiting(take: Callable[[], object], on: Turns) -> threading.Thread:
    """A thread that stands in line."""
    before = on.waiting
    thread = threading.Thread(target=take)
    thread.start()
    until(lambda: on.waiting > before)
    return thread


def context_of(call: Callable[[], object]) -> tuple[object, ...]:
    with pytest.raises(Overloaded) as caught:
        call()
    context = caught.value.context
    assert context["retry_after_ms"] == 1000
    return context.get("quota"), context["used"], context["limit"]


def test_a_tenants_quota_goes_before_the_settings_be_it_more_or_less() -> None:
    every = turns(per_tenant=2, patience=0.05)
    for tenant, most in (("less", 1), ("more", 3)):
        share = every.of(Share(tenant, running_max=most))
        for _ in range(most):
            share.take()
        assert context_of(share.take) == ("concurrent_queries", most, most)
    usual = every.of("usual")
    usual.take()
    usual.take()
    assert context_of(usual.take) == ("concurrent_queries", 2, 2)


def test_who_is_refused_by_the_process_is_told_no_quota_of_his() -> None:
    every = turns(running=1, patience=0.05)
    every.of("a").take()
    assert context_of(every.of("b").take) == (None, 1, 1)


def test_a_key_with_all_its_turns_does_not_stop_its_tenants_other_keys() -> None:
    every = turns(running=4)
    narrow = every.of(Share.of("a", NO_QUOTAS, "k1", Quotas(concurrent_queries=1)))
    other = every.of(Share.of("a", NO_QUOTAS, "k2", NO_QUOTAS))
    narrow.take()
    thread = waiting(narrow.take, every)
    # Behind the one that waits, and not held up by it.
    assert other.take() < timedelta(seconds=10)
    assert every.waiting == 1
    narrow.give_back()
    thread.join(20)
    assert (every.taken, every.waiting) == (2, 0)
    narrow.give_back()
    other.give_back()
    assert every.taken == 0


def test_a_keys_refusal_names_the_key() -> None:
    every = turns(patience=0.05)
    narrow = every.of(Share.of("a", NO_QUOTAS, "k1", Quotas(concurrent_queries=1)))
    narrow.take()
    with pytest.raises(Overloaded, match="1 of the API key where 1 may"):
        narrow.take()


def test_no_more_wait_than_the_tenants_queue_holds() -> None:
    every = turns(running=1)
    every.of("b").take()
    share = every.of(Share("a", waiting_max=1))
    thread = waiting(share.take, every)
    assert context_of(share.take) == ("queued_queries", 1, 1)
    every.of("b").give_back()
    thread.join(20)
    # A turn that is free needs no place in the queue.
    every.of("a").give_back()
    every.of(Share("c", waiting_max=0)).take()


def test_a_raised_quota_lets_those_in_who_wait() -> None:
    every = turns()
    narrow = every.of(Share("a", running_max=1))
    narrow.take()
    thread = waiting(narrow.take, every)
    every.of(Share("a", running_max=3)).take()
    thread.join(20)
    assert not thread.is_alive()
    assert (every.taken, every.waiting) == (3, 0)


def test_what_is_known_of_a_tenant_ends_with_its_last_turn() -> None:
    every = turns()
    for number in range(50):
        share = every.of(Share.of(f"t{number}", NO_QUOTAS, "k", Quotas(concurrent_queries=1)))
        share.take()
        share.give_back()
    assert (every._shares, every._running, every._running_of_keys) == ({}, {}, {})
