"""Clients in processes of their own, who write one row after the other for a while."""

import contextlib
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
from adbc_driver_flightsql import dbapi
from pyarrow import flight

from benchmarks.data import ROW_SCHEMA, one_row, one_row_batch
from flight_server import messages
from flight_server.append_stream import AppendStream

_Work = TypeVar("_Work")
_Said = TypeVar("_Said")
PROCESSES: Final = 4
STREAM_WINDOW: Final = 32
_OWN_CONNECTION: Final = [("grpc.use_local_subchannel_pool", 1)]
_RETRY_SECONDS: Final = 0.05
_pause: Final = threading.Event().wait
_LEAD_SECONDS: Final = 0.25
"""Between the order to begin and the common beginning: every client is connected by then."""


class Way(StrEnum):
    """How a client writes a row."""

    ONE_RPC_EACH = "one DoPut for each row"
    STREAM = "a batch of one row on a stream that stays open, pipelined"
    HTTP_RECORD = "one JSON record in a request, on a connection that stays open"
    SQL_INSERT = "an INSERT statement for each row, over ADBC"
    INSERT = "an INSERT into Postgres, in autocommit"


@dataclass(frozen=True, slots=True)
class Questions:
    """What one process of clients asks, one answer after the other."""

    uri: str
    sql: str
    clients: int
    begin_at: float
    end_at: float
    secret: str | None = None
    give_up_seconds: float | None = None
    """An answer that takes longer is given up, and one that is refused counts as well."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process of clients does. `address` is a URI, or Postgres's DSN."""

    way: Way
    address: str
    table: str
    clients: int
    begin_at: float
    end_at: float


class PlainClient:
    """A Flight client without a driver, on a connection of its own."""

    def __init__(self, uri: str, *, secret: str | None = None) -> None:
        self._client = flight.connect(uri, generic_options=_OWN_CONNECTION)
        self._headers = [] if secret is None else [(b"authorization", f"Bearer {secret}".encode())]

    def put(self, table: str, batch: pa.RecordBatch, *, key: str | None = None) -> int:
        """Write one batch in one RPC, once for each idempotency key; return its token."""
        descriptor = flight.FlightDescriptor.for_path(table)
        headers = [] if key is None else [(b"x-duckmesh-idempotency-key", key.encode())]
        options = flight.FlightCallOptions(headers=[*self._headers, *headers])
        writer, receipts = self._client.do_put(descriptor, batch.schema, options)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            return _token_of(receipts)

    def read(
        self,
        sql: str,
        *,
        token: int | None = None,
        strong: bool = False,
        timeout_seconds: float | None = None,
    ) -> Any:
        """A reader of the answer to a statement.

        It waits for `token` when one is named, and for all that is accepted when `strong`.
        """
        headers = [*self._headers, (b"x-duckmesh-consistency-timeout-ms", b"30000")]
        if strong:
            headers.append((b"x-duckmesh-consistency", b"strong"))
        if token is not None:
            headers.append((b"x-duckmesh-min-visibility-token", str(token).encode()))
        options = flight.FlightCallOptions(headers=headers, timeout=timeout_seconds)
        command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
        info = self._client.get_flight_info(flight.FlightDescriptor.for_command(command), options)
        return self._client.do_get(info.endpoints[0].ticket, options)

    def answer(self, sql: str) -> pa.Table:
        """The whole answer; asks again while the server has too many queries."""
        while True:
            try:
                return self.read(sql).read_all()
            except (flight.FlightError, pa.ArrowException) as refused:
                if "[TOO_MANY_QUERIES]" not in str(refused):
                    raise
                _pause(_RETRY_SECONDS)

    def attempt(self, sql: str, timeout_seconds: float) -> None:
        """Ask, and go when it takes longer or is refused."""
        with contextlib.suppress(flight.FlightError, pa.ArrowException):
            self.read(sql, timeout_seconds=timeout_seconds).read_all()

    def close(self) -> None:
        self._client.close()


def _token_of(receipts: Any) -> int:
    """The token of a stream's next receipt."""
    answer = receipts.read()
    assert answer is not None, "no receipt"
    return int(json.loads(answer.to_pybytes())["visibility_token"])


class Crew:
    """Processes that stay: each run gives every one of them its share of the clients."""

    def __init__(self, processes: int = PROCESSES) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(processes)]
        for started in [pool.submit(_shares, 1) for pool in self._pools]:
            # A function of this module: every process has imported all by then.
            started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.shutdown()

    def write(
        self, way: Way, address: str, *, table: str, clients: int, seconds: float
    ) -> list[float]:
        """The latency in seconds of each row acknowledged in `seconds`, over all clients."""
        begin_at = _begin_at(clients)
        tasks = [
            Task(way, address, table, share, begin_at, begin_at + seconds)
            for share in _shares(clients)
        ]
        return self.spread(write_rows, tasks)

    def ask(
        self,
        uri: str,
        sql: str,
        *,
        clients: int,
        seconds: float,
        secret: str | None = None,
        after: float = 0,
        give_up_seconds: float | None = None,
    ) -> list[float]:
        """The same for answers to a question, each read to its end; `after` so many seconds."""
        begin_at = _begin_at(clients) + after
        tasks = [
            Questions(uri, sql, share, begin_at, begin_at + seconds, secret, give_up_seconds)
            for share in _shares(clients)
        ]
        return self.spread(ask_questions, tasks)

    def spread(self, work: Callable[[_Work], list[_Said]], tasks: Sequence[_Work]) -> list[_Said]:
        """Give each process a task; what all of them said, once the last one has ended."""
        answers = [pool.submit(work, task) for pool, task in zip(self._pools, tasks, strict=False)]
        return [each for answer in answers for each in answer.result()]


