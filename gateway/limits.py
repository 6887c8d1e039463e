"""Limits on writes, and the refusal before collapse."""

import threading
import time
from dataclasses import dataclass
from typing import Final

from duckmesh.errors import ErrorCode, Overloaded
from duckmesh.identifiers import TenantId
from ingest_bus.envelope import Backlog
from ingest_bus.port import IngestBus

_LOOK_AGAIN_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """How large one write may be, and how much may wait to become visible."""

    write_max_bytes: int = 64 * 2**30
    max_pending_events: int = 1_000_000
    max_pending_bytes: int = 8 * 2**30


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
