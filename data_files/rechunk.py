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
        self.waiting_bytes = 0
        """Size of what was added and not yet given out."""

    def add(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take a batch; return the full ones that it completes."""
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.waiting_bytes += bytes_of(batch)
        if self._waiting_rows < self._rows:
            return []
        table = pa.Table.from_batches(self._waiting, self._schema)
        whole = self._waiting_rows - self._waiting_rows % self._rows
        full = [
            batch
            for start in range(0, whole, self._rows)
            for batch in _joined(table.slice(start, self._rows))
        ]
        rest = table.slice(whole)
        self._wait_for_more(rest.to_batches())
        return full

    def flush(self) -> list[pa.RecordBatch]:
        """The rows left over as one batch; none when there are none."""
        if not self._waiting_rows:
            return []
        rest = _joined(pa.Table.from_batches(self._waiting, self._schema))
        self._wait_for_more([])
        return rest

    def _wait_for_more(self, rest: list[pa.RecordBatch]) -> None:
        self._waiting = rest
        self._waiting_rows = sum(batch.num_rows for batch in rest)
        self.waiting_bytes = sum(map(bytes_of, rest))


def _joined(table: pa.Table) -> list[pa.RecordBatch]:
    """The rows as one batch; as several where one column cannot hold so much text."""
    return list(table.combine_chunks().to_batches())
