"""How many queries run at once, and whose is next.

Tenants that wait are served in rotation, so that one tenant's long queue does not stand before
another's first query. Within a tenant, who came first is first. A query under way that reads on
after a pause goes before its tenant's new ones.
"""

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from duckmesh.errors import ErrorCode, Overloaded
from query_engine.engine import Interruption

_RETRY_AFTER_SECONDS: Final = 1


@dataclass(slots=True, eq=False)
class _Waiter:
    tenant: str
    granted: bool = False
    ousted: bool = False


class Turns:
    """A bounded number of turns and a bounded queue, fair across tenants. Thread-safe."""

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        patience: timedelta,
        running_per_tenant: int | None = None,
    ) -> None:
        self._running_max = running
        self._tenant_max = min(running, running_per_tenant or running)
        self._waiting_max = waiting
        self._patience_seconds = patience.total_seconds()
        self._changed = threading.Condition()
        self._running: dict[str, int] = {}
        self._taken = 0
        # Tenants that wait, the one to be served next first.
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._waiting = 0

    @property
    def taken(self) -> int:
        """How many queries run."""
        with self._changed:
            return self._taken

    @property
    def waiting(self) -> int:
        """How many queries wait for a turn."""
        with self._changed:
            return self._waiting

    def of(self, tenant: str) -> "TenantTurns":
        """The turns as one tenant takes them."""
        return TenantTurns(self, tenant)

    def take(self, tenant: str, stop: Interruption | None) -> timedelta:
        """See TenantTurns, of which all these are the other side."""
        with self._changed:
            if self._waiting >= self._waiting_max and not self._is_free_for(tenant):
                self._make_room(tenant)
        return self._wait(tenant, self._patience_seconds, stop, again=False)

    def take_again(self, tenant: str, patience: timedelta, stop: Interruption | None) -> None:
        self._wait(tenant, patience.total_seconds(), stop, again=True)

    def give_back(self, tenant: str) -> None:
        with self._changed:
            self._running[tenant] -= 1
            if self._running[tenant] == 0:
                del self._running[tenant]
            self._taken -= 1
            self._grant()

    def _is_free_for(self, tenant: str) -> bool:
        """Whether it need not wait: nobody is passed over, for those who wait are granted first."""
        free = self._taken < self._running_max
        return free and self._running.get(tenant, 0) < self._tenant_max

    def _make_room(self, tenant: str) -> None:
        longest = max(self._queues.values(), key=len, default=None)
        own = len(self._queues.get(tenant, ()))
        if longest is None or len(longest) <= own + 1:
            raise self._refusal()
        ousted = longest[-1]
        ousted.ousted = True
        self._leave(ousted)
        self._changed.notify_all()

    def _wait(
        self, tenant: str, seconds: float, stop: Interruption | None, *, again: bool
    ) -> timedelta:
        stop = stop or Interruption()
        began = time.monotonic()
        former = stop.connect(self._look_up)
        try:
            with self._changed:
                self._wait_until_granted(self._enter(tenant, again=again), seconds, stop)
        finally:
            stop.connect(former)
        return timedelta(seconds=time.monotonic() - began)

    def _enter(self, tenant: str, *, again: bool) -> _Waiter:
        waiter = _Waiter(tenant)
        queue = self._queues.setdefault(tenant, deque())
        if again:
            queue.appendleft(waiter)
        else:
            queue.append(waiter)
        self._waiting += 1
        self._grant()
        return waiter

    def _wait_until_granted(self, waiter: _Waiter, seconds: float, stop: Interruption) -> None:
        def settled() -> bool:
            return waiter.granted or waiter.ousted or stop.requested

        if settled() or self._changed.wait_for(settled, seconds):
            if waiter.granted and not stop.requested:
                return
            self._undo(waiter)
            stop.check()
        else:
            self._undo(waiter)
        raise self._refusal()

    def _undo(self, waiter: _Waiter) -> None:
        """It wants no turn any more: leave the queue, or pass the turn on."""
        if waiter.granted:
            self.give_back(waiter.tenant)
        elif not waiter.ousted:
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        queue = self._queues[waiter.tenant]
        queue.remove(waiter)
        self._waiting -= 1
        if not queue:
            del self._queues[waiter.tenant]

    def _grant(self) -> None:
        """Hand out every free turn, one tenant after the other."""
        granted = False
        while self._taken < self._running_max:
            tenant = next((each for each in self._queues if self._has_room(each)), None)
            if tenant is None:
                break
            waiter = self._queues[tenant][0]
            self._leave(waiter)
            waiter.granted = granted = True
            self._running[tenant] = self._running.get(tenant, 0) + 1
            self._taken += 1
            if tenant in self._queues:
                self._queues.move_to_end(tenant)
        if granted:
            self._changed.notify_all()

    def _has_room(self, tenant: str) -> bool:
        return self._running.get(tenant, 0) < self._tenant_max

    def _look_up(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _refusal(self) -> Overloaded:
        return Overloaded(
            ErrorCode.TOO_MANY_QUERIES,
            "too many queries run at once: finish reading open results, or retry in a second",
            max_concurrent=self._running_max,
            max_concurrent_of_tenant=self._tenant_max,
            max_queued=self._waiting_max,
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )


class TenantTurns:
    """One tenant's way to turns. Thread-safe."""

    def __init__(self, turns: Turns, tenant: str) -> None:
        self._turns = turns
        self._tenant = tenant

    def take(self, stop: Interruption | None = None) -> timedelta:
        """Wait for a turn, and return for how long it was; `give_back` must follow.

        Raises Overloaded (TOO_MANY_QUERIES) when too many wait already or none comes free in time,
        and Cancelled when `stop` is pressed meanwhile. A full queue still takes the query of a
        tenant that has fewer in it than another: the other's last is refused instead.
        """
        return self._turns.take(self._tenant, stop)

    def take_again(self, patience: timedelta, stop: Interruption | None = None) -> None:
        """As `take`, for a query under way that gave its turn back: no queue is too long for it."""
        self._turns.take_again(self._tenant, patience, stop)

    def give_back(self) -> None:
        """End a turn that was taken."""
        self._turns.give_back(self._tenant)
