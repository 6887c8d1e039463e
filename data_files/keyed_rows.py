"""Rows of a table with a primary key: each is the newest state of its key, or says it is deleted.

A file of such a table supersedes, by the keys of its rows, what files of smaller tokens hold. A row
that deletes its key says so in one column more, which no table shows.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from data_files.parquet import read_parquet
from duckmesh.arrow_types import DELETED_FIELD_ID, deleted_field
from duckmesh.identifiers import FIELD_ID

_ROW: Final = "row"


def with_deletes(schema: pa.Schema) -> pa.Schema:
    """The columns of files and payloads that may delete: a deleted row has its key alone."""
    return pa.schema([*(each.with_nullable(True) for each in schema), deleted_field(schema)])


def as_deletes(keys: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of `with_deletes(schema)` that delete these keys; `keys` has the key's columns."""
    columns = {name: keys.column(number) for number, name in enumerate(keys.schema.names)}
    # Columns of one type share their nulls: few keys of a wide table would take much memory.
    kinds = {each.type for each in schema if each.name not in columns}
    nulls = {kind: pa.nulls(keys.num_rows, kind) for kind in kinds}
    made = [columns[each.name] if each.name in columns else nulls[each.type] for each in schema]
    made.append(pa.repeat(pa.scalar(True), keys.num_rows))
    return pa.RecordBatch.from_arrays(made, schema=with_deletes(schema))


def as_rows(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of `schema` as rows of `with_deletes(schema)` that delete nothing."""
    columns = [*batch.columns, pa.repeat(pa.scalar(False), batch.num_rows)]
    return pa.RecordBatch.from_arrays(columns, schema=with_deletes(schema))


def newest_of_each_key(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The last row of each key, in the order of the rows. Keys have no nulls."""
    return _one_of_each_key(rows, key, "max")


def first_of_each_key(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The first row of each key, in the order of the rows. Keys have no nulls."""
    return _one_of_each_key(rows, key, "min")


def _one_of_each_key(rows: pa.Table, key: Sequence[str], which: Literal["min", "max"]) -> pa.Table:
    if rows.num_rows < 2:
        return rows
    columns = [_comparable(rows.column(name)) for name in key]
    names = [str(number) for number in range(len(key))]
    numbers = pa.array(range(rows.num_rows), pa.int64())
    numbered = pa.table([*columns, numbers], names=[*names, _ROW])
    found = numbered.group_by(names, use_threads=False).aggregate([(_ROW, which)])
    if found.num_rows == rows.num_rows:
        return rows
    chosen = found.column(f"{_ROW}_{which}")
    return rows.take(pc.take(chosen, pc.sort_indices(chosen)))


def delete_count(rows: pa.Table | pa.RecordBatch) -> int:
    """How many of the rows, of `with_deletes`, delete their key."""
    return int(pc.sum(rows.column(rows.num_columns - 1)).as_py() or 0)


def has_deletes(schema: pa.Schema) -> bool:
    """Whether rows of this schema may delete their key."""
    last = schema.field(len(schema) - 1).metadata or {}
    return bool(last.get(FIELD_ID) == str(DELETED_FIELD_ID).encode())


class LeftRows:
    """The rows of one file without those of some numbers, which are ascending. Used once."""

    def __init__(self, without: Sequence[int]) -> None:
        self._without = without
        self._at = 0
        self._row = 0
        self.left_out = 0
        """How many rows were not handed on so far."""

    def of(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The other rows of the file's batches, in their order."""
        for batch in batches:
            yield self._left(batch)

    def undeleted(
        self, batches: Iterable[pa.RecordBatch], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        """The same of `with_deletes(schema)`, without the rows that delete, as rows of `schema`."""
        for batch in batches:
            left = self._left(batch)
            deletes = pc.fill_null(left.column(left.num_columns - 1), False)
            kept = left.filter(pc.invert(deletes))
            self.left_out += left.num_rows - kept.num_rows
            yield pa.RecordBatch.from_arrays(kept.columns[:-1], schema=schema)

    def _left(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        begin, self._row = self._row, self._row + batch.num_rows
        first, self._at = self._at, bisect_left(self._without, self._row, self._at)
        if first == self._at:
            return batch
        self.left_out += self._at - first
        kept = bytearray(b"\x01") * batch.num_rows
        for row in self._without[first : self._at]:
            kept[row - begin] = 0
        mask = pa.Array.from_buffers(pa.uint8(), batch.num_rows, [None, pa.py_buffer(kept)])
        return batch.filter(mask.cast(pa.bool_()))


def without_deletes(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of `with_deletes(schema)` of which none deletes, as rows of `schema`."""
    return rows.select(range(rows.num_columns - 1)).cast(schema)


def read_keyed(content: bytes, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The rows of a keyed table's file with these columns, as rows of `with_deletes(schema)`."""
    rows = read_parquet(content)
    if len(rows.schema) == len(schema):
        return [as_rows(batch, schema) for batch in rows.cast(schema).to_batches()]
    return list(rows.cast(with_deletes(schema)).to_batches())


def _comparable(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    return values.cast(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else values
