"""Views: named queries, in snapshots as tables are."""

from dataclasses import dataclass

import pyarrow as pa

from catalog import snapshots, tables
from catalog.connection import Connection
from catalog.table_schema import with_field_ids
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import SnapshotId, TenantId
from duckmesh.statements import Statements

_SQL = Statements("catalog", "views.sql")


@dataclass(frozen=True, slots=True)
class View:
    """A view as a snapshot has it. `schema` is that of its rows when it was created."""

    name: str
    query: str
    schema: pa.Schema


def create_view(
    connection: Connection, tenant_id: TenantId, view: View, *, replace: bool, created_by: str
) -> None:
    """Create a view, and publish the snapshot that has it.

    One transaction. Raises Conflict (TABLE_EXISTS) when a table has the name, or a view that is
    not to be replaced.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, tenant_id)
        known = exists(connection, tenant_id, view.name)
        if (known and not replace) or tables.live_name(connection, tenant_id, view.name):
            raise tables.name_is_taken(view.name)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="create_view"
        )
        _end(connection, tenant_id, view.name, born.snapshot_id)
        connection.execute(
            _SQL["insert_view"],
            (
                tenant_id,
                view.name,
                view.query,
                with_field_ids(view.schema, first_id=1).serialize().to_pybytes(),
                born.snapshot_id,
            ),
        )


def drop_view(connection: Connection, tenant_id: TenantId, name: str, *, created_by: str) -> None:
    """End a view in a new snapshot; older ones keep it. Raises NotFound."""
    with connection.transaction():
        head = snapshots.lock_head(connection, tenant_id)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="drop_view"
        )
        if not _end(connection, tenant_id, name, born.snapshot_id):
            raise view_not_found(name)


def rename_view(
    connection: Connection, tenant_id: TenantId, name: str, new_name: str, *, created_by: str
) -> None:
    """Give a view another name in a new snapshot; older ones keep the former.

    One transaction. Raises NotFound, and Conflict (TABLE_EXISTS) when a table or another view has
    the name.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, tenant_id)
        same = name.lower() == new_name.lower()
        if tables.live_name(connection, tenant_id, new_name) or (
            not same and exists(connection, tenant_id, new_name)
        ):
            raise tables.name_is_taken(new_name)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="alter_view"
        )
        former = connection.execute(
            _SQL["end_view_returning"],
            {"tenant_id": tenant_id, "name": name, "snapshot_id": born.snapshot_id},
        ).fetchone()
        if former is None:
            raise view_not_found(name)
        connection.execute(_SQL["insert_view"], (tenant_id, new_name, *former, born.snapshot_id))


def view_not_found(name: str) -> NotFound:
    return NotFound(
        ErrorCode.TABLE_NOT_FOUND,
        f"there is no view {name!r}: correct the name, or write IF EXISTS",
        table=name,
    )


def _end(connection: Connection, tenant_id: TenantId, name: str, snapshot_id: SnapshotId) -> bool:
    values = {"tenant_id": tenant_id, "name": name, "snapshot_id": snapshot_id}
    return connection.execute(_SQL["end_view"], values).rowcount > 0


def exists(connection: Connection, tenant_id: TenantId, name: str) -> bool:
    """Whether there is a live view of that name."""
    return connection.execute(_SQL["find_live_view"], (tenant_id, name)).fetchone() is not None


def views_at(connection: Connection, tenant_id: TenantId, snapshot_id: SnapshotId) -> list[View]:
    """Every view of the tenant's snapshot, by name."""
    values = {"tenant_id": tenant_id, "snapshot_id": snapshot_id}
    rows = connection.execute(_SQL["views_at"], values)
    return [View(name, query, pa.ipc.read_schema(pa.py_buffer(raw))) for name, query, raw in rows]
