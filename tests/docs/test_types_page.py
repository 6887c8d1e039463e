"""docs/types.md says what the code does with each Arrow type."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.table_schema import TableSchema, normal_type
from duckmesh.errors import Invalid
from query_engine.engine import QueryEngine
from query_engine.quoting import sql_type
from query_engine.relations import Relation, RelationSet

PAGE = Path(__file__).parent.parent.parent / "docs" / "types.md"

TAKEN: list[pa.DataType] = [
    pa.bool_(),
    pa.bool8(),
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(38, 2), pa.decimal256(38, 2)),
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4)),
    *(pa.date32(), pa.date64()),
    *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.timestamp(unit, "Europe/Rome") for unit in ("s", "ms", "us", "ns")),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    pa.dictionary(pa.int32(), pa.string()),
    pa.run_end_encoded(pa.int32(), pa.int64()),
    *(pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_view(pa.int64())),
    pa.list_(pa.int64(), 3),
    pa.struct([("a", pa.int64()), ("b", pa.string())]),
    pa.map_(pa.string(), pa.int64()),
    pa.uuid(),
    pa.json_(),
    pa.opaque(pa.binary(), "thing", "vendor"),
]
REFUSED: list[pa.DataType] = [
    pa.null(),
    pa.decimal256(39, 2),
    pa.decimal128(5, -2),
    pa.month_day_nano_interval(),
    pa.list_(pa.duration("us")),
    pa.dense_union([pa.field("a", pa.int64())]),
    pa.sparse_union([pa.field("a", pa.int64())]),
    pa.struct([]),
]


def name(kind: pa.DataType) -> str:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name
    return re.sub(r"<([^>:]*)>\[(\w+)\]", r"<\1>[\2]", str(kind)).replace("|", "\\|")


def answered(engine: QueryEngine, kind: pa.DataType) -> pa.DataType:
    schema = TableSchema.first(pa.schema([("c", kind)])).arrow
    lake = RelationSet("acme", 1, (Relation("t", schema, ()),), ())
    return engine.describe("SELECT c FROM t", lake).result_schema.field(0).type


def taken_rows(engine: QueryEngine) -> list[str]:
    rows = []
    for kind in TAKEN:
        kept = normal_type(kind, column="c")
        cells = (name(kind), name(kept), sql_type(kept), name(answered(engine, kind)))
        rows.append("| " + " | ".join(f"`{cell}`" for cell in cells) + " |")
    return rows


def refused_rows() -> list[str]:
    rows = []
    for kind in REFUSED:
        with pytest.raises(Invalid) as refusal:
            normal_type(kind, column="c")
        rows.append(f"| `{name(kind)}` | {refusal.value.message.split(': ', 1)[1]} |")
    return rows


def test_the_page_tells_each_type_as_the_code_has_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    with QueryEngine(threads=1, memory_limit_bytes=2**28, temp_directory=None) as engine:
        missing = [row for row in taken_rows(engine) + refused_rows() if row not in text]
    assert missing == [], "write these rows into docs/types.md"
