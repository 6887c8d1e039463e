"""The same questions of one table with its native replica and without, in two serving processes."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from benchmarks.clients import PlainClient
from benchmarks.data import bulk_rows
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.stage import Serving, Stage

_TABLE: Final = "followed"
_QUESTIONS: Final = (
    ("group-by", "SELECT site, count(*) AS n, avg(value) AS mean FROM followed GROUP BY site"),
    ("one row by its number", "SELECT * FROM followed WHERE id = {middle}"),
    ("count of all rows", "SELECT count(*) AS n FROM followed"),
    ("the ten largest", "SELECT * FROM followed ORDER BY value DESC LIMIT 10"),
)
_CLIENTS: Final = (1, 8)
_WARM_QUESTIONS: Final = 12
_BUILT_WITHIN_SECONDS: Final = 300.0


def measure(stage: Stage) -> Iterator[Figure]:
    """Four questions of a table of many files by one client, and two of them by eight."""
    _fill(stage)
    middle = stage.sizes.scan_files * stage.sizes.rows_per_file // 2
    with ExitStack() as undo:
        serving = _serve(stage, undo, "true")
        with_replica, without = serving.uri, _serve(stage, undo, "false").uri
        _await_replica(serving)
        for name, question in _QUESTIONS:
            yield _one(stage, name, question.format(middle=middle), with_replica, without)
        for clients in _CLIENTS:
            for name, question in _QUESTIONS[:2]:
                asked = question.format(middle=middle)
                yield _many(stage, name, asked, clients, (with_replica, without))


def _fill(stage: Stage) -> None:
    rows = bulk_rows(stage.sizes.scan_files * stage.sizes.rows_per_file)
    with stage.connect() as connection, connection.cursor() as cursor:
        for number in range(stage.sizes.scan_files):
            part = rows.slice(number * stage.sizes.rows_per_file, stage.sizes.rows_per_file)
            cursor.adbc_ingest(_TABLE, part, mode="create_append")
        cursor.execute(f"SELECT count(*) FROM {_TABLE}")  # noqa: S608 - a name of ours
        assert cursor.fetchall() == [(rows.num_rows,)]


def _serve(stage: Stage, undo: ExitStack, replica: str) -> Serving:
    return stage.one_more_serve(
        undo,
        f"replica-{replica}",
        DUCKMESH_QUERY_REPLICA=replica,
        DUCKMESH_QUERY_REPLICA_AFTER_QUERIES="1",
    )


def _await_replica(serving: Serving) -> None:
    """Ask until answers come from the replica, whole."""
    client = PlainClient(serving.uri)
    deadline = time.monotonic() + _BUILT_WITHIN_SECONDS
    while serving.segments != 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no replica within {_BUILT_WITHIN_SECONDS:g} s")
        client.answer(f"SELECT count(*) AS n FROM {_TABLE}")  # noqa: S608 - a name of ours
    client.close()


def _one(stage: Stage, name: str, asked: str, with_replica: str, without: str) -> Figure:
    runs: dict[str, list[float]] = {with_replica: [], without: []}
    clients = {uri: PlainClient(uri) for uri in runs}
    for client in clients.values():
        client.answer(asked)
    for _ in range(stage.sizes.repetitions):
        for uri, client in clients.items():
            runs[uri].append(percentile([_ms(client, asked) for _ in range(_WARM_QUESTIONS)], 50))
    for client in clients.values():
        client.close()
    return Figure(
        benchmark="replicas",
        what=f"{name}, {stage.sizes.scan_files} files, warm, one client, p50",
        unit="ms",
        runs=runs[with_replica],
        limit="the same without a replica",
        limit_runs=runs[without],
        direction=Direction.LOWER,
        target=Target(None, None),
    )


def _many(stage: Stage, name: str, asked: str, clients: int, uris: tuple[str, str]) -> Figure:
    runs: dict[str, list[float]] = {uri: [] for uri in uris}
    # Every client must have answers inside the window.
    seconds = stage.sizes.seconds * max(1, clients // 2)
    for _ in range(stage.sizes.repetitions):
        for uri in uris:
            answered = stage.crew.ask(uri, asked, clients=clients, seconds=seconds)
            if not answered:
                raise RuntimeError(f"no answer within {seconds:g} s to any of {clients} clients")
            runs[uri].append(len(answered) / seconds)
    return Figure(
        benchmark="replicas",
        what=f"{name}, {stage.sizes.scan_files} files, warm, {clients} client{'s'[: clients > 1]}",
        unit="queries/s",
        runs=runs[uris[0]],
        limit="the same without a replica, as many clients",
        limit_runs=runs[uris[1]],
    )


def _ms(client: PlainClient, asked: str) -> float:
    asked_at = time.monotonic()
    assert client.answer(asked).num_rows > 0
    return (time.monotonic() - asked_at) * 1000
