"""A serving process under clients that idle, leave or hang, and at its end. Over real processes."""

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import messages
from tests.processes import PlainClient, ProductProcess, Service, service, until

IDLE_READERS, IDLE_WRITERS = 300, 100
ENDLESS = "SELECT range, repeat('x', 200) AS wide FROM range(1000000000)"
NARROW = "SELECT range FROM range(1000000000)"
"""A batch that waits for its reader takes 0.5 MB: hundreds of them stay below a worker's memory."""

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64())})
REFUSED = (flight.FlightError, pa.ArrowException)
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""pyarrow's clients of one server share a connection otherwise."""

WINDOWED = [*OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)]
"""The flow-control window stays small: the server soon waits for a reader who does not read."""


def asked(client: flight.FlightClient, sql: str) -> flight.Ticket:
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
    return info.endpoints[0].ticket


def answer(uri: str, sql: str) -> list[dict[str, object]]:
    with flight.connect(uri, generic_options=OWN_CONNECTION) as client:
        rows: list[dict[str, object]] = client.do_get(asked(client, sql)).read_all().to_pylist()
        return rows


def threads_of(process: ProductProcess) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def exit_code(process: ProductProcess) -> int | None:
    assert process.process is not None
    return process.process.poll()


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(
        database_dsn,
        tmp_path,
        DUCKMESH_FLIGHT_DRAIN_SECONDS="15",
        DUCKMESH_QUERY_WALL_TIME_SECONDS="50",
    ) as started:
        yield started


@pytest.fixture
def hasty(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    """Short of patience in everything that it waits for."""
    with service(
        database_dsn,
        tmp_path,
        DUCKMESH_FLIGHT_DRAIN_SECONDS="1",
        DUCKMESH_QUERY_WALL_TIME_SECONDS="1",
        DUCKMESH_QUERY_FETCH_TIMEOUT_SECONDS="1",
    ) as started:
        yield started


# ---- Idle streams


def idle_reader(uri: str, held: ExitStack) -> flight.FlightStreamReader:
    """A stream of which one batch is read, and no more."""
    client = held.enter_context(flight.connect(uri, generic_options=WINDOWED))
    ticket = asked(client, NARROW)
    deadline = time.monotonic() + 60
    while True:
        reader = client.do_get(ticket)
        try:
            reader.read_chunk()
        except REFUSED as refused:
            # Hundreds at once are told to come again.
            if "[TOO_MANY_QUERIES]" not in str(refused) or time.monotonic() > deadline:
                raise
        else:
            held.callback(reader.cancel)
            return reader


def idle_writer(uri: str, held: ExitStack) -> None:
    """A stream into a table that sends its schema, and nothing more."""
    client = held.enter_context(flight.connect(uri, generic_options=OWN_CONNECTION))
    writer, _ = client.do_put(flight.FlightDescriptor.for_path("t"), ROWS.schema)
    held.callback(lambda: _left(writer))


def _left(writer: flight.FlightStreamWriter) -> None:
    with contextlib.suppress(*REFUSED, OSError):
        writer.close()


def test_four_hundred_idle_streams_hold_up_nobody(running: Service) -> None:
    process, uri = running.serve()
    running.coordinate("c1")
    create(uri)
    before = threads_of(process)
    with ExitStack() as held, ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: idle_reader(uri, held), range(IDLE_READERS)))
        list(pool.map(lambda _: idle_writer(uri, held), range(IDLE_WRITERS)))
        assert threads_of(process) > before + IDLE_READERS
        spans = []
        for number in range(20):
            began = time.monotonic()
            assert answer(uri, f"SELECT {number} AS n, count(*) AS rows FROM t") == [
                {"n": number, "rows": 3}
            ]
            spans.append(time.monotonic() - began)
        with adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection:
            assert connection.adbc_get_table_types() is not None
            assert connection.adbc_get_table_schema("t").names == ["id"]
        print(f"\nbeside 400 idle streams: median {sorted(spans)[10] * 1000:.0f} ms for a query")
    until(lambda: threads_of(process) <= before + 40)


