"""Limits on writes, and the refusal before collapse."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from duckmesh.errors import ErrorCode, Exceeded, Overloaded
from duckmesh.identifiers import TenantId
from duckmesh.quotas import Quota
from gateway.identity import Identity
from gateway.known_quotas import Allowance, KnownQuotas
from ingest_bus.envelope import Backlog
from ingest_bus.port import IngestBus

_LOOK_AGAIN_SECONDS: Final = 0.25
_NOTHING: Final = Backlog(0, 0, None)


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """How large one write may be, and how much may wait to become visible by default."""

    write_max_bytes: int = 64 * 2**30
    max_pending_events: int = 1_000_000
    max_pending_bytes: int = 8 * 2**30


class Backpressure:
    """Refuses writes of a tenant while too much of it waits, or is stored. Thread-safe.

    What a tenant has is looked at a few times a second, not at every write: a cap may be passed by
    what comes in between.
    """

    def __init__(self, bus: IngestBus, limits: IngestLimits, quotas: KnownQuotas) -> None:
        self._bus = bus
        self._quotas = quotas
        self._limits = limits
        self._lock = threading.Lock()
        self._seen: dict[TenantId, tuple[float, Backlog]] = {}

    def check(self, identity: Identity, *, adds: bool = True) -> None:
        """Raise what forbids a write now.

        Overloaded (QUOTA_EXCEEDED) while the tenant's backlog is over a cap; Exceeded
        (QUOTA_EXCEEDED) for a write that `adds` to a tenant that has no room left.
        """
        self._judge(self._quotas.of(identity), lambda: self._backlog(identity.tenant_id), adds=adds)

    def check_recalled(self, identity: Identity, allowance: Allowance) -> bool:
        """The same, by what memory knows: False when only `check` can tell. Never blocks."""
        until, backlog = self._seen.get(identity.tenant_id, (0.0, _NOTHING))
        if time.monotonic() >= until:
            return False
        self._judge(allowance, lambda: backlog, adds=True)
        return True

    def _judge(
        self, allowance: Allowance, backlog_now: Callable[[], Backlog], *, adds: bool
    ) -> None:
        tenant = allowance.tenant
        room = tenant.storage_bytes
        if adds and room is not None and allowance.live_bytes >= room:
            raise _no_room(allowance.live_bytes, room)
        backlog = backlog_now()
        events, size_bytes = tenant.pending_events, tenant.pending_bytes
        events = self._limits.max_pending_events if events is None else events
        size_bytes = self._limits.max_pending_bytes if size_bytes is None else size_bytes
        # A new exception each time: one that is raised twice gathers tracebacks.
        if backlog.events > events:
            raise _too_much_waits(Quota.PENDING_EVENTS, backlog.events, events)
        if backlog.bytes > size_bytes:
            raise _too_much_waits(Quota.PENDING_BYTES, backlog.bytes, size_bytes)

    def _backlog(self, tenant_id: TenantId) -> Backlog:
        """What waits, as of the last look."""
        with self._lock:
            until, backlog = self._seen.get(tenant_id, (0.0, _NOTHING))
            now = time.monotonic()
            if now < until:
                return backlog
            # Only this caller looks; the others go by the last look meanwhile.
            self._seen[tenant_id] = (now + _LOOK_AGAIN_SECONDS, backlog)
        backlog = self._bus.backlog(tenant_id)
        with self._lock:
            self._seen[tenant_id] = (time.monotonic() + _LOOK_AGAIN_SECONDS, backlog)
        return backlog


def _too_much_waits(quota: Quota, used: int, limit: int) -> Overloaded:
    unit = "writes" if quota is Quota.PENDING_EVENTS else "bytes"
    return Overloaded(
        ErrorCode.QUOTA_EXCEEDED,
        f"{used} {unit} of the tenant are accepted and not visible yet, and {limit} may be: retry "
        "in a second",
        quota=quota.value,
        used=used,
        limit=limit,
        retry_after_ms=1000,
        retry_after_seconds=1,
    )


def _no_room(used: int, limit: int) -> Exceeded:
    return Exceeded(
        ErrorCode.QUOTA_EXCEEDED,
        f"the tenant's tables hold {used} bytes of files and may hold {limit}: drop tables or "
        "replace their rows by fewer, or ask the operator for more",
        quota=Quota.STORAGE_BYTES.value,
        used=used,
        limit=limit,
    )
