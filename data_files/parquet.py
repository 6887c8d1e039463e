"""Parquet data files: typed, with field ids, statistics and the event-time range.

Field ids are those of the schema's `PARQUET:field_id` metadata (Apache Parquet's SchemaElement
field_id), by which later schema versions find their columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat

from data_files.dictionaries import dictionary_columns
from data_files.rechunk import ROW_GROUP_ROWS

_COMPRESSION: Final = "snappy"
_STATS_TEXT_MAX_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class EventTimes:
    """The range of a file's event-time column; empty when the table has none, or only nulls."""

    earliest: datetime | None = None
    latest: datetime | None = None

    def joined(self, other: "EventTimes") -> "EventTimes":
        return EventTimes(
            min((t for t in (self.earliest, other.earliest) if t), default=None),
            max((t for t in (self.latest, other.latest) if t), default=None),
        )


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A whole Parquet file in memory."""

    content: bytes = field(repr=False)
    row_count: int
    event_times: EventTimes


def event_time_column(schema: pa.Schema) -> str | None:
    """The table's event time: its first timestamp column."""
    return next((f.name for f in schema if pat.is_timestamp(f.type)), None)


def event_times(batch: pa.RecordBatch | pa.Table, column: str | int | None) -> EventTimes:
    if column is None or batch.num_rows == 0:
        return EventTimes()
    times = batch.column(column)
    if batch.num_rows == 1:
        only = _moment(times[0])
        return EventTimes(only, only)
    ends = pc.min_max(times)
    return EventTimes(_moment(ends["min"]), _moment(ends["max"]))


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def _moment(value: pa.Scalar) -> datetime | None:
    """A timestamp as Postgres can hold it, UTC assumed where no zone is given; else None."""
    ticks = value.value
    if ticks is None:
        return None
    try:
        return _EPOCH + timedelta(
            microseconds=ticks * 1_000_000 // _TICKS_PER_SECOND[value.type.unit]
        )
    except OverflowError:
        return None


def encode_parquet(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> EncodedFile:
    """One Parquet file of the batches, in order. Pure: no I/O."""
    table = pa.Table.from_batches(batches, schema)
    sink = pa.BufferOutputStream()
    with _writer(sink, schema, table) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return EncodedFile(
        sink.getvalue().to_pybytes(),
        table.num_rows,
        event_times(table, event_time_column(schema)),
    )


def decode_parquet(content: bytes, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The rows of a file that `encode_parquet` made with this same schema."""
    return list(read_parquet(content).cast(schema).to_batches())


def read_parquet(content: bytes) -> pa.Table:
    """The rows of a whole file as they are."""
    # Not `read_table`: it imports the dataset machinery, which takes a second the first time.
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read()


def stats_of(content: bytes) -> dict[str, Any]:
    """The statistics of a whole file's columns, as `column_stats` has them."""
    return column_stats(pq.read_metadata(pa.BufferReader(content)))


class ParquetStream:
    """A Parquet file written batch by batch: memory holds one row group, whatever is written."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._footer: list[pq.FileMetaData] = []
        self._file = file
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None
        self._event_time_column = event_time_column(schema)
        self.row_count = 0
        self.event_times = EventTimes()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one row group."""
        self._opened(batch).write_batch(batch, row_group_size=ROW_GROUP_ROWS)
        self.row_count += batch.num_rows
        self.event_times = self.event_times.joined(event_times(batch, self._event_time_column))

    def abandon(self) -> None:
        """Write nothing more: the file is given up, and may be closed already."""
        # Else the writer would write its footer when it is forgotten.
        if self._writer is not None:
            self._writer.is_open = False

    def finish(self) -> dict[str, Any]:
        """Write the footer; return the statistics of each column: min, max, nulls."""
        self._opened(self._schema.empty_table()).close()
        return column_stats(self._footer[0])

    def _opened(self, first: pa.Table | pa.RecordBatch) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = _writer(self._file, self._schema, first, metadata_collector=self._footer)
        return self._writer


def _writer(
    sink: Any, schema: pa.Schema, first: pa.Table | pa.RecordBatch, **options: Any
) -> pq.ParquetWriter:
    """A writer whose encodings suit the first rows, and so most likely the others."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression=_COMPRESSION,
        version="2.6",
        store_schema=True,
        use_dictionary=dictionary_columns(first),
        **options,
    )


def column_stats(footer: pq.FileMetaData) -> dict[str, Any]:
    """Per flat column the least and greatest value and the number of nulls, as plain JSON values.

    A column of which any row group lacks statistics is left out: absence means unknown.
    """
    stats: dict[str, Any] = {}
    for index in range(footer.num_columns):
        groups = [footer.row_group(g).column(index) for g in range(footer.num_row_groups)]
        known = [group.statistics for group in groups]
        name = footer.schema.column(index).path
        if "." in name or not known or any(s is None or not s.has_null_count for s in known):
            continue
        ranged = [s for s in known if s.has_min_max]
        if len(ranged) == len([s for s in known if s.num_values]) and ranged:
            least = _plain(min(s.min for s in ranged))
            greatest = _plain(max(s.max for s in ranged))
            if least is not None and greatest is not None:
                nulls = sum(s.null_count for s in known)
                stats[name] = {"min": least, "max": greatest, "nulls": nulls}
    return stats


def _plain(value: Any) -> Any:
    """A statistic as JSON holds it exactly; None for what would be cut or unclear."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124
    if isinstance(value, str):
        return value if len(value) <= _STATS_TEXT_MAX_CHARS and "\x00" not in value else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else None
