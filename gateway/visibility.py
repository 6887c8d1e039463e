"""The barrier: waiting, with a deadline, until what a query names is visible.

A token T is visible to a query over some tables when no unresolved event of those tables has a
token <= T. Two questions answer that, in this order: is the newest watermark >= T, else has the bus
nothing unresolved up to T for these tables. The snapshot is read after the second answer, so it
holds everything that was resolved by then.
"""

import threading
from collections.abc import Callable, Collection
from functools import partial
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
        self._published = threading.Condition()
        self._publications = 0
        self._waiting = 0
        self._subscribed = False

    @property
    def waiting(self) -> int:
        """How many callers wait at the barrier."""
        return self._waiting

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
        newest = self.newest(tenant_id)
        if newest.max_visibility_token >= token:
            return newest
        self._check_issued(tenant_id, token)
        self._listen()
        former = stop.connect(self._look_up)
        with self._published:
            self._waiting += 1
        try:
            return self._watch(tenant_id, token, tables_of, deadline, stop)
        finally:
            with self._published:
                self._waiting -= 1
            stop.connect(former)

    def _watch(
        self,
        tenant_id: TenantId,
        token: VisibilityToken,
        tables_of: Callable[[Snapshot], Collection[TableId] | None],
        deadline: Deadline,
        stop: Interruption,
    ) -> Snapshot:
        while True:
            stop.check()
            seen = self._publications
            newest = self.newest(tenant_id)
            if newest.max_visibility_token >= token:
                return newest
            wanted = tables_of(newest)
            if not self._bus.has_unresolved(tenant_id, wanted, through=token):
                # Read again: what was resolved a moment ago is in the newest snapshot now.
                again = self.newest(tenant_id)
                if again.snapshot_id == newest.snapshot_id or _same(tables_of(again), wanted):
                    return again
                # A name means another table by now: that one is waited for.
                continue
            if deadline.passed:
                raise _timeout(token, newest)
            # Said at every turn: the coordinator that heard it first may have died.
            self._catalog.announce(WANTED_CHANNEL, str(tenant_id))
            with self._published:
                self._published.wait_for(
                    partial(self._news_since, seen, stop),
                    min(_POLL_SECONDS, deadline.remaining_seconds),
                )

    def _news_since(self, seen: int, stop: Interruption) -> bool:
        return self._publications != seen or stop.requested

    def _look_up(self) -> None:
        with self._published:
            self._published.notify_all()

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

    def _take_note(self, _payload: str) -> None:
        with self._published:
            self._publications += 1
            self._published.notify_all()


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
