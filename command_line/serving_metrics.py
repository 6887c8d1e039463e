"""What a serving process tells at each scrape, beyond what it counts."""

from collections.abc import Iterator

from prometheus_client import Metric

from duckmesh import live_metrics as live
from flight_server.server import FlightDoor
from gateway.reads import Reads
from object_store.file_cache import FileCache


class ServingMetrics:
    """Figures of one serving process, in memory: asking costs a few locks."""

    def __init__(self, reads: Reads, cache: FileCache, flight: FlightDoor) -> None:
        self._reads = reads
        self._cache = cache
        self._flight = flight

    def metrics(self) -> Iterator[Metric]:
        """The figures of this moment."""
        yield live.QUERIES_RUNNING.of(self._reads.queries_running)
        yield live.ANSWERS_OPEN.of(self._reads.answers_open)
        yield live.BARRIER_WAITING.of(self._reads.waiting_for_visibility)
        yield live.FLIGHT_IN_FLIGHT.of(self._flight.calls_in_flight)
        usage = self._cache.usage()
        yield live.CACHE_HITS.of(usage.hits)
        yield live.CACHE_MISSES.of(usage.misses)
        yield live.CACHE_EVICTIONS.of(usage.evictions)
        yield live.CACHE_BYTES.of(usage.size_bytes)
        replicas = self._reads.replicas
        yield live.REPLICA_BYTES.of(0 if replicas is None else replicas.size_bytes)
        yield live.REPLICA_SEGMENTS.of(0 if replicas is None else replicas.segments)
