"""What a process counts, for Prometheus: every metric by its name, type, labels and meaning.

One registry a process. Labels are bounded: a route's template and not its path, an error's code
and not its text, no table and no principal. Counting never raises and never blocks for long.
docs/metrics.md is generated from here.
"""

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from duckmesh.counted import Counter, Histogram
from duckmesh.live_metrics import LiveMetrics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
OK: Final = "OK"
"""The `code` of what did not fail; else it is an error code of docs/errors.md."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
_FILES: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)
_BYTES: Final = tuple(4**power * 1024 for power in range(13))  # 1 KiB to 16 GiB.

REGISTRY: Final = CollectorRegistry()


@dataclass(frozen=True, slots=True)
class Counted:
    """A metric's name as Prometheus has it, its type, labels and meaning: for the reference."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


COUNTED: Final[list[Counted]] = []
"""All metrics of this file, in its order."""


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    COUNTED.append(Counted(f"duckmesh_{name}_total", "counter", labels, meaning))
    return Counter(f"duckmesh_{name}", meaning, labels, REGISTRY)


def _gauge(name: str, meaning: str) -> Gauge:
    COUNTED.append(Counted(f"duckmesh_{name}", "gauge", (), meaning))
    return Gauge(f"duckmesh_{name}", meaning, registry=REGISTRY)


def _histogram(
    name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
) -> Histogram:
    COUNTED.append(Counted(f"duckmesh_{name}", "histogram", labels, meaning))
    return Histogram(f"duckmesh_{name}", meaning, labels, REGISTRY, buckets)


# --- the doors

HTTP_REQUESTS: Final = _counter(
    "http_requests", "HTTP requests answered, by status.", "route", "method", "code"
)
HTTP_SECONDS: Final = _histogram(
    "http_request_duration_seconds",
    "From an HTTP request's first byte to its answer's last.",
    "route",
    "method",
)
HTTP_IN_FLIGHT: Final = _gauge("http_requests_in_flight", "HTTP requests in flight.")
FLIGHT_REQUESTS: Final = _counter(
    "flight_requests", "Flight calls ended, by RPC and gRPC status.", "method", "code"
)
FLIGHT_SECONDS: Final = _histogram(
    "flight_request_duration_seconds",
    "From a Flight call's headers to its end; a stream lasts as long as its client.",
    "method",
)

# --- writes

INGEST_REQUESTS: Final = _counter(
    "ingest_requests",
    "Writes ended through either door: OK with a receipt, or refused with this code.",
    "code",
)
INGEST_RECORDS: Final = _counter("ingest_records", "Rows accepted, without those of duplicates.")
INGEST_DUPLICATES: Final = _counter(
    "ingest_duplicates", "Writes that were known by their idempotency key, and added nothing."
)
INGEST_ACK_SECONDS: Final = _histogram(
    "ingest_ack_latency",
    "Seconds from a write's last row to its receipt: it is durable then. Once for small batches of "
    "a stream that were accepted together.",
)
GROUP_COMMIT_SIZE: Final = _histogram(
    "group_commit_size", "Envelopes that one transaction of the bus made durable.", buckets=_COUNTS
)

# --- the barrier and queries

CONSISTENCY_TIMEOUTS: Final = _counter(
    "consistency_timeout", "Waits at the barrier that ended with CONSISTENCY_TIMEOUT."
)
BARRIER_SECONDS: Final = _histogram(
    "barrier_wait_latency",
    "Seconds at the barrier of those that named a token, visible at once or not, late or not.",
)
QUERY_REQUESTS: Final = _counter(
    "query_requests",
    "Queries started: OK when the first rows were under way, or refused with this code.",
    "code",
)
QUERY_SECONDS: Final = _histogram(
    "query_latency",
    "Seconds from a query's start (behind the barrier) to its first rows under way: its turn, "
    "its files, DuckDB.",
)
QUERY_QUEUE_SECONDS: Final = _histogram(
    "query_queue_latency", "Seconds that a query waited for its turn; refused ones too."
)
QUERY_SCANNED_FILES: Final = _histogram(
    "query_scanned_files",
    "Data files that a query reads, without those it leaves out.",
    buckets=_FILES,
)
QUERY_PRUNED_FILES: Final = _counter(
    "query_pruned_files", "Data files that queries left out by the statistics of their columns."
)
QUERY_SCANNED_BYTES: Final = _histogram(
    "query_scanned_bytes", "The size of those data files.", buckets=_BYTES
)

