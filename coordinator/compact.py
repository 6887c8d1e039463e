"""How small files become large ones: lease -> choose -> hold -> rewrite -> swap.

lease    of the table: two compactors do not do the same work
choose   pure: coordinator.compaction_choice
hold     publications leave the files out of their folds meanwhile; it is a courtesy, not a lock
rewrite  died after it: the new objects are orphans, which no snapshot reaches
swap     THE COMMIT POINT: one snapshot without the old files and with the new ones, by
         `snapshots.replace_files`. Lost when one of them was ended first, by whomever
The rows, the watermark and the schema stay what they are. Older snapshots keep the old files.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from catalog import compaction, leases, snapshots, tables
from catalog.compaction import CrowdedTable, LiveFile, RunState
from catalog.connection import Catalog
from catalog.leases import Lease
from catalog.snapshots import NewFile, Snapshot
from catalog.table_schema import TableSchema
from coordinator.compaction_choice import CompactionSizes, choose_in_partitions, choose_layers
from coordinator.pace import Pace, Stopped
from coordinator.rewrite import Rewrite, RewriteOptions
from duckmesh import metrics
from duckmesh.errors import Corrupt, DuckMeshError, Fenced
from duckmesh.identifiers import TableId, TenantId, new_batch_id
from object_store import keys
from object_store.port import ObjectStore

_LOG = structlog.get_logger()
_TABLES_AT_ONCE: Final = 100

Step = Callable[[str], None]
"""Told the name of each step before it is taken. Fault tests die there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionOptions:
    """When files are merged, how large they become, and how fast."""

    holder: str
    sizes: CompactionSizes = field(default_factory=CompactionSizes)
    rest: timedelta = timedelta(minutes=1)
    """A table to which nothing was added for so long is merged sooner."""
    lease: timedelta = timedelta(seconds=30)
    bytes_per_second: int = 64 * 2**20
    sort_bytes: int = 64 * 2**20
    scratch: Path | None = None
    partitions_max: int = 1_000
    """A merge cuts rows of this many partitions at most; the rest stay together for the next."""
    lag_files: int = 1_000
    """More small files than this in one table are told to the operator."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """One merge: done, lost to another publication, or only planned."""

    table_id: TableId
    files_in: int
    bytes_in: int
    files_out: int = 0
    bytes_out: int = 0
    snapshot: Snapshot | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The files that one merge reads, and whether no live file of the table is older than they."""

    files: list[LiveFile]
    from_oldest: bool = False


