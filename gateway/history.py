"""A tenant's snapshots, and how far what is visible is behind what is accepted."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from catalog import snapshots
from catalog.connection import Catalog
from catalog.snapshots import Snapshot
from catalog.tables import TableAt, tables_at
from duckmesh.identifiers import SnapshotId
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from gateway.identity import Identity, Role
from ingest_bus.envelope import PendingTable
from ingest_bus.port import IngestBus

_NEWEST: Final = SnapshotId(2**63 - 1)


@dataclass(frozen=True, slots=True)
class PublishedSnapshot:
    """A snapshot, and what made it."""

    snapshot: Snapshot
    operation: str
    created_by: str


@dataclass(frozen=True, slots=True)
class TableLag:
    """One table's distance between accepted and visible."""

    name: str
    latest_token: VisibilityToken
    """Of its newest write that waits, else of what is visible of it."""
    visible_token: VisibilityToken
    pending_events: int
    pending_bytes: int
    oldest_pending_seconds: float | None

    @property
    def token_lag(self) -> int:
        return max(0, self.latest_token - self.visible_token)


@dataclass(frozen=True, slots=True)
class Lag:
    """One tenant's distance between accepted and visible, and that of each of its tables."""

    newest: Snapshot
    latest_token: VisibilityToken
    pending_events: int
    pending_bytes: int
    oldest_pending_seconds: float | None
    tables: tuple[TableLag, ...] = ()

    @property
    def token_lag(self) -> int:
        return max(0, self.latest_token - self.newest.max_visibility_token)


class History:
    """What was published, and what is not yet. Thread-safe."""

    def __init__(self, catalog: Catalog, bus: IngestBus) -> None:
        self._catalog = catalog
        self._bus = bus

    def recent(
        self, identity: Identity, *, through: SnapshotId | None, limit: int
    ) -> list[PublishedSnapshot]:
        """The newest snapshots up to `through`, newest first. Raises Denied."""
        identity.require(Role.QUERY_READER)
        with self._catalog.connect() as connection:
            found = snapshots.recent(
                connection, identity.tenant_id, through=through or _NEWEST, limit=limit
            )
        return [PublishedSnapshot(*each) for each in found]

    def named(self, identity: Identity, snapshot_id: SnapshotId) -> PublishedSnapshot:
        """The tenant's snapshot of that id. Raises NotFound, also for another tenant's; Denied."""
        identity.require(Role.QUERY_READER)
        with self._catalog.connect() as connection:
            snapshots.by_id(connection, identity.tenant_id, snapshot_id)
            (found,) = snapshots.recent(
                connection, identity.tenant_id, through=snapshot_id, limit=1
            )
        return PublishedSnapshot(*found)

    def lag(self, identity: Identity) -> Lag:
        """What is accepted and not visible yet. Raises Denied."""
        identity.require(Role.OPS_ADMIN)
        # The watermark first: read later, it could pass the last token that was read before it.
        with self._catalog.connect() as connection:
            newest = snapshots.newest(connection, identity.tenant_id)
            tables = tables_at(connection, identity.tenant_id, newest.snapshot_id)
        pending = self._bus.pending_tables(identity.tenant_id)
        backlog = self._bus.backlog(identity.tenant_id)
        oldest = backlog.oldest_ingested_at
        return Lag(
            newest=newest,
            latest_token=self._bus.last_token(identity.tenant_id),
            pending_events=backlog.events,
            pending_bytes=backlog.bytes,
            oldest_pending_seconds=(
                None if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())
            ),
            tables=tuple(_table_lag(table, pending.get(table.table_id)) for table in tables),
        )


def _table_lag(table: TableAt, pending: PendingTable | None) -> TableLag:
    visible = table.watermark or BEFORE_ALL
    if pending is None:
        return TableLag(table.name, visible, visible, 0, 0, None)
    return TableLag(
        table.name,
        VisibilityToken(max(visible, pending.last_token)),
        visible,
        pending.events,
        pending.bytes,
        pending.oldest_age.total_seconds(),
    )
