"""Answers of queries as people and programs read them."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.types as pat
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from command_line.flight_client import Outcome, Rows
from http_shim.json_text import Numbers, csv_rows, json_text, object_rows

Out: TypeAlias = IO[bytes]
_CELL_MAX_CHARS: Final = 200
_LEAST_COLUMN: Final = 6
_WIDTH_OF_FILES: Final = 10_000
_NULL: Final = "NULL"


class AnswerFormat(StrEnum):
    """The forms of an answer."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"
    MARKDOWN = "markdown"


@dataclass(slots=True, kw_only=True)
class Style:
    """How answers are shown."""

    form: AnswerFormat = AnswerFormat.TABLE
    row_limit: int = 1000
    """Of a table, for people; other forms give every row. 0 is no limit."""
    expanded: bool = False
    """Each row as lines of column and value."""


@dataclass(frozen=True, slots=True)
class Told:
    """What there is to say behind an answer."""

    rows: int | None
    token: int | None = None
    snapshot_id: int | None = None
    cut: bool = False
    is_query: bool = True


def write_answer(answer: Rows | Outcome, out: Out, style: Style) -> Told:
    """Write an answer; rows are written as they arrive, but in a table, whose widths need them.

    An outcome writes nothing but in the forms for programs that hold documents.
    """
    if isinstance(answer, Outcome):
        if style.form in (AnswerFormat.JSON, AnswerFormat.NDJSON):
            line = pa.record_batch({"rows": [answer.rows], "visibility_token": [answer.token]})
            out.write(_json([line]) if style.form is AnswerFormat.JSON else _objects(line))
        return Told(answer.rows, token=answer.token, is_query=False)
    if style.form is AnswerFormat.TABLE:
        return _write_table(answer, out, style)
    counted = _Counted(answer)
    for piece in _pieces(answer.schema, counted.batches(), style.form):
        out.write(piece)
    return Told(counted.rows, snapshot_id=answer.snapshot_id)


def footer(told: Told, seconds: float | None) -> str:
    """The line behind an answer: how many rows, from when, how long it took."""
    parts = []
    if told.rows is not None:
        rows = f"{told.rows:,} {'row' if told.rows == 1 else 'rows'}"
        parts.append(f"the first {rows}; --limit or \\limit shows more" if told.cut else rows)
    elif not told.is_query:
        parts.append("done")
    if told.token is not None:
        parts.append(f"token {told.token}")
    if told.snapshot_id is not None:
        parts.append(f"snapshot {told.snapshot_id}")
    if seconds is not None:
        parts.append(f"{1000 * seconds:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s")
    return f"({', '.join(parts)})"


class _Counted:
    def __init__(self, answer: Rows) -> None:
        self._answer = answer
        self.rows = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._answer.batches:
            self.rows += batch.num_rows
            if batch.num_rows:
                yield batch


# --- for programs --------------------------------------------------------------------------------


def _pieces(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], form: AnswerFormat
) -> Iterator[bytes]:
    match form:
        case AnswerFormat.NDJSON:
            yield from map(_objects, batches)
        case AnswerFormat.JSON:
            yield from _array(batches)
        case AnswerFormat.CSV:
            yield csv_rows(_names_row(schema), Numbers.AS_JSON)
            yield from (csv_rows(batch, Numbers.AS_JSON) for batch in batches)
        case _:
            yield from _markdown(schema, batches)


def _objects(batch: pa.RecordBatch) -> bytes:
    return object_rows(batch, Numbers.AS_JSON)


def _json(batches: Sequence[pa.RecordBatch]) -> bytes:
    return b"".join(_array(iter(batches)))


