"""The quotas of tenants that have none of their own, as the settings say them."""

from duckmesh.quotas import Quotas
from duckmesh.settings import Settings


def quota_defaults(settings: Settings) -> Quotas:
    """A value for each quota that the settings limit."""
    ingest, query, quota = settings.ingest, settings.query, settings.quota
    return Quotas(
        ingest_rows_per_second=quota.ingest_rows_per_second,
        ingest_bytes_per_second=quota.ingest_bytes_per_second,
        pending_events=ingest.max_pending_events,
        pending_bytes=ingest.max_pending_bytes,
        storage_bytes=quota.storage_bytes,
        tables=quota.tables,
        concurrent_queries=query.max_concurrent_per_tenant,
        queued_queries=quota.queued_queries,
        query_time_ms=max(1, round(query.wall_time_seconds * 1000)),
        query_memory_bytes=query.memory_bytes,
        query_rows=quota.query_rows,
        query_bytes=quota.query_bytes,
    )
