"""Table definitions and their schema versions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from psycopg.types.json import Jsonb

from catalog import snapshots
from catalog.connection import Connection
from catalog.table_schema import (
    TableSchema,
    check_key,
    normal_schema,
    with_field_ids,
    with_missing_ids,
)
from duckmesh.errors import Conflict, ErrorCode, Exceeded, NotFound
from duckmesh.identifiers import FIELD_ID, SchemaVersion, SnapshotId, TableId, TenantId
from duckmesh.partitions import PartitionSpec, spec_as_json, spec_from_json
from duckmesh.quotas import Quota
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken

_SQL = Statements("catalog", "tables.sql")


@dataclass(frozen=True, slots=True)
class Table:
    """A live table with the schema version that new writes are checked against."""

    table_id: TableId
    tenant_id: TenantId
    name: str
    schema: TableSchema
    creation_key: str | None = None
    primary_key: tuple[str, ...] = ()
    partition_spec: PartitionSpec = ()


@dataclass(frozen=True, slots=True)
class TableAt:
    """A table as a snapshot has it."""

    table_id: TableId
    name: str
    schema: TableSchema
    watermark: VisibilityToken | None
    """The token of its newest visible write; None when nothing was ever published to it."""
    partition_spec: PartitionSpec = ()
    """How new files are cut today, whatever the snapshot."""

    @property
    def primary_key(self) -> tuple[str, ...]:
        return self.schema.primary_key


@dataclass(frozen=True, slots=True)
class Place:
    """Whose a table is, what it is called, and whether it was dropped."""

    tenant: str
    name: str
    dropped: bool
    partition_spec: PartitionSpec = ()


def table_not_found(name: str) -> NotFound:
    return NotFound(
        ErrorCode.TABLE_NOT_FOUND,
        f"there is no table {name!r}: create it first, or correct the name",
        table=name,
    )


def name_is_taken(name: str) -> Conflict:
    """The refusal of a name that a table or view has."""
    return Conflict(
        ErrorCode.TABLE_EXISTS,
        f"there is a table or view {name!r}: drop it, or choose another name",
        table=name,
    )


def create_table(
    connection: Connection,
    tenant_id: TenantId,
    name: str,
    schema: TableSchema,
    *,
    creation_key: str | None,
    created_by: str,
    primary_key: Sequence[str] = (),
    partition_spec: PartitionSpec = (),
    tables_max: int | None = None,
) -> Table | None:
    """Create an empty table and publish the snapshot that has it; None when the name is taken.

    One transaction, joined when the caller has one open, and serialised with every publication of
    the tenant by the head's row lock. Raises Conflict (TABLE_EXISTS) for the name of a view,
    Exceeded (QUOTA_EXCEEDED) when the tenant has `tables_max` tables, Invalid for a key that cannot
    be one.
    """
    check_key(schema.arrow, primary_key)
    with connection.transaction():
        head = snapshots.lock_head(connection, tenant_id)
        if find_table(connection, tenant_id, name) is not None:
            return None
        if connection.execute(_SQL["is_view"], (tenant_id, name)).fetchone() is not None:
            raise Conflict(
                ErrorCode.TABLE_EXISTS,
                f"there is a view {name!r}: drop it, or choose another name",
                table=name,
            )
        if tables_max is not None:
            _check_count(connection, tenant_id, tables_max)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="create_table"
        )
        row = connection.execute(
            _SQL["insert_table"],
            (
                tenant_id,
                name,
                creation_key,
                born.snapshot_id,
                list(primary_key),
                Jsonb(spec_as_json(partition_spec)),
            ),
        ).fetchone()
        assert row is not None  # noqa: S101 - RETURNING of one inserted row
        schema = schema.with_key(primary_key)
        _insert_version(connection, row[0], schema, begin_snapshot=born.snapshot_id)
    return Table(row[0], tenant_id, name, schema, creation_key, tuple(primary_key), partition_spec)


def _check_count(connection: Connection, tenant_id: TenantId, tables_max: int) -> None:
    """Exact: whoever creates or drops a table of the tenant holds the head's lock."""
    row = connection.execute(_SQL["count_tables"], (tenant_id,)).fetchone()
    used = row[0] if row else 0
    if used >= tables_max:
        raise Exceeded(
            ErrorCode.QUOTA_EXCEEDED,
            f"the tenant has {used} tables and may have {tables_max}: drop one, or ask the "
            "operator for more",
            quota=Quota.TABLES.value,
            used=used,
            limit=tables_max,
        )


