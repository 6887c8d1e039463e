"""What the bus carries and what it answers."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from duckmesh.identifiers import (
    BatchId,
    ConsumerId,
    Epoch,
    EventId,
    FileId,
    SchemaVersion,
    SessionId,
    TableId,
    TenantId,
)
from duckmesh.tokens import BEFORE_ALL, VisibilityToken


class Operation(StrEnum):
    """What a write does to its table."""

    INSERT = "insert"
    """Its rows are added; in a table with a primary key each takes the place of its key's row."""
    DELETE = "delete"
    """The rows of its keys are gone. Its own rows hold a key each, and say that they delete."""
    OVERWRITE = "overwrite"
    """The table holds exactly this write's rows, and those of later tokens."""


class EventState(StrEnum):
    """How far an accepted event has come."""

    ACCEPTED = "accepted"
    COMMITTED = "committed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class InlinePayload:
    """Rows in the bus itself: Arrow IPC record-batch messages, end to end, without a schema.

    The schema is the table's, of the envelope's version (ingest_bus knows neither).
    """

    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A Parquet file that lies whole in the object store, named by no snapshot yet."""

    file_id: FileId
    key: str
    row_count: int
    size_bytes: int
    min_event_time: datetime | None = None
    max_event_time: datetime | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StagedPayload:
    """Rows in the object store: the bus carries the claim check alone."""

    files: tuple[StagedFile, ...]

    def to_bytes(self) -> bytes:
        return _STAGED_FILES.dump_json(self.files)

    @classmethod
    def from_bytes(cls, content: bytes) -> "StagedPayload":
        return cls(_STAGED_FILES.validate_json(content))


_STAGED_FILES: TypeAdapter[tuple[StagedFile, ...]] = TypeAdapter(tuple[StagedFile, ...])


@dataclass(frozen=True, slots=True)
class WritingSession:
    """The client session that a write is part of, and who speaks in it."""

    session_id: SessionId
    principal: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """One write. It is accepted whole or not at all."""

    event_id: EventId
    tenant_id: TenantId
    table_id: TableId
    schema_version: SchemaVersion
    payload: InlinePayload | StagedPayload
    row_count: int
    byte_count: int
    operation: Operation = Operation.INSERT
    idempotency_key: str | None = None
    payload_hash: bytes | None = None
    """Set exactly when there is a key: equal for equal rows."""
    raises_fence: bool = False
    """From this token on, writes of an older schema version of the table are sent back."""
    min_event_time: datetime | None = None
    max_event_time: datetime | None = None
    trace_id: str | None = None
    session: WritingSession | None = None
    """Whose last token the write moves. The bus does not keep it with the event."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an accepted write. A duplicate's receipt is the original's, and says so."""

    event_id: EventId
    visibility_token: VisibilityToken
    """Zero for a write that a transaction holds: COMMIT gives it one."""
    row_count: int
    inserted: bool = True
    schema_version: SchemaVersion | None = field(default=None, compare=False)
    """Of the rows as they were accepted: a repeat may have been prepared for another one."""

    @property
    def is_held(self) -> bool:
        """Whether the write waits for its transaction's COMMIT."""
        return self.visibility_token == BEFORE_ALL


@dataclass(frozen=True, slots=True)
class AcceptedEvent:
    """An envelope with its place in the tenant's order."""

    visibility_token: VisibilityToken
    envelope: Envelope
    ingested_at: datetime
    attempts: int = 0
    """How often it was nacked before."""
    group_last_token: VisibilityToken | None = None
    """Of an event that was published `as_one` with others: the last token of their group."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Envelopes of one tenant, next in token order, held by one consumer until `lease_until`.

    `after_token` is the last resolved token before them; `last_token` is the end of the claimed
    range. Tokens in between without an event here were resolved before (dead-lettered).
    """

    batch_id: BatchId
    tenant_id: TenantId
    consumer_id: ConsumerId
    epoch: Epoch
    attempt: int
    after_token: VisibilityToken
    last_token: VisibilityToken
    lease_until: datetime
    events: tuple[AcceptedEvent, ...]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """What the bus remembers of an event, for its receipt and for operators."""

    event_id: EventId
    visibility_token: VisibilityToken
    table_id: TableId
    idempotency_key: str | None
    row_count: int
    state: EventState
    ingested_at: datetime
    failure_reason: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was given up. Its token is resolved, and its payload is kept to be replayed."""

    event_id: EventId
    visibility_token: VisibilityToken
    table_id: TableId
    schema_version: SchemaVersion
    operation: Operation
    idempotency_key: str | None
    row_count: int
    byte_count: int
    ingested_at: datetime
    attempts: int
    failure_reason: str
    trace_id: str | None = None
    group_last_token: VisibilityToken | None = None
    """Of an event of a group: the last token of the group, which is replayed whole."""
    replay_token: VisibilityToken | None = None
    """The token with which it was accepted again; its payload is there now."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A dead letter's new acceptance; `receipt.inserted` is False when that happened before."""

    dead_token: VisibilityToken
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class PendingTable:
    """What of one table is accepted and not yet resolved."""

    events: int
    bytes: int
    oldest_age: timedelta
    last_token: VisibilityToken


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much of a tenant is accepted and not yet resolved."""

    events: int
    bytes: int
    oldest_ingested_at: datetime | None


@dataclass(frozen=True, slots=True)
class TenantLag:
    """What waits of one tenant, and since when."""

    tenant_id: TenantId
    events: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Lag:
    """What waits of all tenants, at one moment."""

    events: int = 0
    bytes: int = 0
    expired_leases: int = 0
    """Claims that their consumer no longer holds, and that nobody has ended yet."""
    dead_letters: int = 0
    """Events that were given up, and were not replayed."""
    tenants: tuple[TenantLag, ...] = ()
    """Those that have waited longest, longest first."""

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest event has waited; 0 when nothing waits."""
        return self.tenants[0].oldest_seconds if self.tenants else 0.0