class Compactor:
    """Merges the files of tables, one table after the other. Used by one thread."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        *,
        options: CompactionOptions,
        stop: threading.Event | None = None,
        step: Step = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._options = options
        self._stop = stop or threading.Event()
        self._step = step

    def turn(self) -> list[Compacted]:
        """Merge whatever is due in any table, until nothing is or the process ends.

        A table whose merge fails is left to the next turn; the others go on.
        """
        crowded = self.crowded()
        metrics.COMPACTION_LAG_FILES.set(sum(table.small_files for table in crowded))
        done: list[Compacted] = []
        for table in crowded:
            if table.small_files > self._options.lag_files:
                _LOG.warning(
                    "compaction_behind", table_id=table.table_id, small_files=table.small_files
                )
            try:
                while (merged := self.compact(table.tenant_id, table.table_id)) is not None:
                    done.append(merged)
            except Stopped:
                break
            except DuckMeshError as failure:
                _LOG.warning(
                    "compaction_failed", table_id=table.table_id, error_code=failure.code.value
                )
        return done

    def crowded(self) -> list[CrowdedTable]:
        """The tables with several small files, the most crowded first; then those in layers."""
        with self._catalog.connect() as connection:
            crowded = compaction.crowded_tables(
                connection,
                small_bytes=self._options.sizes.small_bytes,
                limit=_TABLES_AT_ONCE,
            )
            layered = compaction.layered_tables(connection, limit=_TABLES_AT_ONCE)
        known = {table.table_id for table in crowded}
        return crowded + [table for table in layered if table.table_id not in known]

    def plan(self, table_id: TableId, *, eager: bool = False) -> Compacted | None:
        """What `compact` would do now; None when nothing is due."""
        chosen = self._chosen(table_id, eager=eager).files
        return _planned(table_id, chosen) if chosen else None

    def compact(
        self, tenant_id: TenantId, table_id: TableId, *, eager: bool = False
    ) -> Compacted | None:
        """Merge what is due in the table; None when nothing is, or another compacts it just now.

        One snapshot, or nothing: a merge whose files were ended meanwhile is lost, and says so.
        Raises Stopped, Unavailable, Corrupt; then nothing is changed.
        """
        name = f"compact/{table_id}"
        with self._catalog.connect() as connection:
            lease = leases.acquire(
                connection, name, holder=self._options.holder, span=self._options.lease
            )
        if lease is None:
            return None
        try:
            self._step("leased")
            chosen = self._chosen(table_id, eager=eager)
            return self._merge(tenant_id, table_id, chosen, lease) if chosen.files else None
        finally:
            with self._catalog.connect() as connection:
                leases.release(connection, lease)

    def _chosen(self, table_id: TableId, *, eager: bool) -> "_Chosen":
        sizes, rest = self._options.sizes, self._options.rest
        with self._catalog.connect() as connection:
            arrangement = compaction.arrangement(connection, table_id)
            if arrangement.keyed:
                live = compaction.live_files(connection, table_id)
                chosen = choose_layers(live, sizes, rest=rest, eager=eager)
                return _Chosen(chosen, from_oldest=chosen[:1] == live[:1])
            small = compaction.small_files(connection, table_id, small_bytes=sizes.small_bytes)
        return _Chosen(choose_in_partitions(small, arrangement.spec, sizes, rest=rest, eager=eager))

    def _merge(
        self, tenant_id: TenantId, table_id: TableId, choice: "_Chosen", lease: Lease
    ) -> Compacted:
        chosen = choice.files
        run_id = new_batch_id()
        planned = _planned(table_id, chosen)
        with self._catalog.connect() as connection:
            compaction.begin_run(
                connection,
                run_id,
                tenant_id,
                table_id,
                files_in=planned.files_in,
                bytes_in=planned.bytes_in,
            )
        rewrite = self._new_rewrite(tenant_id, table_id, chosen, lease)
        try:
            self._hold(chosen, lease)
            self._step("held")
            written = rewrite.run(
                table_id,
                chosen,
                self._schema(table_id, chosen),
                from_oldest=choice.from_oldest,
            )
            self._step("written")
        except BaseException as failure:
            rewrite.discard()
            self._failed(run_id, failure)
            raise
        return self._publish(tenant_id, planned, chosen, written, run_id=run_id, rewrite=rewrite)

    def _publish(
        self,
        tenant_id: TenantId,
        planned: Compacted,
        chosen: Sequence[LiveFile],
        written: list[NewFile],
        *,
        run_id: UUID,
        rewrite: Rewrite,
    ) -> Compacted:
        bytes_out = sum(file.file_size_bytes for file in written)
        try:
            with self._catalog.connect() as connection, connection.transaction():
                born = snapshots.replace_files(
                    connection,
                    tenant_id,
                    replaced=[file.file_id for file in chosen],
                    files=written,
                    created_by=self._options.holder,
                )
                compaction.end_run(
                    connection,
                    run_id,
                    RunState.PUBLISHED,
                    files_out=len(written),
                    bytes_out=bytes_out,
                    snapshot_id=born.snapshot_id,
                )
                self._step("swapped")
        except Fenced:
            # The only failure after which the new objects are surely not live. After any other the
            # commit may have happened: then they are left, and are orphans at worst.
            with self._catalog.connect() as connection:
                compaction.end_run(connection, run_id, RunState.LOST)
            rewrite.discard()
            _LOG.info("compaction_lost", table_id=planned.table_id)
            return Compacted(planned.table_id, planned.files_in, planned.bytes_in, lost=True)
        self._step("committed")
        done = Compacted(
            planned.table_id, planned.files_in, planned.bytes_in, len(written), bytes_out, born
        )
        _count(done)
        return done

    def _new_rewrite(
        self, tenant_id: TenantId, table_id: TableId, chosen: Sequence[LiveFile], lease: Lease
    ) -> Rewrite:
        options = self._options
        with self._catalog.connect() as connection:
            place = tables.places(connection, tenant_id, [table_id])[table_id]
        key = partial(keys.data_file_key, place.tenant, place.name, table_id)
        pace = Pace(
            options.bytes_per_second,
            self._stop,
            renew=lambda: self._hold(chosen, lease),
            renew_every=options.lease / 3,
        )
        return Rewrite(
            self._catalog,
            self._store,
            key,
            options=RewriteOptions(
                spec=place.partition_spec,
                partitions_max=options.partitions_max,
                target_bytes=options.sizes.target_bytes,
                sort_bytes=options.sort_bytes,
                scratch=options.scratch,
            ),
            spend=pace.spend,
        )

    def _hold(self, chosen: Sequence[LiveFile], lease: Lease) -> None:
        """Renew the lease and the hold. One that is lost already shows at the swap."""
        span = self._options.lease
        with self._catalog.connect() as connection:
            leases.acquire(connection, lease.name, holder=lease.holder, span=span)
            compaction.hold_files(connection, [file.file_id for file in chosen], span=span)

    def _schema(self, table_id: TableId, chosen: Sequence[LiveFile]) -> TableSchema:
        """Of the newest version among the files: every older one only widens into it."""
        newest = max(file.schema_version for file in chosen)
        with self._catalog.connect() as connection:
            found = tables.schema_versions(connection, table_id, [newest])
        if newest not in found:
            raise Corrupt("a data file names an unknown schema version", table_id=table_id)
        return found[newest]

    def _failed(self, run_id: UUID, failure: BaseException) -> None:
        code = failure.code.value if isinstance(failure, DuckMeshError) else None
        reason = "the process ended" if isinstance(failure, Stopped) else code or "INTERNAL"
        with self._catalog.connect() as connection:
            compaction.end_run(connection, run_id, RunState.FAILED, failure=reason)


def _planned(table_id: TableId, chosen: Sequence[LiveFile]) -> Compacted:
    return Compacted(table_id, len(chosen), sum(file.size_bytes for file in chosen))


def _count(done: Compacted) -> None:
    metrics.COMPACTION_RUNS.inc()
    metrics.COMPACTION_BYTES.inc(done.bytes_in)
    _LOG.info(
        "compacted",
        table_id=done.table_id,
        files_in=done.files_in,
        files_out=done.files_out,
        bytes_in=done.bytes_in,
        bytes_out=done.bytes_out,
    )
