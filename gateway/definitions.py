"""What tables and views there are: each definition is one transaction of the catalog.

It draws a snapshot, takes the bus's fence where writes of older columns must be sent back, and
leaves its row in the audit.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from catalog import tables, views
from catalog.connection import Catalog, Connection
from catalog.table_schema import TableSchema
from catalog.tables import Table, table_not_found
from catalog.views import View
from duckmesh.errors import Conflict, ErrorCode
from duckmesh.identifiers import (
    SchemaVersion,
    check_table_name,
)
from duckmesh.partitions import PartitionSpec, spec_as_json
from gateway.acts import AdministrativeAct, administrative_act
from gateway.identity import Identity, Role
from gateway.known_quotas import KnownQuotas
from gateway.known_tables import KnownTables
from gateway.transactions import ClientTransaction
from ingest_bus.port import IngestBus

NO_VERSION: Final = SchemaVersion(2**31 - 1)
"""Above every schema version: a fence at it refuses every write."""


class Definitions:
    """Makes, changes and ends tables and views. Thread-safe."""

    def __init__(
        self, catalog: Catalog, bus: IngestBus, tables_known: KnownTables, quotas: KnownQuotas
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._tables = tables_known
        self._quotas = quotas

    def create_table(
        self,
        identity: Identity,
        name: str,
        schema: TableSchema,
        *,
        creation_key: str | None,
        primary_key: Sequence[str] = (),
        partition_spec: PartitionSpec = (),
    ) -> Table | None:
        """Create the table; None when another was first. Raises Exceeded (QUOTA_EXCEEDED)."""
        tables_max = self._quotas.of(identity).tenant.tables
        with self._act(identity, "create_table", name) as (connection, act):
            made = tables.create_table(
                connection,
                identity.tenant_id,
                name,
                schema,
                creation_key=creation_key,
                created_by=identity.principal,
                primary_key=primary_key,
                partition_spec=partition_spec,
                tables_max=tables_max,
            )
            if made is not None:
                act.done(connection)
        return made

    def require_admin(self, identity: Identity, act: str, target: str) -> None:
        """Raise Denied unless this is a table_admin; the refused act is written down."""
        with administrative_act(self._catalog, identity, act, target):
            identity.require(Role.TABLE_ADMIN)

    @contextlib.contextmanager
    def _act(
        self, identity: Identity, name: str, target: str
    ) -> Iterator[tuple[Connection, AdministrativeAct]]:
        """One transaction of the catalog, for an act and its row in the audit."""
        with (
            administrative_act(self._catalog, identity, name, target) as act,
            self._catalog.connect() as connection,
            connection.transaction(),
        ):
            yield connection, act

    def recreate_table(
        self,
        identity: Identity,
        name: str,
        schema: TableSchema,
        *,
        primary_key: Sequence[str],
        partition_spec: PartitionSpec = (),
    ) -> Table:
        """Create the table in the place of one of that name, if there is one. Atomic.

        The old table keeps its published rows in older snapshots; what was accepted for it and not
        yet published is in none, and writes that began for it are refused.
        """
        tables_max = self._quotas.of(identity).tenant.tables
        with self._act(identity, "replace_table", name) as (connection, act):
            old = tables.find_table(connection, identity.tenant_id, name)
            if old is not None:
                self._end_table(connection, identity, old)
            made = tables.create_table(
                connection,
                identity.tenant_id,
                name,
                schema,
                creation_key=None,
                created_by=identity.principal,
                primary_key=primary_key,
                partition_spec=partition_spec,
                tables_max=tables_max,
            )
            if made is None:
                raise table_exists(name)
            act.done(connection)
        self._tables.forget(identity.tenant_id, name)
        return made

    def drop_table(self, identity: Identity, name: str, *, if_exists: bool = False) -> bool:
        """End a table in a new snapshot; False when there was none and that is no error.

        Rows that were published before stay in older snapshots. Writes that were accepted and not
        yet published go with the table, and are in none; later ones are refused.
        """
        with administrative_act(self._catalog, identity, "drop_table", name) as act:
            identity.require(Role.TABLE_ADMIN)
            table = self._tables.look(identity.tenant_id, name)
            if table is None:
                if if_exists:
                    return False
                raise table_not_found(name)
            with self._catalog.connect() as connection, connection.transaction():
                self._end_table(connection, identity, table)
                act.done(connection)
        self._tables.forget(identity.tenant_id, name)
        return True

    def alter_table(
        self,
        identity: Identity,
        table: Table,
        columns: Sequence[pa.Field],
        *,
        primary_key: Sequence[str],
    ) -> TableSchema:
        """Give the table these columns in a new snapshot. Atomic.

        Columns with a field id are those of `table`. A write that was checked against the old
        columns is before this, or is sent back. Raises Conflict (SCHEMA_INCOMPATIBLE) when the
        table's columns are not those of `table` any more.
        """
        key = (identity.tenant_id, table.table_id)
        with self._new_version(identity, "alter_table", table) as (connection, act):
            altered = tables.alter_table(
                connection,
                table,
                columns,
                primary_key=primary_key,
                created_by=identity.principal,
            )
            self._bus.fence(*key, below=altered.version, within=connection)
            act.done(connection, schema_version=altered.version)
        self._tables.forget(identity.tenant_id, table.name)
        return altered

    @contextlib.contextmanager
    def _new_version(
        self, identity: Identity, name: str, table: Table
    ) -> Iterator[tuple[Connection, AdministrativeAct]]:
        """An act that makes the version after the one `table` has, beside no write of the tenant.

        Raises Conflict (SCHEMA_INCOMPATIBLE) when a replacement by other columns was accepted that
        the table was not told of, for its writer died, or is about to: then it is told now.
        """
        with self._act(identity, name, table.name) as (connection, act):
            # Counter row first, head row second: the lock order of ingest_bus.postgres. This fence
            # refuses nothing that the one at the end does not; it takes the counter row, so that
            # no replacement is accepted between this look and the commit.
            standing = self._bus.fence(
                identity.tenant_id, table.table_id, below=table.schema.version, within=connection
            )
            # A table that was dropped is not found by the act.
            if standing in (table.schema.version, NO_VERSION):
                yield connection, act
                return
        self.adopt(table, standing)
        raise tables.definition_changed(table.name)

    def adopt(self, table: Table, version: SchemaVersion) -> None:
        """Check later writes against this version of the table's columns, or a newer one."""
        with self._catalog.connect() as connection:
            tables.adopt_schema_version(connection, table.tenant_id, table.table_id, version)
        self._tables.forget(table.tenant_id, table.name)

    def set_partition_spec(self, identity: Identity, table: Table, spec: PartitionSpec) -> None:
        """Cut the table's new files by this spec. Atomic; rows and older files stay as they are.

        Needs no fence: rows that are on their way are right under either spec. Raises NotFound.
        """
        with self._act(identity, "alter_table", table.name) as (connection, act):
            tables.set_partition_spec(connection, table, spec, created_by=identity.principal)
            act.done(connection, partition_spec=spec_as_json(spec))
        self._tables.forget(identity.tenant_id, table.name)

    def rename_table(
        self,
        identity: Identity,
        table: Table,
        new_name: str,
        transaction: ClientTransaction | None = None,
    ) -> None:
        """Give the table another name in a new snapshot. Atomic; the same name changes nothing.

        A write that began under the former name is before this, or is sent back: it never reaches
        another table that has the name by then. What `transaction` holds for the table goes with
        it. Raises Conflict (TABLE_EXISTS) when the name is taken, and what `alter_table` raises.
        """
        if new_name == table.name:
            return
        key = (identity.tenant_id, table.table_id)
        with self._new_version(identity, "rename_table", table) as (connection, act):
            renamed = tables.rename_table(
                connection, table, new_name, created_by=identity.principal
            )
            self._bus.fence(*key, below=renamed.version, within=connection)
            if transaction is not None:
                transaction.follow(connection, table, renamed.version)
            act.done(connection, new_name=new_name)
        for name in (table.name, new_name):
            self._tables.forget(identity.tenant_id, name)

    def rename_view(self, identity: Identity, name: str, new_name: str) -> None:
        """Give a view another name in a new snapshot. Raises TABLE_NOT_FOUND, TABLE_EXISTS."""
        if new_name == name:
            return
        with self._act(identity, "rename_view", name) as (connection, act):
            views.rename_view(
                connection, identity.tenant_id, name, new_name, created_by=identity.principal
            )
            act.done(connection, new_name=new_name)

    def create_view(self, identity: Identity, view: View, *, replace: bool) -> None:
        """Create a view. Raises Conflict (TABLE_EXISTS) when its name is taken."""
        with self._act(identity, "create_view", view.name) as (connection, act):
            views.create_view(
                connection,
                identity.tenant_id,
                view,
                replace=replace,
                created_by=identity.principal,
            )
            act.done(connection, replace=replace)

    def drop_view(self, identity: Identity, name: str) -> None:
        """End a view in a new snapshot. Raises TABLE_NOT_FOUND."""
        with self._act(identity, "drop_view", name) as (connection, act):
            views.drop_view(connection, identity.tenant_id, name, created_by=identity.principal)
            act.done(connection)

    def is_view(self, identity: Identity, name: str) -> bool:
        """Whether there is a view of that name now."""
        with self._catalog.connect() as connection:
            return views.exists(connection, identity.tenant_id, check_table_name(name))

    def _end_table(self, connection: Connection, identity: Identity, table: Table) -> None:
        # Counter row first, head row second: the lock order of ingest_bus.postgres.
        self._bus.fence(identity.tenant_id, table.table_id, below=NO_VERSION, within=connection)
        tables.drop_table(connection, table, created_by=identity.principal)

    def propose_columns(self, identity: Identity, table: Table, schema: pa.Schema) -> Table:
        """The table with the columns that a replacement brings: others may still be first.

        Written down as it is proposed: the write that brings it may still be refused.
        """
        with self._act(identity, "replace_table", table.name) as (connection, act):
            proposed = tables.propose_schema(connection, table, schema)
            act.done(connection, proposed_schema_version=proposed.version)
            return replace(table, schema=proposed)

    def live_name(self, identity: Identity, name: str) -> str | None:
        """The name of the live table that SQL means, which compares without case; or None."""
        with self._catalog.connect() as connection:
            return tables.live_name(connection, identity.tenant_id, check_table_name(name))


def table_exists(name: str) -> Conflict:
    """The error of who creates what is there."""
    return Conflict(
        ErrorCode.TABLE_EXISTS,
        f"table {name!r} exists: append to it, replace it, or choose another name",
        table=name,
    )
