"""The lag of all tenants, for the metrics page: asked for at each scrape, within a time limit."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from prometheus_client import Metric

from catalog import snapshots
from catalog.connection import Catalog
from catalog.tenants import list_tenants
from duckmesh import live_metrics as live
from duckmesh.shared_answer import SharedAnswer
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import Lag, TenantLag
from ingest_bus.port import IngestBus

PATIENCE: Final = timedelta(seconds=2)
"""How long a scrape waits for the catalog. Prometheus gives a scrape ten seconds by default."""


@dataclass(frozen=True, slots=True)
class _Seen:
    lag: Lag
    latest_token: VisibilityToken
    by_name: tuple[tuple[str, TenantLag], ...]


class LiveLag:
    """Asks catalog and bus together, once for all scrapes of a second. Thread-safe.

    With `tenants_max` at 0 no tenant is named: a page that anybody may read names none.
    """

    def __init__(self, catalog: Catalog, bus: IngestBus, *, tenants_max: int) -> None:
        self._catalog = catalog
        self._bus = bus
        self._tenants_max = tenants_max
        self._shared = SharedAnswer(self._look, patience=PATIENCE)

    def metrics(self) -> Iterator[Metric]:
        """The gauges. Raises TimeoutError, and Unavailable when the catalog is away."""
        seen = self._shared.get()
        lag = seen.lag
        yield live.VISIBILITY_LAG.of(lag.oldest_seconds)
        yield live.INGEST_LAG_EVENTS.of(lag.events)
        yield live.INGEST_LAG_BYTES.of(lag.bytes)
        yield live.LATEST_TOKEN.of(seen.latest_token)
        yield live.EXPIRED_LEASES.of(lag.expired_leases)
        yield live.DEAD_LETTERS.of(lag.dead_letters)
        if self._tenants_max:
            yield live.TENANT_VISIBILITY_LAG.by_label(
                (name, each.oldest_seconds) for name, each in seen.by_name
            )
            yield live.TENANT_LAG_EVENTS.by_label(
                (name, each.events) for name, each in seen.by_name
            )

    def _look(self) -> _Seen:
        lag = self._bus.lag(tenants_max=max(1, self._tenants_max), patience=PATIENCE)
        with self._catalog.connect() as connection:
            latest = snapshots.latest_token(connection)
            named = list_tenants(connection) if self._tenants_max and lag.tenants else []
        names = {tenant.tenant_id: tenant.name for tenant in named}
        by_name = tuple(
            (names[each.tenant_id], each) for each in lag.tenants if each.tenant_id in names
        )
        return _Seen(lag, latest, by_name)
