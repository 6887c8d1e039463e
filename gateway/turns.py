"""How many queries run at once, and whose is next.

Tenants that wait are served in rotation, so that one tenant's long queue does not stand before
another's first query. Within a tenant, who came first is first, unless his API key runs as many as
it may. A query under way that reads on after a pause goes before its tenant's new ones. While
several tenants ask, `Crowd` says whose queries begin.

Each waiter has a lock of its own to wait on: a turn that is handed out wakes one thread, and the
others do not so much as look.
"""

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from duckmesh.errors import ErrorCode, Overloaded
from duckmesh.quotas import Quota, Quotas
from gateway.crowd import LOOK_SECONDS, YOUNG_SECONDS, Crowd
from query_engine.engine import Interruption

_RETRY_AFTER_SECONDS: Final = 1


_RETRY_AFTER_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Share:
    """Whose turns they are, and how many he may have. None is no limit of his own."""

    tenant: str
    running_max: int | None = None
    waiting_max: int | None = None
    key: str | None = None
    """Set when the caller's API key has a limit of its own."""
    key_running_max: int | None = None

    @classmethod
    def of(cls, tenant: str, quotas: Quotas, key: str | None, key_quotas: Quotas) -> "Share":
        """The share that these quotas give."""
        of_key = key_quotas.concurrent_queries
        return cls(
            tenant,
            quotas.concurrent_queries,
            quotas.queued_queries,
            None if of_key is None else key,
            of_key,
        )


class _Waiter:
    """One query in line. Its thread sleeps on `wake`; all else is under the lock of the turns."""

    __slots__ = ("again", "granted", "mark", "ousted", "share", "wake")

    def __init__(self, share: Share, *, again: bool) -> None:
        self.share = share
        self.again = again
        """It was under way already, and only paused: the crowd does not hold it up."""
        self.granted = False
        self.mark: float | None = None
        self.ousted = False
        self.wake = threading.Semaphore(0)


