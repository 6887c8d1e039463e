"""Group-by over a hundred files, warm and cold, beside DuckDB on the same files."""

import time
from collections.abc import Iterator
from datetime import timedelta
from threading import Event
from typing import Any, Final

import duckdb
import pyarrow as pa

from benchmarks.clients import PlainClient
from benchmarks.data import bulk_rows
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.stage import Stage
from command_line.children import ChildProcess

_TABLE: Final = "scattered"
_QUESTION: Final = "SELECT site, count(*) AS n, avg(value) AS mean FROM {} GROUP BY site"
_CLIENTS: Final = (1, 8, 32)
_WARM_QUESTIONS: Final = 12
_WITHIN: Final = timedelta(seconds=60)


def measure(stage: Stage) -> Iterator[Figure]:
    """One client warm and cold beside DuckDB itself; 1, 8 and 32 beside the bare server."""
    _scatter(stage)
    files = stage.files_of(_TABLE)
    asked = _QUESTION.format(_TABLE)
    read = _QUESTION.format(f"read_parquet({files})")
    yield _warm(stage, asked, read, len(files))
    yield _cold(stage, asked, read, len(files))
    for clients in _CLIENTS:
        yield _many(stage, asked, read, clients)


def _scatter(stage: Stage) -> None:
    """Writes of their own, each large enough for a file of its own in the store."""
    rows = bulk_rows(stage.sizes.scan_files * stage.sizes.rows_per_file)
    with stage.connect() as connection, connection.cursor() as cursor:
        for number in range(stage.sizes.scan_files):
            part = rows.slice(number * stage.sizes.rows_per_file, stage.sizes.rows_per_file)
            cursor.adbc_ingest(_TABLE, part, mode="create_append")
        cursor.execute(f"SELECT count(*) FROM {_TABLE}")  # noqa: S608 - a name of ours
        assert cursor.fetchall() == [(rows.num_rows,)]


def _warm(stage: Stage, asked: str, read: str, files: int) -> Figure:
    ours: list[float] = []
    limit: list[float] = []
    client = PlainClient(stage.uri)
    with duckdb.connect(config={"threads": "2"}) as connection:
        for _ in range(stage.sizes.repetitions):
            ours.append(_median_ms(lambda: client.answer(asked)))
            limit.append(_median_ms(lambda: connection.sql(read).to_arrow_table()))
    client.close()
    return _beside_duckdb(f"group-by over {files} files, warm, one client, p50", ours, limit)


def _cold(stage: Stage, asked: str, read: str, files: int) -> Figure:
    """The first query of a fresh serving process, and of a fresh DuckDB; files in memory."""
    ours: list[float] = []
    limit: list[float] = []
    for number in range(stage.sizes.repetitions):
        ours.append(_first_answer_ms(stage, asked, number))
        with duckdb.connect(config={"threads": "2"}) as connection:
            limit.append(_ms(lambda: connection.sql(read).to_arrow_table()))
    return _beside_duckdb(f"group-by over {files} files, cold, one client", ours, limit)


def _first_answer_ms(stage: Stage, asked: str, number: int) -> float:
    cache = {"DUCKMESH_CACHE_DIRECTORY": str(stage.directory / f"cache-cold-{number}")}
    fresh = ChildProcess(["serve", "--grace-seconds", "3"], {**stage.environment, **cache})
    fresh.start()
    try:
        client = PlainClient(fresh.await_ready(_WITHIN, Event()).partition(" ")[0])
        took = _ms(lambda: client.answer(asked))
        client.close()
    finally:
        fresh.stop(_WITHIN)
    return took


def _many(stage: Stage, asked: str, read: str, clients: int) -> Figure:
    ours: list[float] = []
    limit: list[float] = []
    # Every client must have answers inside the window.
    seconds = stage.sizes.seconds * max(1, clients // 8)
    for _ in range(stage.sizes.repetitions):
        for uri, sql, runs in ((stage.uri, asked, ours), (stage.bare_uri, read, limit)):
            answered = stage.crew.ask(uri, sql, clients=clients, seconds=seconds)
            if not answered:
                raise RuntimeError(f"no answer within {seconds:g} s to any of {clients} clients")
            runs.append(len(answered) / seconds)
    return Figure(
        benchmark="scans",
        what=f"group-by over {stage.sizes.scan_files} files, warm, {clients} "
        f"client{'s'[: clients > 1]}",
        unit="queries/s",
        runs=ours,
        limit="bare pyarrow server over DuckDB on the same files, as many clients",
        limit_runs=limit,
    )


def _beside_duckdb(what: str, ours: list[float], limit: list[float]) -> Figure:
    return Figure(
        benchmark="scans",
        what=what,
        unit="ms",
        runs=ours,
        limit="DuckDB in the client's process on the same files",
        limit_runs=limit,
        direction=Direction.LOWER,
        target=Target(None, None),
    )


def _median_ms(ask: Any) -> float:
    return percentile([_ms(ask) for _ in range(_WARM_QUESTIONS)], 50)


def _ms(ask: Any) -> float:
    asked_at = time.monotonic()
    answer: pa.Table = ask()
    assert answer.num_rows > 0
    return (time.monotonic() - asked_at) * 1000
