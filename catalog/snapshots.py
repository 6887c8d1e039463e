"""Snapshots: the commit point of the product, and how a reader names one.

A publication is one transaction. It locks the tenant's head row, checks the fence, draws the
snapshot id, and writes the snapshot, its files, the manifest's changes and the watermarks. Nothing
of it is visible before it commits; nothing of it changes afterwards.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

import orjson

from catalog.connection import Connection
from duckmesh.errors import Corrupt, ErrorCode, Fenced, NotFound
from duckmesh.identifiers import Epoch, FileId, SchemaVersion, SnapshotId, TableId, TenantId
from duckmesh.partitions import Partition
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "snapshots.sql")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A numbered published state of a tenant."""

    snapshot_id: SnapshotId
    tenant_id: TenantId
    created_at: datetime
    max_visibility_token: VisibilityToken
    """The watermark: every token up to this one is in, or dead-lettered."""


@dataclass(frozen=True, slots=True)
class Head:
    """A tenant's newest snapshot, its row locked by this transaction."""

    newest: Snapshot
    publisher_epoch: Epoch


@dataclass(frozen=True, slots=True)
class NewFile:
    """A data file about to become visible. `content` is set exactly for inline files."""

    file_id: FileId
    table_id: TableId
    schema_version: SchemaVersion
    record_count: int
    file_size_bytes: int
    min_token: VisibilityToken
    max_token: VisibilityToken
    path: str | None = None
    content: bytes | None = field(default=None, repr=False)
    min_event_time: datetime | None = None
    max_event_time: datetime | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    partition: Partition = field(default_factory=dict)
    delete_count: int = 0
    """How many of its rows delete their key."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What one commit makes visible: every token above `after_token` up to `watermark`."""

    tenant_id: TenantId
    epoch: Epoch
    after_token: VisibilityToken
    watermark: VisibilityToken
    created_by: str
    files: Sequence[NewFile] = ()
    table_watermarks: dict[TableId, VisibilityToken] = field(default_factory=dict)
    emptied_tables: Collection[TableId] = ()
    """Tables whose files so far leave the manifest: an overwrite."""
    new_schemas: dict[TableId, SchemaVersion] = field(default_factory=dict)
    folded_files: Sequence[FileId] = ()
    """Live files whose rows are carried on by `files`."""


def lock_head(connection: Connection, tenant_id: TenantId) -> Head:
    """Lock the tenant's head row until the transaction ends. First lock of every publication."""
    row = connection.execute(_SQL["lock_head"], (tenant_id,)).fetchone()
    if row is None:
        raise Corrupt("a tenant has no publication head", tenant_id=tenant_id)
    tenant, snapshot_id, created_at, watermark, epoch = row
    return Head(Snapshot(snapshot_id, tenant, created_at, watermark), epoch)


def append_snapshot(
    connection: Connection,
    head: Head,
    *,
    created_by: str,
    operation: str,
    watermark: VisibilityToken | None = None,
    epoch: Epoch | None = None,
    files: Sequence[NewFile] = (),
    table_watermarks: Mapping[TableId, VisibilityToken] = MappingProxyType({}),
) -> Snapshot:
    """Draw the next snapshot under the head's lock, move the head to it, and tell the readers.

    It adds `files`, and moves the watermarks of tables, in the same statement.
    """
    parent = head.newest
    watermark = parent.max_visibility_token if watermark is None else watermark
    records, contents = _file_records(files)
    values = {
        "tenant_id": parent.tenant_id,
        "parent": parent.snapshot_id,
        "parent_created_at": parent.created_at,
        "created_by": created_by,
        "operation": operation,
        "watermark": watermark,
        "epoch": head.publisher_epoch if epoch is None else epoch,
        "files": records,
        "contents": contents,
        "table_watermarks": json.dumps(dict(table_watermarks)),
    }
    row = connection.execute(_SQL["publish"], values).fetchone()
    assert row is not None  # noqa: S101 - RETURNING of one inserted row
    snapshot_id, created_at, moved, _ = row
    if not moved:
        raise Corrupt("the head moved under its own lock", tenant_id=parent.tenant_id)
    return Snapshot(snapshot_id, parent.tenant_id, created_at, watermark)


def _file_records(files: Sequence[NewFile]) -> tuple[str, bytes]:
    """The files as two parameters, however many they are: JSON, and the inline ones' bytes."""
    records: list[dict[str, Any]] = []
    contents: list[bytes] = []
    start = 1
    for file in files:
        record = {
            "file_id": file.file_id,
            "table_id": file.table_id,
            "path": file.path,
            "schema_version": file.schema_version,
            "record_count": file.record_count,
            "file_size_bytes": file.file_size_bytes,
            "min_event_time": file.min_event_time,
            "max_event_time": file.max_event_time,
            # Texts in the text: they may have numbers that orjson does not write.
            "stats": json.dumps(file.stats),
            "partition": json.dumps(file.partition),
            "min_token": file.min_token,
            "max_token": file.max_token,
            "delete_count": file.delete_count,
        }
        if file.content is not None:
            record |= {"content_start": start, "content_bytes": len(file.content)}
            contents.append(file.content)
            start += len(file.content)
        records.append(record)
    return orjson.dumps(records).decode(), b"".join(contents)


