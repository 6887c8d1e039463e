"""Tables as they were: `FROM t AT (VERSION => n)` and `AT (TIMESTAMP => ts)` inside a query.

Each such table is read from its own snapshot, whatever snapshot answers the rest of the query. It
becomes one more relation, named for the table, the version of its columns and its place in the
query: so a name has the same columns in every snapshot, and names do not grow with snapshots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from catalog import snapshots
from catalog.connection import Catalog
from catalog.snapshots import Snapshot
from catalog.tables import TableAt
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import SnapshotId, TenantId
from gateway.manifests import Manifest, Manifests
from query_engine.engine import QueryEngine
from query_engine.time_travel import TableVersion


@dataclass(frozen=True, slots=True)
class PastTable:
    """A table at one snapshot, and the name under which the query reads it."""

    relation_name: str
    table: TableAt
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Travelled:
    """A query without AT, and the tables that it reads from other snapshots."""

    sql: str
    tables: Sequence[PastTable]


class TimeTravel:
    """Finds the versions that queries name. Thread-safe; remembers nothing itself."""

    def __init__(self, catalog: Catalog, engine: QueryEngine, manifests: Manifests) -> None:
        self._catalog = catalog
        self._engine = engine
        self._manifests = manifests

    def settled(self, tenant_id: TenantId, sql: str) -> str:
        """The query with each time turned into the snapshot it stands for now.

        Then it reads the same rows whenever it runs, also for `now()` and times to come.
        Raises SNAPSHOT_NOT_FOUND for an unknown number and a time before the first snapshot.
        """
        versions = self._engine.table_versions(sql)
        if all(isinstance(each.version, int) for each in versions):
            return sql
        found = [self._snapshot(tenant_id, each).snapshot_id for each in versions]
        return self._engine.with_versions(sql, found)

    def resolved(self, tenant_id: TenantId, sql: str) -> Travelled:
        """The query over relations only. Raises SNAPSHOT_NOT_FOUND, and TABLE_NOT_FOUND for a
        table that its snapshot does not have.
        """
        versions = self._engine.table_versions(sql)
        if not versions:
            return Travelled(sql, ())
        found = {each: self._snapshot(tenant_id, each).snapshot_id for each in set(versions)}
        places: dict[tuple[str, SnapshotId], PastTable] = {}
        names = []
        for each in versions:
            place = (each.table.lower(), found[each])
            if place not in places:
                places[place] = self._past_table(tenant_id, each, found[each], len(places))
            names.append(places[place].relation_name)
        return Travelled(self._engine.with_relations(sql, names), tuple(places.values()))

    def _snapshot(self, tenant_id: TenantId, wanted: TableVersion) -> Snapshot:
        with self._catalog.connect() as connection:
            if isinstance(wanted.version, datetime):
                return snapshots.by_time(connection, tenant_id, wanted.version)
            return snapshots.by_id(connection, tenant_id, SnapshotId(wanted.version))

    def _past_table(
        self, tenant_id: TenantId, wanted: TableVersion, snapshot_id: SnapshotId, place: int
    ) -> PastTable:
        manifest = self._manifests.at(tenant_id, snapshot_id)
        table = manifest.tables.get(wanted.table.lower())
        if table is None:
            raise NotFound(
                ErrorCode.TABLE_NOT_FOUND,
                f"snapshot {snapshot_id} has no table {wanted.table!r}: name a snapshot between "
                "the table's creation and its end",
                table=wanted.table,
                snapshot_id=snapshot_id,
            )
        # Not a name that `check_table_name` lets pass, so it can never be a table's own.
        name = f"{table.name}\x01{table.table_id}.{table.schema.version}.{place}"
        return PastTable(name, table, manifest)