def _shares(clients: int) -> list[int]:
    shares = [clients // PROCESSES + (n < clients % PROCESSES) for n in range(PROCESSES)]
    return [share for share in shares if share]


def _begin_at(clients: int) -> float:
    return time.monotonic() + _LEAD_SECONDS + 0.02 * clients


def write_rows(task: Task) -> list[float]:
    """Run in a client process: the latencies of what was acknowledged between begin and end."""
    return _at_once(task.clients, lambda latencies: _LOOPS[task.way](task, latencies))


def ask_questions(task: Questions) -> list[float]:
    """Run in a client process: the latencies of what was answered between begin and end."""

    def loop(latencies: list[float]) -> None:
        client = PlainClient(task.uri, secret=task.secret)
        patience = task.give_up_seconds
        if patience is None:
            _closed_loop(task, latencies, lambda: client.answer(task.sql))
        else:
            _closed_loop(task, latencies, lambda: client.attempt(task.sql, patience))
        client.close()

    return _at_once(task.clients, loop)


def _at_once(clients: int, loop: Callable[[list[float]], None]) -> list[float]:
    lists: list[list[float]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []

    def run(latencies: list[float]) -> None:
        try:
            loop(latencies)
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that is asked
            failures.append(error)

    threads = [threading.Thread(target=run, args=(latencies,)) for latencies in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} clients failed, the first with: {failures[0]}")
    return [latency for latencies in lists for latency in latencies]


def _closed_loop(
    task: Task | Questions, latencies: list[float], write: Callable[[], object]
) -> None:
    """Write, wait for the answer, write again. The first writes warm up and do not count."""
    while (sent_at := time.monotonic()) < task.end_at:
        write()
        answered_at = time.monotonic()
        if sent_at >= task.begin_at and answered_at <= task.end_at:
            latencies.append(answered_at - sent_at)


def _one_rpc_each(task: Task, latencies: list[float]) -> None:
    client = PlainClient(task.address)
    batch = one_row_batch(1)
    _closed_loop(task, latencies, lambda: client.put(task.table, batch))
    client.close()


def _sql_insert(task: Task, latencies: list[float]) -> None:
    row = ", ".join(_SQL_VALUE.get(type(each), str)(each) for each in one_row(1))
    statement = f'INSERT INTO "{task.table}" VALUES ({row})'  # noqa: S608 - a name of ours
    with dbapi.connect(task.address, autocommit=True) as connection, connection.cursor() as cursor:
        _closed_loop(task, latencies, lambda: cursor.execute(statement))


_SQL_VALUE: Final[dict[type, Callable[[Any], str]]] = {
    str: "'{}'".format,
    datetime: "TIMESTAMPTZ '{}'".format,
}


def _insert(task: Task, latencies: list[float]) -> None:
    row = one_row(1)
    places = ", ".join(["%s"] * len(row))
    statement = f'INSERT INTO "{task.table}" VALUES ({places})'  # noqa: S608 - a name of ours
    with psycopg.connect(task.address, autocommit=True) as connection:
        _closed_loop(task, latencies, lambda: connection.execute(statement.encode(), row))


def _http_record(task: Task, latencies: list[float]) -> None:
    """The same bytes again and again, on a bare socket: a client's library costs as much as ours.

    An answer is read to its end, and must be 200.
    """
    where = urlsplit(task.address)
    assert where.hostname is not None
    assert where.port is not None
    request = _record_request(task.table, where.netloc)
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def write() -> None:
            connection.sendall(request)
            said = _whole_answer(connection)
            assert said.startswith(b"HTTP/1.1 200 "), said

        _closed_loop(task, latencies, write)


def _record_request(table: str, host: str) -> bytes:
    names = [field.name for field in ROW_SCHEMA]
    payload = dict(zip(names, one_row(1), strict=True))
    body = json.dumps({"records": [{"payload": payload}]}, default=str).encode()
    head = (
        f"POST /v1/ingest/{table} HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _whole_answer(connection: socket.socket) -> bytes:
    """An answer that says its length, as those to writes do."""
    said = connection.recv(65_536)
    while (end := said.find(b"\r\n\r\n")) < 0:
        said += _more(connection, said)
    head = said[:end].lower()
    length = int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0])
    while len(said) < end + 4 + length:
        said += _more(connection, said)
    return said


def _more(connection: socket.socket, so_far: bytes) -> bytes:
    part = connection.recv(65_536)
    assert part, f"cut short: {so_far!r}"
    return part


def _stream(task: Task, latencies: list[float]) -> None:
    batch = one_row_batch(1)
    stream = AppendStream(task.address, task.table, batch.schema)
    sent: list[float] = []
    answered = 0

    def take_receipt() -> None:
        nonlocal answered
        assert stream.receipt() is not None, "no receipt"
        now = time.monotonic()
        if task.begin_at <= now <= task.end_at:
            latencies.append(now - sent[answered])
        answered += 1

    while time.monotonic() < task.end_at:
        sent.append(time.monotonic())
        stream.send(batch)
        if len(sent) - answered >= STREAM_WINDOW:
            take_receipt()
    stream.finish()
    while answered < len(sent):
        take_receipt()
    stream.close()


_LOOPS: Final[dict[Way, Callable[[Task, list[float]], None]]] = {
    Way.ONE_RPC_EACH: _one_rpc_each,
    Way.STREAM: _stream,
    Way.HTTP_RECORD: _http_record,
    Way.SQL_INSERT: _sql_insert,
    Way.INSERT: _insert,
}
