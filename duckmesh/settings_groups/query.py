"""What queries may use."""

from pydantic import Field

from duckmesh.settings_groups.fields import GIB, MIB, Group, Span


class QuerySettings(Group):
    """What one query may use."""

    consistency_timeout_ms: int = Field(
        default=3000,
        ge=0,
        le=3_600_000,
        description="How long a query waits for its token by default.",
    )
    max_consistency_timeout_ms: int = Field(
        default=60_000,
        ge=0,
        le=3_600_000,
        description="The longest wait that a client may ask for.",
    )
    wall_time_seconds: float = Field(
        default=60, gt=0, le=86_400, description="How long a query may run; beyond, QUERY_TIMEOUT."
    )
    fetch_timeout_seconds: float = Field(
        default=300,
        gt=0,
        le=86_400,
        description="How long a query's rows may wait for their reader; beyond, QUERY_TIMEOUT.",
    )
    memory_bytes: int = Field(
        default=GIB,
        ge=64 * MIB,
        description="What the queries of a worker may hold in memory; beyond, QUERY_MEMORY.",
    )
    workers: int = Field(
        default=8,
        ge=0,
        le=1000,
        description=(
            "Processes that run queries at most, each for one tenant, beside one that waits "
            "ready; 0 runs queries in the serving process, without their walls."
        ),
    )
    worker_idle_seconds: float = Field(
        default=300, gt=0, le=86_400, description="A worker without a query for so long ends."
    )
    kill_grace_seconds: float = Field(
        default=2,
        gt=0,
        le=3600,
        description="How long a query may ignore that it was stopped; then its worker is killed.",
    )
    spill_max_bytes: int = Field(
        default=10 * GIB,
        ge=MIB,
        description="What the queries of a worker may write to disk when memory is short.",
    )
    threads: int = Field(default=2, ge=1, le=1024, description="Threads of one worker's queries.")
    max_concurrent: int = Field(
        default=16, ge=1, le=10_000, description="Queries of a serving process that run at once."
    )
    max_concurrent_per_tenant: int = Field(
        default=12,
        ge=1,
        le=10_000,
        description="Those of one tenant, so that others find a turn while it has many.",
    )
    max_queued: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="Queries that wait for their turn; beyond, TOO_MANY_QUERIES.",
    )
    batch_rows: int = Field(
        default=65_536, ge=1, le=10_000_000, description="Rows of one batch of an answer at most."
    )
    row_max_bytes: int = Field(
        default=15 * MIB,
        ge=MIB,
        le=GIB,
        description=(
            "One row of an answer at most, in bytes; beyond, QUOTA_EXCEEDED. A row travels in one "
            "message, of which ADBC takes 16 MiB and other gRPC clients 4 MiB unless told more."
        ),
    )
    replica: bool = Field(
        default=True,
        description=(
            "Whether tables that are queried often are kept in DuckDB's own format beside the "
            "cache, as native replicas. Answers are the same with and without."
        ),
    )
    replica_capacity_bytes: int = Field(
        default=4 * GIB,
        ge=16 * MIB,
        description="The size of all native replicas at most, beside that of the cache.",
    )
    replica_after_queries: float = Field(
        default=3,
        ge=1,
        le=1_000_000,
        description=(
            "Queries of late that make a table hot; one counts half after two minutes. Hot tables "
            "of at least 1 MiB or 8 files get a replica, those with the most bytes read first."
        ),
    )
    consistency_timeout = Span("consistency_timeout_ms")
    max_consistency_timeout = Span("max_consistency_timeout_ms")
    wall_time = Span("wall_time_seconds")
    worker_idle = Span("worker_idle_seconds")
    kill_grace = Span("kill_grace_seconds")
    fetch_timeout = Span("fetch_timeout_seconds")
