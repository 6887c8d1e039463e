"""The forms of an answer: batches in, bytes out, one piece at a time.

Each form has a head, a piece for each batch, and a tail. None holds more than one batch back, but
Parquet, which gathers a row group.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh.errors import ErrorCode, NotSupported
from http_shim import json_text
from http_shim.boundary import refusal
from http_shim.column_types import describe_columns
from http_shim.json_text import Numbers

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
ARROW: Final = "application/vnd.apache.arrow.stream"
PARQUET: Final = "application/vnd.apache.parquet"
_ROW_GROUP_BYTES: Final = 32 * 2**20


class AnswerForm(Protocol):
    """One answer being written. Used by one thread at a time."""

    media_type: str

    def head(self) -> bytes:
        """What comes before the rows."""

    def piece(self, batch: pa.RecordBatch) -> bytes:
        """The rows of a batch; may be empty, when they are held back for the next piece."""

    def tail(self, outcome: Mapping[str, Any]) -> bytes:
        """What comes after the rows; `outcome` is known only then."""


class JsonForm:
    """One object: columns, rows as arrays, and the outcome."""

    media_type = JSON

    def __init__(self, schema: pa.Schema, numbers: Numbers) -> None:
        self._schema = schema
        self._numbers = numbers
        self._pending = b""

    def head(self) -> bytes:
        return b'{"columns":' + orjson.dumps(describe_columns(self._schema)) + b',"rows":['

    def piece(self, batch: pa.RecordBatch) -> bytes:
        rows = json_text.array_rows(batch, self._numbers)
        if not rows:
            return b""
        # The comma behind the last row waits: it belongs there only when another row follows.
        before, self._pending = self._pending, b","
        return before + rows[:-1]

    def tail(self, outcome: Mapping[str, Any]) -> bytes:
        return b"]," + orjson.dumps(outcome)[1:]


class NdjsonForm:
    """One object a line, and nothing else."""

    media_type = NDJSON

    def __init__(self, schema: pa.Schema, numbers: Numbers) -> None:
        del schema
        self._numbers = numbers

    def head(self) -> bytes:
        return b""

    def piece(self, batch: pa.RecordBatch) -> bytes:
        return json_text.object_rows(batch, self._numbers)

    def tail(self, outcome: Mapping[str, Any]) -> bytes:
        del outcome
        return b""


class CsvForm:
    """RFC 4180 with a header line; NULL is an empty field, and an empty text is quoted."""

    media_type = CSV

    def __init__(self, schema: pa.Schema, numbers: Numbers) -> None:
        self._names = schema.names
        self._numbers = numbers

    def head(self) -> bytes:
        names = pa.record_batch(
            [pa.array([name]) for name in self._names],
            names=[str(i) for i in range(len(self._names))],
        )
        return self.piece(names) if self._names else b"\r\n"

    def piece(self, batch: pa.RecordBatch) -> bytes:
        return json_text.csv_rows(batch, self._numbers)

    def tail(self, outcome: Mapping[str, Any]) -> bytes:
        del outcome
        return b""


class _Chunks:
    """A file that remembers what was written since it was last asked."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole


class ArrowForm:
    """An Arrow IPC stream; its schema's metadata names the snapshot."""

    media_type = ARROW

    def __init__(self, schema: pa.Schema, numbers: Numbers) -> None:
        del numbers
        self._chunks = _Chunks()
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._chunks, mode="w"), schema)

    def head(self) -> bytes:
        return self._chunks.take()

    def piece(self, batch: pa.RecordBatch) -> bytes:
        self._writer.write_batch(batch)
        return self._chunks.take()

    def tail(self, outcome: Mapping[str, Any]) -> bytes:
        del outcome
        self._writer.close()
        return self._chunks.take()


class ParquetForm:
    """A Parquet file, zstd, in row groups of about 32 MiB of Arrow data."""

    media_type = PARQUET

    def __init__(self, schema: pa.Schema, numbers: Numbers) -> None:
        del numbers
        self._schema = schema
        self._chunks = _Chunks()
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        try:
            self._writer = pq.ParquetWriter(
                pa.PythonFile(self._chunks, mode="w"), schema, compression="zstd"
            )
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "a column of the answer has a type that Parquet lacks: cast it, or ask for Arrow",
            ) from error

    def head(self) -> bytes:
        return self._chunks.take()

    def piece(self, batch: pa.RecordBatch) -> bytes:
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= _ROW_GROUP_BYTES:
            self._write_group()
        return self._chunks.take()

    def tail(self, outcome: Mapping[str, Any]) -> bytes:
        del outcome
        if self._held:
            self._write_group()
        self._writer.close()
        return self._chunks.take()

    def _write_group(self) -> None:
        group = pa.Table.from_batches(self._held, self._schema)
        self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self._held.clear()
        self._held_bytes = 0


_FORMS: Final[Mapping[str, type[Any]]] = {
    JSON: JsonForm,
    NDJSON: NdjsonForm,
    CSV: CsvForm,
    ARROW: ArrowForm,
    PARQUET: ParquetForm,
}
_ALIASES: Final[Mapping[str, str]] = {
    "*/*": JSON,
    "application/*": JSON,
    "text/*": CSV,
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
    "application/x-parquet": PARQUET,
}
MEDIA_TYPES: Final = tuple(_FORMS)


def form_for(media_type: str, schema: pa.Schema, numbers: Numbers) -> AnswerForm:
    """A new answer in a form of MEDIA_TYPES."""
    form: AnswerForm = _FORMS[media_type](schema, numbers)
    return form


def chosen_media_type(accept: str) -> str:
    """The form that the Accept header prefers (RFC 9110, 12.5.1). Refuses (406) others."""
    ranked: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept.split(",") if accept.strip() else ["*/*"]):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        known = kind if kind in _FORMS else _ALIASES.get(kind)
        weight = _weight(parameters)
        if known is not None and weight > 0:
            # A wildcard speaks of what the others leave open.
            ranked.append((-weight, place + 1000 * ("*" in kind), known))
    if not ranked:
        raise refusal(406, f"the answer is one of {', '.join(MEDIA_TYPES)}: accept one of them")
    return min(ranked)[2]


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
