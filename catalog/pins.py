"""Pins and tags: what holds a snapshot past retention, and names that queries read by.

A pin with a tag is a tag. Pins change under the lock of the tenant's head, and so must retention
expire snapshots: then a pin that was answered holds, whatever happens at the same time.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from catalog import snapshots
from catalog.connection import Connection
from catalog.snapshots import Snapshot
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import SnapshotId, TenantId
from duckmesh.statements import Statements

_SQL = Statements("catalog", "pins.sql")


@dataclass(frozen=True, slots=True)
class Pin:
    """One reason to keep a snapshot; with a tag, also a name for it."""

    snapshot_id: SnapshotId
    tag: str | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None


def pin(
    connection: Connection,
    tenant_id: TenantId,
    snapshot_id: SnapshotId,
    *,
    tag: str | None,
    lasting: timedelta | None,
    created_by: str,
) -> Pin:
    """Hold a snapshot, for `lasting` or without end. A tag that is set again moves.

    One transaction, and repeatable: a snapshot has one pin without a tag, and the last call
    decides how long it lasts. Raises NotFound (SNAPSHOT_NOT_FOUND).
    """
    with connection.transaction():
        # First: retention holds it while it expires snapshots.
        snapshots.lock_head(connection, tenant_id)
        snapshots.by_id(connection, tenant_id, snapshot_id)
        values = {
            "tenant_id": tenant_id,
            "snapshot_id": snapshot_id,
            "tag": tag,
            "lasting": lasting,
            "created_by": created_by,
        }
        connection.execute(_SQL["unpin"], values)
        row = connection.execute(_SQL["insert_pin"], values).fetchone()
    assert row is not None  # noqa: S101 - RETURNING of one inserted row
    return Pin(*row)


def unpin(
    connection: Connection,
    tenant_id: TenantId,
    *,
    snapshot_id: SnapshotId | None = None,
    tag: str | None = None,
) -> SnapshotId:
    """Take away a tag, or a snapshot's pin without a tag; return the snapshot. Raises NotFound."""
    values = {"tenant_id": tenant_id, "snapshot_id": snapshot_id, "tag": tag}
    row = connection.execute(_SQL["unpin"], values).fetchone()
    if row is None:
        named = f"tag {tag!r}" if tag is not None else f"pin of snapshot {snapshot_id}"
        raise NotFound(ErrorCode.NOT_FOUND, f"there is no {named}: list the pins to see which are")
    return SnapshotId(row[0])


def by_tag(connection: Connection, tenant_id: TenantId, tag: str) -> Snapshot:
    """The snapshot that the tag names now. Raises NotFound (SNAPSHOT_NOT_FOUND)."""
    row = connection.execute(_SQL["by_tag"], (tenant_id, tag)).fetchone()
    if row is None:
        raise NotFound(
            ErrorCode.SNAPSHOT_NOT_FOUND,
            f"no snapshot has the tag {tag!r}: take one from duckmesh_system.pins",
            tag=tag,
        )
    return Snapshot(*row)


def pins_of(connection: Connection, tenant_id: TenantId, *, limit: int) -> list[Pin]:
    """The tenant's pins that hold, by snapshot, newest first."""
    return [Pin(*row) for row in connection.execute(_SQL["pins_of"], (tenant_id, limit))]


def held(connection: Connection, tenant_id: TenantId) -> set[SnapshotId]:
    """The snapshots that a pin holds now. Retention asks under the head's lock."""
    return {row[0] for row in connection.execute(_SQL["held"], (tenant_id,))}


def tags_of(
    connection: Connection, tenant_id: TenantId, snapshot_ids: Collection[SnapshotId]
) -> dict[SnapshotId, list[str | None]]:
    """The pins of some snapshots: their tags, and None for a pin without one."""
    rows: Any = connection.execute(_SQL["tags_of"], (tenant_id, list(snapshot_ids)))
    found: dict[SnapshotId, list[str | None]] = {}
    for snapshot_id, tag in rows:
        found.setdefault(snapshot_id, []).append(tag)
    return found


def forget_expired(connection: Connection, tenant_id: TenantId) -> int:
    """Delete the pins whose time is over, so that their snapshots can be deleted."""
    return connection.execute(_SQL["forget_expired"], (tenant_id,)).rowcount
