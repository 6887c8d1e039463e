"""Native replicas: the tables that queries read most, kept in DuckDB's own format beside the cache.

A replica is a few segments. It follows the snapshots as queries come to them: what was added is
read from its data files until the next segment has it, what was removed is left out. So a query is
answered from exactly the files of its snapshot, wherever their rows lie.

One thread builds, in a process apart, one segment after another. It rests after each, so that
building takes a small share of one processor whatever is published.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog

from catalog.files import DataFile
from catalog.tables import TableAt
from duckmesh import metrics
from duckmesh.errors import DuckMeshError
from duckmesh.identifiers import FIELD_ID, SchemaVersion, SnapshotId, TableId
from gateway.manifests import LocalFiles
from gateway.replica_parts import (
    Layout,
    Segment,
    layout,
    merged_layout,
    next_merged_segment,
    next_segment,
)
from gateway.segment_files import Place, SegmentFiles
from query_engine.relations import Relation
from query_engine.segments import NotBuilt, SegmentBuilder, SegmentOrder

_LAYOUTS_REMEMBERED: Final = 512
_FORGOTTEN_BELOW: Final = 1e-6
_BUILD_MEMORY_BYTES: Final = 512 * 2**20
_GROWTH_MAX: Final = 8
"""A segment may be so many times the size of its data files, which may be packed tighter."""

_SPARE_BYTES: Final = 4 * 2**20
_LOOK_SECONDS: Final = 60.0
_RETRIES_DOUBLED_MAX: Final = 6
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """How much is kept, of which tables, and how gently it is built."""

    capacity_bytes: int
    hot_queries: float = 3.0
    """A table is hot from so many queries on; each one counts half after `half_life_seconds`."""
    half_life_seconds: float = 120.0
    min_bytes: int = 2**20
    min_files: int = 8
    """A table of fewer bytes and of fewer files is quick without a replica."""
    rest_factor: float = 4.0
    """After a build its thread rests for so many times what the build took."""
    table_pause_seconds: float = 5.0
    """So long at least lies between two builds for one table."""
    retry_seconds: float = 60.0
    """So long a table waits after a build that failed."""


@dataclass(slots=True, eq=False)
class _Table:
    """What is known of a table that queries read. Its fields change under the replicas' lock."""

    snapshot_id: SnapshotId | None = None
    """The newest one that a query read it at."""
    files: Sequence[DataFile] = ()
    columns: Mapping[int, str] = field(default_factory=dict)
    key: tuple[int, ...] = ()
    """The field ids of its primary key."""
    size_bytes: int = 0
    queries: float = 0.0
    counted_at: float = field(default_factory=time.monotonic)
    not_before: float = 0.0
    due: bool = True
    """Whether its replica may not be as the newest snapshot has it."""
    failures: int = 0

    def heat(self, now: float, half_life_seconds: float) -> float:
        """Queries of late: an old one counts for less."""
        return float(self.queries * 2 ** ((self.counted_at - now) / half_life_seconds))

    def gain(self, now: float, half_life_seconds: float) -> float:
        """What a replica is worth: the bytes that queries of late read."""
        return self.heat(now, half_life_seconds) * self.size_bytes


