"""What is written down of who asked and who changed what."""

from pydantic import Field

from duckmesh.settings_groups.fields import Group, Span


class AuditSettings(Group):
    """The audit of queries and of administrative acts."""

    queries: bool = Field(
        default=True, description="Whether every statement leaves a row in the query audit."
    )
    redact_literals: bool = Field(
        default=False,
        description="Whether `?` stands in for each literal of an audited statement.",
    )
    sql_max_chars: int = Field(
        default=4096,
        ge=100,
        le=1_000_000,
        description="An audited statement is cut behind so many characters.",
    )
    buffer_rows: int = Field(
        default=10_000,
        ge=100,
        le=1_000_000,
        description=(
            "Rows that wait for the catalog in memory; those beyond are lost, counted and logged."
        ),
    )
    flush_interval_ms: int = Field(
        default=1000, ge=10, le=60_000, description="How long rows are gathered for one insert."
    )
    query_retention_days: float = Field(
        default=30, gt=0, le=36_500, description="How long rows of the query audit are kept."
    )
    act_retention_days: float = Field(
        default=400, gt=0, le=36_500, description="How long administrative acts are kept."
    )
    flush_interval = Span("flush_interval_ms")
    query_retention = Span("query_retention_days")
    act_retention = Span("act_retention_days")
