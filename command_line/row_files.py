"""Files of rows as Arrow batches: CSV, NDJSON, Parquet and Arrow, in bounded memory.

CSV and NDJSON say no types. A table that is there gives them; otherwise they are read off the
file's first block, and every later row must fit them.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
import pyarrow.types as pat

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotFound
from http_shim.records import batch_of, batch_of_texts, loads, needs_exact_decimals

STDIN: Final = "-"
_BLOCK_BYTES: Final = 2**20
_TYPES_BYTES: Final = 4 * 2**20
"""What the types of a new table's columns are read off."""
_PARQUET_ROWS: Final = 65_536
_BATCH_MAX_BYTES: Final = 8 * 2**20
_BOM: Final = b"\xef\xbb\xbf"
_FILE_MAGIC: Final = b"ARROW1"
_FAILURES: Final = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError)


class FileFormat(StrEnum):
    """The formats of files with rows."""

    CSV = "csv"
    TSV = "tsv"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    ARROW = "arrow"


_OF_SUFFIX: Final = {
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.TSV,
    ".tab": FileFormat.TSV,
    ".ndjson": FileFormat.NDJSON,
    ".jsonl": FileFormat.NDJSON,
    ".json": FileFormat.NDJSON,
    ".parquet": FileFormat.PARQUET,
    ".pq": FileFormat.PARQUET,
    ".arrow": FileFormat.ARROW,
    ".arrows": FileFormat.ARROW,
    ".ipc": FileFormat.ARROW,
    ".feather": FileFormat.ARROW,
}
_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


@dataclass(frozen=True, slots=True)
class RowFile:
    """One file, or standard input, and how to read it."""

    path: Path | None
    """None is standard input."""
    kind: FileFormat
    compression: str | None = None

    @property
    def name(self) -> str:
        """What messages and keys call it."""
        return "standard input" if self.path is None else self.path.name


@dataclass(frozen=True, slots=True)
class OpenFile:
    """The rows of a file: columns known at once, batches as they are read. Read once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    size_bytes: int
    position: Callable[[], int]
    """How many of `size_bytes` are read, roughly; safe from any thread."""


def row_file(argument: str, kind: FileFormat | None) -> RowFile:
    """The file that an argument names. Raises Invalid when nothing tells its format."""
    if argument == STDIN:
        if kind is None:
            raise Invalid(ErrorCode.INVALID_PAYLOAD, "standard input has no suffix: give --format")
        return RowFile(None, kind)
    path = Path(argument)
    compression = _COMPRESSIONS.get(path.suffix.lower())
    plain = path.with_suffix("") if compression else path
    found = kind or _OF_SUFFIX.get(plain.suffix.lower())
    if found is None:
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD, f"{path.name}: its suffix tells no format: give --format"
        )
    if compression and found in (FileFormat.PARQUET, FileFormat.ARROW):
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD,
            f"{path.name}: Parquet and Arrow files compress their own columns: decompress it first",
        )
    return RowFile(path, found, compression)


@contextmanager
def open_rows(file: RowFile, table: pa.Schema | None) -> Iterator[OpenFile]:
    """The rows of a file, for the length of the block.

    `table` has the columns of the table they are for, None when there is none yet. Raises NotFound
    for no such file, and Invalid, with the row and the column where there is one, also while the
    batches are read. Standard input is put on disk first: formats and types need a second look.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(_opened(file))
        size = raw.seek(0, 2)
        raw.seek(0)
        opened = _Opening(file, raw, table)
        with _named_failures(file):
            schema, batches = opened.read()
        yield OpenFile(schema, _whole(file, batches), size, opened.position)


@contextmanager
def _opened(file: RowFile) -> Iterator[IO[bytes]]:
    if file.path is None:
        with tempfile.TemporaryFile() as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool, _BLOCK_BYTES)
            yield spool
        return
    try:
        opened = file.path.open("rb")
    except FileNotFoundError:
        raise NotFound(
            ErrorCode.NOT_FOUND, f"{file.name}: there is no such file: correct its name"
        ) from None
    except OSError as error:
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD, f"{file.name} cannot be read: change its permissions"
        ) from error
    with opened:
        yield opened


