"""The quotas of the tenants and keys that called this process lately.

A changed quota is heard of by the notification that its change sends. Should that be lost, what is
known is asked for again within a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from catalog import quotas
from catalog.connection import Catalog
from catalog.notifications import QUOTAS_CHANNEL
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.quotas import NO_QUOTAS, Quotas
from gateway.identity import Identity

_KEPT_SECONDS: Final = 0.5
_STALE_SECONDS: Final = 0.9
"""Until then a caller goes by the last look while another one looks again."""
_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one caller may take now. None is no limit."""

    tenant: Quotas
    """Of all the tenant's callers together, the settings' defaults included."""
    key: Quotas
    """Those that the caller's key has of its own."""
    caller: Quotas
    """The smaller of both: what holds for one query of this caller."""
    live_bytes: int
    """What the files of the tenant's newest snapshot take, as of the last look."""

    @property
    def limits_ingest_rate(self) -> bool:
        return self.caller.limits_ingest_rate


@dataclass(slots=True)
class _Known:
    allowance: Allowance
    until: float
    stale_at: float


class KnownQuotas:
    """Quotas by caller, from memory or from the catalog. Thread-safe; memory is bounded."""

    def __init__(
        self,
        catalog: Catalog,
        defaults: Quotas = NO_QUOTAS,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.defaults = defaults
        self._catalog = catalog
        self._monotonic = monotonic
        self._known: dict[tuple[TenantId, KeyId | None], _Known] = {}
        self._subscribed = False

    def of(self, identity: Identity) -> Allowance:
        """What the caller may take, as it was within the last second. Raises Unavailable."""
        key = identity.tenant_id, identity.key_id
        known = self._known.get(key)
        now = self._monotonic()
        if known is not None:
            if now < known.until:
                return known.allowance
            if now < known.stale_at:
                # Only this caller looks; the others go by the last look meanwhile.
                known.until = known.stale_at
        return self._look(*key)

    def recall(self, identity: Identity) -> Allowance | None:
        """The same from memory; None when `of` would ask the catalog. Never blocks."""
        known = self._known.get((identity.tenant_id, identity.key_id))
        return known.allowance if known is not None and self._monotonic() < known.until else None

    def _look(self, tenant_id: TenantId, key_id: KeyId | None) -> Allowance:
        self._listen()
        asked_at = self._monotonic()
        with self._catalog.connect() as connection:
            found = quotas.in_force(connection, tenant_id, key_id)
        tenant = found.tenant.over(self.defaults)
        caller = tenant.narrowed(found.key)
        allowance = Allowance(tenant, found.key, caller, found.live_bytes)
        if len(self._known) >= _LIMIT:
            self._known.clear()
        # From the question on, not from the answer: a quota may have been changed in between.
        self._known[tenant_id, key_id] = _Known(
            allowance, asked_at + _KEPT_SECONDS, asked_at + _STALE_SECONDS
        )
        return allowance

    def _listen(self) -> None:
        if not self._subscribed:
            self._subscribed = True
            self._catalog.subscribe(QUOTAS_CHANNEL, self._forget_all)

    def _forget_all(self, _payload: str) -> None:
        self._known = {}
