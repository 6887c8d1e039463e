"""How a write becomes visible: claim -> encode -> put -> commit_snapshot -> ack.

claim    died here or later, before the commit: the lease runs out, another claims the events
encode   pure
put      died after it: the objects are orphans, which no snapshot reaches
commit   THE COMMIT POINT. With the Postgres bus the ack is in the same transaction
ack      died before it, with another bus: the events come again, and `commit_snapshot` is
         fenced by the watermark that already covers them
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from catalog import snapshots, tables
from catalog.connection import Catalog
from catalog.snapshots import NewFile, Publication, Snapshot
from catalog.table_schema import TableSchema
from catalog.tables import Place
from coordinator.counts import CommitClock, count_claim, count_failure
from coordinator.encode import Poison, TableRows, encode_rows, gather
from coordinator.fold import Tails
from coordinator.lease_keeper import LeaseKeeper
from coordinator.traces import publication, tell_published
from coordinator.unique_keys import UniqueKeys
from data_files.parquet import stats_of
from data_files.partitions import folders_of
from duckmesh.errors import Corrupt, DuckMeshError, NotFound
from duckmesh.identifiers import ConsumerId, EventId, SchemaVersion, TableId, TenantId
from ingest_bus.envelope import Claim
from ingest_bus.port import IngestBus
from object_store import keys
from object_store.port import ObjectStore

_LOG = structlog.get_logger()

_SCHEMAS_MAX: Final = 10_000

Step = Callable[[str], None]
"""Told the name of each step before it is taken. Fault tests die there."""


@dataclass(frozen=True, slots=True)
class MaterializeOptions:
    """How much is claimed at a time, for how long, and which rows stay in the catalog."""

    consumer_id: ConsumerId
    claim_limit: int = 5_000
    claim_max_bytes: int = 64 * 2**20
    lease: timedelta = timedelta(seconds=30)
    inline_file_max_bytes: int = 2**20
    retry_delay: timedelta = timedelta(milliseconds=100)
    scratch: Path | None = None
    """A directory on a local disk for staged writes of keyed tables; the system's when None."""


@dataclass(frozen=True, slots=True)
class Published:
    """A publication, and whether its claim was full: then more waits already."""

    snapshot: Snapshot
    full: bool


