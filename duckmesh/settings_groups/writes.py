"""What writes and transactions may be."""

from pydantic import Field

from duckmesh.settings_groups.fields import GIB, MIB, Group, Span


class IngestSettings(Group):
    """What one write may be, and how it is carried."""

    inline_max_bytes: int = Field(
        default=MIB, ge=0, le=64 * MIB, description="A larger write is staged in the object store."
    )
    write_max_bytes: int = Field(
        default=64 * GIB, ge=1, description="A larger write is refused with PAYLOAD_TOO_LARGE."
    )
    staged_file_target_bytes: int = Field(
        default=128 * MIB, ge=MIB, description="The size of a staged file, about."
    )
    partitions_max: int = Field(
        default=1_000,
        ge=1,
        le=1_000_000,
        description="Partitions of its table that one write may have rows of.",
    )
    key_window_days: float = Field(
        default=7, gt=0, le=3650, description="How long an idempotency key is remembered."
    )
    max_pending_events: int = Field(
        default=100_000,
        ge=1,
        description="Writes of a tenant that wait for publication; beyond, QUOTA_EXCEEDED.",
    )
    max_pending_bytes: int = Field(
        default=4 * GIB, ge=1, description="The same, by the bytes that these writes carry."
    )
    stream_window: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="Batches of one ingest stream that wait for a receipt.",
    )
    key_window = Span("key_window_days")


class TransactionSettings(Group):
    """Transactions of clients."""

    idle_seconds: float = Field(
        default=900,
        ge=1,
        le=86_400,
        description="A transaction in which nothing is said for this long is rolled back.",
    )
    max_writes: int = Field(
        default=10_000, ge=1, le=100_000, description="Writes that one transaction may hold."
    )
    inline_max_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        le=256 * MIB,
        description="Bytes of its writes that lie in the catalog; beyond, they are staged.",
    )
    idle = Span("idle_seconds")
