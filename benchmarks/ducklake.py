"""The streaming recipe: small batches from sixteen clients, then nine aggregates; beside DuckLake.

DuckLake keeps its catalog in the same Postgres and inlines the batches there. It commits one
transaction after the other, and is measured for a while: the whole recipe would take it long.
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

from benchmarks import peers
from benchmarks.clients import PROCESSES, STREAM_WINDOW, PlainClient
from benchmarks.figures import Direction, Figure, Target
from benchmarks.recipe import MEASUREMENTS, NINE_AGGREGATES, ROWS_PER_BATCH, measurements
from benchmarks.stage import Stage
from flight_server.append_stream import AppendStream

_CLIENTS: Final = 16
_LEAD_SECONDS: Final = 3.0
"""Until the common beginning, for the clients to read their rows and to connect."""
_NONE: Final = Target(None, None)
_ACKED: Final = Target(60.0, 20.0, of_ratio=False)
_VISIBLE: Final = Target(None, 1.0, of_ratio=False)
_ASKED: Final = Target(None, 2.0, of_ratio=False)
_PEER_SECONDS: Final = 300.0
"""What DuckLake may take beyond the time in which it streams."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process of clients streams: its clients' batches, by number."""

    uri: str
    table: str
    rows: str
    clients: tuple[int, ...]
    begin_at: float


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds of one run."""

    acknowledged: float
    visible_after: float
    questions: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Peer:
    """What DuckLake did with some number of connections."""

    connections: int
    batches: int
    seconds: float
    questions: tuple[float, ...]

    @property
    def per_second(self) -> float:
        return self.batches / self.seconds

    def __str__(self) -> str:
        said = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        return f"DuckLake, batches inlined in the same Postgres, {said}, {self.batches:,} batches"


def measure(stage: Stage) -> Iterator[Figure]:
    """Acknowledged, visible, and asked; then the same of DuckLake with one connection and all."""
    batches = stage.sizes.recipe_batches
    rows = stage.directory / "recipe.parquet"
    pq.write_table(measurements(batches * ROWS_PER_BATCH), rows)
    runs = [_stream(stage, rows, batches) for _ in range(stage.sizes.recipe_repetitions)]
    what = f"{batches:,} batches of {ROWS_PER_BATCH} rows x {len(MEASUREMENTS)} columns"
    by = f"from {_CLIENTS} clients, a stream each"
    acked = [run.acknowledged for run in runs]
    yield _figure(f"{what} {by}, acknowledged", "s", acked, _ACKED)
    after = [run.visible_after for run in runs]
    yield _figure(f"{what} {by}, visible after the last receipt", "s", after, _VISIBLE)
    asked = [sum(run.questions) for run in runs]
    yield _figure(f"nine aggregates right after {what}", "s", asked, _ASKED)
    yield from _beside(stage, rows, runs)


def _figure(
    what: str,
    unit: str,
    runs: list[float],
    target: Target = _NONE,
    *,
    limit: str = "",
    limit_runs: list[float] | None = None,
    direction: Direction = Direction.LOWER,
) -> Figure:
    return Figure(
        benchmark="ducklake",
        what=what,
        unit=unit,
        runs=runs,
        limit=limit,
        limit_runs=limit_runs or (),
        direction=direction,
        target=target,
    )


def _beside(stage: Stage, rows: Path, runs: list[_Run]) -> Iterator[Figure]:
    """The batches per second, and the questions over all rows, beside DuckLake's."""
    rate = [stage.sizes.recipe_batches / run.acknowledged for run in runs]
    asked = [sum(run.questions) for run in runs]
    for connections in (1, _CLIENTS):
        try:
            peer = _ducklake(stage, rows, connections)
        except peers.NotRun as reason:
            yield peers.not_run("ducklake", f"the same in DuckLake, {connections}", "s", reason)
            continue
        yield _figure(
            f"batches of {ROWS_PER_BATCH} rows acknowledged, {_CLIENTS} clients, "
            f"beside DuckLake with {connections}",
            "batches/s",
            rate,
            limit=str(peer),
            limit_runs=[peer.per_second] * len(runs),
            direction=Direction.HIGHER,
        )
        if connections == 1:
            yield _figure(
                f"nine aggregates over {stage.sizes.recipe_batches * ROWS_PER_BATCH:,} rows",
                "s",
                asked,
                limit="DuckLake, all rows inlined in the same Postgres",
                limit_runs=[sum(peer.questions)] * len(runs),
            )