class Materializer:
    """Publishes claims, one after the other. Used by one thread."""

    def __init__(
        self,
        catalog: Catalog,
        bus: IngestBus,
        store: ObjectStore,
        *,
        options: MaterializeOptions,
        step: Step = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._store = store
        self._options = options
        self._step = step
        self._suspects = 0
        self._schemas = _Schemas(catalog)
        self._keeper = LeaseKeeper(bus, options.lease)
        self._tails = Tails(catalog)
        self._unique_keys = UniqueKeys(catalog, store, scratch=options.scratch)

    def publish_next(self, *, skip: Collection[TenantId] = ()) -> Published | None:
        """Claim the next events of some tenant and make them visible; None when there are none.

        Tenants in `skip` are passed over. Raises Fenced when the claim was lost meanwhile: nothing
        of it was published. Raises Unavailable when a dependency failed: the claim was given back
        without blame. Any other error is a fault of one of the events, or ours with it: the next
        claims hold one event each, and the one that fails alone is nacked, in the end
        dead-lettered.
        """
        options = self._options
        limit = 1 if self._suspects else options.claim_limit
        claim = self._bus.claim_batch(
            options.consumer_id,
            limit=limit,
            max_bytes=options.claim_max_bytes,
            lease=options.lease,
            skip=skip,
        )
        if claim is None:
            return None
        self._step("claimed")
        count_claim(claim)
        self._suspects = max(0, self._suspects - 1)
        try:
            with (
                count_failure(),
                publication(claim) as span,
                self._keeper.keeping(claim),
            ):
                born = self._publish(claim)
                tell_published(claim, born, span)
                return Published(born, full=len(claim.events) >= limit)
        except (Corrupt, NotFound):
            # What an event staged is broken or gone, and stays so.
            self._find_culprit(claim)
            raise
        except DuckMeshError as failure:
            # Fenced as well: when the claim is lost this changes nothing; when only a file to
            # fold was gone, the next claim begins at once.
            self._give_back(claim, failure)
            raise
        except Exception:
            self._find_culprit(claim)
            raise

    def _publish(self, claim: Claim) -> Snapshot:
        clock = CommitClock()
        schemas = self._schemas
        rows, poison = gather(claim.events, schemas)
        with self._catalog.connect() as connection:
            places = tables.places(connection, claim.tenant_id, [t.table_id for t in rows])
        # The writes of a table that was dropped since are resolved with it. Dropped later: the
        # commit leaves its files out.
        rows = [table for table in rows if not places[table.table_id].dropped]
        folded = self._tails.fold(claim.tenant_id, claim.epoch, rows, schemas)
        files = [
            file
            for table in rows
            for file in self._put_rows(table, places[table.table_id], schemas)
        ]
        self._step("put")
        publication = Publication(
            tenant_id=claim.tenant_id,
            epoch=claim.epoch,
            after_token=claim.after_token,
            watermark=claim.last_token,
            created_by=claim.consumer_id,
            files=files,
            table_watermarks={t.table_id: t.last_token for t in rows if t.last_token is not None},
            emptied_tables=[table.table_id for table in rows if table.emptied],
            new_schemas={t.table_id: t.new_schema for t in rows if t.new_schema is not None},
            folded_files=folded,
        )
        return self._commit(claim, publication, poison, clock)

    def _commit(
        self, claim: Claim, publication: Publication, poison: list[Poison], clock: CommitClock
    ) -> Snapshot:
        refused = {fault.event_id for fault in poison}
        accepted = [e.envelope.event_id for e in claim.events if e.envelope.event_id not in refused]
        with self._catalog.connect() as connection, connection.transaction():
            joined = connection if self._bus.joins(connection) else None
            born = snapshots.commit_snapshot(connection, publication)
            clock.written()
            self._step("inserted")
            if joined is not None:
                self._resolve(claim, accepted, poison, within=joined)
            self._step("resolved")
        clock.committed(claim, born, without=refused)
        self._step("committed")
        if joined is None:
            self._resolve(claim, accepted, poison, within=None)
        return born

    def _resolve(
        self, claim: Claim, accepted: list[EventId], poison: list[Poison], *, within: object | None
    ) -> None:
        # The dead first: the claim ends with its last event, and must know all verdicts by then.
        for fault in poison:
            self._bus.nack(claim, [fault.event_id], fault.reason, dead=True, within=within)
            _LOG.error("event_dead_lettered", tenant_id=claim.tenant_id, reason=fault.reason)
        if accepted:
            self._bus.ack(claim, accepted, within=within)

    def _put_rows(self, table: TableRows, place: Place, schemas: "_Schemas") -> list[NewFile]:
        """The table's new files: staged ones by pointer, rows inline or as objects by size."""
        files = self._staged(table, place, schemas)
        for file, content in encode_rows(table, schemas, place.partition_spec):
            if len(content) <= self._options.inline_file_max_bytes:
                files.append(replace(file, content=content))
                continue
            schema = schemas(table.table_id, file.schema_version).arrow
            folders = folders_of(file.partition, schema) if file.partition else ()
            key = keys.data_file_key(
                place.tenant, place.name, table.table_id, file.file_id, folders
            )
            self._store.put(key, content)
            files.append(replace(file, path=key, stats=stats_of(content)))
        return files

    def _staged(self, table: TableRows, place: Place, schemas: "_Schemas") -> list[NewFile]:
        if not table.key or not table.staged:
            return list(table.staged)
        schema = schemas(table.table_id, table.staged[0].schema_version)
        return self._unique_keys.of(table.table_id, table.staged, place, schema)

    def _find_culprit(self, claim: Claim) -> None:
        """Something we did not foresee: blame a lone event or group, or look at them one by one."""
        _LOG.exception("publication_failed", tenant_id=claim.tenant_id, events=len(claim.events))
        try:
            if _is_one(claim):
                events = [event.envelope.event_id for event in claim.events]
                self._bus.nack(claim, events, "it fails to publish")
            else:
                self._suspects = len(claim.events)
                self._bus.release(claim)
        except DuckMeshError:
            _LOG.warning("claim_left_to_expire", tenant_id=claim.tenant_id)

    def _give_back(self, claim: Claim, failure: DuckMeshError) -> None:
        """End the claim without blame, if the bus can be reached; else its lease runs out."""
        _LOG.warning("claim_given_back", tenant_id=claim.tenant_id, error_code=failure.code.value)
        try:
            self._bus.release(claim, delay=self._options.retry_delay)
        except DuckMeshError:
            _LOG.warning("claim_left_to_expire", tenant_id=claim.tenant_id)


def _is_one(claim: Claim) -> bool:
    """Whether the claim cannot be made smaller: one event, or one group."""
    groups = {event.group_last_token for event in claim.events}
    return len(claim.events) == 1 or (len(groups) == 1 and None not in groups)


class _Schemas:
    """The schema versions that claims need. A version never changes: each is read once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[TableId, SchemaVersion], TableSchema] = {}

    def __call__(self, table_id: TableId, version: SchemaVersion) -> TableSchema:
        known = self._known.get((table_id, version))
        if known is None:
            with self._catalog.connect() as connection:
                found = tables.schema_versions(connection, table_id, [version])
            if version not in found:
                raise Corrupt("an event names an unknown schema version", table_id=table_id)
            if len(self._known) >= _SCHEMAS_MAX:
                self._known.clear()
            known = self._known[table_id, version] = found[version]
        return known
