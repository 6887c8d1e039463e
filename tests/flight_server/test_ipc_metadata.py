"""What an IPC message says of its rows: read as Arrow reads it, and never beyond its bytes."""

import random
import struct
import tracemalloc

import pyarrow as pa
import pytest

from flight_server import flight_data
from flight_server.ipc_metadata import BatchHead, batch_head
from tests.wire import _cut, field

ROWS = pa.record_batch(
    {
        "id": pa.array([1, None, 3], pa.int64()),
        "name": ["a", "bc", "x" * 5000],
        "names": [["a"], None, ["b", "c"]],
    }
)


def messages_of(batch, **options):
    """The metadata and the body of each message that a stream of the batch has."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    found = pa.ipc.MessageReader.open_stream(sink.getvalue())
    return [(each.metadata.to_pybytes(), each.body.to_pybytes()) for each in found]


def test_a_batch_tells_its_rows_and_its_buffers():
    (schema, _), (metadata, body) = messages_of(ROWS)
    assert batch_head(schema) is None
    head = batch_head(metadata)
    assert head.row_count == 3
    assert not head.is_compressed
    lengths = [len(each) for column in ROWS.columns for each in column.buffers() if each]
    assert 0 < head.size_bytes <= len(body) <= sum(lengths) + 64 * len(lengths)
    texts = [body[at : at + length] for at, length in zip(*[iter(head.buffers)] * 2, strict=True)]
    assert b"abc" + b"x" * 5000 in texts
    head.check_size([body[:100], body[100:]])


def test_a_batch_without_rows_is_one():
    metadata, body = messages_of(ROWS.slice(0, 0))[1]
    head = batch_head(metadata)
    assert (head.row_count, head.is_compressed) == (0, False)
    head.check_size([body] if body else [])


def test_a_dictionary_tells_the_same_of_its_values():
    batch = pa.record_batch({"name": pa.array(["a", "b", "a"]).dictionary_encode()})
    heads = [batch_head(metadata) for metadata, _ in messages_of(batch)]
    assert [head and head.row_count for head in heads] == [None, 2, 3]


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_batch_tells_what_it_unpacks_to(codec):
    plain = messages_of(ROWS)[1]
    metadata, body = messages_of(ROWS, compression=codec)[1]
    head = batch_head(metadata)
    assert head.is_compressed
    assert sum(head._unpacked_bytes([body])) == batch_head(plain[0]).size_bytes
    head.check_size([body])


def test_buffers_that_share_their_bytes_are_no_batch():
    metadata, body = messages_of(ROWS)[1]
    head = batch_head(metadata)
    shared = BatchHead(3, False, head.buffers * 2)
    with pytest.raises(ValueError, match="larger than its body"):
        shared.check_size([body])


def test_the_way_of_arrow_0_17_to_compress_is_known():
    metadata, _ = messages_of(ROWS, metadata_version=pa.ipc.MetadataVersion.V4)[1]
    assert not batch_head(metadata).is_compressed
    assert batch_head(metadata + b"ARROW:experimental_compression").is_compressed
    newer, _ = messages_of(ROWS)[1]
    assert not batch_head(newer + b"ARROW:experimental_compression").is_compressed


def test_damaged_metadata_is_a_value_error_or_another_head():
    drawn = random.Random(20261201)  # noqa: S311 - reproducible, no secret
    whole = messages_of(ROWS, compression="zstd")[1][0]
    for number in range(1_000):
        damaged = bytearray(whole)
        for _ in range(drawn.randint(1, 4)):
            at = drawn.randrange(len(damaged) - 4)
            extreme = drawn.choice([0, 1, 2**31, 2**32 - 1, drawn.randrange(2**32)])
            struct.pack_into("<I", damaged, at, extreme)
        del damaged[drawn.randrange(4, len(damaged) + 1) if number % 2 else len(damaged) :]
        try:
            head = batch_head(bytes(damaged))
        except ValueError:
            continue
        assert head is None or (head.row_count >= 0 and min(head.buffers, default=0) >= 0)


def test_fields_that_are_not_known_are_not_kept():
    header, body = _cut(ROWS.serialize().to_pybytes())
    unknown = b"".join(field(number, b"") for number in range(2_000, 22_000))
    message = unknown + field(2, header) + field(1000, body)
    tracemalloc.start()
    try:
        read = flight_data.read([message])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read.header == header
    assert peak < 2**18
