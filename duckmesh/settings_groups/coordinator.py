"""How accepted writes become visible."""

from pydantic import Field

from duckmesh.settings_groups.fields import MIB, Group, NonEmpty, Span


class CoordinatorSettings(Group):
    """How accepted writes become visible."""

    consumer_id: NonEmpty | None = Field(
        default=None,
        description="The name that leases carry; host name and process id when not set.",
    )
    claim_limit: int = Field(
        default=5000, ge=1, le=1_000_000, description="Writes taken in one claim at most."
    )
    claim_max_bytes: int = Field(
        default=256 * MIB, ge=1, description="Payload bytes taken in one claim at most."
    )
    lease_seconds: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="How long a claim, or a table in compaction, is one process's; it is extended.",
    )
    poll_seconds: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="How often to look for work when no notification comes.",
    )
    flush_interval_ms: int = Field(
        default=150,
        ge=0,
        le=60_000,
        description="How long to gather writes at most when nobody waits for them: cheap rounds "
        "gather for seven times their own length.",
    )
    inline_file_max_bytes: int = Field(
        default=MIB, ge=0, le=64 * MIB, description="A larger data file lies in the object store."
    )
    backoff_seconds: float = Field(
        default=0.1, gt=0, le=60, description="The pause after a first failure; it doubles."
    )
    backoff_max_seconds: float = Field(
        default=30, gt=0, le=3600, description="The longest pause after a failure."
    )
    metrics_host: NonEmpty = Field(
        default="127.0.0.1",
        description="Where `/metrics`, `/health` and `/ready` listen. They ask for no credentials.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Their port; 0 takes a free one. Not opened when not set.",
    )
    metrics_tenants_max: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="Tenants that have a lag of their own there: those furthest behind.",
    )
    lease = Span("lease_seconds")
    poll = Span("poll_seconds")
    flush_interval = Span("flush_interval_ms")
    backoff = Span("backoff_seconds")
    backoff_max = Span("backoff_max_seconds")
