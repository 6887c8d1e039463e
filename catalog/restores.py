"""Restores: a new snapshot in which tables are as an older one has them.

A restore moves no rows. A table that is what it was then gets back the files it had then, and ends
those that came since. Any other (dropped, replaced, altered or renamed since) is ended, and made
anew with its old columns and files: so no write that was checked against other columns reaches it.
Restored files are new rows of the catalog that name the old objects.
"""

from collections.abc import Collection
from dataclasses import dataclass

from catalog import snapshots, tables, views
from catalog.connection import Connection
from catalog.snapshots import Snapshot
from catalog.tables import TableAt, table_not_found
from duckmesh.errors import Conflict, ErrorCode
from duckmesh.identifiers import SnapshotId, TableId, TenantId
from duckmesh.statements import Statements

_SQL = Statements("catalog", "restores.sql")


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore does to each table, by name, and to the views."""

    rewound: tuple[TableAt, ...] = ()
    """Tables that are what they were: they get their old files."""
    made_anew: tuple[TableAt, ...] = ()
    """Tables as the old snapshot has them, which are no such tables now."""
    ended: tuple[TableAt, ...] = ()
    """Live tables that end: others are in their place, or none was there then."""
    all_views: bool = False
    """Whether the views become those of the old snapshot."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The new snapshot, and what it changed."""

    snapshot: Snapshot
    plan: RestorePlan
    files_added: int
    files_ended: int


def plan_restore(
    connection: Connection,
    tenant_id: TenantId,
    snapshot_id: SnapshotId,
    names: Collection[str] | None,
) -> RestorePlan:
    """What a restore of these tables, or of the whole tenant, would do now. Changes nothing.

    Raises NotFound (SNAPSHOT_NOT_FOUND, TABLE_NOT_FOUND), and Conflict (TABLE_EXISTS) when a view
    has the name of a table.
    """
    snapshots.by_id(connection, tenant_id, snapshot_id)
    newest = snapshots.newest(connection, tenant_id)
    live = {t.table_id: t for t in tables.tables_at(connection, tenant_id, newest.snapshot_id)}
    wanted = _wanted(tables.tables_at(connection, tenant_id, snapshot_id), names)
    if names is not None:
        for table in wanted:
            if views.exists(connection, tenant_id, table.name):
                raise _is_view(table.name)
    rewound = tuple(t for t in wanted if _is_same(live.get(t.table_id), t))
    kept = {t.table_id for t in rewound}
    made_anew = tuple(t for t in wanted if t.table_id not in kept)
    others = [t for t in live.values() if t.table_id not in kept]
    in_the_way = {t.name for t in (made_anew if names is not None else others)}
    ended = tuple(t for t in others if t.name in in_the_way)
    return RestorePlan(rewound, made_anew, ended, all_views=names is None)


def restore(
    connection: Connection,
    tenant_id: TenantId,
    snapshot_id: SnapshotId,
    names: Collection[str] | None,
    *,
    created_by: str,
) -> Restored:
    """Publish a snapshot in which the tables, or the whole tenant, are as in an older one.

    One transaction, joined when the caller has one open, under the head's lock. The watermark stays
    where it is. Who ends tables fences them in the same transaction. Raises as `plan_restore` does.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, tenant_id)
        plan = plan_restore(connection, tenant_id, snapshot_id, names)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="restore"
        )
        ended = _rewind(connection, plan, born, snapshot_id)
        added = _bring_back(
            connection, born, snapshot_id, {t.table_id: t.table_id for t in plan.rewound}
        )
        ended += _end_tables(connection, plan, born)
        made = {t.table_id: _make_anew(connection, t, born, snapshot_id) for t in plan.made_anew}
        added += _bring_back(connection, born, snapshot_id, made)
        if plan.all_views:
            values = {"tenant_id": tenant_id, "then": snapshot_id, "now": born.snapshot_id}
            connection.execute(_SQL["end_other_views"], values)
            connection.execute(_SQL["bring_views_back"], values)
    return Restored(born, plan, added, ended)


def _wanted(then: list[TableAt], names: Collection[str] | None) -> list[TableAt]:
    """The tables of these names; SQL compares without case, and an exact match comes first."""
    if names is None:
        return then
    found = {}
    for name in names:
        alike = [table for table in then if table.name.lower() == name.lower()]
        if not alike:
            raise table_not_found(name)
        chosen = next((table for table in alike if table.name == name), alike[0])
        found[chosen.table_id] = chosen
    return list(found.values())


def _is_same(now: TableAt | None, then: TableAt) -> bool:
    """Whether the live table has the identity, name, columns and key that it had then."""
    return (
        now is not None
        and now.table_id == then.table_id
        and now.name == then.name
        and now.primary_key == then.primary_key
        and now.schema.arrow.equals(then.schema.arrow, check_metadata=True)
    )


def _is_view(name: str) -> Conflict:
    return Conflict(
        ErrorCode.TABLE_EXISTS,
        f"{name!r} is a view now: drop or rename it first, or restore the whole tenant",
        table=name,
    )


def _rewind(connection: Connection, plan: RestorePlan, born: Snapshot, then: SnapshotId) -> int:
    """End the files that came since. Those that live from before are in the old snapshot too."""
    values = {
        "table_ids": [table.table_id for table in plan.rewound],
        "then": then,
        "now": born.snapshot_id,
    }
    return connection.execute(_SQL["end_later_files"], values).rowcount


def _end_tables(connection: Connection, plan: RestorePlan, born: Snapshot) -> int:
    values = {"table_ids": [table.table_id for table in plan.ended], "now": born.snapshot_id}
    connection.execute(_SQL["end_tables"], values)
    return connection.execute(_SQL["end_files_of"], values).rowcount


def _make_anew(connection: Connection, table: TableAt, born: Snapshot, then: SnapshotId) -> TableId:
    """A new table with the definition that an old one had then, and its schema versions."""
    values = {
        "table_id": table.table_id,
        "name": table.name,
        "primary_key": list(table.primary_key),
        "version": table.schema.version,
        "then": then,
        "now": born.snapshot_id,
    }
    row = connection.execute(_SQL["make_anew"], values).fetchone()
    assert row is not None  # noqa: S101 - RETURNING of one inserted row
    values["new_table_id"] = row[0]
    connection.execute(_SQL["copy_versions"], values)
    connection.execute(_SQL["copy_watermark"], values)
    return TableId(row[0])


def _bring_back(
    connection: Connection, born: Snapshot, then: SnapshotId, places: dict[TableId, TableId]
) -> int:
    """Add the files that the tables had then and have not now, to the tables that they become."""
    values = {
        "from_tables": list(places),
        "to_tables": list(places.values()),
        "then": then,
        "now": born.snapshot_id,
    }
    return connection.execute(_SQL["bring_back"], values).rowcount
