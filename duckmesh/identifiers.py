"""Names for the numbers that travel between rooms, so that mypy keeps them apart."""

import re
from typing import Final, NewType
from uuid import UUID

from uuid_utils.compat import uuid4, uuid7

from duckmesh.errors import ErrorCode, Invalid

TenantId = NewType("TenantId", int)
TableId = NewType("TableId", int)
SchemaVersion = NewType("SchemaVersion", int)
SnapshotId = NewType("SnapshotId", int)
FileId = NewType("FileId", UUID)
EventId = NewType("EventId", UUID)
BatchId = NewType("BatchId", UUID)
KeyId = NewType("KeyId", str)
ConsumerId = NewType("ConsumerId", str)
SessionId = NewType("SessionId", UUID)
TransactionId = NewType("TransactionId", UUID)
Epoch = NewType("Epoch", int)
"""The number that fences a worker who woke too late: it grows with every change of owner."""

FIELD_ID: Final = b"PARQUET:field_id"
"""Where a column's field id stands in its Arrow field's metadata (Apache Arrow's convention)."""

TABLE_NAME_MAX_CHARS: Final = 200
IDEMPOTENCY_KEY_MAX_CHARS: Final = 512
_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def new_event_id() -> EventId:
    """A fresh, time-ordered id (UUIDv7, RFC 9562): near in time is near in an index."""
    return EventId(uuid7())


def new_file_id() -> FileId:
    return FileId(uuid7())


def new_batch_id() -> BatchId:
    return BatchId(uuid7())


def new_session_id() -> SessionId:
    """A fresh id that nobody can guess."""
    return SessionId(uuid4())


def new_transaction_id() -> TransactionId:
    """A fresh id that nobody can guess."""
    return TransactionId(uuid4())


def check_tenant_name(name: str) -> str:
    """Return `name` when it can stand in an object key and a URL; raise Invalid when it cannot."""
    if not _TENANT_NAME.fullmatch(name):
        raise Invalid(
            ErrorCode.TENANT_REQUIRED,
            "a tenant name has 1 to 63 characters of a-z, 0-9, '-' and '_', "
            "and starts with a letter or digit",
            tenant=name[:80],
        )
    return name


def check_table_name(name: str) -> str:
    """Return `name` when it can name a table; raise Invalid when it cannot."""
    if not name.strip():
        raise Invalid(ErrorCode.TABLE_REQUIRED, "name the table that the write is for")
    if len(name) > TABLE_NAME_MAX_CHARS or _CONTROL.search(name):
        raise Invalid(
            ErrorCode.TABLE_REQUIRED,
            f"a table name has at most {TABLE_NAME_MAX_CHARS} characters and no control characters",
            table=name[:80],
        )
    return name


def check_idempotency_key(key: str) -> str:
    """Return `key` when it can be stored and indexed; raise Invalid when it cannot."""
    if not key or len(key) > IDEMPOTENCY_KEY_MAX_CHARS or "\x00" in key:
        raise Invalid(
            ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
            f"an idempotency key has 1 to {IDEMPOTENCY_KEY_MAX_CHARS} characters, none of them NUL",
        )
    return key


def check_tag(tag: str) -> str:
    """Return `tag` when it can name a snapshot, and is never read as its number; else Invalid."""
    if not _TAG.fullmatch(tag):
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            "a tag has 1 to 63 characters of A-Z, a-z, 0-9, '_', '.' and '-', and starts with a "
            "letter or '_'",
            tag=tag[:80],
        )
    return tag
