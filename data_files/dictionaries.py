"""Which columns of a Parquet file get a dictionary.

A dictionary makes a column small whose values repeat. Of values that do not, it is a copy with a
number for each beside it: a quarter larger than the plain values, and half of the work of writing
the file. Parquet's writers give it up at 1 MiB, which a row group of 122,880 numbers of eight
bytes does not reach.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from duckmesh.arrow_types import is_list

_ROWS_MIN: Final = 64
"""Of fewer rows a dictionary saves less than its page's header takes."""

_SAMPLE_ROWS: Final = 16_384
_DISTINCT_MAX: Final = 0.5
"""The share of different values in the sample up to which they count as repeated."""


def dictionary_columns(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """The leaf columns that `rows` speak for, by their paths in Parquet's schema.

    The paths are those of the Parquet format for nested types: `a.list.element` for a list,
    `a.key_value.key` and `.value` for a map, `a.b` for a struct.
    """
    if rows.num_rows < _ROWS_MIN:
        return []
    sample = rows.slice(0, _SAMPLE_ROWS)
    return [
        path
        for field, column in zip(sample.schema, sample.columns, strict=True)
        if _repeats(column)
        for path in _leaves(field.name, field.type)
    ]


def _repeats(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether its values repeat; those that cannot be counted are taken to."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    try:
        distinct = pc.count_distinct(column).as_py()
    except pa.ArrowNotImplementedError:
        return True
    return bool(distinct <= _DISTINCT_MAX * len(column))


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(path, kind.storage_type)
    if pat.is_dictionary(kind) or pat.is_run_end_encoded(kind):
        return _leaves(path, kind.value_type)
    if pat.is_map(kind):
        return [
            *_leaves(f"{path}.key_value.key", kind.key_type),
            *_leaves(f"{path}.key_value.value", kind.item_type),
        ]
    if pat.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    if is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
