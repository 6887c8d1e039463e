"""The barrier: waiting, with a deadline, until what a query names is visible.

A token T is visible to a query over some tables when no unresolved event of those tables has a
token <= T. Two questions answer that, in this order: is the newest watermark >= T, else has the bus
nothing unresolved up to T for these tables. The snapshot is read after the second answer, so it
holds everything that was resolved by then.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final

from catalog import snapshots
from catalog.connection import Catalog
from catalog.notifications import PUBLISHED_CHANNEL, WANTED_CHANNEL
from catalog.snapshots import Snapshot
from duckmesh.clock import Deadline
from duckmesh.errors import ErrorCode, Invalid, NotYetVisible
from duckmesh.identifiers import TableId, TenantId
from duckmesh.tokens import VisibilityToken
from gateway.counts import count_barrier
from ingest_bus.port import IngestBus
from query_engine.engine import Interruption

_POLL_SECONDS: Final = 0.25
"""How long a lost notification can delay a waiting query."""


class Visibility:
    """What is visible to whom, and when. One per process; thread-safe."""

    def __init__(self, catalog: Catalog, bus: IngestBus) -> None:
        self._catalog = catalog
        self._bus = bus
        self._lock = threading.Lock()
        self._waiting: dict[TenantId, set[threading.Event]] = {}
        """Of each tenant's waiting callers the event that ends a wait. Under the lock."""
        self._subscribed = False

    @property
    def waiting(self) -> int:
        """How many callers wait at the barrier."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def newest(self, tenant_id: TenantId) -> Snapshot:
        """The tenant's newest snapshot at the time of the call."""
        with self._catalog.connect() as connection:
            return snapshots.newest(connection, tenant_id)

    def last_token(self, tenant_id: TenantId) -> VisibilityToken:
        """The largest token issued to the tenant."""
        return self._bus.last_token(tenant_id)

    def wait(
        self,
        tenant_id: TenantId,
        token: VisibilityToken,
        *,
        tables_of: Callable[[Snapshot], Collection[TableId] | None],
        deadline: Deadline,
        stop: Interruption | None = None,
        newest: Snapshot | None = None,
    ) -> Snapshot:
        """Block until the token is visible for some tables; return a snapshot.

        `tables_of` names them as they are in a snapshot (None: all); it is asked only when there
        is something to wait for. The snapshot returned is the newest at that moment, or `newest`,
        a moment ago's, when the token is visible there. Raises
        Invalid (VISIBILITY_TOKEN_INVALID) at once for a token that was never issued, NotYetVisible
        (CONSISTENCY_TIMEOUT) at the deadline, Cancelled when `stop` is pressed.
        """
        with count_barrier():
            if newest is not None and newest.max_visibility_token >= token:
                return newest
            return self._wait(tenant_id, token, tables_of, deadline, stop or Interruption())

    def _wait(
        self,
        tenant_id: TenantId,
        token: VisibilityToken,
        tables_of: Callable[[Snapshot], Collection[TableId] | None],
        deadline: Deadline,
        stop: Interruption,
    ) -> Snapshot:
        # Before the first look: what is published after it ends the first wait.
        with self._news_of(tenant_id, stop) as news:
            checked = False
            while True:
                stop.check()
                newest = self.newest(tenant_id)
                if newest.max_visibility_token >= token:
                    return newest
                wanted = tables_of(newest)
                unresolved = self._bus.has_unresolved(tenant_id, wanted, through=token)
                if unresolved and not deadline.passed:
                    # Said at every turn: the coordinator that heard it first may have died.
                    self._catalog.announce(WANTED_CHANNEL, str(tenant_id))
                if not checked:
                    # A coordinator is at work meanwhile.
                    self._check_issued(tenant_id, token)
                    self._listen()
                    checked = True
                if unresolved:
                    if deadline.passed:
                        raise _timeout(token, newest)
                    news.wait(min(_POLL_SECONDS, deadline.remaining_seconds))
                    # Before the next look: what comes after it is news again.
                    news.clear()
                    continue
                # Read again: what was resolved a moment ago is in the newest snapshot now.
                again = self.newest(tenant_id)
                if again.snapshot_id == newest.snapshot_id or _same(tables_of(again), wanted):
                    return again
                # A name means another table by now: that one is waited for.

    @contextlib.contextmanager
    def _news_of(self, tenant_id: TenantId, stop: Interruption) -> Iterator[threading.Event]:
        """An event that is set by each publication of the tenant and by `stop`, in the block."""
        news = threading.Event()
        with self._lock:
            self._waiting.setdefault(tenant_id, set()).add(news)
        former = stop.connect(news.set)
        try:
            yield news
        finally:
            stop.connect(former)
            with self._lock:
                others = self._waiting[tenant_id]
                others.remove(news)
                if not others:
                    del self._waiting[tenant_id]

    def _check_issued(self, tenant_id: TenantId, token: VisibilityToken) -> None:
        last = self._bus.last_token(tenant_id)
        if token > last:
            raise Invalid(
                ErrorCode.VISIBILITY_TOKEN_INVALID,
                f"token {token} was never issued; the last one is {last}: name one of a receipt",
                requested_token=token,
                last_token=last,
            )

    def _listen(self) -> None:
        if not self._subscribed:
            self._subscribed = True
            self._catalog.subscribe(PUBLISHED_CHANNEL, self._take_note)

    def _take_note(self, payload: str) -> None:
        """Wake who waits for the tenant; everybody, when some notes may be lost."""
        tenant_id = json.loads(payload)["tenant_id"] if payload else None
        with self._lock:
            if tenant_id is None:
                waiting = [news for each in self._waiting.values() for news in each]
            else:
                waiting = list(self._waiting.get(tenant_id, ()))
        for news in waiting:
            news.set()


def _same(one: Collection[TableId] | None, other: Collection[TableId] | None) -> bool:
    return one is other or (one is not None and other is not None and set(one) == set(other))


def _timeout(token: VisibilityToken, newest: Snapshot) -> NotYetVisible:
    return NotYetVisible(
        ErrorCode.CONSISTENCY_TIMEOUT,
        f"token {token} is accepted but not visible yet (watermark "
        f"{newest.max_visibility_token}): ask again, or allow a longer timeout",
        requested_token=token,
        latest_token=newest.max_visibility_token,
    )