def _insert_version(
    connection: Connection,
    table_id: TableId,
    schema: TableSchema,
    *,
    begin_snapshot: SnapshotId | None,
) -> None:
    connection.execute(
        _SQL["insert_schema_version"],
        (
            table_id,
            schema.version,
            schema.to_bytes(),
            Jsonb(schema.as_columns()),
            begin_snapshot,
            list(schema.primary_key),
        ),
    )


def propose_schema(connection: Connection, table: Table, offered: pa.Schema) -> TableSchema:
    """Record a new version with wholly new columns, not yet published, and return it.

    Columns that carry field ids keep them: files may be written with these already. They need only
    differ from those of the columns that they replace. It takes effect when the write that brings
    it is published. Died before: an unused number.
    """
    columns = normal_schema(offered)
    numbered = all(FIELD_ID in (field.metadata or {}) for field in offered)
    with connection.transaction():
        values = _named(table)
        if connection.execute(_SQL["lock_live_table"], values).fetchone() is None:
            raise table_not_found(table.name)
        row = connection.execute(_SQL["next_schema_version"], values).fetchone()
        assert row is not None  # noqa: S101 - an aggregate has one row
        version, next_field_id = row
        arrow = offered if numbered else with_field_ids(columns, first_id=next_field_id)
        schema = TableSchema(version, arrow).with_key(table.primary_key)
        _insert_version(connection, table.table_id, schema, begin_snapshot=None)
    return schema


def alter_table(
    connection: Connection,
    table: Table,
    columns: Sequence[pa.Field],
    *,
    primary_key: Sequence[str],
    created_by: str,
) -> TableSchema:
    """Give the table these columns in a new snapshot, and check new writes against them.

    Columns that carry a field id are columns of `table`; the others are new and get one. Joins the
    caller's transaction, which holds the lock that orders writes before the head's. Raises
    Conflict (SCHEMA_INCOMPATIBLE) when the table's columns are not those of `table` any more, or
    wait for a publication that brings them.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, table.tenant_id)
        schema, _ = _next_version(
            connection, head, table, columns, primary_key=primary_key, created_by=created_by
        )
        values = _named(table) | {
            "version": schema.version,
            "primary_key": list(primary_key),
        }
        connection.execute(_SQL["set_definition"], values)
    return schema


def rename_table(
    connection: Connection, table: Table, new_name: str, *, created_by: str
) -> TableSchema:
    """Give the table another name in a new snapshot; older snapshots keep the former one.

    The table gets a new schema version with the same columns, so that a fence at it sends back
    every write that began under the former name. Joins the caller's transaction, which holds the
    lock that orders writes before the head's. Raises Conflict (TABLE_EXISTS) when another table
    or a view has the name, Conflict (SCHEMA_INCOMPATIBLE) as `alter_table` does, and NotFound.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, table.tenant_id)
        names = (table.tenant_id, new_name)
        if live_name(connection, *names) not in (None, table.name) or (
            connection.execute(_SQL["is_view"], names).fetchone() is not None
        ):
            raise name_is_taken(new_name)
        columns = tuple(table.schema.arrow)
        schema, born = _next_version(
            connection, head, table, columns, primary_key=table.primary_key, created_by=created_by
        )
        values = _named(table) | {
            "new_name": new_name,
            "version": schema.version,
            "snapshot_id": born.snapshot_id,
        }
        connection.execute(_SQL["keep_former_name"], values)
        connection.execute(_SQL["set_name"], values)
    return schema


def set_partition_spec(
    connection: Connection, table: Table, spec: PartitionSpec, *, created_by: str
) -> snapshots.Snapshot:
    """Cut the table's new files by this spec, from a new snapshot with the same files on.

    Files keep the partition that they were written in; no row is read. Joins the caller's
    transaction. Raises NotFound.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, table.tenant_id)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="alter_table"
        )
        values = _named(table) | {"partition_spec": Jsonb(spec_as_json(spec))}
        if connection.execute(_SQL["set_partition_spec"], values).rowcount == 0:
            raise table_not_found(table.name)
    return born


def _next_version(
    connection: Connection,
    head: snapshots.Head,
    table: Table,
    columns: Sequence[pa.Field],
    *,
    primary_key: Sequence[str],
    created_by: str,
) -> tuple[TableSchema, snapshots.Snapshot]:
    """A new version of the table's columns, and the snapshot in which it takes effect."""
    values = _named(table) | {"version": table.schema.version}
    if connection.execute(_SQL["lock_live_table"], values).fetchone() is None:
        raise table_not_found(table.name)
    if connection.execute(_SQL["is_published"], values).fetchone() != (True,):
        raise definition_changed(table.name)
    row = connection.execute(_SQL["next_schema_version"], values).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has one row
    version, next_field_id = row
    schema = TableSchema(version, with_missing_ids(columns, first_id=next_field_id))
    # Without a key its rows were never told apart by one: columns of the key's names make none.
    schema = schema.with_key(primary_key if table.schema.primary_key else ())
    born = snapshots.append_snapshot(
        connection, head, created_by=created_by, operation="alter_table"
    )
    _insert_version(connection, table.table_id, schema, begin_snapshot=born.snapshot_id)
    return schema, born


