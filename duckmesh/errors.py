"""Every error that leaves a room, named by what its receiver does next.

    DuckMeshError
    ├── Invalid        change the request
    ├── Denied         show other credentials, or ask for the right
    ├── NotFound       name something that exists
    ├── Conflict       someone was first; look, then decide
    ├── NotYetVisible  ask again later, or allow a longer time
    ├── Overloaded     slow down, retry after the time given
    ├── Exceeded       take less: a limit is reached, and waiting does not help
    ├── Cancelled      nothing: the caller asked for it
    ├── NotSupported   use another way; the message names it
    ├── Unavailable    a dependency is down; retry with backoff
    ├── Fenced         internal: another worker owns this now; stop
    ├── Corrupt        internal: page a human
    └── Internal       internal: a fault of ours

Each carries a code of the public contract (docs/errors.md), a message that says what to change,
and a context of plain values. Doors map the class to their protocol's status; nothing else
crosses a door.
"""

from enum import StrEnum
from typing import Any, ClassVar


class ErrorCode(StrEnum):
    """The codes of the public contract, one meaning each, for both doors."""

    INVALID_JSON = "INVALID_JSON"
    INVALID_COMMAND = "INVALID_COMMAND"
    TABLE_REQUIRED = "TABLE_REQUIRED"
    RECORDS_REQUIRED = "RECORDS_REQUIRED"
    IDEMPOTENCY_KEY_REQUIRED = "IDEMPOTENCY_KEY_REQUIRED"
    INVALID_OP = "INVALID_OP"
    PAYLOAD_REQUIRED = "PAYLOAD_REQUIRED"
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    SCHEMA_REQUIRED = "SCHEMA_REQUIRED"
    SCHEMA_INCOMPATIBLE = "SCHEMA_INCOMPATIBLE"
    PARTITION_SPEC_INVALID = "PARTITION_SPEC_INVALID"
    TOO_MANY_PARTITIONS = "TOO_MANY_PARTITIONS"
    SQL_REQUIRED = "SQL_REQUIRED"
    SQL_NOT_ALLOWED = "SQL_NOT_ALLOWED"
    QUERY_EXECUTION_FAILED = "QUERY_EXECUTION_FAILED"
    SNAPSHOT_SELECTOR_CONFLICT = "SNAPSHOT_SELECTOR_CONFLICT"
    VISIBILITY_TOKEN_INVALID = "VISIBILITY_TOKEN_INVALID"  # noqa: S105 - a code, not a secret
    TICKET_INVALID = "TICKET_INVALID"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    NOT_IMPLEMENTED_YET = "NOT_IMPLEMENTED_YET"
    UNAUTHORIZED = "UNAUTHORIZED"
    TENANT_REQUIRED = "TENANT_REQUIRED"
    FORBIDDEN = "FORBIDDEN"
    TABLE_NOT_FOUND = "TABLE_NOT_FOUND"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"
    NOT_FOUND = "NOT_FOUND"
    TABLE_EXISTS = "TABLE_EXISTS"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    TRANSACTION_ENDED = "TRANSACTION_ENDED"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TOO_MANY_QUERIES = "TOO_MANY_QUERIES"
    QUERY_CANCELLED = "QUERY_CANCELLED"
    INGEST_CANCELLED = "INGEST_CANCELLED"
    QUERY_TIMEOUT = "QUERY_TIMEOUT"
    QUERY_MEMORY = "QUERY_MEMORY"
    QUERY_WORKER_LOST = "QUERY_WORKER_LOST"
    CONSISTENCY_TIMEOUT = "CONSISTENCY_TIMEOUT"
    CATALOG_UNAVAILABLE = "CATALOG_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    NOT_READY = "NOT_READY"
    SETTINGS_INVALID = "SETTINGS_INVALID"
    FENCED = "FENCED"
    CORRUPT = "CORRUPT"
    INTERNAL = "INTERNAL"


class DuckMeshError(Exception):
    """The root of the tree. `context` holds only what the client may see."""

    retryable: ClassVar[bool] = False
    """Whether the same request, unchanged, may succeed later."""
    context_is_public: ClassVar[bool] = True
    """Whether a client may see the context; that of our own faults is for the log alone."""

    def __init__(self, code: ErrorCode, message: str, **context: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.context: dict[str, Any] = context

    def __str__(self) -> str:
        return self.message

    def as_contract(self, trace_id: str | None = None) -> dict[str, Any]:
        """The error as both doors show it: error_code, message, retryable, context, trace_id."""
        return {
            "error_code": self.code.value,
            "message": self.message,
            "retryable": self.retryable,
            "context": self.context if self.context_is_public else {},
            "trace_id": trace_id,
        }


class Invalid(DuckMeshError):
    """The request is wrong as it stands: change it."""


class Denied(DuckMeshError):
    """The caller is not known (UNAUTHORIZED) or may not do this (FORBIDDEN)."""


class NotFound(DuckMeshError):
    """What the request names does not exist for this tenant."""


class Conflict(DuckMeshError):
    """Someone was first: the table exists, the key carries another payload."""


class NotYetVisible(DuckMeshError):
    """The deadline passed before the named token became visible. Nothing is lost: ask again."""

    retryable = True


class Overloaded(DuckMeshError):
    """Too much at once: slow down and retry."""

    retryable = True


class Exceeded(DuckMeshError):
    """A limit is reached, of the query or the tenant; the context says which, and the figure."""


class Cancelled(DuckMeshError):
    """The caller cancelled, or went away."""


class NotSupported(DuckMeshError):
    """DuckMesh does not do this (yet); the message names the way that works."""


class Unavailable(DuckMeshError):
    """A dependency is down or restarting: retry with backoff."""

    retryable = True


class Fenced(DuckMeshError):
    """Another worker owns this now. The holder of the old epoch stops and changes nothing."""

    context_is_public = False

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(ErrorCode.FENCED, message, **context)


class Corrupt(DuckMeshError):
    """Stored state contradicts itself. Nothing is guessed; a human looks."""

    context_is_public = False

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(ErrorCode.CORRUPT, message, **context)


class Internal(DuckMeshError):
    """A fault of ours. The message says nothing of the inside; the log does, by trace id."""

    def __init__(
        self, message: str = "an internal error; quote the trace id to the operator"
    ) -> None:
        super().__init__(ErrorCode.INTERNAL, message)
