"""Retention: which snapshots expire, and which files no snapshot reads any more.

Both are decided under the lock of the tenant's head, as publications, pins and restores are: so a
snapshot that was answered to anybody is there, or is told to have expired, and a file that is found
unreachable stays so.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from catalog import pins, snapshots
from catalog.connection import Connection
from duckmesh.identifiers import FileId, TenantId
from duckmesh.statements import Statements

_SQL = Statements("catalog", "retention.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long snapshots are kept."""

    kept_for: timedelta = timedelta(days=7)
    """Every moment of this long ago can be read."""
    kept_at_least: int = 100
    """The newest so many stay, whatever their age."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """Snapshots that expire, and the files that are left without one."""

    snapshots: int
    files: int
    file_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DueFile:
    """A file that was unreachable for long. Its object goes too, unless another file names it."""

    file_id: FileId
    path: str | None
    size_bytes: int
    with_object: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """What one run of the garbage collection did."""

    snapshots: int = 0
    files: int = 0
    file_bytes: int = 0
    orphans: int = 0

    def __add__(self, other: "Collected") -> "Collected":
        return Collected(
            self.snapshots + other.snapshots,
            self.files + other.files,
            self.file_bytes + other.file_bytes,
            self.orphans + other.orphans,
        )


def expire(
    connection: Connection, tenant_id: TenantId, retention: Retention, *, limit: int
) -> Expiry:
    """Delete up to `limit` snapshots that are old, and mark up to `limit` files nobody reads.

    One short transaction under the head's lock. Never the newest snapshot, nor one with a pin.
    """
    with connection.transaction():
        snapshots.lock_head(connection, tenant_id)
        pins.forget_expired(connection, tenant_id)
        values = _values(connection, tenant_id, retention) | {"limit": limit}
        connection.execute(_SQL["note_replaced"], values)
        row = connection.execute(_SQL["expire"], values).fetchone()
        assert row is not None  # noqa: S101 - an aggregate has one row
        gone: list[int] = row[0]
        if gone:
            through = max(gone)
            connection.execute(_SQL["note_expired"], values | {"through": through})
            connection.execute(_SQL["forget_watermarks"], values | {"gone": gone})
            if len(gone) == limit:
                # What lies between here and the horizon is read by snapshots that go next: to look
                # at it in each of many turns would cost the square of their number.
                values |= {"horizon": through + 1}
        condemned = connection.execute(_SQL["condemn_files"], values).rowcount
    return Expiry(len(gone), condemned)


def plan(connection: Connection, tenant_id: TenantId, retention: Retention) -> Expiry:
    """What `expire`, called until nothing is left, would do now. Changes nothing."""
    row = connection.execute(_SQL["plan"], _values(connection, tenant_id, retention)).fetchone()
    assert row is not None  # noqa: S101 - a select of three numbers
    return Expiry(*row)


def _values(connection: Connection, tenant_id: TenantId, retention: Retention) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "kept_for": retention.kept_for,
        "kept_at_least": max(1, retention.kept_at_least),
    }
    row = connection.execute(_SQL["horizon"], values).fetchone()
    assert row is not None  # noqa: S101 - a select of one number
    return values | {"horizon": row[0]}


def due_files(
    connection: Connection, tenant_id: TenantId, *, safety_age: timedelta, limit: int
) -> list[DueFile]:
    """Files that have been unreachable for longer than any query that may still read them."""
    values = {"tenant_id": tenant_id, "safety_age": safety_age, "limit": limit}
    return [DueFile(*row) for row in connection.execute(_SQL["due_files"], values)]


def forget_files(connection: Connection, file_ids: Collection[FileId]) -> int:
    """Delete the rows of files whose objects are gone. One transaction; repeatable."""
    values = {"file_ids": list(file_ids)}
    with connection.transaction():
        connection.execute(_SQL["forget_changes"], values)
        return connection.execute(_SQL["forget_files"], values).rowcount


def record_run(
    connection: Connection,
    run_id: UUID,
    tenant_id: TenantId,
    collected: Collected,
    *,
    started_at: datetime,
    dry_run: bool = False,
    failure: str | None = None,
) -> None:
    """Write down what a run did, or would do."""
    connection.execute(
        _SQL["record_run"],
        {
            "run_id": run_id,
            "tenant_id": tenant_id,
            "started_at": started_at,
            "state": "done" if failure is None else "failed",
            "dry_run": dry_run,
            "snapshots": collected.snapshots,
            "files": collected.files,
            "bytes": collected.file_bytes,
            "orphans": collected.orphans,
            "failure": failure,
        },
    )


def forget_runs(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Delete up to `limit` old records of runs of each kind; return the larger count."""
    values = {"older_than": older_than, "limit": limit}
    collections = connection.execute(_SQL["forget_gc_runs"], values).rowcount
    return max(collections, connection.execute(_SQL["forget_compaction_runs"], values).rowcount)


def now(connection: Connection) -> datetime:
    """The time by which ages are told."""
    row = connection.execute(_SQL["now"]).fetchone()
    assert row is not None  # noqa: S101 - a select of one value
    moment: datetime = row[0]
    return moment
