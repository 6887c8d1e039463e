"""What a tenant may take that has no quotas of its own."""

from pydantic import Field

from duckmesh.quotas import VALUE_MAX
from duckmesh.settings_groups.fields import Group


class QuotaSettings(Group):
    """What one tenant may take by default; `duckmesh tenants quota` sets it for each."""

    ingest_rows_per_second: int | None = Field(
        default=None,
        ge=1,
        le=VALUE_MAX,
        description=(
            "Rows that each serving process takes in of one tenant. Streams are slowed down, other "
            "writes refused with RATE_LIMITED. No limit when not set."
        ),
    )
    ingest_bytes_per_second: int | None = Field(
        default=None,
        ge=1,
        le=VALUE_MAX,
        description="The same, by the bytes of their Arrow data. No limit when not set.",
    )
    storage_bytes: int | None = Field(
        default=None,
        ge=0,
        le=VALUE_MAX,
        description=(
            "What the files of a tenant's newest snapshot may take; beyond, writes that add rows "
            "get QUOTA_EXCEEDED. No limit when not set."
        ),
    )
    tables: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000,
        description="Tables of one tenant; beyond, QUOTA_EXCEEDED.",
    )
    queued_queries: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description=(
            "Queries of one tenant that wait for their turn in a serving process; beyond, "
            "TOO_MANY_QUERIES. As many as `query.max_queued` when not set."
        ),
    )
    query_rows: int | None = Field(
        default=None,
        ge=1,
        le=VALUE_MAX,
        description="Rows of one answer; beyond, QUOTA_EXCEEDED. No limit when not set.",
    )
    query_bytes: int | None = Field(
        default=None,
        ge=1,
        le=VALUE_MAX,
        description="Bytes of one answer; beyond, QUOTA_EXCEEDED. No limit when not set.",
    )
