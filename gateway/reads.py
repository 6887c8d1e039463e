"""Answer a query: choose the snapshot, wait at the barrier, run over exactly that snapshot."""

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa

from catalog import pins, snapshots
from catalog.connection import Catalog
from catalog.snapshots import Snapshot
from data_files.partitions import spec_texts
from duckmesh import metrics, tracing
from duckmesh.clock import Deadline
from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotSupported
from duckmesh.identifiers import SnapshotId, TableId, check_tag
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from duckmesh.tracing import Span
from gateway import system_tables
from gateway.counts import count_query
from gateway.crowd import Crowd
from gateway.file_pruning import NOTHING_ASKED, Asked, FilePruning
from gateway.identity import Identity, Role
from gateway.known_quotas import KnownQuotas
from gateway.manifests import LocalFiles, Manifest, Manifests
from gateway.open_answers import Answer, OpenAnswers
from gateway.query_audit import UNAUDITED, QueryAudit, StatementRecord, ended_by_errors
from gateway.replicas import Replicas
from gateway.row_sources import HeldRows, RowSources
from gateway.time_travel import PastTable, TimeTravel
from gateway.turns import Share, Turns
from gateway.visibility import Visibility
from ingest_bus.port import IngestBus
from object_store import keys
from object_store.file_cache import FileCache, PinnedFiles
from object_store.port import ObjectStore
from query_engine.engine import Interruption, QueryEngine
from query_engine.question import Description
from query_engine.relations import Relation, RelationSet, TableRelation
from query_engine.session_statements import read_session_statement
from query_engine.statements import StatementKind
from query_engine.stream import QueryLimits

_QUEUE_PATIENCE: Final = timedelta(seconds=5)
"""How long a query waits for its turn before it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPoint:
    """Where in time a question is to be answered. At most one of the first four is set."""

    min_token: VisibilityToken | None = None
    snapshot_id: SnapshotId | None = None
    snapshot_time: datetime | None = None
    tag: str | None = None
    strong: bool = False
    """Everything accepted before the question."""
    timeout: timedelta | None = None
    """How long to wait for it; None is the setting's."""

    @property
    def names_snapshot(self) -> bool:
        """Whether a snapshot is chosen, by number, time or tag."""
        return any(each is not None for each in (self.snapshot_id, self.snapshot_time, self.tag))


@dataclass(frozen=True, slots=True)
class DescribedTable:
    """A table of the newest snapshot, for metadata."""

    name: str
    schema: pa.Schema
    watermark: VisibilityToken | None
    primary_key: tuple[str, ...] = ()
    is_view: bool = False
    partition_spec: tuple[str, ...] = ()
    """How its new files are cut, as people write it."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """How long a barrier may last, what one query may take, and how many run at once."""

    consistency_timeout: timedelta = timedelta(seconds=3)
    max_consistency_timeout: timedelta = timedelta(seconds=60)
    query: QueryLimits = field(default_factory=QueryLimits)
    max_concurrent: int = 16
    max_queued: int = 64
    max_concurrent_per_tenant: int = 16
    abreast: int | None = None
    """Queries that fill the processors: so many begin while several tenants ask. None: no limit."""
    fetch_timeout: timedelta = timedelta(minutes=5)
    """How long a query's rows may wait for their reader."""


class _SegmentsLost(Exception):
    """The query could not read a replica: it is asked again of the data files."""


