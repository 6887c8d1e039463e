"""What few bytes may ask for: of memory, and of the thread that moves bytes."""

import json
import struct
from contextlib import closing

import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import ipc_metadata
from tests import wire
from tests.guarantees import test_quick_appends as quick
from tests.guarantees.test_quick_appends import STRICT, Stream, row, rows_of, send_one
from tests.wire import stream_opening

service, uri, quickly = quick.service, quick.uri, quick.quickly
client, connection = quick.client, quick.connection

NULLABLE = pa.schema([("n", pa.int64()), ("names", pa.list_(pa.utf8()))])


@pytest.fixture
def raw(uri):
    """A client that sends the bytes it is told to."""
    with closing(wire.RawFlight(uri.removeprefix("grpc://"), seconds=60)) as opened:
        yield opened


@pytest.fixture
def nullable(connection):
    """A table `nullable`, none of whose columns needs a value."""
    with connection.cursor() as cursor:
        nothing = pa.RecordBatch.from_pylist([], schema=NULLABLE)
        cursor.adbc_ingest("nullable", nothing, mode="create")


def batch_of(n, names):
    return pa.RecordBatch.from_arrays([n, names], names=["n", "names"])


def runs(value, count):
    return pa.RunEndEncodedArray.from_arrays(pa.array([count], pa.int64()), value)


def one_list(items):
    """One list of all these."""
    return pa.LargeListArray.from_arrays(pa.array([0, len(items)], pa.int64()), items)


MANY = 10**9
SEVERAL = 3 * 10**6


def test_a_long_column_of_nulls_is_made_on_a_thread_and_piece_by_piece(
    nullable, client, connection, quickly
):
    rows = batch_of(pa.nulls(SEVERAL), pa.nulls(SEVERAL))
    stream = Stream(client, "nullable", rows.schema)
    stream.send(rows)
    stream.send(rows.slice(0, 1))
    assert [answer["row_count"] for answer in stream.finish()] == [SEVERAL, 1]
    assert rows_of(connection, "SELECT count(*) FROM nullable") == [SEVERAL + 1]
    assert quickly == []


def test_rows_that_change_their_types_are_made_on_a_thread(client, connection, quickly):
    schema = pa.schema([("id", pa.int32()), ("name", pa.large_utf8())])
    assert send_one_of(client, row(1, schema=schema))["row_count"] == 1
    assert quickly == []
    assert send_one(client, 2)["row_count"] == 1
    assert len(quickly) == 1
    assert rows_of(connection) == [1, 2]


def send_one_of(client, batch, table="t"):
    stream = Stream(client, table, batch.schema)
    stream.send(batch)
    (answer,) = stream.finish()
    return answer


BOMBS = {
    "nulls": batch_of(pa.nulls(MANY), pa.nulls(MANY)),
    "one run": batch_of(runs(pa.array([7]), MANY), pa.nulls(MANY)),
    "a list of one run": batch_of(pa.array([1]), one_list(runs(pa.array(["x" * 1000]), MANY))),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_few_bytes_that_would_be_gigabytes_are_refused(nullable, client, connection, quickly, bomb):
    rows = BOMBS[bomb]
    stream = Stream(client, "nullable", rows.schema)
    stream.send(rows)
    answer = stream.receive()
    assert answer["error"]["error_code"] == "PAYLOAD_TOO_LARGE"
    assert "send fewer rows" in answer["error"]["message"]
    assert "PAYLOAD_TOO_LARGE" in stream.end_of()
    assert quickly == []
    with pytest.raises(Exception, match="PAYLOAD_TOO_LARGE"), connection.cursor() as cursor:
        cursor.adbc_ingest("nullable", pa.Table.from_batches([rows]), mode="append")
    assert rows_of(connection, "SELECT count(*) FROM nullable") == [0]


def test_rows_without_bytes_are_not_bound_without_number(connection):
    with connection.cursor() as cursor, pytest.raises(Exception, match="PAYLOAD_TOO_LARGE"):
        cursor.executemany("INSERT INTO t VALUES (?, 'x')", pa.table({"0": pa.nulls(MANY)}))


# ---- Compressed batches


@pytest.fixture
def zstd():
    return flight.FlightCallOptions(
        timeout=40, write_options=pa.ipc.IpcWriteOptions(compression="zstd")
    )


def send_compressed(client, batches, options):
    target = flight.FlightDescriptor.for_path("t")
    writer, reader = client.do_put(target, STRICT, options)
    for batch in batches:
        writer.write_batch(batch)
    writer.done_writing()
    answers = []
    while (answer := reader.read()) is not None:
        answers.append(json.loads(answer.to_pybytes()))
    return writer, answers


def test_compressed_batches_are_unpacked_on_a_thread(client, connection, quickly, zstd):
    batches = [row(number, "x" * 10_000) for number in range(5)]
    writer, answers = send_compressed(client, batches, zstd)
    writer.close()
    assert [answer["batch"] for answer in answers] == list(range(5))
    assert rows_of(connection, "SELECT length(name) FROM t WHERE id >= 0") == [10_000] * 5
    assert quickly == []


def test_a_batch_that_unpacks_to_more_than_it_may_is_refused(
    client, connection, quickly, zstd, monkeypatch
):
    monkeypatch.setattr(ipc_metadata, "UNPACKED_MAX_BYTES", 2**20)
    batches = [row(1, "x" * 2**19), row(2, "x" * 2**21)]
    writer, answers = send_compressed(client, batches, zstd)
    assert [answer["row_count"] for answer in answers] == [1]
    with pytest.raises(pa.ArrowInvalid, match=r"PAYLOAD_TOO_LARGE.*without compression"):
        writer.close()
    assert rows_of(connection) == [1]
    assert quickly == []


@pytest.mark.parametrize(
    ("declared", "code"), [(1_600_000_000, "PAYLOAD_TOO_LARGE"), (-2, "INVALID_PAYLOAD")]
)
def test_what_a_compressed_buffer_says_of_its_length_is_looked_at_first(
    raw, connection, declared, code
):
    """The same for the few bytes themselves: Arrow asks for the memory that they declare."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, STRICT, options=options) as writer:
        writer.write_batch(row(1, "x" * 10_000))
    _, sent = pa.ipc.MessageReader.open_stream(sink.getvalue())
    content = sent.serialize().to_pybytes()
    # The last buffer is the text: before it stands how long it is.
    at = content.rindex(struct.pack("<q", 10_000))
    lying = content[:at] + struct.pack("<q", declared) + content[at + 8 :]
    reply = raw.call("DoPut", [stream_opening(STRICT, "t"), wire.flight_data(lying)])
    assert f"[{code}]" in reply.text
    assert rows_of(connection) == []
