"""Limits on writes and queries, and the refusal before collapse."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from duckmesh.errors import ErrorCode, Overloaded
from duckmesh.identifiers import TenantId
from ingest_bus.envelope import Backlog
from ingest_bus.port import IngestBus
from query_engine.engine import Interruption

_LOOK_AGAIN_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """How large one write may be, and how much may wait to become visible."""

    write_max_bytes: int = 64 * 2**30
    max_pending_events: int = 1_000_000
    max_pending_bytes: int = 8 * 2**30


class Turns:
    """How many queries run at once, and how many wait for their turn. Thread-safe."""

    def __init__(self, *, running: int, waiting: int, patience: timedelta) -> None:
        self._running = running
        self._waiting_max = waiting
        self._patience_seconds = patience.total_seconds()
        self._free = running
        self._waiting = 0
        self._changed = threading.Condition()

    @property
    def taken(self) -> int:
        """How many queries run."""
        with self._changed:
            return self._running - self._free

    def take(self, stop: Interruption | None = None) -> None:
        """Wait for a turn; `give_back` must follow.

        Raises Overloaded (TOO_MANY_QUERIES) when too many wait already or none comes free in time,
        and Cancelled when `stop` is pressed meanwhile.
        """
        with self._changed:
            if self._free == 0 and self._waiting >= self._waiting_max:
                raise self._refusal()
        self._wait(self._patience_seconds, stop)

    def take_again(self, patience: timedelta, stop: Interruption | None = None) -> None:
        """As `take`, for a query under way that gave its turn back: no queue is too long for it."""
        self._wait(patience.total_seconds(), stop)

    def _wait(self, seconds: float, stop: Interruption | None) -> None:
        stop = stop or Interruption()
        former = stop.connect(self._look_up)
        try:
            with self._changed:
                self._waiting += 1
                try:
                    self._take_when_free(seconds, stop)
                finally:
                    self._waiting -= 1
        finally:
            stop.connect(former)

    def _take_when_free(self, seconds: float, stop: Interruption) -> None:
        if not self._changed.wait_for(lambda: self._free > 0 or stop.requested, seconds):
            raise self._refusal()
        if stop.requested:
            self._changed.notify()  # What woke this one may have been meant for the next.
        stop.check()
        self._free -= 1

    def _look_up(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def give_back(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify()

    def _refusal(self) -> Overloaded:
        return Overloaded(
            ErrorCode.TOO_MANY_QUERIES,
            "too many queries run at once: finish reading open results, or retry in a second",
            max_concurrent=self._running,
            max_queued=self._waiting_max,
            retry_after_seconds=1,
        )


class Backpressure:
    """Refuses writes of a tenant while too much of it waits. Thread-safe.

    The backlog is looked at a few times a second, not at every write: the cap may be passed by what
    comes in between.
    """

    def __init__(self, bus: IngestBus, limits: IngestLimits) -> None:
        self._bus = bus
        self._limits = limits
        self._lock = threading.Lock()
        self._seen: dict[TenantId, tuple[float, Backlog | None]] = {}

    def check(self, tenant_id: TenantId) -> None:
        """Raise Overloaded (QUOTA_EXCEEDED) while the tenant's backlog is over a cap."""
        with self._lock:
            until, over = self._seen.get(tenant_id, (0.0, None))
            now = time.monotonic()
            stale = now >= until
            if stale:
                # Only this caller looks; the others go by the last look meanwhile.
                self._seen[tenant_id] = (now + _LOOK_AGAIN_SECONDS, over)
        if stale:
            over = self._look(tenant_id)
            with self._lock:
                self._seen[tenant_id] = (time.monotonic() + _LOOK_AGAIN_SECONDS, over)
        if over is not None:
            # A new exception each time: one that is raised twice gathers tracebacks.
            raise self._refusal(over)

    def _look(self, tenant_id: TenantId) -> Backlog | None:
        """The backlog, when it is over a cap."""
        backlog = self._bus.backlog(tenant_id)
        limits = self._limits
        if (
            backlog.events <= limits.max_pending_events
            and backlog.bytes <= limits.max_pending_bytes
        ):
            return None
        return backlog

    def _refusal(self, backlog: Backlog) -> Overloaded:
        limits = self._limits
        return Overloaded(
            ErrorCode.QUOTA_EXCEEDED,
            "too much is accepted and not visible yet: retry in a second",
            pending_events=backlog.events,
            pending_bytes=backlog.bytes,
            max_pending_events=limits.max_pending_events,
            max_pending_bytes=limits.max_pending_bytes,
            retry_after_seconds=1,
        )
