"""Files as request bodies: NDJSON, CSV, Arrow streams and Parquet, in bounded memory."""

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pyarrow.types as pat

from catalog.table_schema import COLUMN_LIMIT
from duckmesh.errors import ErrorCode, Invalid, Unavailable
from http_shim.bodies import UNPACK_BYTES, Body, body_failures, too_large
from http_shim.formats import ARROW, CSV, NDJSON, PARQUET
from http_shim.plain_rows import plain_rows
from http_shim.records import batch_of, batch_of_texts, loads, needs_exact_decimals

_BLOCK_BYTES: Final = UNPACK_BYTES
_CSV_BLOCK_BYTES: Final = 4 * 2**20
_PARQUET_ROWS: Final = 65_536
_DECODED_BYTES: Final = 64 * 2**20
"""Rows that are decoded at a time take at most so much, unless one row does."""
_BOM: Final = b"\xef\xbb\xbf"

Reader: TypeAlias = "io.BufferedReader[Any]"


@dataclass(frozen=True, slots=True)
class RowFile:
    """The rows of a body: columns known at once, batches as they arrive."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """How long a line may be, and where what needs random access is put meanwhile."""

    line_max_bytes: int
    spool: Path | None


SELF_DESCRIBING: Final = frozenset({ARROW, PARQUET})
"""Files that bring their own columns, and so may create a table."""
ALIASES: Final[Mapping[str, str]] = {
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
    "application/x-jsonlines": NDJSON,
    "application/csv": CSV,
    "application/x-parquet": PARQUET,
}
FILE_TYPES: Final = (NDJSON, CSV, ARROW, PARQUET)


@contextmanager
def open_rows(
    media_type: str, body: Body, table: pa.Schema | None, limits: FileLimits
) -> Iterator[RowFile]:
    """The rows of a body in one of FILE_TYPES; `table` has the columns of texts.

    Raises Invalid for what is no such file, and what the body raises. Used by one thread.
    """
    reader: Reader = io.BufferedReader(body, _BLOCK_BYTES)
    with closing(body):
        if media_type == ARROW:
            yield _arrow_rows(reader, body)
        elif media_type == PARQUET:
            with _spooled(reader, limits.spool) as file:
                yield _parquet_rows(file)
        else:
            assert table is not None  # noqa: S101 - texts are of a table that is there
            texts = _csv_batches if media_type == CSV else _ndjson_batches
            yield RowFile(table, texts(reader, body, table, limits))


# ---- Arrow


def _arrow_rows(reader: Reader, body: Body) -> RowFile:
    with body_failures(body, _no_arrow):
        stream = pa.ipc.open_stream(pa.PythonFile(reader, mode="r"))
        schema = stream.schema
    return RowFile(schema, _arrow_batches(stream, body))


def _arrow_batches(stream: Any, body: Body) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            with body_failures(body, _no_arrow):
                batch = stream.read_next_batch()
        except StopIteration:
            return
        yield batch


def _no_arrow(_: Exception) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_PAYLOAD, "the body is not a valid Arrow IPC stream: nothing was taken"
    )


# ---- Parquet


@contextmanager
def _spooled(reader: Reader, spool: Path | None) -> Iterator[Any]:
    """The body as a file of this machine, gone with the block, or with the process."""
    with tempfile.TemporaryFile(dir=spool) as file:
        while block := reader.read(_BLOCK_BYTES):
            try:
                file.write(block)
            except OSError as error:
                raise Unavailable(
                    ErrorCode.STORE_UNAVAILABLE, "the server has no room for the file: retry later"
                ) from error
        file.seek(0)
        yield file


def _parquet_rows(file: Any) -> RowFile:
    try:
        plain = pq.ParquetFile(file).schema_arrow
        texts = [field.name for field in plain if _is_bytes(field.type)]
        file.seek(0)
        # A text that repeats a million times stays one text until its rows' turn comes.
        opened = pq.ParquetFile(file, read_dictionary=texts)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise _no_parquet(error) from error
    return RowFile(plain, _parquet_batches(opened, plain))


def _parquet_batches(opened: pq.ParquetFile, plain: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        for batch in opened.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
            for part in _decodable(batch):
                yield part.cast(plain)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise _no_parquet(error) from error


def _decodable(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of which none is large when its texts are decoded."""
    pending = [batch]
    while pending:
        part = pending.pop()
        if part.num_rows <= 1 or _decoded_bytes(part) <= _DECODED_BYTES:
            yield part
        else:
            half = part.num_rows // 2
            pending += [part.slice(half), part.slice(0, half)]