# --- the product


def _stream(stage: Stage, rows: Path, batches: int) -> _Run:
    table = f"recipe_{uuid4().hex[:8]}"
    stage.create_table(table, MEASUREMENTS)
    begin_at = time.monotonic() + _LEAD_SECONDS
    shares = [
        _Share(stage.uri, table, str(rows), tuple(range(first, _CLIENTS, PROCESSES)), begin_at)
        for first in range(PROCESSES)
    ]
    ended = stage.crew.spread(stream_batches, shares)
    acked_at = max(at for at, _ in ended)
    client = PlainClient(stage.uri)
    count = client.read(NINE_AGGREGATES[0].format(table), token=max(token for _, token in ended))
    assert count.read_all().to_pylist() == [{"n": batches * ROWS_PER_BATCH}]
    visible_at = time.monotonic()
    questions = tuple(_ask(client, each.format(table)) for each in NINE_AGGREGATES)
    client.close()
    return _Run(acked_at - begin_at, visible_at - acked_at, questions)


def _ask(client: PlainClient, question: str) -> float:
    asked_at = time.monotonic()
    assert client.answer(question).num_rows > 0
    return time.monotonic() - asked_at


def stream_batches(share: _Share) -> list[tuple[float, int]]:
    """Run in a client process: when each client had its last receipt, and that one's token."""
    table = pq.read_table(share.rows)
    ended: list[tuple[float, int]] = []
    failures: list[BaseException] = []

    def run(client: int) -> None:
        first = range(client * ROWS_PER_BATCH, table.num_rows, _CLIENTS * ROWS_PER_BATCH)
        batches = [
            table.slice(each, ROWS_PER_BATCH).combine_chunks().to_batches()[0] for each in first
        ]
        try:
            ended.append(_stream_of_one(share, batches))
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that is asked
            failures.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in share.clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} clients failed, the first with: {failures[0]}")
    return ended


def _stream_of_one(share: _Share, batches: list[pa.RecordBatch]) -> tuple[float, int]:
    stream = AppendStream(share.uri, share.table, MEASUREMENTS)
    token = 0

    def take_receipt() -> int:
        receipt = stream.receipt()
        assert receipt is not None, "no receipt"
        return receipt

    _pause(max(0.0, share.begin_at - time.monotonic()))
    for sent, batch in enumerate(batches, start=1):
        stream.send(batch)
        if sent > STREAM_WINDOW:
            token = take_receipt()
    stream.finish()
    for _ in range(min(STREAM_WINDOW, len(batches))):
        token = take_receipt()
    acked_at = time.monotonic()
    stream.close()
    return acked_at, token


_pause: Final = threading.Event().wait


# --- DuckLake


def _ducklake(stage: Stage, rows: Path, connections: int) -> _Peer:
    """DuckLake in a process of its own, with a database of its own. Raises peers.NotRun."""
    name = f"ducklake_{connections}"
    folder = stage.directory / name
    folder.mkdir()
    with stage.postgres() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    order: dict[str, Any] = {
        "rows": str(rows),
        "folder": str(folder / "data"),
        "clients": connections,
        "batch_rows": ROWS_PER_BATCH,
        "seconds": stage.sizes.recipe_peer_seconds,
        "questions": NINE_AGGREGATES,
    }
    file = folder / "order.json"
    file.write_text(json.dumps(order), encoding="utf-8")
    said = peers.run(
        "ducklake_clients",
        [str(file)],
        seconds=stage.sizes.recipe_peer_seconds + _PEER_SECONDS,
        environment={"PEER_DSN": psycopg.conninfo.make_conninfo(stage.dsn, dbname=name)},
    )
    told = json.loads(said)
    return _Peer(connections, told["batches"], told["seconds"], tuple(told["questions"]))
