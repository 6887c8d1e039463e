"""Streams that no client library sends, and some may: they are read right, or refused by name."""

import struct
from contextlib import closing

import pyarrow as pa
import pytest

from flight_server import flight_data, ipc_metadata
from tests import wire
from tests.guarantees import test_quick_appends as quick
from tests.guarantees.test_quick_appends import STRICT, Stream, row, rows_of
from tests.wire import batch_message, stream_opening

service, uri, quickly = quick.service, quick.uri, quick.quickly
client, connection = quick.client, quick.connection


@pytest.fixture
def raw(uri):
    """A client that sends the bytes it is told to."""
    with closing(wire.RawFlight(uri.removeprefix("grpc://"), seconds=60)) as opened:
        yield opened


def big_endian(schema):
    """The schema's message, as a machine of the other order of bytes would send it."""
    content = bytearray(schema.serialize().to_pybytes())
    prefix = 8
    metadata = bytes(content[prefix:])
    root = ipc_metadata._followed(metadata, 0)
    table = ipc_metadata._table(metadata, root, ipc_metadata._HEADER)
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    # Which it is lies in the first field, left out for ours: let it lead to a 1 that is there.
    at = metadata.index(b"\x01\x00", table + table % 2)
    while at % 2:
        at = metadata.index(b"\x01\x00", at + 1)
    struct.pack_into("<H", content, prefix + fields + 4, at - table)
    made = bytes(content)
    assert pa.ipc.read_schema(pa.py_buffer(made)) != schema
    return made


def test_rows_of_the_other_order_of_bytes_are_read_right(raw, connection, quickly):
    numbers = [1, -2, 2**40]
    batch = pa.record_batch({"v": pa.array(numbers, pa.int64())})
    with connection.cursor() as cursor:
        cursor.adbc_ingest("numbers", batch.slice(0, 0), mode="create")
    known = raw.call("DoPut", [stream_opening(batch.schema, "numbers")])
    assert known.status == "OK"
    content = batch.serialize().to_pybytes()
    ours, theirs = (b"".join(struct.pack(f"{o}q", v) for v in numbers) for o in "<>")
    assert content.count(ours) == 1
    turned = content.replace(ours, theirs)
    first = wire.flight_data(big_endian(batch.schema), descriptor=wire.path_descriptor(b"numbers"))
    reply = raw.call("DoPut", [first, wire.flight_data(turned)])
    assert reply.status == "OK", reply.text
    assert rows_of(connection, "SELECT v FROM numbers") == numbers
    assert quickly == []


def lying(batch, row_count):
    """The message of a batch that says it has so many rows."""
    content = bytearray(batch.serialize().to_pybytes())
    prefix = 8
    metadata = bytes(content[prefix:])
    table = ipc_metadata._table(metadata, ipc_metadata._followed(metadata, 0), ipc_metadata._HEADER)
    # It says so, and then each of its columns does.
    struct.pack_into("<q", content, prefix + ipc_metadata._field(metadata, table, 0), row_count)
    columns = prefix + ipc_metadata._table(metadata, table, 1) + 4
    for number in range(batch.num_columns):
        struct.pack_into("<q", content, columns + 16 * number, row_count)
    return wire.flight_data(bytes(content))


@pytest.mark.parametrize("row_count", [60_000, 100_000_000], ids=["quick", "on a thread"])
def test_rows_whose_offsets_are_not_there_are_refused_by_name(raw, connection, row_count):
    """Also where only their size is asked for, which Arrow reads off the offsets."""
    said = lying(row(1, "x" * 50_000), row_count)
    reply = raw.call("DoPut", [stream_opening(STRICT, "t"), said])
    assert "[INVALID_PAYLOAD]" in reply.text
    assert rows_of(connection) == []


def test_a_schema_with_a_body_takes_nobody_else_off_the_quick_way(raw, connection, quickly):
    # Nobody has sent this header before.
    schema = STRICT.with_metadata({"sender": "another"})
    first = stream_opening(schema, "t")
    # It comes with bytes behind it; what becomes of that is its sender's affair.
    raw.call("DoPut", [stream_opening(schema, "t", body=b"12345678"), batch_message(row(1))])
    before = len(quickly)
    assert raw.call("DoPut", [first, batch_message(row(2))]).status == "OK"
    assert len(quickly) == before + 1


def test_a_message_without_rows_may_stand_between_a_dictionary_and_its_batch(raw, connection):
    schema = pa.schema([("id", pa.int64()), ("name", pa.dictionary(pa.int32(), pa.utf8()))])
    rows = pa.record_batch([pa.array([1]), pa.array(["x"]).dictionary_encode()], schema=schema)
    encoder = flight_data.Encoder(schema)
    dictionary, batch = (b"".join(each) for each in encoder.rows(rows))
    alone = wire.field(3, b"{}")
    reply = raw.call("DoPut", [stream_opening(schema, "t"), dictionary, alone, batch])
    assert reply.status == "OK", reply.text
    assert rows_of(connection) == [1]


@pytest.mark.parametrize("depth", [50_000, 200_000], ids=["quick", "on a thread"])
def test_metadata_that_is_nested_without_end_is_refused_by_name(client, connection, depth):
    stream = Stream(client)
    stream.send(row(1))
    assert stream.receive()["batch"] == 0
    stream.writer.write_metadata(b"[" * depth)
    while (answer := stream.receive()) is not None:
        assert answer["error"]["error_code"] == "INVALID_JSON"
    assert "INVALID_JSON" in stream.end_of()
    assert rows_of(connection) == [1]
