"""Rows of a data file as another version of its table's schema has them.

A column is found by its field id, as queries find it: one that the file lacks is null, one that the
schema lacks is left out, and a wider type is cast to.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh.errors import Corrupt
from duckmesh.identifiers import FIELD_ID

_BATCH_ROWS: Final = 16_384


def merged_schema(schema: pa.Schema, inputs: Sequence[pa.Schema]) -> pa.Schema:
    """The schema in which the rows of several files fit: nullable where one of them may be null."""
    found = [_by_field_id(each) for each in inputs]
    fields = []
    for field in schema:
        sources = [columns.get(_field_id(field)) for columns in found]
        may_be_null = any(source is None or source.nullable for source in sources)
        fields.append(field.with_nullable(True) if may_be_null else field)
    return pa.schema(fields)


def read_recast(file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The file's rows in order, as batches of `schema`. Holds one row group's part at a time.

    Raises Corrupt when a value does not fit: versions of a schema only widen.
    """
    names = {_field_id(field): field.name for field in file.schema_arrow}
    sources = [names.get(_field_id(field)) for field in schema]
    wanted = [name for name in sources if name is not None]
    for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
        columns = [
            pa.nulls(batch.num_rows, field.type)
            if source is None
            else _cast(batch.column(source), field.type)
            for field, source in zip(schema, sources, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    if values.type == wanted:
        return values
    try:
        return values.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as cause:
        raise Corrupt("a value of an older schema version does not fit a newer one") from cause


def _by_field_id(schema: pa.Schema) -> dict[int, pa.Field]:
    return {_field_id(field): field for field in schema}


def _field_id(field: pa.Field) -> int:
    try:
        return int((field.metadata or {})[FIELD_ID])
    except KeyError:
        raise Corrupt("a column of a data file has no field id") from None
