"""Cut a stream of batches into batches of one size, however the sender cut it."""

from typing import Final

import pyarrow as pa

from data_files.batch_size import bytes_of

ROW_GROUP_ROWS: Final = 122_880
"""DuckDB's own row-group size: one group is one unit of its parallel scan."""


class Rechunker:
    """Gathers batches and gives them out again at `rows` each; the rest comes from `flush`."""

    def __init__(self, schema: pa.Schema, *, rows: int = ROW_GROUP_ROWS) -> None:
        self._schema = schema
        self._rows = rows
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0

    @property
    def waiting_bytes(self) -> int:
        """Size of what was added and not yet given out."""
        return sum(bytes_of(batch) for batch in self._waiting)

    def add(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take a batch; return the full ones that it completes."""
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        if self._waiting_rows < self._rows:
            return []
        table = pa.Table.from_batches(self._waiting, self._schema)
        whole = self._waiting_rows - self._waiting_rows % self._rows
        full = [_one_batch(table.slice(start, self._rows)) for start in range(0, whole, self._rows)]
        rest = table.slice(whole)
        self._waiting, self._waiting_rows = rest.to_batches(), rest.num_rows
        return full

    def flush(self) -> pa.RecordBatch | None:
        """The rows left over as one batch; None when there are none."""
        if not self._waiting_rows:
            return None
        rest = _one_batch(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._waiting_rows = [], 0
        return rest


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
