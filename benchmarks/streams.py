"""Rows acknowledged per second over streams that stay open, beside INSERTs into this Postgres."""

from collections.abc import Iterator
from typing import Final

from benchmarks.clients import Way
from benchmarks.data import ROW_COLUMNS_SQL
from benchmarks.figures import Figure, Target
from benchmarks.stage import Stage

_TARGETS: Final = {
    1: Target(0.56, 1.24),
    2: Target(0.73, 1.79),
    4: Target(0.56, 1.61),
    8: Target(0.31, 1.26),
}


def measure(stage: Stage) -> Iterator[Figure]:
    """One figure for each number of streams."""
    stage.create_table("streams")
    stage.warm_up("streams")
    with stage.postgres() as connection:
        connection.execute(f"CREATE TABLE streams_limit ({ROW_COLUMNS_SQL})".encode())
    for streams, target in _TARGETS.items():
        ours: list[float] = []
        inserts: list[float] = []
        for _ in range(stage.sizes.repetitions):
            ours.append(_per_second(stage, Way.STREAM, streams))
            inserts.append(_per_second(stage, Way.INSERT, streams))
        yield Figure(
            benchmark="streams",
            what=f"single-row batches acknowledged, pipelined, {_streams(streams)}",
            unit="rows/s",
            runs=ours,
            limit="single-row INSERTs into the same Postgres, as many connections",
            limit_runs=inserts,
            target=target,
        )


def _per_second(stage: Stage, way: Way, clients: int) -> float:
    seconds = stage.sizes.seconds
    ours = way is Way.STREAM
    latencies = stage.crew.write(
        way,
        stage.uri if ours else stage.dsn,
        table="streams" if ours else "streams_limit",
        clients=clients,
        seconds=seconds,
    )
    return len(latencies) / seconds


def _streams(number: int) -> str:
    return "1 stream" if number == 1 else f"{number} streams"
