"""The answers' shapes, for the OpenAPI document. The routes write them directly: this is a map."""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from duckmesh.errors import ErrorCode
from duckmesh.quotas import Quota


class AnswerModel(BaseModel):
    """An answer in JSON."""

    model_config = ConfigDict(extra="forbid")


class ErrorAnswer(AnswerModel):
    """Why a request failed, and whether the same request may succeed later."""

    error_code: ErrorCode
    message: str
    retryable: bool
    context: dict[str, Any]
    trace_id: str | None


class QueryStatistics(AnswerModel):
    """What a query took."""

    duration_ms: float
    scanned_files: int
    scanned_bytes: int
    pruned_files: int = Field(description="Left out: they hold no row that the query asks for.")
    source: Literal["replica", "parquet"] = Field(
        description="`replica` when rows of some files came from a native replica."
    )
    replica_files: int = Field(description="Those of the scanned files.")


class QueryAnswer(AnswerModel):
    """The rows of a query, as arrays in the order of `columns`."""

    columns: list[dict[str, Any]]
    rows: list[list[Any]]
    row_count: int
    truncated: bool = Field(description="Whether `row_limit` cut rows off.")
    snapshot_id: int
    snapshot_time: AwareDatetime
    max_visibility_token: int
    stats: QueryStatistics


class ExecutedAnswer(AnswerModel):
    """The outcome of a statement that is no query."""

    row_count: int | None
    visibility_token: int | None


class RecordResult(AnswerModel):
    """What became of one record; `record` is null for a whole file."""

    record: int | None
    visibility_token: int
    duplicate: bool


class IngestAnswer(AnswerModel):
    """The receipt of accepted rows."""

    accepted_count: int
    duplicate_count: int
    max_visibility_token: int
    visible_snapshot_id: int | None
    status: Literal["accepted", "visible", "partial_duplicate"]
    wait: ErrorAnswer | None = Field(
        default=None, description="Why the wait ended too early. The rows are accepted."
    )
    results: list[RecordResult] | None = None


class TableAnswer(AnswerModel):
    """A table. Its `schema` can be sent to create another."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str
    kind: Literal["table", "view"]
    columns: list[dict[str, Any]] = Field(alias="schema")
    primary_key_cols: list[str]
    partition_spec: list[str]
    max_visibility_token: int | None


class TableList(AnswerModel):
    """The tables of the newest snapshot."""

    tables: list[TableAnswer]


class SnapshotAnswer(AnswerModel):
    """A published state of the tenant."""

    snapshot_id: int
    created_at: AwareDatetime
    max_visibility_token: int
    operation: str
    created_by: str


class SnapshotList(AnswerModel):
    """Snapshots, newest first."""

    snapshots: list[SnapshotAnswer]
    next_through: int | None


class PinAnswer(AnswerModel):
    """What keeps a snapshot; with a tag, also its name."""

    snapshot_id: int
    tag: str | None
    created_by: str
    created_at: AwareDatetime
    expires_at: AwareDatetime | None


class PinList(AnswerModel):
    """The pins that hold, newest snapshot first."""

    pins: list[PinAnswer]


class UnpinAnswer(AnswerModel):
    """The snapshot that one pin less keeps."""

    snapshot_id: int
    tag: str | None
    unpinned: bool


class RestoreAnswer(AnswerModel):
    """What a restore did, or would do."""

    dry_run: bool
    restored_snapshot_id: int
    snapshot_id: int | None = Field(description="The new snapshot; null for a dry run.")
    rewound_tables: list[str] = Field(description="They got the files back that they had then.")
    recreated_tables: list[str] = Field(description="They were made anew as they were then.")
    ended_tables: list[str] = Field(description="They live in older snapshots only.")
    max_visibility_token: int | None
    files_added: int | None
    files_ended: int | None


class DeadLetterAnswer(AnswerModel):
    """A write that was given up."""

    visibility_token: int
    table: str | None = Field(description="Null when the table was dropped.")
    operation: Literal["insert", "overwrite"]
    schema_version: int
    idempotency_key: str | None
    row_count: int
    byte_count: int
    accepted_at: AwareDatetime
    attempts: int
    reason: str
    trace_id: str | None
    group_last_token: int | None = Field(description="Of a transaction: its last token.")
    replay_token: int | None = Field(description="With which it was accepted again.")


class DeadLetterList(AnswerModel):
    """Dead letters in token order."""

    dead_letters: list[DeadLetterAnswer]
    next_above: int | None


class ReplayedWrite(AnswerModel):
    """A dead letter, and the token of its new acceptance."""

    dead_token: int
    visibility_token: int | None
    row_count: int
    duplicate: bool = Field(description="Whether it had been replayed before.")


class ReplayAnswer(AnswerModel):
    """The new acceptances. Wait for the largest token to see all of them."""

    dry_run: bool
    replayed: list[ReplayedWrite]
    max_visibility_token: int | None


class TableLagAnswer(AnswerModel):
    """How far what is visible of a table is behind what is accepted."""

    table: str
    latest_token: int
    visible_token: int
    token_lag: int
    pending_events: int
    pending_bytes: int
    oldest_pending_lag_ms: float | None


class CompactionSummary(AnswerModel):
    """What was merged, or would be."""

    dry_run: bool
    merges: int
    lost: int = Field(description="Merges that another publication was faster than.")
    files_in: int
    files_out: int
    bytes_in: int
    bytes_out: int


class CompactionAnswer(AnswerModel):
    """The end of a compaction."""

    status: Literal["done"]
    summary: CompactionSummary


class RetentionSummary(AnswerModel):
    """What was given back, or would be."""

    dry_run: bool
    snapshots: int
    files: int
    file_bytes: int
    orphans: int


class RetentionAnswer(AnswerModel):
    """The end of a retention run."""

    status: Literal["done"]
    summary: RetentionSummary


class DamagedFileAnswer(AnswerModel):
    """A file that queries cannot read, or must not."""

    table: str
    file_id: str
    damage: Literal["missing", "size_mismatch"]
    expected_bytes: int
    found_bytes: int | None


class IntegritySummary(AnswerModel):
    """What a check saw. Of many damaged files the first thousand are named."""

    files_checked: int
    bytes_checked: int
    missing: int
    mismatched: int
    damaged: list[DamagedFileAnswer]


class IntegrityAnswer(AnswerModel):
    """The end of an integrity check."""

    status: Literal["done"]
    summary: IntegritySummary


class LagAnswer(AnswerModel):
    """How far what is visible is behind what is accepted."""

    latest_token: int
    visible_token: int
    token_lag: int
    pending_events: int
    pending_bytes: int
    oldest_pending_lag_ms: float | None
    snapshot_id: int
    snapshot_time: AwareDatetime
    tables: list[TableLagAnswer]


class QuotaAnswer(AnswerModel):
    """A quota of the tenant, and how much of it is used."""

    quota: Quota
    limit: int | None
    used: int | None = Field(
        description="Null where each serving process counts for itself, or each query."
    )
    is_own: bool = Field(description="Whether it was set for the tenant; else it is the default.")


class QuotaList(AnswerModel):
    """Every quota of the tenant."""

    quotas: list[QuotaAnswer]


class KeyAnswer(AnswerModel):
    """A new API key. Store the secret now: nothing shows it again."""

    key_id: str
    secret: str
    name: str | None = None
    roles: list[str] | None = None
    replaces: str | None = None


class ListedKey(AnswerModel):
    """An API key without its secret."""

    key_id: str
    name: str
    roles: list[str]
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None
    quotas: dict[str, int]


class KeyList(AnswerModel):
    """The tenant's keys."""

    keys: list[ListedKey]