REPLICA_QUERIES: Final = _counter(
    "replica_queries",
    "Queries that read tables, by where rows came from: replica when some came from a native "
    "replica, else parquet.",
    "source",
)
REPLICA_BUILDS: Final = _counter(
    "replica_builds", "Segments of native replicas built: OK, or FAILED.", "code"
)
REPLICA_BUILD_SECONDS: Final = _histogram(
    "replica_build_duration_seconds", "One build of a segment, its files fetched and all."
)
REPLICA_SEGMENTS_LOST: Final = _counter(
    "replica_segments_lost", "Segments that a query could not read; they are built anew."
)

# --- publication

WRITE_TO_VISIBLE_SECONDS: Final = _histogram(
    "write_to_visible_latency",
    "Seconds from a write's acceptance to the commit of the snapshot that shows it.",
)
CLAIM_SIZE: Final = _histogram("claim_batch_size", "Events of one claim.", buckets=_COUNTS)
CLAIM_RETRIES: Final = _counter(
    "claim_retries", "Claims of events that a claim before did not resolve."
)
COMMIT_SECONDS: Final = _histogram(
    "commit_batch_latency",
    "Seconds from a claim to the commit of its snapshot: encode, put, commit.",
)
PUBLISH_FAILURES: Final = _counter(
    "snapshot_publish_failures", "Claims that ended without a snapshot, by error code.", "code"
)

# --- duties

DUTY_RUNS: Final = _counter(
    "duty_runs", "Turns of a duty that this process took, by outcome.", "duty", "code"
)
DUTY_SECONDS: Final = _histogram("duty_duration_seconds", "One turn of a duty.", "duty")
COMPACTION_RUNS: Final = _counter("compaction_runs", "Compactions that were published.")
COMPACTION_BYTES: Final = _counter(
    "compaction_bytes_rewritten", "Bytes of the files that compactions replaced."
)
COMPACTION_LAG_FILES: Final = _gauge(
    "compaction_small_files", "Small live files of the tables that have several, at the last look."
)
GC_FILES_DELETED: Final = _counter("gc_files_deleted", "Objects that garbage collection deleted.")
INTEGRITY_RUNS: Final = _counter("integrity_runs", "Integrity checks that came to their end.")
INTEGRITY_FILES: Final = _counter("integrity_files_checked", "Files that integrity checks saw.")
INTEGRITY_MISSING: Final = _counter(
    "integrity_missing_files", "Files of a snapshot that integrity checks did not find."
)
INTEGRITY_MISMATCHES: Final = _counter(
    "integrity_size_mismatch_files", "Files that integrity checks found with another size."
)

# --- the audit

QUERY_AUDIT_ROWS: Final = _counter(
    "query_audit_rows", "Rows of the query audit that the catalog has."
)
QUERY_AUDIT_DROPPED: Final = _counter(
    "query_audit_dropped",
    "Rows of the query audit that were lost: the catalog was away for longer than memory lasts.",
)
ACTS_UNWRITTEN: Final = _counter(
    "admin_audit_dropped",
    "Refused administrative acts without a row: too many in a minute, or the catalog was away.",
)

# --- the process

SCRAPE_FAILURES: Final = _counter(
    "scrape_failures",
    "Scrapes that lack live metrics: the catalog did not tell them in time.",
)
LIVE: Final = LiveMetrics(on_failure=SCRAPE_FAILURES.inc)
"""Metrics that are asked for at each scrape; see duckmesh.live_metrics."""
REGISTRY.register(LIVE)


def page() -> bytes:
    """The text that Prometheus scrapes. Blocks for the live metrics, within their own limits."""
    return generate_latest(REGISTRY)