def _decoded_bytes(batch: pa.RecordBatch) -> int:
    total = 0
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray):
            lengths = pc.binary_length(column.dictionary).cast(pa.int64())
            total += pc.sum(lengths.take(column.indices)).as_py() or 0
        else:
            total += column.nbytes
    return total


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pat.is_string(kind)
        or pat.is_binary(kind)
        or pat.is_large_string(kind)
        or pat.is_large_binary(kind)
    )


def _no_parquet(_: Exception) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_PAYLOAD, "the body is not a valid Parquet file: nothing was taken"
    )


# ---- NDJSON


def _ndjson_batches(
    reader: Reader, body: Body, table: pa.Schema, limits: FileLimits
) -> Iterator[pa.RecordBatch]:
    exact = needs_exact_decimals(table)
    first = 0
    for lines in _line_blocks(reader, body, limits.line_max_bytes):
        if not lines:
            continue
        batch = plain_rows(table).batch_of_lines(lines)
        if batch is None:
            # Line by line, and then column by column: that can say what is wrong, and where.
            rows = [_row(line, first + index, exact) for index, line in enumerate(lines)]
            batch = batch_of(rows, table, first_record=first)
        yield batch
        first += batch.num_rows


def _line_blocks(reader: Reader, body: Body, longest: int) -> Iterator[list[bytes]]:
    """Whole lines, a block's worth at a time; empty ones are left out."""
    rest = reader.peek(3)[:3]
    rest = reader.read(3)[3:] if rest == _BOM else b""
    while True:
        with body_failures(body, _unreadable):
            block = reader.read(_BLOCK_BYTES)
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if not newline and block:
            rest = whole + rest
        if len(rest) > longest:
            raise too_large(longest)
        lines = whole.split(b"\n") if block else [*whole.split(b"\n"), rest]
        yield [line for line in lines if not line.isspace() and line]
        if not block:
            return


def _row(line: bytes, record: int, exact: bool) -> Mapping[str, Any]:
    try:
        row = loads(line, exact_decimals=exact)
    except Invalid as error:
        raise Invalid(ErrorCode.INVALID_JSON, f"record {record}: {error}", record=record) from None
    if not isinstance(row, dict):
        raise Invalid(
            ErrorCode.INVALID_JSON,
            f"record {record} is no JSON object: send one object a line",
            record=record,
        )
    return row


def _unreadable(_: Exception) -> Invalid:
    return Invalid(ErrorCode.INVALID_PAYLOAD, "the body cannot be read: send it again")


# ---- CSV


def _csv_batches(
    reader: Reader, body: Body, table: pa.Schema, limits: FileLimits
) -> Iterator[pa.RecordBatch]:
    del limits
    names: list[str] | None = None
    first = 0
    for batch in _csv_texts(reader, body):
        texts = batch
        if names is None:
            names = _header(texts, table)
            texts = texts.slice(1)
        if texts.num_rows:
            named = pa.RecordBatch.from_arrays(texts.columns, names=names)
            yield batch_of_texts(named, table, first_record=first)
            first += texts.num_rows


def _csv_texts(reader: Reader, body: Body) -> Iterator[pa.RecordBatch]:
    """Every field as text: only an unquoted empty one is NULL. The header is the first row."""
    texts = {f"f{number}": pa.string() for number in range(COLUMN_LIMIT + 1)}
    convert = pacsv.ConvertOptions(
        column_types=texts,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    read = pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, autogenerate_column_names=True)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    with body_failures(body, _no_csv):
        stream = pacsv.open_csv(pa.PythonFile(reader, mode="r"), read, parse, convert)
    while True:
        try:
            with body_failures(body, _no_csv):
                batch = stream.read_next_batch()
        except StopIteration:
            return
        yield batch


def _header(texts: pa.RecordBatch, table: pa.Schema) -> list[str]:
    if texts.num_columns > COLUMN_LIMIT:
        raise Invalid(ErrorCode.SCHEMA_INCOMPATIBLE, f"a file has at most {COLUMN_LIMIT} columns")
    names = [column[0].as_py() or "" for column in texts.columns]
    folded = [name.lower() for name in names]
    known = {name.lower() for name in table.names}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            f"the header names columns that the table lacks: {', '.join(unknown[:5])[:200]}",
            columns=[name[:200] for name in unknown[:50]],
        )
    if len(set(folded)) < len(folded):
        raise Invalid(ErrorCode.SCHEMA_INCOMPATIBLE, "the header names a column twice")
    return names


def _no_csv(_: Exception) -> Invalid:
    # Arrow's own words repeat the line.
    return Invalid(
        ErrorCode.INVALID_PAYLOAD,
        "the body is not valid CSV: UTF-8, a header line, and as many fields in each line",
    )
