"""Rows of tables with a primary key."""

import pyarrow as pa

from data_files.keyed_rows import as_deletes, delete_count


def test_keys_to_delete_take_no_memory_for_each_other_column() -> None:
    """A batch of keys fits into a message; with a thousand columns beside them it would not."""
    names = [f"c{number}" for number in range(1_000)]
    schema = pa.schema([("id", pa.int64()), *((name, pa.float64()) for name in names)])
    keys = pa.record_batch({"id": pa.array(range(10_000), pa.int64())})
    before = pa.total_allocated_bytes()
    rows = as_deletes(keys, schema)
    assert pa.total_allocated_bytes() - before < 5 * keys.nbytes
    rows.validate(full=True)
    assert delete_count(rows) == 10_000
    assert all(column.null_count == 10_000 for column in rows.columns[1:-1])
