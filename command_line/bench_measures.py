"""The measures of `duckmesh bench`, in tables of its own that it makes and drops."""

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult

import pyarrow as pa
import pyarrow.compute as pc

from command_line.bench_clients import Act, Crowd, Opened, http_client
from command_line.bench_figures import Measured, measured
from command_line.flight_client import (
    CallOptions,
    FlightClient,
    connect,
    failure_of_driver,
    open_connection,
)
from command_line.server_address import Server
from duckmesh.errors import DuckMeshError
from flight_server.append_stream import AppendStream

STREAM_WINDOW: Final = 32
_BATCH_ROWS: Final = 65_536
_WAIT_MS: Final = 60_000
_SMALL: Final = pa.schema([("id", pa.int64()), ("site", pa.string()), ("value", pa.float64())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    seconds: float
    clients: int
    streams: int
    rows: int


class Bench:
    """Measures a running server. Used by one thread; the clients are threads beside it."""

    def __init__(self, server: Server, *, http: SplitResult | None, table: str, size: Size) -> None:
        self._server = server
        self._http = http
        self._small = table
        self._large = f"{table}_bulk"
        self._size = size
        self._numbers = itertools.count(1)

    def measures(self) -> dict[str, Callable[[], Iterator[Measured]]]:
        """What is measured, by name, in this order."""
        found: dict[str, Callable[[], Iterator[Measured]]] = {
            "select-1": self._select_one,
            "writes": self._writes,
            "streams": self._streams,
            "visible": self._visible,
            "bulk": self._bulk,
            "read": self._read,
        }
        if self._http is not None:
            found["http"] = self._over_http
        return found

    @contextmanager
    def tables(self) -> Iterator[None]:
        """The tables are there for the length of the block, and dropped however it ends."""
        with connect(self._server) as client:
            try:
                self._ingest(client, self._small, _small_row(0), mode="create")
                yield
            finally:
                self._drop(client)

    def _drop(self, client: FlightClient) -> None:
        for name in (self._small, self._large):
            with client.execute(f'DROP TABLE IF EXISTS "{name}"'):
                pass

    # -- each measure

    def _select_one(self) -> Iterator[Measured]:
        for clients in _one_and(self._size.clients):
            took = self._crowd(self._asker("SELECT 1"), clients)
            yield self._line(f"SELECT 1 over ADBC, {_clients(clients)}", "queries", took)

    def _writes(self) -> Iterator[Measured]:
        for clients in _one_and(self._size.clients):
            took = self._crowd(self._writer, clients)
            yield self._line(f"one-row writes over ADBC, {_clients(clients)}", "rows", took)

    def _streams(self) -> Iterator[Measured]:
        for streams in _one_and(self._size.streams):
            took = _pipelined(self._open_stream, streams, self._size.seconds)
            many = "1 stream" if streams == 1 else f"{streams} streams"
            yield self._line(f"one-row batches, pipelined, {many}", "rows", took)

    def _visible(self) -> Iterator[Measured]:
        took = self._crowd(self._prober, 1)
        yield self._line("write to the answer of a query with its token, 1 client", "rows", took)

    def _bulk(self) -> Iterator[Measured]:
        rows = _large_rows(self._size.rows)
        with connect(self._server) as client:
            began = time.perf_counter()
            self._ingest(client, self._large, rows, mode="replace")
            acknowledged = time.perf_counter() - began
            counted = f'SELECT count(*) FROM "{self._large}"'  # noqa: S608 - a name of ours
            client.rows(counted, options=_own_writes())
            visible = time.perf_counter() - began
        for what, took in (("acknowledged", acknowledged), ("visible", visible)):
            name = f"{rows.num_rows:,} rows by adbc_ingest, {what}"
            yield measured(name, "rows", [took], seconds=took, amount=rows.num_rows)

    def _read(self) -> Iterator[Measured]:
        with connect(self._server) as client:
            if client.table_schema(self._large) is None:
                self._ingest(client, self._large, _large_rows(self._size.rows), mode="create")
            everything = f'SELECT * FROM "{self._large}"'  # noqa: S608 - a name of ours
            began = time.perf_counter()
            with client.execute(everything, options=_own_writes()) as answer:
                rows = sum(batch.num_rows for batch in getattr(answer, "batches", ()))
            took = time.perf_counter() - began
        name = f"{rows:,} rows read over ADBC, 1 client"
        yield measured(name, "rows", [took], seconds=took, amount=rows)

    def _over_http(self) -> Iterator[Measured]:
        address = self._http
        assert address is not None  # noqa: S101 - `measures` has seen to it
        question = json.dumps({"sql": "SELECT 1"}).encode()

        @contextmanager
        def asker(_: int) -> Iterator[Act]:
            with http_client(address, self._server) as client:
                yield lambda: client.post("/v1/query", question)

        @contextmanager
        def writer(_: int) -> Iterator[Act]:
            with http_client(address, self._server) as client:
                yield lambda: client.post(f"/v1/ingest/{self._small}", self._record())

        for clients in _one_and(self._size.clients):
            took = self._crowd(asker, clients)
            yield self._line(f"SELECT 1 over HTTP, {_clients(clients)}", "queries", took)
        for clients in _one_and(self._size.clients):
            took = self._crowd(writer, clients)
            yield self._line(f"one-record writes over HTTP, {_clients(clients)}", "rows", took)

    # -- clients

    def _crowd(self, opened: Opened, clients: int) -> list[float]:
        return Crowd(opened, clients=clients, seconds=self._size.seconds).run()

    def _line(self, what: str, unit: str, took: list[float]) -> Measured:
        return measured(what, unit, took, seconds=self._size.seconds)

    def _asker(self, sql: str) -> Opened:
        @contextmanager
        def opened(_: int) -> Iterator[Act]:
            with open_connection(self._server) as connection, connection.cursor() as cursor:

                def act() -> None:
                    cursor.execute(sql)
                    cursor.fetchall()

                yield act

        return opened

    @contextmanager
    def _writer(self, _: int) -> Iterator[Act]:
        with open_connection(self._server) as connection, connection.cursor() as cursor:
            yield lambda: cursor.adbc_ingest(
                self._small, _small_row(next(self._numbers)), mode="append"
            )

    @contextmanager
    def _prober(self, _: int) -> Iterator[Act]:
        """A session reads its own writes: its query names the token of its last one."""
        with open_connection(self._server) as connection, connection.cursor() as cursor:

            def act() -> None:
                row = _small_row(next(self._numbers))
                cursor.adbc_ingest(self._small, row, mode="append")
                cursor.execute(f'SELECT count(*) FROM "{self._small}"')  # noqa: S608 - our name
                cursor.fetchall()

            yield act

    def _open_stream(self) -> AppendStream:
        return AppendStream(
            self._server.uri,
            self._small,
            _SMALL,
            key=self._server.key,
            tls_root=self._server.tls_root,
        )

    def _ingest(self, client: FlightClient, name: str, rows: Any, *, mode: str) -> None:
        batches = rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        reader = pa.RecordBatchReader.from_batches(rows.schema, batches)
        client.ingest(name, reader, mode=mode)

    def _record(self) -> bytes:
        payload = {"id": next(self._numbers), "site": "site-001", "value": 0.5}
        return json.dumps({"records": [{"payload": payload}]}).encode()


def _pipelined(opened: Callable[[], AppendStream], streams: int, seconds: float) -> list[float]:
    """How long each receipt took, on streams that have many batches under way each."""
    took: list[list[float]] = [[] for _ in range(streams)]
    failures: list[Exception] = []
    stop = threading.Event()

    def run(latencies: list[float]) -> None:
        try:
            _keep_full(opened(), latencies, stop)
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that waits
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in took]
    for thread in threads:
        thread.start()
    try:
        stop.wait(seconds)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for error in failures:
        raise error if isinstance(error, DuckMeshError) else failure_of_driver(error)
    return [each for latencies in took for each in latencies]


def _keep_full(stream: AppendStream, took: list[float], stop: threading.Event) -> None:
    sent: deque[float] = deque()
    try:
        for number in itertools.count(1):
            if stop.is_set():
                break
            sent.append(time.perf_counter())
            stream.send(_small_row(number))
            if len(sent) >= STREAM_WINDOW:
                stream.receipt()
                took.append(time.perf_counter() - sent.popleft())
        # What is under way when the time is over is accepted, and does not count.
        stream.finish()
        while stream.receipt() is not None:
            pass
    finally:
        with suppress(Exception):
            stream.close()


def _one_and(many: int) -> list[int]:
    return [1] if many == 1 else [1, many]


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def _own_writes() -> CallOptions:
    return CallOptions(timeout_ms=_WAIT_MS)


def _small_row(number: int) -> pa.RecordBatch:
    columns = [[number], [f"site-{number % 50:03d}"], [number * 0.25]]
    return pa.record_batch(
        [pa.array(each, field.type) for each, field in zip(columns, _SMALL, strict=True)],
        schema=_SMALL,
    )


def _large_rows(rows: int) -> pa.Table:
    """Rows that look like measurements: equal at every run."""
    drawn = pc.random(rows, initializer=20_261_121)
    sites = pa.array([f"station-{number:04d}" for number in range(1000)])
    table = pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "site": sites.take(pc.floor(pc.multiply(drawn, 1000)).cast(pa.int32())),
            "value": drawn,
        },
        schema=_SMALL,
    )
    return pa.Table.from_batches(table.to_batches(max_chunksize=_BATCH_ROWS), schema=_SMALL)