def _whole(file: RowFile, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, none of them larger than a message may be; failures name the file."""
    with _named_failures(file):
        for batch in batches:
            yield from _slices(batch)


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    pending = [batch]
    while pending:
        part = pending.pop()
        if part.num_rows <= 1 or part.nbytes <= _BATCH_MAX_BYTES:
            yield part
        else:
            half = part.num_rows // 2
            pending += [part.slice(half), part.slice(0, half)]


@contextmanager
def _named_failures(file: RowFile) -> Iterator[None]:
    try:
        yield
    except DuckMeshError as error:
        raise _at_its_row(file, error) from error
    except _FAILURES as error:
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD,
            f"{file.name} is not valid {file.kind.upper()}: {_first_line(error)}; "
            "nothing of it was accepted",
        ) from error


def _at_its_row(file: RowFile, error: DuckMeshError) -> DuckMeshError:
    """Rows are counted from 1 for people, and the header of a CSV file is none."""
    record = error.context.get("record")
    if record is None:
        return type(error)(error.code, f"{file.name}: {error.message}")
    place = f"{file.name}, row {record + 1}"
    if "column" in error.context:
        place += f", column {error.context['column']!r}"
    reason = error.context.get("reason") or error.message.partition(": ")[2] or error.message
    return type(error)(
        error.code, f"{place}: {reason}; nothing of the file was accepted", **error.context
    )


def _first_line(error: BaseException) -> str:
    # A message of the operating system may hold a path.
    text = "it cannot be read" if isinstance(error, OSError) and error.errno else str(error)
    return (text.splitlines() or [""])[0][:300]


class _Opening:
    """The reading of one open file."""

    def __init__(self, file: RowFile, raw: IO[bytes], table: pa.Schema | None) -> None:
        self._file = file
        self._raw = raw
        self._table = table
        self._read_bytes = 0

    def position(self) -> int:
        return self._read_bytes

    def read(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        match self._file.kind:
            case FileFormat.PARQUET:
                return self._parquet()
            case FileFormat.ARROW:
                return self._arrow()
            case FileFormat.NDJSON:
                return self._texts(self._ndjson_schema, self._ndjson)
            case FileFormat.CSV | FileFormat.TSV:
                return self._texts(self._csv_schema, self._csv)

    def _stream(self) -> Any:
        """The plain bytes, from the beginning."""
        self._raw.seek(0)
        plain = pa.PythonFile(_Counted(self._raw, self._count), mode="r")
        if self._file.compression is None:
            return plain
        return pa.CompressedInputStream(plain, self._file.compression)

    def _count(self, position: int) -> None:
        self._read_bytes = position

    # ---- formats that bring their columns

    def _parquet(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        opened = pq.ParquetFile(pa.PythonFile(_Counted(self._raw, self._count), mode="r"))
        batches = opened.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False)
        return opened.schema_arrow, batches

    def _arrow(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        magic = self._raw.read(len(_FILE_MAGIC))
        source = self._stream()
        if magic == _FILE_MAGIC:
            file = pa.ipc.open_file(source)
            return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)

    # ---- formats of texts

    def _texts(
        self,
        schema_of: Callable[[], pa.Schema],
        batches: Callable[[pa.Schema], Iterator[pa.RecordBatch]],
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        if self._table is not None:
            return self._table, batches(self._table)
        schema = pa.schema([(each.name, _kept_type(each.type)) for each in schema_of()])
        return schema, batches(schema)

    def _csv_schema(self) -> pa.Schema:
        read = pacsv.ReadOptions(block_size=_TYPES_BYTES, use_threads=False)
        return pacsv.open_csv(self._stream(), read, self._csv_form()).schema

    def _csv_form(self) -> pacsv.ParseOptions:
        delimiter = "\t" if self._file.kind is FileFormat.TSV else ","
        return pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def _csv(self, table: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Every field is read as text, and only an unquoted empty one is NULL."""
        header = self._header(table)
        convert = pacsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        read = pacsv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
        first = 0
        for texts in pacsv.open_csv(self._stream(), read, self._csv_form(), convert):
            if texts.num_rows:
                yield batch_of_texts(texts, table, first_record=first)
                first += texts.num_rows

    def _header(self, table: pa.Schema) -> list[str]:
        names: list[str] = self._csv_schema().names
        known = {name.lower() for name in table.names}
        unknown = [name for name in names if name.lower() not in known]
        if unknown:
            raise Invalid(
                ErrorCode.SCHEMA_INCOMPATIBLE,
                f"the header names columns that the table lacks: {', '.join(unknown[:5])[:200]}; "
                "add them by ALTER TABLE, or leave them out",
            )
        if len({name.lower() for name in names}) < len(names):
            raise Invalid(ErrorCode.SCHEMA_INCOMPATIBLE, "the header names a column twice")
        return names

    def _ndjson_schema(self) -> pa.Schema:
        read = pajson.ReadOptions(block_size=_TYPES_BYTES, use_threads=False)
        return pajson.open_json(self._stream(), read).schema

    def _ndjson(self, table: pa.Schema) -> Iterator[pa.RecordBatch]:
        exact = needs_exact_decimals(table)
        first = 0
        for lines in _line_blocks(self._stream()):
            rows = [_row(line, first + index, exact) for index, line in enumerate(lines)]
            if rows:
                yield batch_of(rows, table, first_record=first)
                first += len(rows)


def _line_blocks(stream: Any) -> Iterator[list[bytes]]:
    """Whole lines, a block's worth at a time; empty ones are left out."""
    rest = b""
    begun = False
    while block := stream.read(_BLOCK_BYTES):
        if not begun:
            block = block.removeprefix(_BOM)
            begun = True
        whole, newline, tail = (rest + block).rpartition(b"\n")
        rest = tail
        if newline:
            yield [line for line in whole.split(b"\n") if line and not line.isspace()]
    if rest and not rest.isspace():
        yield [rest]


def _row(line: bytes, record: int, exact: bool) -> dict[str, Any]:
    try:
        row = loads(line, exact_decimals=exact)
    except Invalid as error:
        reason = error.message.partition(": ")[2]
        raise Invalid(
            ErrorCode.INVALID_JSON, f"not valid JSON: {reason}", record=record, reason=reason
        ) from None
    if not isinstance(row, dict):
        reason = "it is no JSON object: write one object a line"
        raise Invalid(ErrorCode.INVALID_JSON, reason, record=record, reason=reason)
    return row


def _kept_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column that is made from texts whose types were inferred."""
    if pat.is_null(kind):
        return pa.string()
    if pat.is_timestamp(kind):
        return pa.timestamp("us", tz=kind.tz)
    if pat.is_time(kind):
        return pa.time64("us")
    if pat.is_struct(kind):
        return pa.struct([(each.name, _kept_type(each.type)) for each in kind])
    if pat.is_list(kind):
        return pa.list_(_kept_type(kind.value_type))
    return kind


class _Counted:
    """A file that tells how far it has been read."""

    def __init__(self, raw: IO[bytes], tell: Callable[[int], None]) -> None:
        self._raw = raw
        self._tell = tell
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._tell(self._raw.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        self.closed = True
