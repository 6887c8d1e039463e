"""Metrics that are not counted but asked for, at each scrape."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LiveFamily:
    """One metric without its values."""

    name: str
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    meaning: str
    labels: tuple[str, ...] = ()

    def of(self, value: float) -> Metric:
        """The metric with its one value."""
        return self.kind(self.name, self.meaning, value=value)

    def by_label(self, values: Iterable[tuple[str, float]]) -> Metric:
        """The metric with a value for each value of its one label."""
        family = self.kind(self.name, self.meaning, labels=self.labels)
        for label, value in values:
            family.add_metric([label], value)
        return family


def _gauge(name: str, meaning: str, *labels: str) -> LiveFamily:
    return LiveFamily(f"duckmesh_{name}", GaugeMetricFamily, meaning, labels)


def _counter(name: str, meaning: str) -> LiveFamily:
    return LiveFamily(f"duckmesh_{name}", CounterMetricFamily, meaning)


VISIBILITY_LAG: Final = _gauge(
    "visibility_lag",
    "Seconds that the oldest accepted write, of any tenant, has not been visible; 0 without one.",
)
INGEST_LAG_EVENTS: Final = _gauge(
    "ingest_lag_events", "Writes of all tenants that are accepted and not resolved."
)
INGEST_LAG_BYTES: Final = _gauge("ingest_lag_bytes", "The payload bytes of those writes.")
LATEST_TOKEN: Final = _gauge(
    "latest_visibility_token", "The largest token that is visible, of any tenant."
)
TENANT_VISIBILITY_LAG: Final = _gauge(
    "tenant_visibility_lag",
    "As duckmesh_visibility_lag, of the tenants furthest behind, at most "
    "`coordinator.metrics_tenants_max`; a coordinator's page alone has it.",
    "tenant",
)
TENANT_LAG_EVENTS: Final = _gauge(
    "tenant_ingest_lag_events", "As duckmesh_ingest_lag_events, of the same tenants.", "tenant"
)
EXPIRED_LEASES: Final = _gauge(
    "expired_leases", "Claims whose lease has run out and that nobody has swept yet."
)
DEAD_LETTERS: Final = _gauge(
    "dead_letters", "Events of all tenants that were given up and not replayed."
)
QUERIES_RUNNING: Final = _gauge("queries_running", "Queries that have a turn.")
ANSWERS_OPEN: Final = _gauge("answers_open", "Answers that are not read to their end.")
BARRIER_WAITING: Final = _gauge("barrier_waiting", "Callers that wait at the barrier.")
FLIGHT_IN_FLIGHT: Final = _gauge("flight_requests_in_flight", "Flight calls in flight.")
CACHE_HITS: Final = _counter("file_cache_hits", "Files that a query found in the cache.")
CACHE_MISSES: Final = _counter("file_cache_misses", "Files that the cache had to fetch.")
CACHE_EVICTIONS: Final = _counter("file_cache_evictions", "Files that made room for others.")
CACHE_BYTES: Final = _gauge("file_cache_bytes", "The size of the files in the cache.")
REPLICA_BYTES: Final = _gauge("replica_bytes", "The size of all segments of native replicas.")
REPLICA_SEGMENTS: Final = _gauge("replica_segments", "Segments that queries may read.")

FAMILIES: Final = tuple(each for each in list(globals().values()) if isinstance(each, LiveFamily))
"""All of them, in the order of this file."""

Source = Callable[[], Iterable[Metric]]
"""Yields metrics of FAMILIES. It may raise: then its metrics are missing from that scrape."""


class LiveMetrics(Collector):
    """The sources of live metrics that a process has. Thread-safe."""

    def __init__(self, *, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._sources: list[Source] = []

    @contextlib.contextmanager
    def asking(self, source: Source) -> Iterator[None]:
        """Ask `source` at each scrape for the length of the block."""
        with self._lock:
            self._sources.append(source)
        try:
            yield
        finally:
            with self._lock:
                self._sources.remove(source)

    def collect(self) -> Iterator[Metric]:
        """What all sources tell. A source that fails costs its own metrics, never the scrape."""
        with self._lock:
            sources = list(self._sources)
        for source in sources:
            try:
                found = list(source())
            except Exception as error:  # noqa: BLE001 - whatever it is, the page goes out
                _log.warning("metrics_missing", reason=type(error).__name__)
                self._on_failure()
                continue
            yield from found

    def describe(self) -> list[Metric]:
        """Nothing: a registry that finds no description would ask the sources themselves."""
        return []
