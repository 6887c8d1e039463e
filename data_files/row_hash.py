"""A hash of rows, for idempotency: the same rows hash the same however a client laid them out.

Arrow leaves much open: bytes behind a null, bitmaps that say nothing, offsets of a slice. None of
it is hashed. A column is hashed as its length, which values are there, and those values alone.
"""

import hashlib
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from data_files.rechunk import ROW_GROUP_ROWS

_ALL_THERE: Final = b"\x00"
_SOME_NULL: Final = b"\x01"


class RowHash:
    """SHA-256 over rows in order: equal for equal rows of one schema cut into equal batches.

    The caller cuts rows into batches of a fixed size first (data_files.rechunk).
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, batch: pa.RecordBatch) -> None:
        """Take the next rows. Columns have the types of tables (catalog.table_schema)."""
        for column in batch.columns:
            self._add(column)

    def digest(self) -> bytes:
        return self._digest.digest()

    def _add(self, values: pa.Array) -> None:
        self._digest.update(len(values).to_bytes(8, "little"))
        if values.null_count:
            self._digest.update(_SOME_NULL)
            self._add_fixed(values.is_valid().cast(pa.uint8()))
            values = values.drop_null()
        else:
            self._digest.update(_ALL_THERE)
        self._add_present(values)

    def _add_present(self, values: pa.Array) -> None:
        """Values of which none is null; inner ones may be."""
        kind = values.type
        if pat.is_string(kind) or pat.is_binary(kind):
            self._add_texts(values)
        elif pat.is_struct(kind):
            for child in values.flatten():
                self._add(child)
        elif isinstance(values, pa.ExtensionArray):
            self._add_present(values.storage)
        elif pat.is_fixed_size_list(kind):
            self._add(values.flatten())
        elif pat.is_list(kind):
            self._add_fixed(pc.list_value_length(values))
            self._add(values.flatten())
        elif pat.is_map(kind):
            self._add_present(values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
        elif pat.is_boolean(kind):
            self._add_fixed(values.cast(pa.uint8()))
        else:
            self._add_fixed(values)

    def _add_fixed(self, values: pa.Array) -> None:
        width = values.type.byte_width
        if len(values):
            content = values.buffers()[1]
            self._digest.update(content.slice(values.offset * width, len(values) * width))

    def _add_texts(self, values: pa.Array) -> None:
        lengths = pc.binary_length(values)
        self._add_fixed(lengths)
        total = pc.sum(lengths).as_py() or 0
        if total:
            offsets = pa.Array.from_buffers(
                pa.int32(), 1, [None, values.buffers()[1]], offset=values.offset
            )
            self._digest.update(values.buffers()[2].slice(offsets[0].as_py(), total))


def hash_of(batch: pa.RecordBatch) -> bytes:
    """The hash of one write that is held as one batch."""
    rows = RowHash()
    for start in range(0, batch.num_rows, ROW_GROUP_ROWS):
        rows.update(batch.slice(start, ROW_GROUP_ROWS))
    return rows.digest()