class Turns:
    """A bounded number of turns and a bounded queue, fair across tenants. Thread-safe."""

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        patience: timedelta,
        running_per_tenant: int | None = None,
        crowd: Crowd | None = None,
    ) -> None:
        """`crowd` says whose queries begin while several tenants ask; None holds nobody up."""
        self._running_max = running
        self._tenant_max = min(running, running_per_tenant or running)
        self._waiting_max = waiting
        self._patience_seconds = patience.total_seconds()
        self._crowd = crowd or Crowd(None)
        self._lock = threading.RLock()
        self._running: dict[str, int] = {}
        self._running_of_keys: dict[str, int] = {}
        # What each tenant that has or wants turns may have: by its newest query.
        self._shares: dict[str, int] = {}
        self._taken = 0
        # Tenants that wait, the one to be served next first.
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._waiting = 0

    @property
    def taken(self) -> int:
        """How many queries run."""
        with self._lock:
            return self._taken

    @property
    def waiting(self) -> int:
        """How many queries wait for a turn."""
        with self._lock:
            return self._waiting

    def of(self, tenant: str | Share) -> "TenantTurns":
        """The turns as one query of a tenant takes them."""
        return TenantTurns(self, Share(tenant) if isinstance(tenant, str) else tenant)

    def take(self, share: Share, stop: Interruption | None) -> tuple[timedelta, float | None]:
        """See TenantTurns, of which all these are the other side. Returns its mark as well."""
        with self._lock:
            self._shares[share.tenant] = self._most_of(share)
            self._crowd.asks(share.tenant)
            try:
                # A larger share than before may let others in at once.
                self._grant()
                if self._is_free_for(share):
                    self._begin(share)
                    return timedelta(0), self._crowd.begins(share.tenant)
                self._check_queue(share)
            except BaseException:
                self._crowd.leaves(share.tenant)
                raise
            waiter = self._enter(share, again=False)
        return self._wait(waiter, self._patience_seconds, stop), waiter.mark

    def take_again(self, share: Share, patience: timedelta, stop: Interruption | None) -> None:
        with self._lock:
            self._crowd.asks(share.tenant)
            waiter = self._enter(share, again=True)
            self._grant()
        self._wait(waiter, patience.total_seconds(), stop)

    def give_back(self, share: Share, mark: float | None) -> None:
        with self._lock:
            _less(self._running, share.tenant)
            if share.key is not None:
                _less(self._running_of_keys, share.key)
            self._taken -= 1
            self._crowd.leaves(share.tenant, mark)
            self._grant()
            self._forget(share.tenant)

    def _is_free_for(self, share: Share) -> bool:
        """Whether it need not wait: nobody is passed over, for those who wait are granted first."""
        if self._taken >= self._running_max or not self._has_room(share.tenant):
            return False
        moment = self._crowd.look()
        return self._key_has_room(share) and self._crowd.may_begin(share.tenant, moment)

    def _begin(self, share: Share) -> None:
        _more(self._running, share.tenant)
        if share.key is not None:
            _more(self._running_of_keys, share.key)
        self._taken += 1

    def _check_queue(self, share: Share) -> None:
        """Raise Overloaded unless one more may wait.

        Who waits for other tenants, and not for a limit of his own, stands in no queue of his.
        """
        own = len(self._queues.get(share.tenant, ()))
        if share.waiting_max is not None:
            most = self._shares[share.tenant] - self._running.get(share.tenant, 0)
            room = max(0, min(most, self._running_max - self._taken))
            if own >= share.waiting_max + room:
                raise _queue_is_full(own, share.waiting_max)
        if self._waiting >= self._waiting_max:
            self._make_room(share)

    def _make_room(self, share: Share) -> None:
        longest = max(self._queues.values(), key=len, default=None)
        own = len(self._queues.get(share.tenant, ()))
        if longest is None or len(longest) <= own + 1:
            raise self._refusal(share)
        ousted = longest[-1]
        ousted.ousted = True
        self._leave(ousted)
        ousted.wake.release()

    def _wait(self, waiter: _Waiter, seconds: float, stop: Interruption | None) -> timedelta:
        stop = stop or Interruption()
        began = time.monotonic()
        former = stop.connect(waiter.wake.release)
        try:
            self._wait_until_granted(waiter, began + seconds, stop)
        finally:
            stop.connect(former)
        return timedelta(seconds=time.monotonic() - began)

    def _enter(self, share: Share, *, again: bool) -> _Waiter:
        waiter = _Waiter(share, again=again)
        self._shares.setdefault(share.tenant, self._most_of(share))
        queue = self._queues.setdefault(share.tenant, deque())
        if again:
            queue.appendleft(waiter)
        else:
            queue.append(waiter)
        self._waiting += 1
        return waiter

    def _wait_until_granted(self, waiter: _Waiter, until: float, stop: Interruption) -> None:
        pause = LOOK_SECONDS
        while not (waiter.granted or waiter.ousted or stop.requested):
            left = until - time.monotonic()
            if left <= 0:
                break
            if not waiter.wake.acquire(timeout=min(left, pause)):
                pause = self._look_again(waiter)
        with self._lock:
            if waiter.granted and not stop.requested:
                return
            self._undo(waiter)
        stop.check()
        raise self._refusal(waiter.share)

    def _look_again(self, waiter: _Waiter) -> float:
        """Time alone may let a query begin; seconds until the next look.

        The first of each queue looks for all: a crowd that waits costs next to nothing.
        """
        with self._lock:
            queue = self._queues.get(waiter.share.tenant)
            if not queue or queue[0] is not waiter:
                return YOUNG_SECONDS
            self._grant()
            return LOOK_SECONDS

    def _undo(self, waiter: _Waiter) -> None:
        """It wants no turn any more: leave the queue, or pass the turn on."""
        if waiter.granted:
            self.give_back(waiter.share, waiter.mark)
            return
        if not waiter.ousted:
            self._leave(waiter)
        self._crowd.leaves(waiter.share.tenant)
        self._grant()

    def _leave(self, waiter: _Waiter) -> None:
        tenant = waiter.share.tenant
        queue = self._queues[tenant]
        queue.remove(waiter)
        self._waiting -= 1
        if not queue:
            del self._queues[tenant]
            self._forget(tenant)

    def _forget(self, tenant: str) -> None:
        if tenant not in self._running and tenant not in self._queues:
            self._shares.pop(tenant, None)

    def _grant(self) -> None:
        """Hand out every free turn, one tenant after the other."""
        while self._taken < self._running_max and (waiter := self._next()) is not None:
            share = waiter.share
            # First: a tenant that has nothing is forgotten.
            self._begin(share)
            if not waiter.again:
                waiter.mark = self._crowd.begins(share.tenant)
            self._leave(waiter)
            waiter.granted = True
            waiter.wake.release()
            if share.tenant in self._queues:
                self._queues.move_to_end(share.tenant)

    def _next(self) -> _Waiter | None:
        if not self._queues:
            return None
        moment = self._crowd.look()
        for tenant, queue in self._queues.items():
            if self._has_room(tenant):
                begins = self._crowd.may_begin(tenant, moment)
                for waiter in queue:
                    if (begins or waiter.again) and self._key_has_room(waiter.share):
                        return waiter
        return None

    def _most_of(self, share: Share) -> int:
        return min(self._running_max, share.running_max or self._tenant_max)

    def _has_room(self, tenant: str) -> bool:
        return self._running.get(tenant, 0) < self._shares.get(tenant, self._tenant_max)

    def _key_has_room(self, share: Share) -> bool:
        if share.key is None or share.key_running_max is None:
            return True
        return self._running_of_keys.get(share.key, 0) < share.key_running_max

    def _refusal(self, share: Share) -> Overloaded:
        """Which limit stands in the way: the key's, the tenant's, or the process's."""
        with self._lock:
            of_tenant = self._running.get(share.tenant, 0)
            tenant_max = self._shares.get(share.tenant, self._tenant_max)
            of_key = self._running_of_keys.get(share.key or "", 0)
            taken = self._taken
        quota: str | None = Quota.CONCURRENT_QUERIES.value
        if share.key_running_max is not None and of_key >= share.key_running_max:
            used, limit, whose = of_key, share.key_running_max, "of the API key"
        elif of_tenant >= tenant_max:
            used, limit, whose = of_tenant, tenant_max, "of the tenant"
        else:
            used, limit, whose, quota = taken, self._running_max, "of this process", None
        if taken < self._running_max and quota is None:
            return _others_go_first()
        return Overloaded(
            ErrorCode.TOO_MANY_QUERIES,
            f"too many queries run at once, {used} {whose} where {limit} may: finish reading open "
            "results, or retry in a second",
            **({} if quota is None else {"quota": quota}),
            used=used,
            limit=limit,
            max_concurrent=self._running_max,
            max_concurrent_of_tenant=tenant_max,
            max_queued=self._waiting_max,
            retry_after_ms=_RETRY_AFTER_MS,
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )


