"""Files of a table made anew as few large ones: the same rows, in the order of their event time.

With a partition spec the rows are sorted by their partition first, and each begins a file: one
object is written at a time, however many partitions there are.

Rows stream from the old files to the store. Memory holds a row group and what the sort holds; the
sort spills to a local directory, as do objects of a remote store while they are read. Files of
several schema versions are written as the newest of them has the columns; readers of older
snapshots keep the old files.

Of a table with a primary key the rows that a newer file supersedes are left out, and with the
table's oldest files among them also those that delete their key: there is nothing left to delete.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from catalog import files
from catalog.compaction import LiveFile
from catalog.connection import Catalog
from catalog.snapshots import NewFile
from catalog.table_schema import TableSchema
from data_files.keyed_rows import LeftRows, delete_count, has_deletes, with_deletes
from data_files.parquet import ParquetStream, event_time_column
from data_files.partitions import (
    NUMBER,
    Partitioner,
    by_number,
    folders_of,
    numbered_schema,
    with_numbers,
)
from data_files.recast import merged_schema, read_recast
from data_files.rechunk import Rechunker
from data_files.row_order import in_order
from duckmesh.errors import Corrupt, ErrorCode, Unavailable
from duckmesh.identifiers import FileId, SchemaVersion, TableId, new_file_id
from duckmesh.partitions import Partition, PartitionSpec
from object_store.keys import Folders
from object_store.port import ObjectStore
from query_engine.superseded import Key, RowNumbers, repeated_rows, superseded_rows

_GROUP_MAX_BYTES: Final = 64 * 2**20
_FETCHES: Final = 4
"""Objects that one merge downloads at a time."""
_RENEW_SECONDS: Final = 1.0

KeyOfFile = Callable[[FileId, Folders], str]
"""The object key of a new file, below the folders of its partition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteOptions:
    """How large the new files become, what the sort may hold, and where it spills."""

    target_bytes: int
    sort_bytes: int = 64 * 2**20
    spec: PartitionSpec = ()
    partitions_max: int = 1_000
    """Rows of further partitions stay together."""
    scratch: Path | None = None
    """A directory on a local disk; the system's own for temporary files when None."""


