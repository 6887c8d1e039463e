"""Gather the rows of one write: inline while they are few, staged in the object store beyond that.

A small write becomes an inline payload. A large one is cut into row groups and written as Parquet,
straight to the store while it arrives; memory holds a row group or two, whatever is sent. A file is
begun anew when the last has reached its target size, or when the rows come to another partition of
their table. Rows that come mixed stay in one file, which compaction takes apart: one object is
written at a time, however many partitions there are. Died, or aborted, before the envelope is
published: the staged objects are orphans that no snapshot reaches.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import pyarrow as pa

from data_files.parquet import EventTimes, ParquetStream, event_time_column, event_times
from data_files.partitions import Partitioner, folders_of
from data_files.payload import encode_batches
from data_files.rechunk import Rechunker
from data_files.row_hash import RowHash
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import FileId, new_file_id
from duckmesh.partitions import Partition, PartitionSpec
from ingest_bus.envelope import InlinePayload, StagedFile, StagedPayload
from object_store.keys import Folders
from object_store.port import ObjectStore, ObjectWriter

KeyOfFile = Callable[[FileId, Folders], str]
"""The object key of a new data file of the write's table, below the folders of its partition."""


@dataclass(frozen=True, slots=True)
class StagingLimits:
    """When a write leaves the bus for the store, and how large its files grow."""

    inline_max_bytes: int = 2**20
    staged_file_target_bytes: int = 128 * 2**20
    partitions_max: int = 1_000
    """Of how many partitions of its table one write may have rows."""
    write_max: timedelta = timedelta(hours=12)
    """How long a write may take: what it staged first must not be old enough for an orphan."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A whole write, ready to be published."""

    payload: InlinePayload | StagedPayload
    row_count: int
    byte_count: int
    times: EventTimes
    payload_hash: bytes | None


@dataclass(slots=True)
class _OpenFile:
    file_id: FileId
    key: str
    writer: ObjectWriter
    parquet: ParquetStream
    partition: Partition
    arrow_bytes: int = 0


_GROUP_MAX_BYTES: Final = 256 * 2**20
_HASHED_GROUP_MAX_BYTES: Final = 2**30
"""Rows as wide as that make a row group of fewer. A hash goes by whole groups: it is the same for a
repeat that was cut another way only while the rows are not as wide."""

# Parquet is about this much smaller than Arrow; only the size of a file depends on it.
_PARQUET_RATIO: Final = 3


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()


class Staging:
    """One write in the making. Used by one thread; `finish` or `abort` ends it."""

    def __init__(
        self,
        schema: pa.Schema,
        store: ObjectStore,
        key_of_file: KeyOfFile,
        *,
        limits: StagingLimits,
        hashed: bool,
        spec: PartitionSpec = (),
    ) -> None:
        self._schema = schema
        self._store = store
        self._key_of_file = key_of_file
        self._limits = limits
        self._partitioner = Partitioner(spec, schema, limit=limits.partitions_max) if spec else None
        self._rechunker = Rechunker(schema)
        self._hash = RowHash() if hashed else None
        self._group_max_bytes = _HASHED_GROUP_MAX_BYTES if hashed else _GROUP_MAX_BYTES
        self._held: list[pa.RecordBatch] = []
        self._open: _OpenFile | None = None
        self._files: list[StagedFile] = []
        self._keys: list[str] = []
        self._began: tuple[float, float] | None = None
        self.row_count = 0
        self.arrow_bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows of the table's schema. Blocks while the store is slower than the sender.

        Raises Invalid (TOO_MANY_PARTITIONS).
        """
        self.row_count += batch.num_rows
        self.arrow_bytes += batch.nbytes
        for full in self._rechunker.add(batch):
            self._take(full)
        if self._rechunker.waiting_bytes > self._group_max_bytes:
            self._take_rest()
        if self.arrow_bytes > self._limits.inline_max_bytes:
            self._spill()

    def _take_rest(self) -> None:
        """The rows that are no whole row group."""
        for rest in self._rechunker.flush():
            self._take(rest)

    def _take(self, chunk: pa.RecordBatch) -> None:
        if self._hash is not None:
            self._hash.update(chunk)
        self._held.append(chunk)

    def _spill(self) -> None:
        """Write the whole chunks at hand to the store. Chunks are row groups."""
        for chunk in self._held:
            partition = self._partition_of(chunk)
            if self._open is not None and self._open.partition != partition:
                self._end_file()
            current = self._open or self._begin_file(partition)
            current.parquet.write(chunk)
            current.arrow_bytes += chunk.nbytes
            target = self._limits.staged_file_target_bytes * _PARQUET_RATIO
            if current.arrow_bytes >= target:
                self._end_file()
        self._held.clear()

    def _partition_of(self, chunk: pa.RecordBatch) -> Partition:
        return {} if self._partitioner is None else self._partitioner.partition_of(chunk)

    def _begin_file(self, partition: Partition) -> _OpenFile:
        if self._began is None:
            self._began = _clocks()
        file_id = new_file_id()
        key = self._key_of_file(file_id, folders_of(partition, self._schema))
        self._keys.append(key)
        writer = self._store.open_writer(key)
        parquet = ParquetStream(writer.file, self._schema)
        self._open = _OpenFile(file_id, key, writer, parquet, partition)
        return self._open

    def _end_file(self) -> None:
        done = self._open
        if done is None:
            return
        stats = done.parquet.finish()
        size_bytes = done.writer.commit()
        self._open = None
        times = done.parquet.event_times
        self._files.append(
            StagedFile(
                done.file_id,
                done.key,
                done.parquet.row_count,
                size_bytes,
                times.earliest,
                times.latest,
                stats,
                dict(done.partition),
            )
        )

    def finish(self) -> Gathered:
        """End the write: every byte is durable or in the payload returned.

        Raises Invalid (TOO_MANY_PARTITIONS), as `add` does, and PAYLOAD_TOO_LARGE for a write that
        took so long that its first objects may be taken for orphans.
        """
        self._take_rest()
        digest = self._hash.digest() if self._hash is not None else None
        if self._files or self._open or self.arrow_bytes > self._limits.inline_max_bytes:
            self._spill()
            self._end_file()
            self._check_age()
            times = EventTimes()
            for file in self._files:
                times = times.joined(EventTimes(file.min_event_time, file.max_event_time))
            size_bytes = sum(file.size_bytes for file in self._files)
            staged = StagedPayload(tuple(self._files))
            return Gathered(staged, self.row_count, size_bytes, times, digest)
        for chunk in self._held:
            self._partition_of(chunk)
        content = encode_batches(self._held)
        table = pa.Table.from_batches(self._held, self._schema)
        times = event_times(table, event_time_column(self._schema))
        return Gathered(InlinePayload(content), self.row_count, len(content), times, digest)

    def _check_age(self) -> None:
        if self._began is None:
            return
        # Whichever clock tells more: one stands still while the machine sleeps, one may be set.
        seconds = max(now - then for now, then in zip(_clocks(), self._began, strict=True))
        if seconds > self._limits.write_max.total_seconds():
            raise Invalid(
                ErrorCode.PAYLOAD_TOO_LARGE,
                f"the write took longer than {self._limits.write_max}: send it as several",
            )

    def keep(self) -> None:
        """Leave the staged objects alone from now on: an accepted write may name them."""
        self._keys.clear()

    def abort(self) -> None:
        """Forget the write and remove what it staged. May be called again."""
        if self._open is not None:
            self._open.parquet.abandon()
            self._open.writer.abort()
            self._open = None
        self._held.clear()
        for key in self._keys:
            self._store.delete(key)
        self._keys.clear()
