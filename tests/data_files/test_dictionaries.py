"""Columns whose values repeat get a dictionary, and no others; all rows come back either way."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_files.dictionaries import dictionary_columns
from data_files.parquet import ParquetStream, decode_parquet, encode_parquet
from data_files.rechunk import ROW_GROUP_ROWS

ROWS = 1000


def with_dictionaries(content: bytes) -> set[str]:
    """The leaf columns that have a dictionary in every row group."""
    footer = pq.read_metadata(pa.BufferReader(content))
    groups = [footer.row_group(at) for at in range(footer.num_row_groups)]
    return {
        group.column(at).path_in_schema
        for group in groups
        for at in range(group.num_columns)
        if all("RLE_DICTIONARY" in each.column(at).encodings for each in groups)
    }


REPEATED = {
    "text": pa.array(["north", "south"] * (ROWS // 2)),
    "dotted.name": pa.array([7] * ROWS, pa.int32()),
    "list": pa.array([[1, 2], [1]] * (ROWS // 2), pa.list_(pa.int64())),
    "large_list": pa.array([[1]] * ROWS, pa.large_list(pa.int64())),
    "pair": pa.array([[1.0, 2.0]] * ROWS, pa.list_(pa.float32(), 2)),
    "struct": pa.array([{"a": "x", "b": {"c": 1}}] * ROWS),
    "map": pa.array([[("k", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    "words": pa.array(["x", "y"] * (ROWS // 2)).dictionary_encode(),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([b"0123456789abcdef"] * ROWS, pa.binary(16))
    ),
}
LEAVES = {
    "text",
    "dotted.name",
    "list.list.element",
    "large_list.list.element",
    "pair.list.element",
    "struct.a",
    "struct.b.c",
    "map.key_value.key",
    "map.key_value.value",
    "words",
    "uuid",
}


def test_the_paths_of_nested_columns_are_those_of_the_file() -> None:
    table = pa.table(REPEATED)
    assert set(dictionary_columns(table)) == LEAVES
    assert with_dictionaries(encode_parquet(table.to_batches(), table.schema).content) == LEAVES


@pytest.mark.parametrize(
    "values",
    [
        pa.array(range(ROWS)),
        pa.array([n / 7 for n in range(ROWS)]),
        pa.array(range(ROWS), pa.timestamp("us", tz="UTC")),
        pa.array([f"name {n}" for n in range(ROWS)]),
        pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([n.to_bytes(16, "big") for n in range(ROWS)], pa.binary(16))
        ),
    ],
    ids=lambda values: str(values.type),
)
def test_values_that_do_not_repeat_are_plain_and_smaller_so(values) -> None:
    table = pa.table({"v": values})
    content = encode_parquet(table.to_batches(), table.schema).content
    assert with_dictionaries(content) == set()
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="snappy")
    assert len(content) < sink.tell()
    assert pa.Table.from_batches(decode_parquet(content, table.schema)).equals(table)


def test_a_few_rows_have_no_dictionary() -> None:
    table = pa.table(REPEATED).slice(0, 10)
    assert dictionary_columns(table) == []
    content = encode_parquet(table.to_batches(), table.schema).content
    assert with_dictionaries(content) == set()


def test_a_stream_chooses_by_its_first_rows_and_keeps_all() -> None:
    half = ROW_GROUP_ROWS // 2
    table = pa.table(
        {"n": pa.array(range(2 * half)), "s": pa.array([str(n % 9) for n in range(2 * half)])}
    )
    sink = io.BytesIO()
    stream = ParquetStream(sink, table.schema)
    for batch in table.to_batches(max_chunksize=half):
        stream.write(batch)
    stream.finish()
    assert with_dictionaries(sink.getvalue()) == {"s"}
    assert pa.Table.from_batches(decode_parquet(sink.getvalue(), table.schema)).equals(table)


def test_a_stream_without_rows_is_a_file_and_one_given_up_is_none() -> None:
    schema = pa.schema({"n": pa.int64()})
    sink = io.BytesIO()
    ParquetStream(sink, schema).finish()
    assert pq.read_metadata(pa.BufferReader(sink.getvalue())).num_rows == 0
    given_up = io.BytesIO()
    stream = ParquetStream(given_up, schema)
    stream.abandon()
    del stream
    assert given_up.tell() == 0