def create(uri: str) -> None:
    """Table t with three rows, visible."""
    with flight.connect(uri) as client:
        command = messages.sql("CommandStatementIngest")(
            table="t", table_definition_options={"if_not_exist": 1, "if_exists": 2}
        )
        patience = (b"x-duckmesh-consistency-timeout-ms", b"60000")
        options = flight.FlightCallOptions(headers=[(b"x-duckmesh-wait", b"true"), patience])
        descriptor = flight.FlightDescriptor.for_command(messages.wrap(command))
        writer, reader = client.do_put(descriptor, ROWS.schema, options)
        with writer:
            writer.write_table(ROWS)
            writer.done_writing()
            assert reader.read() is not None


# ---- Limits of time


def test_a_query_beyond_its_wall_time_is_told_so(hasty: Service) -> None:
    _, uri = hasty.serve()
    slow = (
        "SELECT count(*) FROM range(100000000000) a, range(1000000) b WHERE a.range % 7 = b.range"
    )
    with (
        adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        with pytest.raises(adbc_driver_manager.Error, match=r"\[QUERY_TIMEOUT\]") as caught:  # noqa: PT012 - one act
            cursor.execute(slow)
            cursor.fetchall()
        assert caught.value.status_code is adbc_driver_manager.AdbcStatusCode.TIMEOUT


def test_a_reader_who_pauses_too_long_is_told_so(hasty: Service) -> None:
    _, uri = hasty.serve()
    with ExitStack() as held:
        reader = idle_reader(uri, held)
        time.sleep(3)  # The pause itself is what is tested.
        with pytest.raises(REFUSED, match=r"\[QUERY_TIMEOUT\].*query.fetch_timeout_seconds"):
            reader.read_all()
    assert answer(uri, "SELECT 1 AS one") == [{"one": 1}]


# ---- The end of a process


def refused_as_not_ready(uri: str) -> bool:
    try:
        answer(uri, "SELECT 1")
    except REFUSED as refused:
        return "[NOT_READY]" in str(refused)
    return False


def test_a_running_query_ends_whole_after_sigterm_and_new_calls_are_refused(
    running: Service,
) -> None:
    process, uri = running.serve()
    rows = 6_000_000
    with flight.connect(uri, generic_options=WINDOWED) as client:
        reader = client.do_get(asked(client, ENDLESS.replace("1000000000", str(rows))))
        taken = reader.read_chunk().data.num_rows
        process.send(signal.SIGTERM)
        until(lambda: refused_as_not_ready(uri))
        began = time.monotonic()
        while True:
            try:
                taken += reader.read_chunk().data.num_rows
            except StopIteration:
                break
            if time.monotonic() - began < 5:
                time.sleep(0.02)  # A slow reader: about five seconds of rows are left.
        assert taken == rows
    assert process.process is not None
    assert process.process.wait(timeout=30) == 0


def test_a_reader_who_never_reads_does_not_hold_the_process(hasty: Service) -> None:
    process, uri = hasty.serve()
    with ExitStack() as held:
        client = held.enter_context(flight.connect(uri, generic_options=WINDOWED))
        reader = client.do_get(asked(client, ENDLESS))
        reader.read_chunk()
        process.send(signal.SIGTERM)
        began = time.monotonic()
        until(lambda: exit_code(process) is not None)
        print(f"\nended {time.monotonic() - began:.1f} s after SIGTERM")
    # The drain ended his call: nothing was left to be cut off.
    assert exit_code(process) == 0


def test_what_is_written_during_a_stop_has_a_receipt_or_is_not_there(running: Service) -> None:
    process, uri = running.serve()
    _, other = running.serve()
    running.coordinate("c1")
    create(uri)
    receipts: list[int] = []
    lost: list[str] = []

    def write(writer: int) -> None:
        client = PlainClient(uri)
        for number in range(10_000):
            batch = pa.record_batch({"id": pa.array([writer * 100_000 + number], pa.int64())})
            try:
                receipts.append(client.put("t", batch)["visibility_token"])
            except (*REFUSED, OSError, AssertionError) as error:
                lost.append(str(error))
                break
        client.close()

    threads = [threading.Thread(target=write, args=(number + 1,)) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(receipts) > 60)
    process.send(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert process.process is not None
    assert process.process.wait(timeout=30) == 0
    assert len(lost) == 6, "each of them was refused in the end"
    client = PlainClient(other)
    counted = client.query("SELECT count(*) AS n FROM t WHERE id >= 100000", token=max(receipts))
    client.close()
    assert counted["n"].to_pylist() == [len(receipts)]
