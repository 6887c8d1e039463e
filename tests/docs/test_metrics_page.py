"""docs/metrics.md is what the code says, and the code has what the requirements name."""

from pathlib import Path

from duckmesh import metrics
from duckmesh.metrics_reference import metric_names, metrics_page
from tests.scraping import scraped

ROOT = Path(__file__).parent.parent.parent

PROMISED = [
    "ingest_requests_total",
    "ingest_records_total",
    "ingest_duplicates_total",
    "ingest_ack_latency",
    "visibility_lag",
    "latest_visibility_token",
    "consistency_timeout_total",
    "write_to_visible_latency",
    "ingest_lag_events",
    "claim_batch_size",
    "claim_retries_total",
    "commit_batch_latency",
    "snapshot_publish_failures_total",
    "query_requests_total",
    "query_latency",
    "query_scanned_files",
    "query_scanned_bytes",
    "compaction_runs_total",
    "compaction_bytes_rewritten_total",
    "gc_files_deleted_total",
    "integrity_runs_total",
    "integrity_files_checked_total",
    "integrity_missing_files_total",
    "integrity_size_mismatch_files_total",
]


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_page(), "run `python -m duckmesh.metrics_reference`"


def test_every_promised_metric_is_there() -> None:
    missing = {f"duckmesh_{name}" for name in PROMISED} - metric_names()
    assert not missing


def test_every_metric_of_a_scrape_is_in_the_page() -> None:
    metrics.QUERY_SECONDS.observe(0.1)
    assert scraped(metrics.page().decode()).names <= metric_names()
