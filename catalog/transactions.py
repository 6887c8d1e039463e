"""Transactions of clients: their state, and the writes that they hold until COMMIT.

A transaction is a row, and its writes are rows: it outlives the process that began it, and any
serving process goes on with it. Its end is a change of that row's state, made once under its lock;
who ends it again finds what was decided.
Lock order: the transaction's row before everything that a publish locks.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from catalog.connection import Connection
from duckmesh.identifiers import (
    SchemaVersion,
    SessionId,
    SnapshotId,
    TableId,
    TenantId,
    TransactionId,
)
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "transactions.sql")


class TransactionState(StrEnum):
    """How a transaction stands. It leaves `open` once."""

    OPEN = "open"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    EXPIRED = "expired"
    """Rolled back unasked, for idleness or a refused COMMIT, until its client rolls it back."""


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """A transaction as the catalog has it."""

    transaction_id: TransactionId
    tenant_id: TenantId
    principal: str
    session_id: SessionId | None
    state: TransactionState
    snapshot_id: SnapshotId | None
    write_count: int
    row_count: int
    inline_bytes: int
    last_token: VisibilityToken | None

    @property
    def is_open(self) -> bool:
        return self.state is TransactionState.OPEN


@dataclass(frozen=True, slots=True)
class HeldWrite:
    """One write of a transaction: an envelope of the bus, as plain columns."""

    event_id: UUID
    table_id: TableId
    schema_version: int
    operation: str
    idempotency_key: str | None
    payload_hash: bytes | None
    payload_kind: str
    payload: bytes = field(repr=False)
    row_count: int
    byte_count: int
    raises_fence: bool
    min_event_time: datetime | None
    max_event_time: datetime | None
    trace_id: str | None


def begin(
    connection: Connection,
    transaction_id: TransactionId,
    *,
    tenant_id: TenantId,
    principal: str,
    session_id: SessionId | None,
) -> None:
    """Open a transaction; in a session it becomes the current one. Atomic."""
    values = {
        "transaction_id": transaction_id,
        "tenant_id": tenant_id,
        "principal": principal,
        "session_id": session_id,
    }
    with connection.transaction():
        connection.execute(_SQL["begin"], values)
        if session_id is not None:
            connection.execute(_SQL["enter"], values)


def find(connection: Connection, transaction_id: TransactionId) -> TransactionRecord | None:
    """The transaction of that id, or None."""
    return _record(connection.execute(_SQL["find"], (transaction_id,)).fetchone())


def lock(connection: Connection, transaction_id: TransactionId) -> TransactionRecord | None:
    """The transaction, whose state nobody else changes before this database transaction ends."""
    return _record(connection.execute(_SQL["lock"], (transaction_id,)).fetchone())


def _record(row: tuple[Any, ...] | None) -> TransactionRecord | None:
    if row is None:
        return None
    values = list(row)
    values[4] = TransactionState(row[4])
    return TransactionRecord(*values)


def pin(
    connection: Connection, transaction_id: TransactionId, snapshot_id: SnapshotId
) -> SnapshotId | None:
    """Give the transaction its snapshot, if it has none yet; the one that it has now.

    None when it is not open any more.
    """
    values = {"transaction_id": transaction_id, "snapshot_id": snapshot_id}
    row = connection.execute(_SQL["pin"], values).fetchone()
    return None if row is None else SnapshotId(row[0])


def touch(connection: Connection, transaction_id: TransactionId, *, every: timedelta) -> None:
    """Note that the client is there, unless that was noted less than `every` ago."""
    connection.execute(_SQL["touch"], {"transaction_id": transaction_id, "unless_within": every})


def hold(
    connection: Connection, transaction_id: TransactionId, write: HeldWrite, *, writes_max: int
) -> bool:
    """Keep one more write, durable on return; False when the transaction has ended or is full."""
    values = {name: getattr(write, name) for name in HeldWrite.__slots__}
    values |= {"transaction_id": transaction_id, "writes_max": writes_max}
    return connection.execute(_SQL["hold"], values).rowcount == 1


def supersede(
    connection: Connection, transaction_id: TransactionId, table_id: TableId
) -> list[bytes]:
    """Drop the writes held for one table; return the staged payloads among them."""
    values = {"transaction_id": transaction_id, "table_id": table_id}
    return [bytes(row[0]) for row in connection.execute(_SQL["supersede"], values)]


def replaced_version(
    connection: Connection, transaction_id: TransactionId, table_id: TableId
) -> int | None:
    """The schema version that the transaction gives a table with its overwrite, if it has one."""
    row = connection.execute(_SQL["replaced_version"], (transaction_id, table_id)).fetchone()
    return row[0] if row else None


def held_operations(
    connection: Connection, transaction_id: TransactionId, table_id: TableId
) -> frozenset[str]:
    """What the writes do that are held for one table."""
    rows = connection.execute(_SQL["held_operations"], (transaction_id, table_id))
    return frozenset(row[0] for row in rows)


def restamp(
    connection: Connection,
    transaction_id: TransactionId,
    table_id: TableId,
    *,
    former: SchemaVersion,
    version: SchemaVersion,
) -> None:
    """Say that the writes held at the former version of a table's columns have this one.

    Joins the caller's transaction. True only of versions with the same columns.
    """
    connection.execute(
        _SQL["restamp"],
        {
            "transaction_id": transaction_id,
            "table_id": table_id,
            "former": former,
            "version": version,
        },
    )


def writes(connection: Connection, transaction_id: TransactionId) -> list[HeldWrite]:
    """The writes held, in their order."""
    rows = connection.execute(_SQL["writes"], (transaction_id,), binary=True)
    return [HeldWrite(*row) for row in rows]


def commit(
    connection: Connection, record: TransactionRecord, last_token: VisibilityToken | None
) -> None:
    """Mark a locked, open transaction as committed and let its writes go: the bus has them."""
    _end(connection, record, TransactionState.COMMITTED, last_token)
    connection.execute(_SQL["drop_writes"], (record.transaction_id,))


def roll_back(
    connection: Connection, record: TransactionRecord, *, expired: bool = False
) -> list[bytes]:
    """End a locked transaction that is open or expired; return its staged payloads."""
    state = TransactionState.EXPIRED if expired else TransactionState.ROLLED_BACK
    _end(connection, record, state, None)
    rows = connection.execute(_SQL["drop_writes_returning_staged"], (record.transaction_id,))
    return [bytes(row[0]) for row in rows]


def _end(
    connection: Connection,
    record: TransactionRecord,
    state: TransactionState,
    last_token: VisibilityToken | None,
) -> None:
    connection.execute(
        _SQL["end"],
        {
            "transaction_id": record.transaction_id,
            "state": state.value,
            "was": record.state.value,
            "last_token": last_token,
        },
    )


def expire_idle(connection: Connection, *, idle: timedelta, limit: int) -> tuple[int, list[bytes]]:
    """Roll back up to `limit` transactions that nobody spoke in for that long.

    Returns how many, and their staged payloads. One that is being committed is left alone.
    """
    count, staged = 0, []
    found = connection.execute(_SQL["idle"], {"idle": idle, "limit": limit}).fetchall()
    for (transaction_id,) in found:
        with connection.transaction():
            record = lock(connection, transaction_id)
            # Looked at again under the lock: it may have been used, or ended, meanwhile.
            values = {"transaction_id": transaction_id, "idle": idle}
            row = connection.execute(_SQL["is_idle"], values).fetchone()
            if record is not None and record.is_open and row is not None and row[0]:
                staged += roll_back(connection, record, expired=True)
                count += 1
    return count, staged


def staged_payloads(connection: Connection, tenant_id: TenantId) -> list[bytes]:
    """The staged payloads that the tenant's transactions hold."""
    rows = connection.execute(_SQL["staged_payloads"], (tenant_id,), binary=True)
    return [bytes(row[0]) for row in rows]


def forget_ended(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Forget transactions that ended that long ago: nobody repeats their COMMIT any more."""
    values = {"older_than": older_than, "limit": limit}
    return connection.execute(_SQL["forget_ended"], values).rowcount