def _named(table: Table) -> dict[str, Any]:
    """What a statement needs to mean this table, under this name."""
    return {"tenant_id": table.tenant_id, "table_id": table.table_id, "name": table.name}


def definition_changed(name: str) -> Conflict:
    """The refusal of a change that was worked out for columns that the table has no more."""
    return Conflict(
        ErrorCode.SCHEMA_INCOMPATIBLE,
        f"table {name!r} is being given other columns at the same time: look at it, and send the "
        "statement again",
        table=name,
    )


def adopt_schema_version(
    connection: Connection, tenant_id: TenantId, table_id: TableId, version: SchemaVersion
) -> SchemaVersion | None:
    """Check new writes against this version, or a newer one, from now on; None without a table.

    Returns the version that they are checked against.
    """
    row = connection.execute(
        _SQL["adopt_schema_version"],
        {"tenant_id": tenant_id, "table_id": table_id, "version": version},
    ).fetchone()
    return None if row is None else SchemaVersion(row[0])


def find_table(connection: Connection, tenant_id: TenantId, name: str) -> Table | None:
    """The live table of that name, or None."""
    row = connection.execute(_SQL["find_live_table"], (tenant_id, name)).fetchone()
    if row is None:
        return None
    table_id, name, creation_key, primary_key, version, arrow_schema, key_then, spec = row
    schema = TableSchema.from_bytes(version, arrow_schema, key_then)
    key = tuple(primary_key)
    return Table(table_id, tenant_id, name, schema, creation_key, key, spec_from_json(spec))


def live_name(connection: Connection, tenant_id: TenantId, name: str) -> str | None:
    """The name, as it is written, of the live table that SQL means by `name`; None for none."""
    values = {"tenant_id": tenant_id, "name": name}
    row = connection.execute(_SQL["find_live_name"], values).fetchone()
    return None if row is None else str(row[0])


def schema_versions(
    connection: Connection, table_id: TableId, versions: Collection[SchemaVersion]
) -> dict[SchemaVersion, TableSchema]:
    """The named versions of a table's schema."""
    rows = connection.execute(_SQL["schema_versions"], (table_id, sorted(versions)))
    return {row[0]: TableSchema.from_bytes(*row) for row in rows}


def tables_at(
    connection: Connection, tenant_id: TenantId, snapshot_id: SnapshotId
) -> list[TableAt]:
    """Every table of the tenant's snapshot, by name."""
    rows = connection.execute(
        _SQL["tables_at"], {"tenant_id": tenant_id, "snapshot_id": snapshot_id}
    )
    return [_table_at(row) for row in rows]


def _table_at(row: tuple[Any, ...]) -> TableAt:
    table_id, name, version, content, watermark, primary_key, spec = row
    schema = TableSchema.from_bytes(version, content, primary_key)
    return TableAt(table_id, name, schema, watermark, spec_from_json(spec))


def places(
    connection: Connection, tenant_id: TenantId, table_ids: Collection[TableId]
) -> dict[TableId, Place]:
    """Where each of the tables belongs, dropped ones included."""
    rows = connection.execute(_SQL["places"], (tenant_id, list(table_ids)))
    return {row[0]: Place(row[1], row[2], row[3], spec_from_json(row[4])) for row in rows}


def drop_table(connection: Connection, table: Table, *, created_by: str) -> snapshots.Snapshot:
    """End the table in a new snapshot; older snapshots keep it and its rows.

    One transaction, joined when the caller has one open. Raises NotFound when it
    was dropped before, or has another name by now.
    """
    with connection.transaction():
        head = snapshots.lock_head(connection, table.tenant_id)
        born = snapshots.append_snapshot(
            connection, head, created_by=created_by, operation="drop_table"
        )
        ended = connection.execute(
            _SQL["end_table"], _named(table) | {"snapshot_id": born.snapshot_id}
        )
        if ended.rowcount == 0:
            raise table_not_found(table.name)
        snapshots.end_files(connection, born, [table.table_id])
    return born
