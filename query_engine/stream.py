"""The rows of one running query, as they come, in messages that every client accepts."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa

from duckmesh.errors import DuckMeshError, ErrorCode, Exceeded, Internal, Invalid
from duckmesh.quotas import Quota
from query_engine.failures import FailureContext, translate
from query_engine.instance import Session, Shape
from query_engine.parameters import Bindings, with_typed_nulls
from query_engine.pulled import PulledRows
from query_engine.submitted import relation_of, streamed
from query_engine.syntax import Parameter
from query_engine.watch import Guard

MESSAGE_BYTES_MAX: Final = 7 * 2**19
"""Rows of one batch. Clients refuse messages of 4 MiB; headers and padding take their part.

Half a row group of 122,880 rows fits up to 60 bytes a row: thirds cost the door and its client a
tenth more per row.
"""

_COLUMN_BYTES: Final = 128
"""What a column takes of a message beside its values: its entries in the header, and padding."""

_VECTOR_ROWS: Final = 2048
_GUESSED_WIDTH: Final = 24
_WIDTHS: Final = {
    "BOOLEAN": 1,
    "TINYINT": 1,
    "UTINYINT": 1,
    "SMALLINT": 2,
    "USMALLINT": 2,
    "INTEGER": 4,
    "UINTEGER": 4,
    "FLOAT": 4,
    "DATE": 4,
    "BIGINT": 8,
    "UBIGINT": 8,
    "DOUBLE": 8,
    "TIME": 8,
    "TIME_NS": 8,
    "TIMESTAMP": 8,
    "TIMESTAMP_S": 8,
    "TIMESTAMP_MS": 8,
    "TIMESTAMP_NS": 8,
    "TIMESTAMPTZ_NS": 8,
    "TIMESTAMP WITH TIME ZONE": 8,
    "DECIMAL": 16,
    "HUGEINT": 16,
    "UHUGEINT": 16,
    "INTERVAL": 16,
}
"""Bytes of a value on the wire, for the types whose values all have one size."""

_RESULT_QUOTAS: Final = {"rows": Quota.QUERY_ROWS, "bytes": Quota.QUERY_BYTES}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one query may take; None is no limit. `wall_time` counts while DuckDB is waited for."""

    wall_time: timedelta | None = None
    rows: int | None = None
    bytes: int | None = None
    row_bytes: int | None = None
    """Of one row: it travels in one message, and clients refuse messages that are too large."""
    memory_bytes: int | None = None
    """Of all queries of the tenant that have this limit; None is the engine's."""


@dataclass(slots=True)
class QueryStats:
    """What a query has read and given so far."""

    scanned_files: int
    rows: int = 0
    bytes: int = 0
    batches: int = 0
    replica_files: int = 0
    """Those of the scanned files whose rows came from a native replica."""
    queued_seconds: float = 0.0
    """How long it waited for its turn before it began."""
    guard: Guard | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """Time spent in DuckDB."""
        return 0.0 if self.guard is None else self.guard.seconds


def rows_per_batch(types: Iterable[object], wanted: int) -> tuple[int, bool]:
    """How many rows DuckDB puts in a batch, and whether that alone keeps every message small."""
    widths = [_WIDTHS.get(str(kind).split("(", 1)[0]) for kind in types]
    bounded = None not in widths
    width = sum(_GUESSED_WIDTH if each is None else each for each in widths) + len(widths) / 8
    rows = min(wanted, int(_room(len(widths)) / max(width, 1)))
    # Whole vectors, so that DuckDB does not cut one to fill a batch.
    return max(1, rows - rows % _VECTOR_ROWS or rows), bounded


def _room(columns: int) -> int:
    """Bytes of values that fit into one message beside the header of so many columns."""
    return max(MESSAGE_BYTES_MAX - columns * _COLUMN_BYTES, 2**20)


def message_bytes(batch: pa.RecordBatch) -> int:
    """The size of a batch on the wire; a dictionary travels apart from its batches."""
    return sum(
        column.indices.nbytes if isinstance(column, pa.DictionaryArray) else column.nbytes
        for column in batch.columns
    )