def _array(batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    """One JSON array of objects, a line each."""
    opening = b"[\n"
    for batch in batches:
        # A line break inside a text is escaped: each one ends a row.
        yield opening + _objects(batch).rstrip(b"\n").replace(b"\n", b",\n")
        opening = b",\n"
    yield b"[]\n" if opening == b"[\n" else b"\n]\n"


def _names_row(schema: pa.Schema) -> pa.RecordBatch:
    names = [str(index) for index in range(len(schema))]
    return pa.record_batch([pa.array([name]) for name in schema.names], names=names)


def _markdown(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    def line(cells: Sequence[str]) -> bytes:
        escaped = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(escaped)} |\n".encode()

    yield line(schema.names)
    yield line(["---:" if _is_number(field.type) else "---" for field in schema])
    for batch in batches:
        for row in _texts(batch):
            yield line([_NULL if cell is None else cell for cell in row])


# --- for people ----------------------------------------------------------------------------------


def _write_table(answer: Rows, out: Out, style: Style) -> Told:
    kept: list[Sequence[str | None]] = []
    total = 0
    cut = False
    for batch in answer.batches:
        total += batch.num_rows
        room = batch.num_rows if not style.row_limit else style.row_limit - len(kept)
        kept += _texts(batch.slice(0, max(0, room)))
        if style.row_limit and total > style.row_limit:
            # Reading on would fetch what nobody sees.
            cut = True
            break
    console = _console(out)
    if style.expanded:
        _print_expanded(console, answer.schema, kept)
    elif len(answer.schema):
        _print_grid(console, answer.schema, kept)
    return Told(len(kept), snapshot_id=answer.snapshot_id, cut=cut)


def _console(out: Out) -> Console:
    if out is getattr(sys.stdout, "buffer", None) and sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    # A file or a pipe has no width: no line is broken.
    plain: Any = _Encoded(out)
    return Console(
        file=plain, width=_WIDTH_OF_FILES, highlight=False, markup=False, color_system=None
    )


class _Encoded:
    """Text into a file of bytes."""

    def __init__(self, out: Out) -> None:
        self._out = out

    def write(self, text: str) -> int:
        self._out.write(text.encode())
        return len(text)

    def flush(self) -> None:
        self._out.flush()


def _print_grid(console: Console, schema: pa.Schema, rows: Sequence[Sequence[str | None]]) -> None:
    shown = _columns_that_fit(len(schema), console.width)
    table = Table(box=box.ROUNDED, show_lines=False, header_style="bold")
    for index in shown:
        if index is None:
            table.add_column("…")
            continue
        field = schema.field(index)
        header = Text.assemble((field.name, "bold"), "\n", (type_name(field.type), "dim"))
        table.add_column(
            header, justify="right" if _is_number(field.type) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text("…") if index is None else _cell(row[index]) for index in shown))
    console.print(table)


def _columns_that_fit(count: int, width: int) -> list[int | None]:
    """All columns, or the first and last ones with a gap (None) between: as many as have room."""
    most = max(3, (width - 1) // (_LEAST_COLUMN + 3))
    if count <= most:
        return list(range(count))
    left = most // 2
    right = most - 1 - left
    return [*range(left), None, *range(count - right, count)]


def _print_expanded(
    console: Console, schema: pa.Schema, rows: Sequence[Sequence[str | None]]
) -> None:
    for number, row in enumerate(rows, 1):
        console.print(Text(f"── row {number} ──", style="dim"))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for field, cell in zip(schema, row, strict=True):
            table.add_row(Text(field.name), _cell(cell, whole=True))
        console.print(table)


def _cell(text: str | None, *, whole: bool = False) -> Text:
    if text is None:
        return Text(_NULL, style="dim italic")
    if not whole and len(text) > _CELL_MAX_CHARS:
        text = text[: _CELL_MAX_CHARS - 1] + "…"
    return Text(text)


def _texts(batch: pa.RecordBatch) -> list[Sequence[str | None]]:
    """The rows as texts: JSON's words for all values, without its quotation marks; None is NULL."""
    if not batch.num_columns:
        return [()] * batch.num_rows
    columns = [_column_texts(column) for column in batch.columns]
    return list(zip(*columns, strict=True))


def _column_texts(column: pa.Array) -> list[str | None]:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind):
        found: list[str | None] = column.to_pylist()
        return found
    texts = json_text(column, Numbers.AS_JSON).to_pylist()
    known = column.is_valid().to_pylist()
    nested = pat.is_nested(kind)
    return [
        None if not valid else text if nested else _readable(kind, text.strip('"'))
        for text, valid in zip(texts, known, strict=True)
    ]


def _readable(kind: pa.DataType, text: str) -> str:
    """A moment as SQL writes it."""
    return text.replace("T", " ") if pat.is_timestamp(kind) else text


def _is_number(kind: pa.DataType) -> bool:
    return bool(pat.is_integer(kind) or pat.is_floating(kind) or pat.is_decimal(kind))


_TYPE_NAMES: Final[dict[Any, str]] = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "REAL",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.null(): "NULL",
}


def type_name(kind: pa.DataType) -> str:
    """A column's type in SQL's words."""
    if kind in _TYPE_NAMES:
        return _TYPE_NAMES[kind]
    if pat.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pat.is_timestamp(kind):
        if kind.tz is not None:
            return "TIMESTAMPTZ"
        return "TIMESTAMP" if kind.unit == "us" else f"TIMESTAMP_{kind.unit.upper()}"
    if pat.is_time(kind):
        return "TIME"
    if pat.is_dictionary(kind):
        return "ENUM"
    if pat.is_map(kind):
        return f"MAP({type_name(kind.key_type)}, {type_name(kind.item_type)})"
    if pat.is_list(kind) or pat.is_large_list(kind):
        return f"{type_name(kind.value_type)}[]"
    if pat.is_struct(kind):
        inner = ", ".join(f"{each.name} {type_name(each.type)}" for each in kind)
        return f"STRUCT({inner})"
    return str(kind).upper()
