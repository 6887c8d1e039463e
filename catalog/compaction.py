"""What compaction reads and records: small live files, holds on them, and runs."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from catalog.connection import Connection
from duckmesh.identifiers import FileId, SchemaVersion, SnapshotId, TableId, TenantId
from duckmesh.partitions import Partition, PartitionSpec, spec_from_json
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "compaction.sql")
_FILES_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class CrowdedTable:
    """A table with several small live files."""

    tenant_id: TenantId
    table_id: TableId
    small_files: int
    small_bytes: int


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A small file that the newest snapshot reads. Its bytes lie at `path`, or inline."""

    file_id: FileId
    path: str | None
    schema_version: SchemaVersion
    record_count: int
    size_bytes: int
    min_token: VisibilityToken
    max_token: VisibilityToken
    age: timedelta
    partition: Partition = field(default_factory=dict)
    delete_count: int = 0
    """How many of its rows delete their key."""


class RunState(StrEnum):
    """How a run stands. Lost: another publication ended one of its files first."""

    RUNNING = "running"
    PUBLISHED = "published"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as it is recorded."""

    state: RunState
    files_in: int
    files_out: int
    bytes_in: int
    bytes_out: int
    snapshot_id: SnapshotId | None
    failure: str | None


def crowded_tables(connection: Connection, *, small_bytes: int, limit: int) -> list[CrowdedTable]:
    """Tables of all tenants with several live files below that size, the most crowded first.

    With them, those with an object of several partitions, however large.
    """
    rows = connection.execute(_SQL["crowded_tables"], {"small_bytes": small_bytes, "limit": limit})
    return [CrowdedTable(*row) for row in rows]


def layered_tables(connection: Connection, *, limit: int) -> list[CrowdedTable]:
    """Tables with a primary key of which some files supersede others, or delete rows.

    How many of their files are small is not counted.
    """
    rows = connection.execute(_SQL["layered_tables"], {"limit": limit})
    return [CrowdedTable(row[0], row[1], small_files=0, small_bytes=0) for row in rows]


def small_files(connection: Connection, table_id: TableId, *, small_bytes: int) -> list[LiveFile]:
    """The table's live files below that size, in token order; the oldest if they are too many.

    Files of several partitions are among them, however large.
    """
    rows = connection.execute(
        _SQL["small_files"],
        {"table_id": table_id, "small_bytes": small_bytes, "limit": _FILES_LIMIT},
    )
    return [LiveFile(*row) for row in rows]


def live_files(connection: Connection, table_id: TableId) -> list[LiveFile]:
    """The table's live files of every size, oldest tokens first; the oldest if they are too many.

    Files of one largest token are all here, or none of them.
    """
    rows = connection.execute(_SQL["live_files"], {"table_id": table_id, "limit": _FILES_LIMIT})
    found = [LiveFile(*row) for row in rows]
    if len(found) < _FILES_LIMIT:
        return found
    return [file for file in found if file.max_token < found[-1].max_token]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the rows of a table lie in its files."""

    spec: PartitionSpec = ()
    keyed: bool = False
    """Whether it has a primary key: then newer files supersede older ones by their keys."""


def arrangement(connection: Connection, table_id: TableId) -> Arrangement:
    """How new files of the table are to be made."""
    row = connection.execute(_SQL["arrangement"], (table_id,)).fetchone()
    return Arrangement() if row is None else Arrangement(spec_from_json(row[0]), row[1])


def hold_files(connection: Connection, file_ids: Collection[FileId], *, span: timedelta) -> bool:
    """Ask publications to leave the files alone for a while; False when one is not live."""
    held = connection.execute(_SQL["hold_files"], {"file_ids": list(file_ids), "span": span})
    return held.rowcount == len(file_ids)


def begin_run(
    connection: Connection,
    run_id: UUID,
    tenant_id: TenantId,
    table_id: TableId,
    *,
    files_in: int,
    bytes_in: int,
) -> None:
    """Record a run; the table's earlier ones that never ended have failed. The lease is held."""
    values = {
        "run_id": run_id,
        "tenant_id": tenant_id,
        "table_id": table_id,
        "files_in": files_in,
        "bytes_in": bytes_in,
    }
    with connection.transaction():
        connection.execute(_SQL["close_dead_runs"], values)
        connection.execute(_SQL["begin_run"], values)


def end_run(
    connection: Connection,
    run_id: UUID,
    state: RunState,
    *,
    files_out: int = 0,
    bytes_out: int = 0,
    snapshot_id: SnapshotId | None = None,
    failure: str | None = None,
) -> None:
    """Record how a run ended. Joins the caller's transaction."""
    connection.execute(
        _SQL["end_run"],
        {
            "run_id": run_id,
            "state": state.value,
            "files_out": files_out,
            "bytes_out": bytes_out,
            "snapshot_id": snapshot_id,
            "failure": failure,
        },
    )


def recent_runs(
    connection: Connection, tenant_id: TenantId, table_id: TableId, *, limit: int
) -> list[Run]:
    """The table's newest runs, newest first."""
    rows = connection.execute(
        _SQL["recent_runs"], {"tenant_id": tenant_id, "table_id": table_id, "limit": limit}
    )
    return [Run(RunState(row[0]), *row[1:]) for row in rows]