class Rewrite:
    """One rewrite of one table's files. Used by one thread; `run` ends it."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        key_of_file: KeyOfFile,
        *,
        options: RewriteOptions,
        spend: Callable[[int], None],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._key_of_file = key_of_file
        self._options = options
        self._spend = spend
        self._keys: list[str] = []
        self._left_out = 0

    def run(
        self,
        table_id: TableId,
        inputs: Sequence[LiveFile],
        schema: TableSchema,
        *,
        from_oldest: bool = False,
    ) -> list[NewFile]:
        """Write the rows of `inputs` as new objects, and describe them. Publishes nothing.

        `schema` is of the newest version among them. `from_oldest` says that no live file of the
        table is older than they. `spend` is told of the bytes read, and may
        raise to end the work. Died here, or raised: what was written is an orphan, see `discard`.
        Raises Corrupt when rows are lost or do not fit, Unavailable when the store or disk fails.
        """
        with self._scratch() as scratch:
            self._fetch(inputs, scratch)
            superseded: RowNumbers = {}
            if schema.primary_key:
                superseded = superseded_rows(
                    [self._local(file, scratch) for file in inputs],
                    [file.max_token for file in inputs],
                    Key(schema.key),
                    scratch=scratch,
                )
            return self._write(
                table_id, inputs, schema, superseded, scratch, deletes=not from_oldest
            )

    def without_repeats(
        self, table_id: TableId, inputs: Sequence[LiveFile], schema: TableSchema
    ) -> list[NewFile] | None:
        """The files of one write without the rows whose key comes again in it; None without any.

        As `run` otherwise.
        """
        with self._scratch() as scratch:
            self._fetch(inputs, scratch)
            paths = [self._local(file, scratch) for file in inputs]
            repeated = repeated_rows(paths, Key(schema.key), scratch=scratch)
            if not repeated:
                return None
            return self._write(table_id, inputs, schema, repeated, scratch, deletes=True)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory for one rewrite. Raises Unavailable when the disk does not take more."""
        try:
            with tempfile.TemporaryDirectory(
                prefix="duckmesh-compaction-", dir=self._options.scratch
            ) as scratch:
                yield Path(scratch)
        except OSError as cause:
            raise Unavailable(
                ErrorCode.STORE_UNAVAILABLE,
                "the disk that a compaction sorts on does not take more: give it room",
            ) from cause
        finally:
            # The allocator keeps what a thread has freed for that thread, and this one merges large
            # files seldom: it would hold what the largest merge took for as long as it lives.
            pa.default_memory_pool().release_unused()

    def discard(self) -> None:
        """Remove what was written: no snapshot can have it. Deleting what is gone succeeds."""
        for key in self._keys:
            self._store.delete(key)

    def _write(
        self,
        table_id: TableId,
        inputs: Sequence[LiveFile],
        schema: TableSchema,
        superseded: RowNumbers,
        scratch: Path,
        *,
        deletes: bool,
    ) -> list[NewFile]:
        """The rows that are left, as new objects; those that delete only with `deletes`."""
        self._left_out = 0
        keeps = deletes and any(file.delete_count for file in inputs)
        columns = with_deletes(schema.arrow) if keeps else schema.arrow
        arrow = merged_schema(columns, [self._schema_of(file, scratch) for file in inputs])
        output = _Output(self._store, self._begin_file, arrow, self._options.target_bytes)
        try:
            for partition, rows in self._ordered(
                self._rows(inputs, arrow, superseded, scratch), arrow, scratch
            ):
                output.enter(partition)
                for group in _groups(rows, arrow):
                    self._spend(0)
                    output.write(group)
                output.end_file()
        except BaseException:
            output.abandon()
            raise
        written = [_new_file(file, table_id, schema.version, inputs) for file in output.files]
        expected = sum(file.record_count for file in inputs) - self._left_out
        if sum(file.record_count for file in written) != expected:
            raise Corrupt("a rewrite has other rows than its files", table_id=table_id)
        return written

    def _ordered(
        self, rows: Iterator[pa.RecordBatch], schema: pa.Schema, scratch: Path
    ) -> Iterator[tuple[Partition, Iterator[pa.RecordBatch]]]:
        """The rows of one partition after the other, each by event time."""
        options = self._options
        times = [column] if (column := event_time_column(schema)) is not None else []
        if not options.spec:
            if times:
                rows = in_order(rows, schema, times, scratch=scratch, run_bytes=options.sort_bytes)
            yield {}, rows
            return
        partitioner = Partitioner(options.spec, schema, keep=options.partitions_max)
        numbered = in_order(
            with_numbers(rows, partitioner, schema),
            numbered_schema(schema),
            [NUMBER, *times],
            scratch=scratch,
            run_bytes=options.sort_bytes,
        )
        for number, of_one in by_number(numbered, schema):
            yield partitioner.partitions[number], of_one

    def _begin_file(self, partition: Partition, schema: pa.Schema) -> tuple[FileId, str]:
        file_id = new_file_id()
        key = self._key_of_file(file_id, folders_of(partition, schema))
        self._keys.append(key)
        return file_id, key

    def _rows(
        self,
        inputs: Sequence[LiveFile],
        schema: pa.Schema,
        superseded: RowNumbers,
        scratch: Path,
    ) -> Iterator[pa.RecordBatch]:
        for number, file in enumerate(inputs):
            share = file.size_bytes / max(1, file.record_count)
            drops_deletes = bool(file.delete_count) and not has_deletes(schema)
            left = LeftRows(superseded.get(number, ()))
            with self._opened(file, scratch) as parquet:
                if drops_deletes:
                    read = left.undeleted(read_recast(parquet, with_deletes(schema)), schema)
                else:
                    read = left.of(read_recast(parquet, schema))
                for batch in read:
                    yield batch
                    self._spend(int(share * batch.num_rows))
            self._left_out += left.left_out

    def _schema_of(self, file: LiveFile, scratch: Path) -> pa.Schema:
        with self._opened(file, scratch) as parquet:
            return parquet.schema_arrow

    def _opened(self, file: LiveFile, scratch: Path) -> pq.ParquetFile:
        return pq.ParquetFile(self._local(file, scratch), memory_map=True)

    def _local(self, file: LiveFile, scratch: Path) -> Path:
        local = None if file.path is None else self._store.local_path(file.path)
        return local or _copy_of(file, scratch)

    def _fetch(self, inputs: Sequence[LiveFile], scratch: Path) -> None:
        """Copy what does not lie in a store of this machine, several objects at a time.

        Died here: copies in a temporary directory. Raises what a download raises; those that have
        begun are waited for, within the store's time limits. NotFound for an object that is gone.
        """
        self._copy_inline([file for file in inputs if file.path is None], scratch)
        for file in inputs:
            if file.path is not None and self._store.local_path(file.path) is not None:
                self._store.stat(file.path)
        with ThreadPoolExecutor(_FETCHES, thread_name_prefix="duckmesh-merge") as pool:
            left = {
                pool.submit(self._store.download, file.path, _copy_of(file, scratch))
                for file in inputs
                if file.path is not None and self._store.local_path(file.path) is None
            }
            try:
                while left:
                    done, left = wait(left, timeout=_RENEW_SECONDS, return_when=FIRST_EXCEPTION)
                    for each in done:
                        each.result()
                    # The lease is kept while a slow store sends.
                    self._spend(0)
            except BaseException:
                for each in left:
                    each.cancel()
                raise

    def _copy_inline(self, inputs: Sequence[LiveFile], scratch: Path) -> None:
        """Small files: as many at a time as a group of rows may hold bytes."""
        each = max(1, _GROUP_MAX_BYTES // max((file.size_bytes for file in inputs), default=1))
        for start in range(0, len(inputs), each):
            some = inputs[start : start + each]
            with self._catalog.connect() as connection:
                contents = files.contents(connection, [file.file_id for file in some])
            for file in some:
                if file.file_id not in contents:
                    raise Corrupt("an inline file has no content", file_id=str(file.file_id))
                _copy_of(file, scratch).write_bytes(contents[file.file_id])
            self._spend(0)


def _copy_of(file: LiveFile, scratch: Path) -> Path:
    return scratch / f"{file.file_id}.parquet"


def _groups(rows: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows as row groups: of the usual number of rows, or fewer when they are wide."""
    rechunker = Rechunker(schema)
    for batch in rows:
        yield from rechunker.add(batch)
        if rechunker.waiting_bytes > _GROUP_MAX_BYTES:
            yield from rechunker.flush()
    yield from rechunker.flush()


@dataclass(frozen=True, slots=True)
class _Written:
    file_id: FileId
    key: str
    size_bytes: int
    parquet: ParquetStream
    stats: dict[str, Any]
    partition: Partition
    delete_count: int


class _Output:
    """Objects in the making, one after the other; a new one begins when one has its size."""

    def __init__(
        self,
        store: ObjectStore,
        begin: Callable[[Partition, pa.Schema], tuple[FileId, str]],
        schema: pa.Schema,
        target_bytes: int,
    ) -> None:
        self._store = store
        self._begin = begin
        self._schema = schema
        self._target_bytes = target_bytes
        self._parquet: ParquetStream | None = None
        self._partition: Partition = {}
        self._deletes = has_deletes(schema)
        self._delete_count = 0
        self.files: list[_Written] = []

    def enter(self, partition: Partition) -> None:
        """The files that begin from now on are of this partition."""
        self._partition = partition

    def write(self, group: pa.RecordBatch) -> None:
        """Append a row group."""
        if self._parquet is None:
            self._file_id, self._key = self._begin(self._partition, self._schema)
            self._writer = self._store.open_writer(self._key)
            self._parquet = ParquetStream(self._writer.file, self._schema)
        self._parquet.write(group)
        if self._deletes:
            self._delete_count += delete_count(group)
        if self._writer.file.tell() >= self._target_bytes:
            self.end_file()

    def end_file(self) -> None:
        """Make the object at hand durable, if there is one."""
        if self._parquet is None:
            return
        stats = self._parquet.finish()
        size_bytes = self._writer.commit()
        self.files.append(
            _Written(
                self._file_id,
                self._key,
                size_bytes,
                self._parquet,
                stats,
                self._partition,
                self._delete_count,
            )
        )
        self._parquet = None
        self._delete_count = 0

    def abandon(self) -> None:
        """Give the object at hand up; those before it are there."""
        if self._parquet is not None:
            self._parquet.abandon()
            self._writer.abort()


def _new_file(
    written: _Written, table_id: TableId, version: SchemaVersion, inputs: Sequence[LiveFile]
) -> NewFile:
    """A written object as a data file of the table."""
    times = written.parquet.event_times
    return NewFile(
        file_id=written.file_id,
        table_id=table_id,
        schema_version=version,
        record_count=written.parquet.row_count,
        file_size_bytes=written.size_bytes,
        min_token=min(file.min_token for file in inputs),
        max_token=max(file.max_token for file in inputs),
        path=written.key,
        min_event_time=times.earliest,
        max_event_time=times.latest,
        stats=written.stats,
        partition=written.partition,
        delete_count=written.delete_count,
    )
