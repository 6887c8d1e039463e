"""Batches of one size, however they came: every row, once, in its order."""

import struct

import pyarrow as pa

from data_files.rechunk import Rechunker

SCHEMA = pa.schema([("v", pa.int64())])


def batch(*values: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, pa.int64())], schema=SCHEMA)


def values_of(batches: list[pa.RecordBatch]) -> list[list[int]]:
    return [each.column(0).to_pylist() for each in batches]


def test_batches_are_cut_and_joined_to_one_size() -> None:
    rechunker = Rechunker(SCHEMA, rows=3)
    assert rechunker.add(batch(1, 2)) == []
    assert values_of(rechunker.add(batch(3, 4, 5, 6, 7))) == [[1, 2, 3], [4, 5, 6]]
    assert rechunker.waiting_bytes > 0
    assert values_of(rechunker.flush()) == [[7]]
    assert rechunker.waiting_bytes == 0
    assert rechunker.flush() == []


def test_more_text_than_one_column_can_hold_is_all_there() -> None:
    """Two batches of 1.2 GB: Arrow's offsets end at 2 GiB, so they stay two."""
    half = 600_000_000
    offsets = pa.py_buffer(struct.pack("<3i", 0, half, 2 * half))
    texts = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(bytes(2 * half))])
    wide = pa.record_batch({"text": texts})
    rechunker = Rechunker(wide.schema, rows=4)
    given = [*rechunker.add(wide), *rechunker.add(wide), *rechunker.flush()]
    assert sum(each.num_rows for each in given) == 4
