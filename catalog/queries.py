"""The query audit: a row for each statement that a client ran, or tried to run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from psycopg import errors as pg

from catalog.connection import Connection, unavailable
from duckmesh.identifiers import SnapshotId, TenantId
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "queries.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedQuery:
    """One statement, as it ended."""

    query_id: UUID
    tenant_id: TenantId
    principal: str
    sql: str
    snapshot_id: SnapshotId | None
    asked_token: VisibilityToken | None
    """What it asked to be visible."""
    trace_id: str | None
    started_at: datetime
    queue_seconds: float
    run_seconds: float
    row_count: int
    byte_count: int
    scanned_files: int
    scanned_bytes: int
    pruned_files: int
    """Files that were left out, for they hold no row that it asked for."""
    outcome: str
    """OK, or the error code that it ended with."""


_COLUMNS: Final = tuple(each.name for each in fields(AuditedQuery))
_TEXTS: Final = frozenset({"principal", "sql"})


@dataclass(frozen=True, slots=True)
class ShownQuery:
    """A row of the audit, and whose it is."""

    query: AuditedQuery
    tenant: str


def write(connection: Connection, queries: Sequence[AuditedQuery]) -> None:
    """Store the rows in one statement: all or none. Repeatable: a row that is there stays one.

    Raises Unavailable also for a catalog that only reads just now, as in a failover.
    """
    values: dict[str, list[object]] = {
        name: [getattr(query, name) for query in queries] for name in _COLUMNS
    }
    for name in _TEXTS:
        values[name] = [storable(str(text)) for text in values[name]]
    try:
        connection.execute(_SQL["write"], values)
    except pg.ReadOnlySqlTransaction as cause:
        raise unavailable() from cause


def recent(
    connection: Connection,
    *,
    tenant_id: TenantId | None = None,
    principal: str | None = None,
    since: datetime | None = None,
    limit: int,
) -> list[ShownQuery]:
    """The newest queries first: of one tenant or of everybody, of one principal or of all."""
    values = {"tenant_id": tenant_id, "principal": principal, "since": since, "limit": limit}
    if tenant_id is None:
        rows = connection.execute(_SQL["recent"], values)
    elif principal is None:
        rows = connection.execute(_SQL["recent_of_tenant"], values)
    else:
        rows = connection.execute(_SQL["recent_of_principal"], values)
    return [
        ShownQuery(AuditedQuery(**dict(zip(_COLUMNS, values, strict=True))), tenant)
        for *values, tenant in rows
    ]


def forget(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Forget up to `limit` queries that are older; how many."""
    return connection.execute(_SQL["forget"], {"older_than": older_than, "limit": limit}).rowcount


def storable(text: str) -> str:
    """The text as Postgres can hold it: without NUL and half characters."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()