def _more(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _less(counts: dict[str, int], name: str) -> None:
    counts[name] -= 1
    if counts[name] == 0:
        del counts[name]


def _others_go_first() -> Overloaded:
    return Overloaded(
        ErrorCode.TOO_MANY_QUERIES,
        "too many queries of the tenant begin at once beside those of other tenants: ask fewer at "
        "a time, or retry in a second",
        retry_after_ms=_RETRY_AFTER_MS,
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


def _queue_is_full(used: int, limit: int) -> Overloaded:
    return Overloaded(
        ErrorCode.TOO_MANY_QUERIES,
        f"{used} queries of the tenant wait for a turn, and {limit} may: finish reading open "
        "results, or retry in a second",
        quota=Quota.QUEUED_QUERIES.value,
        used=used,
        limit=limit,
        retry_after_ms=_RETRY_AFTER_MS,
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


class TenantTurns:
    """One query's way to turns: it has one or none."""

    def __init__(self, turns: Turns, share: Share) -> None:
        self._turns = turns
        self._share = share
        self._mark: float | None = None

    def take(self, stop: Interruption | None = None) -> timedelta:
        """Wait for a turn, and return for how long it was; `give_back` must follow.

        Raises Overloaded (TOO_MANY_QUERIES) when too many wait already or none comes free in time,
        and Cancelled when `stop` is pressed meanwhile. A full queue still takes the query of a
        tenant that has fewer in it than another: the other's last is refused instead.
        """
        queued, self._mark = self._turns.take(self._share, stop)
        return queued

    def take_again(self, patience: timedelta, stop: Interruption | None = None) -> None:
        """As `take`, for a query under way that gave its turn back: no queue is too long for it."""
        self._turns.take_again(self._share, patience, stop)

    def give_back(self) -> None:
        """End a turn that was taken."""
        mark, self._mark = self._mark, None
        self._turns.give_back(self._share, mark)
