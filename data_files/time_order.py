"""Rows in the order of their event time, however many there are: an external merge sort.

Rows are gathered up to a bound, sorted, and spilled as runs to local files (Arrow IPC). The runs
are then merged batch by batch. Memory holds one run, or one small batch of each run. Rows without
an event time come last.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from data_files.batch_size import bytes_of

_MERGED_ROWS: Final = 16_384
_MERGED_BYTES: Final = 2**20
_LAST: Final = 2**63 - 1


def in_time_order(
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    column: str,
    *,
    scratch: Path,
    run_bytes: int,
) -> Iterator[pa.RecordBatch]:
    """The same rows by `column`, a timestamp. Files in `scratch` are its caller's to remove."""
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    runs: list[Path] = []
    for batch in batches:
        held.append(batch)
        held_bytes += bytes_of(batch)
        if held_bytes >= run_bytes:
            runs.append(_spill(_sorted(held, schema, column), scratch / f"run-{len(runs)}.arrow"))
            held, held_bytes = [], 0
    rest = _sorted(held, schema, column)
    if not runs:
        yield from rest.to_batches()
        return
    if rest.num_rows:
        runs.append(_spill(rest, scratch / f"run-{len(runs)}.arrow"))
    del held, rest
    yield from _merged([_Run(path, column) for path in runs], schema, column)


def _sorted(batches: list[pa.RecordBatch], schema: pa.Schema, column: str) -> pa.Table:
    table = pa.Table.from_batches(batches, schema)
    # Stable: rows of one time stay in the order in which they were accepted.
    return table.take(pc.sort_indices(_ticks(table.column(column))))


def _ticks(times: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return times.cast(pa.int64()).fill_null(_LAST)


def _spill(rows: pa.Table, path: Path) -> Path:
    each = max(1, min(_MERGED_ROWS, _MERGED_BYTES * rows.num_rows // max(1, rows.nbytes)))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks(), max_chunksize=each)
    return path


class _Run:
    """A sorted run: the batch at hand, and those that follow."""

    def __init__(self, path: Path, column: str) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._column = column
        self._next = 0
        self.advance()

    def advance(self) -> None:
        """Go to the next batch; at the end there is none."""
        self.batch: pa.RecordBatch | None = None
        if self._next < self._reader.num_record_batches:
            self.batch = self._reader.get_batch(self._next)
            self._next += 1
            self.ticks = _ticks(self.batch.column(self._column))
            self.last: int = self.ticks[-1].as_py()

    def take_through(self, tick: int) -> pa.RecordBatch:
        """The rows at hand up to that time; goes on to the next batch when they are all."""
        assert self.batch is not None  # noqa: S101 - the caller asks runs that have rows
        count = pc.sum(pc.less_equal(self.ticks, tick)).as_py()
        taken = self.batch.slice(0, count)
        if count == self.batch.num_rows:
            self.advance()
        else:
            self.batch, self.ticks = self.batch.slice(count), self.ticks[count:]
        return taken


def _merged(runs: list[_Run], schema: pa.Schema, column: str) -> Iterator[pa.RecordBatch]:
    """Each round takes everything up to the earliest end of a batch: at least one batch whole."""
    while runs:
        through = min(run.last for run in runs)
        taken = [run.take_through(through) for run in runs]
        runs = [run for run in runs if run.batch is not None]
        yield from _sorted([each for each in taken if each.num_rows], schema, column).to_batches()
