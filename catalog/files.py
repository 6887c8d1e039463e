"""Data files and the manifest: which immutable Parquet files a snapshot reads."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from catalog import snapshots
from catalog.connection import Connection
from duckmesh.errors import Corrupt
from duckmesh.identifiers import FileId, SchemaVersion, SnapshotId, TableId, TenantId
from duckmesh.partitions import Partition
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "files.sql")
_FOLD_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class DataFile:
    """An immutable Parquet file of one table. Its bytes lie in the store at `path`, or inline."""

    file_id: FileId
    table_id: TableId
    path: str | None
    schema_version: SchemaVersion
    record_count: int
    file_size_bytes: int
    min_event_time: datetime | None
    max_event_time: datetime | None
    min_token: VisibilityToken
    max_token: VisibilityToken
    begin_snapshot: SnapshotId
    delete_count: int = 0
    """How many of its rows delete their key."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of some snapshot, its table's name, and where its bytes are to be."""

    file_id: FileId
    table: str
    path: str | None
    size_bytes: int
    inline_bytes: int | None


def manifest(
    connection: Connection, snapshot_id: SnapshotId, table_ids: Collection[TableId]
) -> list[DataFile]:
    """The files of the tables at the snapshot, by table, then in the order of acceptance.

    Whole, or NotFound (SNAPSHOT_NOT_FOUND) when the snapshot has expired.
    """
    found = connection.execute(
        _SQL["manifest"], {"table_ids": list(table_ids), "snapshot_id": snapshot_id}
    ).fetchall()
    # No file may also mean: no snapshot. Files were seen together with their snapshot.
    if not found and connection.execute(_SQL["is_kept"], (snapshot_id,)).fetchone() != (True,):
        raise snapshots.expired(snapshot_id)
    return [DataFile(*row) for row in found]


def content(connection: Connection, file_id: FileId) -> bytes:
    """The bytes of an inline file."""
    row = connection.execute(_SQL["content"], (file_id,), binary=True).fetchone()
    if row is None:
        raise Corrupt("an inline file has no content", file_id=str(file_id))
    return bytes(row[0])


def contents(connection: Connection, file_ids: Collection[FileId]) -> dict[FileId, bytes]:
    """The bytes of several inline files."""
    rows = connection.execute(_SQL["contents"], (list(file_ids),), binary=True)
    return {file_id: bytes(content) for file_id, content in rows}


def live_inline_files(connection: Connection, table_ids: Collection[TableId]) -> list[DataFile]:
    """The inline files that the newest snapshot reads, of the given tables."""
    rows = connection.execute(
        _SQL["live_inline_files"], {"table_ids": list(table_ids), "limit": _FOLD_LIMIT}
    )
    return [DataFile(*row) for row in rows]


def newest_tokens_outside(
    connection: Connection, table_ids: Collection[TableId], file_ids: Collection[FileId]
) -> dict[TableId, VisibilityToken]:
    """Of each table the largest token of its live files other than those."""
    values = {"table_ids": list(table_ids), "file_ids": list(file_ids)}
    return dict(connection.execute(_SQL["newest_tokens_outside"], values).fetchall())


def known_paths(connection: Connection, paths: Collection[str]) -> set[str]:
    """Those of the object keys that some data file names: the rest are orphans."""
    return {row[0] for row in connection.execute(_SQL["known_paths"], (list(paths),))}


def kept_files(
    connection: Connection, tenant_id: TenantId, *, after: FileId | None, limit: int
) -> list[KeptFile]:
    """The next files by id that a snapshot of the tenant reads, the newest or an older one."""
    values = {"tenant_id": tenant_id, "after": after, "limit": limit}
    return [KeptFile(*row) for row in connection.execute(_SQL["kept_files"], values)]


def still_kept(connection: Connection, file_ids: Collection[FileId]) -> set[FileId]:
    """Those of the files that a snapshot still reads."""
    return {row[0] for row in connection.execute(_SQL["still_kept"], (list(file_ids),))}


@dataclass(frozen=True, slots=True)
class FileStats:
    """What is known of a file's rows: {"column": {"min", "max", "nulls"}}, and its partition.

    A column may be absent.
    """

    columns: Mapping[str, Any]
    partition: Partition


def partitions_of(connection: Connection, file_ids: Collection[FileId]) -> dict[FileId, Partition]:
    """The partitions of those files that were written by a spec."""
    return dict(connection.execute(_SQL["partitions_of"], (list(file_ids),)).fetchall())


def stats_of(connection: Connection, file_ids: Collection[FileId]) -> dict[FileId, FileStats]:
    """The statistics of files, by their ids."""
    rows = connection.execute(_SQL["stats_of"], (list(file_ids),))
    return {file_id: FileStats(columns, partition) for file_id, columns, partition in rows}
