"""Rows in the order of some whole-number columns, however many there are: an external merge sort.

Rows are gathered up to a bound, sorted, and spilled as runs to local files (Arrow IPC). The runs
are then merged batch by batch. Memory holds one run, or one small batch of each run. Rows without
a value come last.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from data_files.batch_size import bytes_of

_MERGED_ROWS: Final = 16_384
_MERGED_BYTES: Final = 2**20
_LAST: Final = 2**63 - 1


def in_order(
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    columns: Sequence[str],
    *,
    scratch: Path,
    run_bytes: int,
) -> Iterator[pa.RecordBatch]:
    """The same rows by the first of `columns`, then by the next: timestamps and int64, one or more.

    Files in `scratch` are its caller's to remove.
    """
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    runs: list[Path] = []
    for batch in batches:
        held.append(batch)
        held_bytes += bytes_of(batch)
        if held_bytes >= run_bytes:
            runs.append(_spill(_sorted(held, schema, columns), scratch / f"run-{len(runs)}.arrow"))
            held, held_bytes = [], 0
    rest = _sorted(held, schema, columns)
    if not runs:
        yield from rest.to_batches()
        return
    if rest.num_rows:
        runs.append(_spill(rest, scratch / f"run-{len(runs)}.arrow"))
    del held, rest
    yield from _merged([_Run(path, columns) for path in runs], schema, columns)


def _sorted(batches: list[pa.RecordBatch], schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    table = pa.Table.from_batches(batches, schema)
    keys = [_whole(table.column(column)) for column in columns]
    # Stable: rows of one place stay in the order in which they were accepted.
    if len(keys) == 1:
        return table.take(pc.sort_indices(keys[0]))
    names = [str(at) for at in range(len(keys))]
    order = [(name, "ascending") for name in names]
    return table.take(pc.sort_indices(pa.table(keys, names), sort_keys=order))


def _whole(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return values.cast(pa.int64()).fill_null(_LAST)


def _spill(rows: pa.Table, path: Path) -> Path:
    each = max(1, min(_MERGED_ROWS, _MERGED_BYTES * rows.num_rows // max(1, rows.nbytes)))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks(), max_chunksize=each)
    return path


class _Run:
    """A sorted run: the batch at hand, and those that follow."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._columns = columns
        self._next = 0
        self.advance()

    def advance(self) -> None:
        """Go to the next batch; at the end there is none."""
        self.batch: pa.RecordBatch | None = None
        if self._next < self._reader.num_record_batches:
            self.batch = self._reader.get_batch(self._next)
            self._next += 1
            self.keys = [_whole(self.batch.column(column)) for column in self._columns]
            self.last: tuple[int, ...] = tuple(key[-1].as_py() for key in self.keys)

    def take_through(self, place: tuple[int, ...]) -> pa.RecordBatch:
        """The rows at hand up to that place; goes on to the next batch when they are all."""
        assert self.batch is not None  # noqa: S101 - the caller asks runs that have rows
        count = pc.sum(_up_to(self.keys, place)).as_py()
        taken = self.batch.slice(0, count)
        if count == self.batch.num_rows:
            self.advance()
        else:
            self.batch = self.batch.slice(count)
            self.keys = [key[count:] for key in self.keys]
        return taken


def _up_to(keys: Sequence[pa.Array], place: tuple[int, ...]) -> pa.Array:
    """Which rows come before the place, or are at it."""
    found = pc.less_equal(keys[-1], place[-1])
    for key, bound in zip(reversed(keys[:-1]), reversed(place[:-1]), strict=True):
        found = pc.or_(pc.less(key, bound), pc.and_(pc.equal(key, bound), found))
    return found


def _merged(
    runs: list[_Run], schema: pa.Schema, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Each round takes everything up to the earliest end of a batch: at least one batch whole."""
    while runs:
        through = min(run.last for run in runs)
        taken = [run.take_through(through) for run in runs]
        runs = [run for run in runs if run.batch is not None]
        yield from _sorted([each for each in taken if each.num_rows], schema, columns).to_batches()
