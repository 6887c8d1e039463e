"""The record of a client's session, shared by every serving process.

The signed token that a client carries says who it is. What happened since, its last write, its
options, its transaction, may have been answered with a header that the client lost; it is here.
A session that has done none of these has no record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from psycopg.types.json import Jsonb

from catalog.connection import Connection
from catalog.snapshots import Snapshot
from duckmesh.errors import Corrupt
from duckmesh.identifiers import SessionId, TenantId, TransactionId
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "sessions.sql")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What is known of a session. `last_token` covers every write it was answered for."""

    session_id: SessionId
    tenant_id: TenantId
    principal: str
    last_token: VisibilityToken
    options: Mapping[str, Any] = field(default_factory=dict)
    transaction_id: TransactionId | None = None
    opened_at: datetime | None = None
    last_seen: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A session as it is at one moment, and its tenant's newest snapshot at the same moment."""

    record: SessionRecord | None
    """None for a session that has done nothing that a record is kept of."""
    newest: Snapshot


def find(connection: Connection, tenant_id: TenantId, session_id: SessionId) -> Found:
    """What a statement of the session begins with; a session of another tenant is not found."""
    values = {"tenant_id": tenant_id, "session_id": session_id}
    row = connection.execute(_SQL["find"], values).fetchone()
    if row is None:
        raise Corrupt("a tenant has no publication head", tenant_id=tenant_id)
    record = None if row[4] is None else SessionRecord(*row[4:])
    return Found(record, Snapshot(*row[:4]))


def change_options(
    connection: Connection,
    session_id: SessionId,
    *,
    tenant_id: TenantId,
    principal: str,
    options: Mapping[str, Any],
) -> None:
    """Set the options named, and erase those whose value is None. Atomic."""
    connection.execute(
        _SQL["change_options"],
        {
            "session_id": session_id,
            "tenant_id": tenant_id,
            "principal": principal,
            "options": Jsonb(dict(options)),
        },
    )


def touch(connection: Connection, session_id: SessionId) -> None:
    """Note that the session is alive, so that its record is kept."""
    connection.execute(_SQL["touch"], (session_id,))


def close(connection: Connection, tenant_id: TenantId, session_id: SessionId) -> None:
    """Forget the session's options and transaction. Repeatable."""
    connection.execute(_SQL["close"], (session_id, tenant_id))


def list_sessions(
    connection: Connection, tenant_id: TenantId, *, limit: int
) -> list[SessionRecord]:
    """The tenant's sessions that have a record, the last one seen first."""
    rows = connection.execute(_SQL["list_of_tenant"], (tenant_id, limit))
    return [SessionRecord(*row) for row in rows]


def forget_old(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """End up to `limit` records that were not seen for that long; return how many."""
    values = {"older_than": older_than, "limit": limit}
    return connection.execute(_SQL["forget_old"], values).rowcount