class Reads:
    """The read side of a serving process. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        bus: IngestBus,
        store: ObjectStore,
        *,
        engine: QueryEngine,
        cache: FileCache,
        visibility: Visibility,
        limits: ReadLimits,
        quotas: KnownQuotas | None = None,
        audit: QueryAudit = UNAUDITED,
        replicas: Replicas | None = None,
    ) -> None:
        self.replicas = replicas
        self._quotas = KnownQuotas(catalog) if quotas is None else quotas
        self.audit = audit
        self._catalog = catalog
        self._bus = bus
        self._store = store
        self._engine = engine
        self._visibility = visibility
        self._limits = limits
        self._manifests = Manifests(catalog)
        self._files = LocalFiles(catalog, store, cache)
        self._rows = RowSources(self._manifests, self._files, FilePruning(catalog), replicas)
        self._travel = TimeTravel(catalog, engine, self._manifests)
        self._turns = Turns(
            running=limits.max_concurrent,
            waiting=limits.max_queued,
            patience=_QUEUE_PATIENCE,
            running_per_tenant=limits.max_concurrent_per_tenant,
            crowd=Crowd(limits.abreast),
        )
        self._open = OpenAnswers(limits.fetch_timeout)
        self._places: dict[str, tuple[Path, ...]] = {}

    @property
    def queries_running(self) -> int:
        """How many queries have a turn."""
        return self._turns.taken

    @property
    def waiting_for_visibility(self) -> int:
        """How many callers wait at the barrier."""
        return self._visibility.waiting

    @property
    def queries_queued(self) -> int:
        """How many queries wait for a turn."""
        return self._turns.waiting

    @property
    def answers_open(self) -> int:
        """How many answers are not read to their end: they hold files, and rows in DuckDB."""
        return self._open.count

    def is_query(self, identity: Identity, sql: str) -> bool:
        """Whether the statement yields rows. Raises Invalid for what is not one statement."""
        with self.audit.refusals(identity, sql):
            if read_session_statement(sql) is not None:
                return False
            return self._engine.classify(sql).kind in (StatementKind.QUERY, StatementKind.EXPLAIN)

    # -- the snapshot

    def pin(
        self,
        identity: Identity,
        sql: str | None,
        point: ReadPoint,
        *,
        stop: Interruption | None = None,
        newest: Snapshot | None = None,
    ) -> Snapshot:
        """The snapshot that answers; waits at the barrier for the tables that `sql` names.

        `newest` is the tenant's newest snapshot where the caller knows it: read in this call.

        Raises SNAPSHOT_SELECTOR_CONFLICT, SNAPSHOT_NOT_FOUND, VISIBILITY_TOKEN_INVALID at once,
        CONSISTENCY_TIMEOUT at the deadline, and Cancelled when `stop` is pressed.
        """
        with self.audit.refusals(identity, sql, point.min_token):
            return self._pin(identity, sql, point, stop, newest)

    def _pin(
        self,
        identity: Identity,
        sql: str | None,
        point: ReadPoint,
        stop: Interruption | None,
        newest: Snapshot | None,
    ) -> Snapshot:
        identity.require(Role.QUERY_READER)
        _check_one_selector(point)
        if point.snapshot_id is not None:
            with self._catalog.connect() as connection:
                return snapshots.by_id(connection, identity.tenant_id, point.snapshot_id)
        if point.snapshot_time is not None:
            with self._catalog.connect() as connection:
                return snapshots.by_time(connection, identity.tenant_id, point.snapshot_time)
        if point.tag is not None:
            with self._catalog.connect() as connection:
                return pins.by_tag(connection, identity.tenant_id, check_tag(point.tag))
        token = point.min_token
        if point.strong:
            token = max(token or BEFORE_ALL, self._visibility.last_token(identity.tenant_id))
        if not token:
            return newest or self._visibility.newest(identity.tenant_id)
        return self._visibility.wait(
            identity.tenant_id,
            token,
            tables_of=lambda newest: self._tables_named(identity, sql, newest),
            deadline=Deadline.after(self._timeout(point.timeout)),
            stop=stop,
            newest=newest,
        )

    def wait_until_visible(
        self,
        identity: Identity,
        token: VisibilityToken,
        *,
        timeout: timedelta | None,
        stop: Interruption | None = None,
    ) -> Snapshot:
        """Block until a token is visible; the write stays accepted in any case.

        Raises NotYetVisible at the deadline, and Cancelled when `stop` is pressed.
        """
        return self._visibility.wait(
            identity.tenant_id,
            token,
            tables_of=lambda _: None,
            deadline=Deadline.after(self._timeout(timeout)),
            stop=stop,
        )

    def _timeout(self, asked: timedelta | None) -> timedelta:
        limits = self._limits
        wanted = limits.consistency_timeout if asked is None else asked
        return min(wanted, limits.max_consistency_timeout)

    def _tables_named(
        self, identity: Identity, sql: str | None, newest: Snapshot
    ) -> Collection[TableId] | None:
        names = None if sql is None else self._engine.tables_read(sql)
        if names is None:
            return None
        manifest = self._manifests.at(identity.tenant_id, newest.snapshot_id)
        if sql is not None and manifest.views:
            names = self._engine.tables_read(self._over_tables(sql, manifest))
            if names is None:
                return None
        return [table.table_id for table in manifest.named(names)]

    def _over_tables(self, sql: str, manifest: Manifest) -> str:
        """The query with the snapshot's views expanded; the text itself when it reads none."""
        views = manifest.views
        if not views or not any(n.lower() in views for n in self._engine.tables_scanned(sql)):
            return sql
        return self._engine.with_views(sql, {name: view.query for name, view in views.items()})

    def view_schema(self, identity: Identity, name: str, query: str) -> pa.Schema:
        """The columns of a view that is to be created. Raises what binding its query raises."""
        identity.require(Role.QUERY_READER)
        if self._engine.table_versions(query):
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "a view reads each snapshot as it is: write AT in the query that reads the view",
            )
        newest = self._visibility.newest(identity.tenant_id)
        manifest = self._manifests.at(identity.tenant_id, newest.snapshot_id)
        known = {each: view.query for each, view in manifest.views.items()}
        # With the view itself among them: one that reads itself is found here.
        self._engine.with_views(query, {**known, name.lower(): query})
        return self.describe(identity, query, newest.snapshot_id).result_schema

    def settled(self, identity: Identity, sql: str) -> str:
        """The query with each `AT (TIMESTAMP => ...)` turned into the snapshot it stands for now.

        A text that is kept and run later, in a ticket, is settled first: then it always reads the
        same rows. Raises SNAPSHOT_NOT_FOUND.
        """
        with self.audit.refusals(identity, sql):
            return self._travel.settled(identity.tenant_id, sql)

    # -- the answer

    def describe(
        self,
        identity: Identity,
        sql: str,
        snapshot_id: SnapshotId,
        *,
        stop: Interruption | None = None,
    ) -> Description:
        """The schemas of a statement over the snapshot, without running it. Opens no file."""
        with self.audit.refusals(identity, sql):
            return self._describe(identity, sql, snapshot_id, stop)

    def _describe(
        self, identity: Identity, sql: str, snapshot_id: SnapshotId, stop: Interruption | None
    ) -> Description:
        identity.require(Role.QUERY_READER)
        manifest = self._manifests.at(identity.tenant_id, snapshot_id)
        sql = self._over_tables(sql, manifest)
        travelled = self._travel.resolved(identity.tenant_id, sql)
        rows = self._rows.none(identity.tenant)
        past = [_past_relation(each, rows) for each in travelled.tables]
        relations = self._relations(identity, sql, manifest, rows, past)
        return self._engine.describe(
            travelled.sql, relations, limits=self._query_limits(identity), interruption=stop
        )

    def run(
        self,
        identity: Identity,
        sql: str,
        snapshot_id: SnapshotId,
        *,
        parameters: pa.RecordBatch | None = None,
        last_token: VisibilityToken | None = None,
        asked_token: VisibilityToken | None = None,
        interruption: Interruption | None = None,
    ) -> Answer:
        """Start a query on exactly that snapshot; its first rows are under way on return.

        `asked_token` is what its caller asked to be visible, for the audit. Raises Overloaded
        (TOO_MANY_QUERIES) when it gets no turn, and what the engine raises.
        """
        record = self.audit.begin(identity, sql)
        if record is not None:
            record.snapshot_id, record.asked_token = snapshot_id, asked_token
        span = tracing.begin("query", tenant_id=identity.tenant_id, snapshot_id=snapshot_id)
        ask = partial(
            self._run,
            identity,
            sql,
            snapshot_id,
            parameters=parameters,
            last_token=last_token,
            stop=interruption or Interruption(),
            record=record,
            span=span,
        )
        with count_query(), ended_by_errors(record), tracing.ended_by_errors(span):
            try:
                return ask(segments=True)
            except _SegmentsLost:
                return ask(segments=False)

    def _run(
        self,
        identity: Identity,
        sql: str,
        snapshot_id: SnapshotId,
        *,
        parameters: pa.RecordBatch | None,
        last_token: VisibilityToken | None,
        stop: Interruption,
        record: StatementRecord | None,
        segments: bool,
        span: Span,
    ) -> Answer:
        identity.require(Role.QUERY_READER)
        allowed = self._quotas.of(identity)
        turns = self._turns.of(
            Share.of(identity.tenant, allowed.tenant, identity.key_id, allowed.key)
        )
        came_at = time.perf_counter()
        try:
            queued = turns.take(stop)
        finally:
            metrics.QUERY_QUEUE_SECONDS.observe(time.perf_counter() - came_at)
        with contextlib.ExitStack() as undo:
            undo.callback(turns.give_back)
            manifest = self._manifests.at(identity.tenant_id, snapshot_id)
            sql = self._over_tables(sql, manifest)
            travelled = self._travel.resolved(identity.tenant_id, sql)
            wanted = [(manifest, each) for each in manifest.named(self._engine.tables_scanned(sql))]
            wanted += [(each.manifest, each.table) for each in travelled.tables]
            # A query that lists the catalog is answered where there are no segments to list.
            segments = segments and self._engine.tables_read(sql) is not None
            asked = NOTHING_ASKED
            if not travelled.tables:
                # A table that is read at two snapshots has one name, and two predicates.
                asked = Asked(
                    self._engine.predicates(sql), self._engine.parameter_values(sql, parameters)
                )
            rows = self._rows.hold(identity.tenant, wanted, segments=segments, asked=asked)
            undo.callback(rows.release)
            past = [_past_relation(each, rows) for each in travelled.tables]
            stop.check()
            try:
                running = self._engine.run(
                    travelled.sql,
                    self._relations(identity, sql, manifest, rows, past),
                    parameters=parameters,
                    limits=self._query_limits(identity),
                    session_values=_session_values(last_token),
                    interruption=stop,
                )
            except DuckMeshError as error:
                if rows.distrust(error):
                    raise _SegmentsLost from error
                raise
            running.stats.queued_seconds = queued.total_seconds()
            undo.pop_all()
        pruned = {f.file_id for f in rows.pruned}
        files = [f for m, t in wanted for f in m.files[t.table_id] if f.file_id not in pruned]
        sizes = [f.file_size_bytes for f in files]
        metrics.QUERY_PRUNED_FILES.inc(len(pruned))
        scanned = sum(sizes)
        metrics.QUERY_SCANNED_FILES.observe(len(sizes))
        metrics.QUERY_SCANNED_BYTES.observe(scanned)
        if record is not None:
            record.queue_seconds = queued.total_seconds()
            record.scanned_files, record.scanned_bytes = len(sizes), scanned
            record.pruned_files = len(pruned)
        if wanted:
            metrics.REPLICA_QUERIES.labels("replica" if rows.in_segments else "parquet").inc()
        return Answer(
            running,
            PinnedFiles((), rows.release),
            turns,
            stop=stop,
            among=self._open,
            scanned_bytes=scanned,
            pruned_files=len(pruned),
            record=record,
            on_failure=rows.distrust,
            span=span,
        )

    def _query_limits(self, identity: Identity) -> QueryLimits:
        """What one query of this caller may take: the settings' limits, and its quotas."""
        quotas = self._quotas.of(identity).caller
        limits = self._limits.query
        time_ms = quotas.query_time_ms
        return replace(
            limits,
            wall_time=limits.wall_time if time_ms is None else timedelta(milliseconds=time_ms),
            memory_bytes=quotas.query_memory_bytes or limits.memory_bytes,
            rows=limits.rows if quotas.query_rows is None else quotas.query_rows,
            bytes=limits.bytes if quotas.query_bytes is None else quotas.query_bytes,
        )

    def _relations(
        self,
        identity: Identity,
        sql: str,
        manifest: Manifest,
        rows: HeldRows,
        past: Sequence[Relation],
    ) -> RelationSet:
        """The tenant's tables; those that `rows` lacks are not read by this statement."""
        return RelationSet(
            tenant=identity.tenant,
            snapshot_id=manifest.snapshot_id,
            relations=tuple(
                rows.relation(table.name, manifest, table) for table in manifest.tables.values()
            )
            + tuple(
                Relation(view.name, view.schema, (), is_view=True)
                for view in manifest.views.values()
            )
            + tuple(past),
            directories=self._directories(identity.tenant),
            tables=self._system_tables(identity, sql, manifest),
        )

    def _system_tables(
        self, identity: Identity, sql: str, manifest: Manifest
    ) -> tuple[TableRelation, ...]:
        """The system tables with their rows when the query names one; else their columns alone."""
        names = self._engine.system_tables_read(sql)
        if not names:
            return system_tables.EMPTY
        self._manifests.load_files(manifest, list(manifest.tables.values()))
        return system_tables.build(
            self._catalog,
            self._bus,
            manifest,
            identity,
            names=names,
            default_quotas=self._quotas.defaults,
        )

    def _directories(self, tenant: str) -> tuple[Path, ...]:
        if (known := self._places.get(tenant)) is None:
            in_store = self._store.local_path(keys.tenant_prefix(tenant) + "any")
            cached = self._files.folder(tenant)
            known = (cached,) if in_store is None else (cached, in_store.parent)
            self._places[tenant] = known
        return known

    # -- metadata

    def tables(self, identity: Identity) -> list[DescribedTable]:
        """The tenant's tables in the newest snapshot by name, and then its views.

        They are listed to those who read or administer them. Raises Denied.
        """
        if Role.TABLE_ADMIN not in identity.roles:
            identity.require(Role.QUERY_READER)
        newest = self._visibility.newest(identity.tenant_id)
        manifest = self._manifests.at(identity.tenant_id, newest.snapshot_id)
        return [
            DescribedTable(
                table.name,
                table.schema.arrow,
                table.watermark,
                table.primary_key,
                partition_spec=spec_texts(table.partition_spec, table.schema.arrow),
            )
            for table in manifest.tables.values()
        ] + [
            DescribedTable(view.name, view.schema, None, is_view=True)
            for view in manifest.views.values()
        ]


def _past_relation(past: PastTable, rows: HeldRows) -> Relation:
    return rows.relation(past.relation_name, past.manifest, past.table)


def _check_one_selector(point: ReadPoint) -> None:
    named = [
        name
        for name, value in (
            ("snapshot_id", point.snapshot_id),
            ("snapshot_time", point.snapshot_time),
            ("tag", point.tag),
            ("min_visibility_token", point.min_token),
        )
        if value is not None
    ]
    if len(named) > 1:
        raise Invalid(
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
            f"a query names one point in time, not {' and '.join(named)}: send one of them",
            selectors=named,
        )


def _session_values(last_token: VisibilityToken | None) -> dict[str, int]:
    token = int(last_token or 0)
    return {"last_visibility_token": token, "duckmesh_last_token": token}
