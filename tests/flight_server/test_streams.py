"""Long-lived ingest streams of plain Flight: a receipt per batch, in order, pipelined."""

import json
import threading
import time

import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh.identifiers import TenantId
from gateway.ingest_modes import IngestMode

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64())})
BATCH = ROWS.to_batches()[0]
ANYBODYS = TenantId(2)


@pytest.fixture
def client(uri):
    with flight.connect(uri) as client:
        yield client


@pytest.fixture
def table():
    return flight.FlightDescriptor.for_path("t")


@pytest.fixture(autouse=True)
def created(house, anybody):
    house.begin(anybody, "t", ROWS.schema, mode=IngestMode.CREATE).commit()


def headers(**values):
    named = [(f"x-duckmesh-{k.replace('_', '-')}".encode(), v.encode()) for k, v in values.items()]
    return flight.FlightCallOptions(headers=named)


def read(receipts):
    return json.loads(receipts.read().to_pybytes())


def test_each_batch_is_answered_with_its_token_while_the_stream_goes_on(client, table, house):
    writer, receipts = client.do_put(table, ROWS.schema)
    with writer:
        for number in range(3):
            writer.write_batch(BATCH)
            receipt = read(receipts)
            assert receipt["batch"] == number
            assert receipt["row_count"] == 3
            assert receipt["visibility_token"] == number + 2
        writer.done_writing()
        assert receipts.read() is None
    assert house.rows_of(ANYBODYS, "t") == 9


def test_batches_are_taken_in_before_earlier_ones_are_answered(client, table, house):
    writer, receipts = client.do_put(table, ROWS.schema)
    with writer:
        # The first batch is answered on the reading thread, before the second is taken in.
        writer.write_batch(BATCH)
        assert read(receipts)["batch"] == 0
        accepted = house.rows_of(ANYBODYS, "t")
        begun = len(house.begun)
        house.gate = threading.Event()
        for _ in range(10):
            writer.write_batch(BATCH)
        # Ten more writes have begun, and none of them is accepted.
        deadline = time.monotonic() + 10
        while len(house.begun) < begun + 10:
            assert time.monotonic() < deadline
            threading.Event().wait(0.005)
        assert house.rows_of(ANYBODYS, "t") == accepted
        house.gate.set()
        writer.done_writing()
        assert [read(receipts)["batch"] for _ in range(10)] == list(range(1, 11))
        assert receipts.read() is None


def test_a_client_may_read_in_one_thread_and_write_in_another(client, table, house):
    writer, receipts = client.do_put(table, ROWS.schema)
    got = []

    def read_all():
        while (message := receipts.read()) is not None:
            got.append(json.loads(message.to_pybytes())["batch"])

    reader = threading.Thread(target=read_all)
    reader.start()
    with writer:
        for _ in range(200):
            writer.write_batch(BATCH)
        writer.done_writing()
        reader.join(30)
    assert got == list(range(200))
    assert house.rows_of(ANYBODYS, "t") == 600


def test_keys_come_from_the_batch_or_from_the_stream(client, table, house):
    def send(options):
        writer, receipts = client.do_put(table, ROWS.schema, options)
        with writer:
            writer.write_with_metadata(BATCH, b'{"idempotency_key": "mine"}')
            writer.write_batch(BATCH)
            writer.done_writing()
            return [read(receipts) for _ in range(2)]

    first = send(headers(idempotency_key="run-1"))
    again = send(headers(idempotency_key="run-1"))
    assert [each["duplicate"] for each in first] == [False, False]
    assert [each["duplicate"] for each in again] == [True, True]
    tokens = [each["visibility_token"] for each in first]
    assert tokens == [each["visibility_token"] for each in again]
    assert set(house.keys) == {("t", "mine"), ("t", "run-1/1")}
    assert house.rows_of(ANYBODYS, "t") == 6


def test_a_failed_batch_is_answered_by_its_error_and_ends_the_stream(client, table, house):
    writer, receipts = client.do_put(table, ROWS.schema)
    writer.write_with_metadata(BATCH, b'{"idempotency_key": "k"}')
    assert read(receipts)["batch"] == 0
    writer.write_with_metadata(BATCH.slice(0, 1), b'{"idempotency_key": "k"}')
    failed = read(receipts)
    assert failed["batch"] == 1
    assert failed["error"]["error_code"] == "IDEMPOTENCY_CONFLICT"
    with pytest.raises(pa.ArrowException, match="IDEMPOTENCY_CONFLICT"):
        writer.close()
    assert house.rows_of(ANYBODYS, "t") == 3


@pytest.mark.parametrize(
    ("path", "schema", "reason"),
    [
        (["nowhere"], ROWS.schema, "TABLE_NOT_FOUND"),
        (["other", "t"], ROWS.schema, "TABLE_REQUIRED"),
        (["a", "b", "c", "t"], ROWS.schema, "TABLE_REQUIRED"),
        (["duckmesh", "main", "t"], pa.schema([("id", pa.utf8())]), "SCHEMA_INCOMPATIBLE"),
        ([""], ROWS.schema, "TABLE_REQUIRED"),
    ],
)
def test_a_stream_that_cannot_fit_is_refused(client, path, schema, reason):
    writer, receipts = client.do_put(flight.FlightDescriptor.for_path(*path), schema)
    assert receipts.read() is None
    with pytest.raises((pa.ArrowException, KeyError), match=reason):
        writer.close()


def test_metadata_that_is_no_object_is_refused(client, table, house):
    writer, receipts = client.do_put(table, ROWS.schema)
    writer.write_with_metadata(BATCH, b"key-1")
    assert receipts.read() is None
    with pytest.raises(pa.ArrowException, match="INVALID_JSON"):
        writer.close()
    assert house.rows_of(ANYBODYS, "t") == 0


def test_waiting_for_visibility_is_answered_with_the_snapshot(client, table):
    writer, receipts = client.do_put(table, ROWS.schema, headers(wait="true"))
    with writer:
        writer.write_batch(BATCH)
        assert read(receipts)["visible_snapshot_id"] == 2
        writer.done_writing()
