"""Callers who leave: an aborted ingest is never accepted, and a left query stops."""

import subprocess
import sys
import threading
import time
from datetime import timedelta

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh.identifiers import TenantId

ANYBODYS = TenantId(2)
SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.utf8())])
SLOW = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range % 7 = b.range % 11"


def batches(count, then=None, rows=1000):
    for _ in range(count):
        yield pa.record_batch([range(rows), ["x" * 100] * rows], schema=SCHEMA)
    if then is not None:
        then()


def reader(*args, **options):
    return pa.RecordBatchReader.from_batches(SCHEMA, batches(*args, **options))


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.005)


@pytest.fixture
def connection(uri):
    with adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection:
        yield connection


def assert_nothing_was_accepted(house, door):
    until(lambda: door.calls_in_flight == 0)
    assert house.begun, "the ingest reached the server"
    assert [write.ended for write in house.begun] == ["aborted"] * len(house.begun)
    assert house.rows_of(ANYBODYS, "t") is None


def test_a_generator_that_raises_leaves_nothing(house, door, connection):
    def fail():
        raise RuntimeError("the source broke")

    with (
        connection.cursor() as cursor,
        pytest.raises((adbc_driver_manager.Error, RuntimeError, OSError)),
    ):
        cursor.adbc_ingest("t", reader(20, fail), mode="create")
    assert_nothing_was_accepted(house, door)


def test_a_batch_over_the_clients_limit_leaves_nothing(house, door, connection):
    def oversized():
        yield from batches(5)
        yield from batches(1, rows=200_000)

    source = pa.RecordBatchReader.from_batches(SCHEMA, oversized())
    with connection.cursor() as cursor, pytest.raises(adbc_driver_manager.Error):
        cursor.adbc_ingest("t", source, mode="create")
    assert_nothing_was_accepted(house, door)


def test_a_cancelled_ingest_leaves_nothing(house, door, connection):
    with connection.cursor() as cursor:
        begun = threading.Event()

        def forever():
            yield from batches(3)
            begun.set()
            pause = threading.Event()
            while True:
                pause.wait(0.01)
                yield from batches(1)

        source = pa.RecordBatchReader.from_batches(SCHEMA, forever())
        outcome = []

        def ingest():
            try:
                cursor.adbc_ingest("t", source, mode="create")
            except Exception as error:  # noqa: BLE001 - judged below
                outcome.append(error)

        thread = threading.Thread(target=ingest)
        thread.start()
        assert begun.wait(10)
        cursor.adbc_cancel()
        thread.join(10)
        assert outcome
    assert_nothing_was_accepted(house, door)


def test_a_killed_client_leaves_nothing(house, door, uri):
    script = f"""
import adbc_driver_flightsql.dbapi, pyarrow as pa, time
schema = pa.schema([("id", pa.int64()), ("text", pa.utf8())])
def rows():
    while True:
        yield pa.record_batch([range(1000), ["x" * 100] * 1000], schema=schema)
        time.sleep(0.01)
with adbc_driver_flightsql.dbapi.connect({uri!r}, autocommit=True) as c, c.cursor() as cur:
    cur.adbc_ingest("t", pa.RecordBatchReader.from_batches(schema, rows()), mode="create")
"""
    client = subprocess.Popen([sys.executable, "-c", script])
    try:
        until(lambda: house.begun and house.begun[0].rows > 5000, seconds=30)
    finally:
        client.kill()
        client.wait()
    assert_nothing_was_accepted(house, door)


def test_a_whole_ingest_is_accepted_every_time(house, connection):
    with connection.cursor() as cursor:
        for _ in range(20):
            assert cursor.adbc_ingest("t", reader(3), mode="create_append") == 3000
    assert house.rows_of(ANYBODYS, "t") == 60_000


@pytest.mark.parametrize("how", ["cancel", "timeout", "stop reading"])
def test_a_left_query_stops(door, connection, how):
    cursor = connection.cursor()
    if how == "stop reading":
        cursor.execute("SELECT range, repeat('x', 100) FROM range(100000000)")
        stream = cursor.fetch_record_batch()
        stream.read_next_batch()
        stream.close()
    else:
        if how == "timeout":
            cursor.adbc_statement.set_options(**{"adbc.flight.sql.rpc.timeout_seconds.fetch": 0.3})
        outcome = []

        def ask():
            try:
                cursor.execute(SLOW)
                cursor.fetchall()
            except Exception as error:  # noqa: BLE001 - judged below
                outcome.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        if how == "cancel":
            until(lambda: door.calls_in_flight > 0)
            pause = threading.Event()
            while thread.is_alive():
                cursor.adbc_cancel()
                pause.wait(0.05)
        thread.join(10)
        assert outcome
    left_at = time.monotonic()
    until(lambda: door.calls_in_flight == 0, seconds=5)
    assert time.monotonic() - left_at < 2
    cursor.close()


def test_a_drain_lets_a_running_query_end_and_refuses_new_ones(open_door):
    door = open_door()
    uri = f"grpc://127.0.0.1:{door.port}"
    with adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT range FROM range(3000000)")
        stream = cursor.fetch_record_batch()
        stream.read_next_batch()
        drained = []
        thread = threading.Thread(target=lambda: drained.append(door.drain(timedelta(seconds=20))))
        thread.start()

        def refused():
            try:
                with flight.connect(uri) as client:
                    client.get_flight_info(flight.FlightDescriptor.for_command(b""))
            except pa.ArrowException as error:
                return "NOT_READY" in str(error)
            return False

        until(refused)
        assert sum(batch.num_rows for batch in stream) > 2_000_000
        thread.join(20)
        assert drained == [True]
        cursor.close()


def test_a_reader_that_never_reads_does_not_hold_the_drain_for_ever(open_door):
    door = open_door()
    uri = f"grpc://127.0.0.1:{door.port}"
    with adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT range, repeat('x', 200) FROM range(100000000)")
        stream = cursor.fetch_record_batch()
        stream.read_next_batch()
        started = time.monotonic()
        door.drain(timedelta(milliseconds=300))
        assert time.monotonic() - started < 5
        stream.close()
        cursor.close()
