"""Restore a tenant, or some of its tables, to an older snapshot: in a new one, equal to it."""

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from catalog import restores, snapshots, tables
from catalog.connection import Catalog, Connection
from catalog.restores import Restored, RestorePlan
from duckmesh.clock import Deadline
from duckmesh.identifiers import SchemaVersion, SnapshotId, check_table_name
from gateway.acts import administrative_act
from gateway.definitions import NO_VERSION
from gateway.identity import Identity, Role
from gateway.visibility import Visibility
from ingest_bus.port import IngestBus

_PATIENCE: Final = timedelta(seconds=10)
_ANY_VERSION: Final = SchemaVersion(0)


class Restores:
    """Thread-safe."""

    def __init__(self, catalog: Catalog, bus: IngestBus, visibility: Visibility) -> None:
        self._catalog = catalog
        self._bus = bus
        self._visibility = visibility

    def plan(
        self, identity: Identity, snapshot_id: SnapshotId, names: Collection[str] | None = None
    ) -> RestorePlan:
        """What `restore` would do now. Changes nothing. Raises what it raises at once."""
        identity.require(Role.OPS_ADMIN)
        _check_names(names)
        with self._catalog.connect() as connection:
            return restores.plan_restore(connection, identity.tenant_id, snapshot_id, names)

    def restore(
        self,
        identity: Identity,
        snapshot_id: SnapshotId,
        names: Collection[str] | None = None,
        *,
        timeout: timedelta = _PATIENCE,
    ) -> Restored:
        """Publish a snapshot in which these tables, or all, are as in an older one. Atomic.

        Everything accepted before the call is visible first, and so undone by it; what is accepted
        after it comes on top. Died before its commit: nothing happened. Repeated after it: one more
        snapshot, equal to the first unless rows came in between. Raises NotFound, Conflict,
        Denied, and NotYetVisible (CONSISTENCY_TIMEOUT), with nothing changed, when accepted rows
        are not visible within `timeout`.
        """
        with administrative_act(self._catalog, identity, "restore", str(snapshot_id)) as act:
            # Before the wait: what cannot be is said at once.
            self.plan(identity, snapshot_id, names)
            self._wait_for_all(identity, timeout)
            with self._catalog.connect() as connection, connection.transaction():
                done = self._publish(connection, identity, snapshot_id, names)
                act.done(
                    connection,
                    tables=None if names is None else sorted(names),
                    snapshot_id=done.snapshot.snapshot_id,
                )
        return done

    def _wait_for_all(self, identity: Identity, timeout: timedelta) -> None:
        self._visibility.wait(
            identity.tenant_id,
            self._visibility.last_token(identity.tenant_id),
            tables_of=lambda _: None,
            deadline=Deadline.after(timeout),
        )

    def _publish(
        self,
        connection: Connection,
        identity: Identity,
        snapshot_id: SnapshotId,
        names: Collection[str] | None,
    ) -> Restored:
        tenant_id = identity.tenant_id
        self._lock_counter(connection, identity)
        done = restores.restore(
            connection, tenant_id, snapshot_id, names, created_by=identity.principal
        )
        for table in done.plan.ended:
            # A write that began for it is looked at again, and goes to the table of its name.
            self._bus.fence(tenant_id, table.table_id, below=NO_VERSION, within=connection)
        return done

    def _lock_counter(self, connection: Connection, identity: Identity) -> None:
        """Counter row first, head row second: the lock order of ingest_bus.postgres.

        A fence that refuses nothing takes the counter row. Without a live table nothing is fenced.
        """
        newest = snapshots.newest(connection, identity.tenant_id)
        for table in tables.tables_at(connection, identity.tenant_id, newest.snapshot_id)[:1]:
            self._bus.fence(
                identity.tenant_id, table.table_id, below=_ANY_VERSION, within=connection
            )


def _check_names(names: Collection[str] | None) -> None:
    for name in names or ():
        check_table_name(name)
