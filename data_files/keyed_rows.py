"""Rows of a table with a primary key: each is the newest state of its key, or says it is deleted.

A file of such a table supersedes, by the keys of its rows, what files of smaller tokens hold. A row
that deletes its key has a value in one column more, which no table shows. Its field id is the one
that Apache Iceberg's specification reserves for `_deleted`, so that it is no column's.
"""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from duckmesh.identifiers import FIELD_ID

DELETED_FIELD_ID: Final = 2_147_483_644

_ROW: Final = "row"


def deleted_field(schema: pa.Schema) -> pa.Field:
    """The column that says whether a row deletes its key, by a name that the schema has not."""
    name, taken = "_deleted", {each.lower() for each in schema.names}
    while name in taken:
        name = f"_{name}"
    return pa.field(name, pa.bool_(), metadata={FIELD_ID: str(DELETED_FIELD_ID).encode()})


def with_deletes(schema: pa.Schema) -> pa.Schema:
    """The columns of files and payloads that may delete: a deleted row has its key alone."""
    return pa.schema([*(each.with_nullable(True) for each in schema), deleted_field(schema)])


def as_deletes(keys: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of `with_deletes(schema)` that delete these keys; `keys` has the key's columns."""
    columns = {name: keys.column(number) for number, name in enumerate(keys.schema.names)}
    made = [
        columns[each.name] if each.name in columns else pa.nulls(keys.num_rows, each.type)
        for each in schema
    ]
    made.append(pa.repeat(pa.scalar(True), keys.num_rows))
    return pa.RecordBatch.from_arrays(made, schema=with_deletes(schema))


def as_rows(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of `schema` as rows of `with_deletes(schema)` that delete nothing."""
    columns = [*batch.columns, pa.repeat(pa.scalar(False), batch.num_rows)]
    return pa.RecordBatch.from_arrays(columns, schema=with_deletes(schema))


def newest_of_each_key(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The last row of each key, in the order of the rows. Keys have no nulls."""
    if rows.num_rows < 2:
        return rows
    columns = [_comparable(rows.column(name)) for name in key]
    names = [str(number) for number in range(len(key))]
    numbers = pa.array(range(rows.num_rows), pa.int64())
    numbered = pa.table([*columns, numbers], names=[*names, _ROW])
    last = numbered.group_by(names, use_threads=False).aggregate([(_ROW, "max")])
    if last.num_rows == rows.num_rows:
        return rows
    chosen = last.column(f"{_ROW}_max")
    return rows.take(pc.take(chosen, pc.sort_indices(chosen)))


def delete_count(rows: pa.Table | pa.RecordBatch) -> int:
    """How many of the rows, of `with_deletes`, delete their key."""
    return int(pc.sum(rows.column(rows.num_columns - 1)).as_py() or 0)


def without_deletes(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of `with_deletes(schema)` of which none deletes, as rows of `schema`."""
    return rows.select(range(rows.num_columns - 1)).cast(schema)


def _comparable(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    return values.cast(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else values