def commit_snapshot(connection: Connection, publication: Publication) -> Snapshot:
    """Make a publication visible: THE COMMIT POINT, when the caller's transaction commits.

    The caller holds the transaction open, so that the bus may acknowledge in it. Raises Fenced,
    changing nothing, when the head's watermark is beyond `after_token` (another publisher was
    here, or this is a redelivery), when the epoch is older than the last publisher's, or when a
    folded file is no longer live. Files of a table that was dropped meanwhile are left out.
    """
    head = lock_head(connection, publication.tenant_id)
    # A watermark below `after_token` is right: what lies between was dead-lettered.
    if head.newest.max_visibility_token > min(publication.after_token, publication.watermark):
        raise Fenced("the tenant's watermark has moved", tenant_id=publication.tenant_id)
    if publication.epoch < head.publisher_epoch:
        raise Fenced("a newer publisher owns the tenant", tenant_id=publication.tenant_id)
    born = append_snapshot(
        connection,
        head,
        created_by=publication.created_by,
        operation="publish",
        watermark=publication.watermark,
        epoch=publication.epoch,
        files=publication.files,
        table_watermarks=publication.table_watermarks,
    )
    if publication.emptied_tables:
        end_files(connection, born, publication.emptied_tables)
    if publication.folded_files:
        _end_named_files(connection, born, publication.folded_files)
    if publication.new_schemas:
        connection.execute(
            _SQL["begin_schema_versions"],
            {
                "snapshot_id": born.snapshot_id,
                "table_ids": list(publication.new_schemas),
                "versions": list(publication.new_schemas.values()),
            },
        )
    return born


def replace_files(
    connection: Connection,
    tenant_id: TenantId,
    *,
    replaced: Sequence[FileId],
    files: Sequence[NewFile],
    created_by: str,
) -> Snapshot:
    """Carry the rows of live files on in other files: a snapshot with the same rows and watermark.

    The commit point of a compaction, when the caller's transaction commits. Raises Fenced, changing
    nothing, when one of `replaced` is no longer live.
    """
    head = lock_head(connection, tenant_id)
    born = append_snapshot(
        connection, head, created_by=created_by, operation="compact", files=files
    )
    _end_named_files(connection, born, replaced)
    return born


def end_files(connection: Connection, born: Snapshot, table_ids: Collection[TableId]) -> None:
    """Take every live file of the tables out of the manifest at `born`, but those it added."""
    connection.execute(
        _SQL["end_files"], {"snapshot_id": born.snapshot_id, "table_ids": list(table_ids)}
    )


def _end_named_files(connection: Connection, born: Snapshot, file_ids: Sequence[FileId]) -> None:
    ended = connection.execute(
        _SQL["end_named_files"], {"snapshot_id": born.snapshot_id, "file_ids": list(file_ids)}
    )
    if ended.rowcount != len(file_ids):
        raise Fenced("a file to fold is no longer live", tenant_id=born.tenant_id)


def newest(connection: Connection, tenant_id: TenantId) -> Snapshot:
    """The tenant's newest snapshot at the time of the call."""
    row = connection.execute(_SQL["head"], (tenant_id,)).fetchone()
    if row is None:
        raise Corrupt("a tenant has no publication head", tenant_id=tenant_id)
    return Snapshot(*row)


def latest_token(connection: Connection) -> VisibilityToken:
    """The largest token that is visible, of any tenant."""
    row = connection.execute(_SQL["latest_token"]).fetchone()
    return VisibilityToken(row[0] if row else 0)


def by_id(connection: Connection, tenant_id: TenantId, snapshot_id: SnapshotId) -> Snapshot:
    """The tenant's snapshot of that id. Raises NotFound, also for another tenant's."""
    row = connection.execute(_SQL["by_id"], (tenant_id, snapshot_id)).fetchone()
    if row is None:
        if snapshot_id <= _expired_through(connection, tenant_id):
            raise expired(snapshot_id)
        raise NotFound(
            ErrorCode.SNAPSHOT_NOT_FOUND,
            f"there is no snapshot {snapshot_id}: take an id from a query or from "
            "duckmesh_system.snapshots",
            snapshot_id=snapshot_id,
        )
    return Snapshot(*row)


def by_time(connection: Connection, tenant_id: TenantId, moment: datetime) -> Snapshot:
    """The snapshot that was the newest at that moment.

    Raises NotFound before the first one, and when it has expired.
    """
    row = connection.execute(_SQL["by_time"], (tenant_id, moment)).fetchone()
    gone = row is not None and row[4] is not None and row[4] <= moment
    if gone or (row is None and _expired_through(connection, tenant_id)):
        raise NotFound(
            ErrorCode.SNAPSHOT_NOT_FOUND,
            "the snapshot of that time has expired, or there was none yet: name a later time, and "
            "pin what is to stay",
            snapshot_time=moment.isoformat(),
        )
    if row is None:
        raise NotFound(
            ErrorCode.SNAPSHOT_NOT_FOUND,
            "there was no snapshot at that time yet: name a later time",
            snapshot_time=moment.isoformat(),
        )
    return Snapshot(*row[:4])


def expired(snapshot_id: SnapshotId) -> NotFound:
    """The refusal of a snapshot that retention has taken."""
    return NotFound(
        ErrorCode.SNAPSHOT_NOT_FOUND,
        f"snapshot {snapshot_id} has expired: name a newer one of duckmesh_system.snapshots, and "
        "pin what is to stay",
        snapshot_id=snapshot_id,
    )


def _expired_through(connection: Connection, tenant_id: TenantId) -> SnapshotId:
    row = connection.execute(_SQL["expired_through"], (tenant_id,)).fetchone()
    return SnapshotId(row[0] if row else 0)


def recent(
    connection: Connection, tenant_id: TenantId, *, through: SnapshotId, limit: int
) -> list[tuple[Snapshot, str, str]]:
    """The newest snapshots up to `through`, newest first, each with its operation and author."""
    rows = connection.execute(_SQL["recent"], (tenant_id, through, limit))
    return [(Snapshot(*row[:4]), row[4], row[5]) for row in rows]