def split(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices of at most MESSAGE_BYTES_MAX, without a copy; a row is never cut."""
    room = _room(batch.num_columns)
    pending = [batch]
    while pending:
        part = pending.pop()
        if part.num_rows <= 1 or message_bytes(part) <= room:
            yield part
        else:
            half = part.num_rows // 2
            pending += [part.slice(half), part.slice(0, half)]


class ResultStream(PulledRows):
    """The rows of one query in this process's DuckDB, in messages of bounded size."""

    def __init__(
        self,
        *,
        session: Session,
        sql: str,
        places: tuple[Parameter, ...],
        bindings: Iterator[Bindings],
        guard: Guard,
        limits: QueryLimits,
        stats: QueryStats,
        batch_rows: int,
        failure: FailureContext,
        on_cancel: Callable[[], None],
        on_release: Callable[[bool, bool], None],
    ) -> None:
        super().__init__(guard)
        self._session = session
        self._sql = sql
        self._places = places
        self._bindings = bindings
        self._limits = limits
        self._stats = stats
        self._wanted_rows = batch_rows
        self._failure = failure
        self._on_cancel = on_cancel
        self._on_release = on_release
        self._clean = True
        self._broken = False
        self._reader: pa.RecordBatchReader | None = None
        self._parts: Iterator[pa.RecordBatch] = iter(())
        self._schema: pa.Schema | None = None
        self._bounded = False

    def _judge(self, error: BaseException) -> BaseException:
        self._clean = False
        if not isinstance(error, Exception) or isinstance(error, DuckMeshError):
            return error
        known = self._guard.verdict() or translate(error, self._failure)
        if isinstance(known, Internal):
            # DuckDB refuses every later statement after an error of this kind.
            self._broken = True
            _log.error("a query failed inside DuckDB", exc_info=error)
        return known

    def _start(self) -> pa.Schema:
        self._execute(next(self._bindings))
        return self._schema

    def _pull(self) -> pa.RecordBatch | None:
        while True:
            part = next(self._parts, None)
            if part is not None:
                self._count(part)
                return part
            if self._reader is None:
                self._finished = True
                return None
            batch = self._read(self._reader)
            if batch is None:
                self._next_execution()
            else:
                self._parts = iter((batch,)) if self._bounded else split(batch)

    def _read(self, reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
        self._guard.start()
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None
        finally:
            self._guard.stop()

    def _next_execution(self) -> None:
        self._drop_reader()
        bindings = next(self._bindings, None)
        if bindings is not None:
            self._execute(bindings)

    def _execute(self, bindings: Bindings) -> None:
        self._guard.start()
        try:
            reader = self._open_reader(self._sql, bindings.values)
            if bindings.null_types and any(map(pa.types.is_null, reader.schema.types)):
                names = reader.schema.names
                reader.close()
                sql, values = with_typed_nulls(self._sql, self._places, bindings)
                reader = _renamed(self._open_reader(sql, values), names)
        finally:
            self._guard.stop()
        if self._schema is None:
            self._schema = reader.schema
        elif reader.schema != self._schema:
            reader = _cast(reader, self._schema)
        self._reader = reader

    def _open_reader(self, sql: str, values: Mapping[str, Any]) -> pa.RecordBatchReader:
        # A relation streams; `execute` would hold the whole result in memory.
        session, cursor = self._session, self._session.cursor
        known = session.shapes.get(sql)
        if known is not None:
            reader = streamed(cursor, sql, values, known.batch_rows)
            # A statement may give other columns than before: PIVOT, or parameters of other types.
            self._bounded = known.bounded and reader.schema.equals(known.schema)
            return reader
        relation = relation_of(cursor, sql, values)
        rows, self._bounded = rows_per_batch(relation.types, self._wanted_rows)
        reader = relation.to_arrow_reader(rows)
        session.keep_shape(sql, Shape(reader.schema, rows, self._bounded))
        return reader

    def _count(self, batch: pa.RecordBatch) -> None:
        stats, limits = self._stats, self._limits
        stats.rows += batch.num_rows
        stats.batches += 1
        if limits.bytes is not None or not self._bounded:
            size = message_bytes(batch)
            stats.bytes += size
            if batch.num_rows == 1:
                _check_row(size, limits.row_bytes)
        _check_limit("rows", stats.rows, limits.rows)
        _check_limit("bytes", stats.bytes, limits.bytes)

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _interrupt(self) -> None:
        self._on_cancel()

    def _release(self) -> None:
        self._guard.hold(None)
        clean = self._clean and not self._guard.stopped
        try:
            self._parts = iter(())
            self._drop_reader()
        except Exception:  # noqa: BLE001 - a result that failed may fail again when dropped.
            clean = False
        self._on_release(clean, self._broken)


def _check_row(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise Exceeded(
            ErrorCode.QUOTA_EXCEEDED,
            f"a row of the result takes {size} bytes and at most {limit} can be sent: select fewer "
            "columns, or parts of long values (substring, slices), or raise query.row_max_bytes "
            "and the client's limit of a message",
            limit=limit,
            used=size,
            unit="bytes of a row",
        )


def _check_limit(what: str, used: int, limit: int | None) -> None:
    if limit is not None and used > limit:
        raise Exceeded(
            ErrorCode.QUOTA_EXCEEDED,
            f"the result has {used} {what} so far and may have {limit}; ask for less, or aggregate",
            quota=_RESULT_QUOTAS[what].value,
            limit=limit,
            used=used,
            unit=what,
        )


def _renamed(reader: pa.RecordBatchReader, names: list[str]) -> pa.RecordBatchReader:
    return _rebuilt(reader, pa.schema(list(zip(names, reader.schema.types, strict=True))))


def _cast(reader: pa.RecordBatchReader, schema: pa.Schema) -> pa.RecordBatchReader:
    """The batches of a later row of parameters in the types of the first."""
    try:
        return reader.cast(schema)
    except pa.ArrowException:
        reader.close()
    raise Invalid(
        ErrorCode.QUERY_EXECUTION_FAILED,
        "the rows of parameters give results of different types; cast the result's columns",
    )


def _rebuilt(reader: pa.RecordBatchReader, schema: pa.Schema) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())