class Replicas:
    """The replicas of a serving process. Thread-safe. A query never waits for a build."""

    def __init__(self, files: LocalFiles, root: Path, options: ReplicaOptions) -> None:
        self._files = files
        self._options = options
        self._segments = SegmentFiles(root)
        self._builder = SegmentBuilder()
        self._changed = threading.Condition()
        self._tables: dict[Place, _Table] = {}
        self._layouts: OrderedDict[tuple[object, ...], Layout | None] = OrderedDict()
        self._columns: dict[tuple[TableId, SchemaVersion], Mapping[int, str]] = {}
        self._closing = False
        # Those of an earlier life go with the rest, unless queries come for them.
        for place in self._segments.places():
            self._tables[place] = _Table(queries=1)
        # One thread for life: the kernel ends a build with the thread that started it.
        self._thread = threading.Thread(target=self._work, name="build-replicas", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the build under way, and keep what is whole. Queries still hold their segments."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._builder.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size_bytes(self) -> int:
        """What all segments take of the disk."""
        return self._segments.size_bytes

    @property
    def segments(self) -> int:
        return self._segments.count

    @property
    def builder_pid(self) -> int | None:
        """The process of the build under way."""
        return self._builder.pid

    def kept(self, tenant: str) -> frozenset[TableId]:
        """The tenant's tables that have segments."""
        return frozenset(table_id for name, table_id in self._segments.places() if name == tenant)

    # --- queries

    def hold(
        self, tenant: str, snapshot_id: SnapshotId, table: TableAt, files: Sequence[DataFile]
    ) -> Layout | None:
        """Where this table's rows at this snapshot are read from; None for its data files alone.

        Its segments stay until `release`. Counts as a query of the table. Costs a look-up when
        the snapshot was asked for before.
        """
        place = (tenant, table.table_id)
        columns = self._columns_of(table)
        key = tuple(int(field.metadata[FIELD_ID]) for field in table.schema.key)
        self._count(place, snapshot_id, files, columns, key)
        segments = self._segments.of(place)
        if not segments:
            return None
        asked = (snapshot_id, table.table_id, *(each.key for each in segments))
        with self._changed:
            known = asked in self._layouts
            found = self._layouts.get(asked)
        if not known:
            found = (merged_layout if key else layout)(files, columns, segments)
            self._remember(asked, found)
        if found is None or not self._segments.hold(place, found.segments):
            return None
        return found

    def release(self, held: Layout) -> None:
        """The end of a `hold`."""
        self._segments.release(held.segments)

    def distrust(self, place: Place, held: Layout) -> None:
        """Drop these segments: a query could not read them. They are built anew."""
        if self._segments.drop(place, held.segments):
            metrics.REPLICA_SEGMENTS_LOST.inc(len(held.segments))
            _log.warning("a replica could not be read: it is dropped", table_id=place[1])
        with self._changed:
            table = self._tables.get(place)
            if table is not None:
                table.due = True

    def _columns_of(self, table: TableAt) -> Mapping[int, str]:
        key = (table.table_id, table.schema.version)
        known = self._columns.get(key)
        if known is None:
            stored = Relation(table.name, table.schema.arrow, ()).stored_columns
            known = {field_id: kind for field_id, (_, kind) in stored.items()}
            if len(self._columns) >= _LAYOUTS_REMEMBERED:
                self._columns.clear()
            self._columns[key] = known
        return known

    def _remember(self, key: tuple[object, ...], found: Layout | None) -> None:
        with self._changed:
            self._layouts[key] = found
            while len(self._layouts) > _LAYOUTS_REMEMBERED:
                self._layouts.popitem(last=False)

    def _count(
        self,
        place: Place,
        snapshot_id: SnapshotId,
        files: Sequence[DataFile],
        columns: Mapping[int, str],
        key: tuple[int, ...],
    ) -> None:
        now = time.monotonic()
        with self._changed:
            table = self._tables.setdefault(place, _Table())
            table.queries = 1 + table.heat(now, self._options.half_life_seconds)
            table.counted_at = now
            if table.snapshot_id is None or snapshot_id > table.snapshot_id:
                table.snapshot_id = snapshot_id
                table.files, table.columns, table.key = files, columns, key
                table.size_bytes = sum(each.file_size_bytes for each in files)
                table.due = True
            if table.due and table.not_before <= now and self._is_hot(table, now):
                self._changed.notify_all()

    def _is_hot(self, table: _Table, now: float) -> bool:
        options = self._options
        if table.snapshot_id is None:
            return False  # Its replica is of an earlier life, and no query has come for it yet.
        return table.heat(now, options.half_life_seconds) >= options.hot_queries * 0.99 and (
            table.size_bytes >= options.min_bytes or len(table.files) >= options.min_files
        )

    # --- builds

    def _work(self) -> None:
        while (chosen := self._next()) is not None:
            place, table = chosen
            began = time.monotonic()
            try:
                self._follow(place, table)
            except Exception:  # noqa: BLE001 - logged, and the thread goes on.
                # A fault of ours: the table is read from its files, and tried again later.
                _log.exception("a replica could not be brought up to date")
                self._put_off(table)
            with self._changed:
                if not self._closing:
                    rest = self._options.rest_factor * (time.monotonic() - began)
                    self._changed.wait_for(lambda: self._closing, rest)

    def _next(self) -> tuple[Place, _Table] | None:
        """The hot table whose replica is worth most, once one is due; None at the end."""
        options = self._options
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                self._forget_cold(now)
                due = [
                    each
                    for each in self._tables.items()
                    if each[1].due and self._is_hot(each[1], now)
                ]
                ready = [each for each in due if each[1].not_before <= now]
                if ready:
                    best = max(ready, key=lambda each: each[1].gain(now, options.half_life_seconds))
                    best[1].due = False
                    return best
                soonest = min((table.not_before for _, table in due), default=math.inf)
                self._changed.wait(min(_LOOK_SECONDS, max(0.0, soonest - now)))
        return None

    def _forget_cold(self, now: float) -> None:
        """A table that no query reads any more, dropped ones among them, loses its replica."""
        half_life = self._options.half_life_seconds
        for place, table in list(self._tables.items()):
            if table.heat(now, half_life) < _FORGOTTEN_BELOW:
                del self._tables[place]
                self._segments.drop(place, self._segments.of(place))

    def _put_off(self, table: _Table) -> None:
        with self._changed:
            seconds = self._options.retry_seconds * 2**table.failures
            table.failures = min(table.failures + 1, _RETRIES_DOUBLED_MAX)
            table.not_before = time.monotonic() + seconds
            table.due = True

    def _follow(self, place: Place, table: _Table) -> None:
        """Build the table's next segment if it needs one, and drop those it needs no longer."""
        with self._changed:
            files, columns, key = table.files, table.columns, table.key
            table.not_before = time.monotonic() + self._options.table_pause_seconds
        wanted = (next_merged_segment if key else next_segment)(
            files, columns, self._segments.of(place)
        )
        if wanted:
            segment = self._build(place, table, wanted, columns, key)
            if segment is None:
                return
            self._segments.add(place, segment)
            table.failures = 0
        segments = self._segments.of(place)
        now_read = (merged_layout if key else layout)(files, columns, segments)
        needed = () if now_read is None else now_read.segments
        self._segments.drop(place, [each for each in segments if each not in needed])

    def _build(
        self,
        place: Place,
        table: _Table,
        files: Sequence[DataFile],
        columns: Mapping[int, str],
        key: tuple[int, ...],
    ) -> Segment | None:
        size_bytes = sum(each.file_size_bytes for each in files)
        allowed = self._make_room(place, table, files, size_bytes + _SPARE_BYTES)
        if allowed < size_bytes:
            self._put_off(table)
            return None
        tenant, _ = place
        began = time.monotonic()
        try:
            name, path = self._segments.new_path(tenant)
            paths, pinned = self._files.pin(tenant, files)
            with pinned:
                size_bytes = self._builder.run(
                    SegmentOrder(
                        path=path,
                        files=tuple(map(str, paths)),
                        row_counts=tuple(each.record_count for each in files),
                        columns=dict(columns),
                        memory_limit_bytes=_BUILD_MEMORY_BYTES,
                        size_max_bytes=min(allowed, _GROWTH_MAX * size_bytes + _SPARE_BYTES),
                        layers=tuple(each.max_token for each in files) if key else (),
                        key=key,
                    )
                )
        except (NotBuilt, DuckMeshError, OSError) as error:
            metrics.REPLICA_BUILDS.labels("FAILED").inc()
            if not self._closing:
                _log.warning("a segment was not built", table_id=place[1], reason=str(error))
            self._put_off(table)
            return None
        metrics.REPLICA_BUILDS.labels(metrics.OK).inc()
        metrics.REPLICA_BUILD_SECONDS.observe(time.monotonic() - began)
        ids = tuple(each.file_id for each in files)
        counts = tuple(each.record_count for each in files)
        return Segment(name, path, size_bytes, dict(columns), ids, counts, merged=bool(key))

    def _make_room(
        self, place: Place, table: _Table, files: Sequence[DataFile], wanted_bytes: int
    ) -> int:
        """How large the new segment may be, at least `wanted_bytes` if that can be had.

        Replicas that are worth less make room; then those segments of the table itself that the
        new one takes the place of: until it is built, their rows are read from the data files.
        """
        capacity = self._options.capacity_bytes
        for other in self._colder(place, table):
            if capacity - self._segments.size_bytes >= wanted_bytes:
                break
            self._segments.drop(other, self._segments.of(other))
        if capacity - self._segments.size_bytes < wanted_bytes <= capacity:
            replaced = {each.file_id for each in files}
            own = self._segments.of(place)
            self._segments.drop(place, [s for s in own if replaced.intersection(s.files)])
        return capacity - self._segments.size_bytes

    def _colder(self, place: Place, table: _Table) -> list[Place]:
        """The tables with replicas that are worth less than half of this one's, the least first."""
        now, half_life = time.monotonic(), self._options.half_life_seconds
        with self._changed:
            gains = {
                each: known.gain(now, half_life) if (known := self._tables.get(each)) else 0.0
                for each in self._segments.places()
                if each != place
            }
            limit = table.gain(now, half_life) / 2
        return sorted((each for each, gain in gains.items() if gain < limit), key=gains.__getitem__)
