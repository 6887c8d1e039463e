"""What the door counts, for Prometheus. Labels are bounded: a route's template, not its path."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from duckmesh.tokens import VisibilityToken

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class DoorMetrics:
    """The metrics of one HTTP door. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "duckmesh_http_requests",
            "Requests answered, by route, method and status.",
            ("route", "method", "code"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "duckmesh_http_request_duration_seconds",
            "From a request's first byte to its answer's last, by route and method.",
            ("route", "method"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "duckmesh_http_requests_in_flight", "Requests in flight.", registry=self._registry
        )
        self.records = Counter(
            "duckmesh_ingest_records",
            "Rows accepted over HTTP, without duplicates.",
            registry=self._registry,
        )
        self.duplicates = Counter(
            "duckmesh_ingest_duplicates",
            "Writes over HTTP that were known by their idempotency key.",
            registry=self._registry,
        )
        self._latest_token = Gauge(
            "duckmesh_latest_visibility_token",
            "The largest token that this door has acknowledged, of any tenant.",
            registry=self._registry,
        )
        self._largest = 0

    def note_token(self, token: VisibilityToken) -> None:
        """A write was acknowledged with this token."""
        # Two threads may cross here; the gauge is then behind until the next write.
        self._largest = max(self._largest, int(token))
        self._latest_token.set(self._largest)

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
