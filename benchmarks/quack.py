"""Single-row writes in the shape of DuckDB's post on Quack, beside INSERTs into this Postgres.

The post gives rows per second of Quack, of GizmoSQL and of Postgres at 1, 2, 4 and 8 threads of
another machine. Their ratios to their Postgres stand beside our ratio to the Postgres here.
"""

from collections.abc import Iterator
from typing import Final

from benchmarks.clients import Way
from benchmarks.data import ROW_COLUMNS_SQL
from benchmarks.figures import Figure
from benchmarks.stage import Stage

_PUBLISHED: Final = {
    # threads: rows per second of GizmoSQL, of Quack, and of their Postgres
    1: (469, 1_038, 839),
    2: (799, 1_956, 1_094),
    4: (1_224, 3_504, 2_180),
    8: (1_358, 5_434, 4_320),
}
_WAYS: Final = {
    Way.SQL_INSERT: "INSERT statements over ADBC",
    Way.ONE_RPC_EACH: "request and response, one DoPut each",
    Way.STREAM: "pipelined, a stream each",
}
_OURS: Final = "quack"
_LIMIT: Final = "quack_limit"


def measure(stage: Stage) -> Iterator[Figure]:
    """One figure for each way and number of threads; all ways in turns with the INSERTs."""
    stage.create_table(_OURS)
    stage.warm_up(_OURS)
    with stage.postgres() as connection:
        connection.execute(f"CREATE TABLE {_LIMIT} ({ROW_COLUMNS_SQL})".encode())
    for threads in _PUBLISHED:
        ours: dict[Way, list[float]] = {way: [] for way in _WAYS}
        inserts: list[float] = []
        for _ in range(stage.sizes.repetitions):
            for way, runs in ours.items():
                runs.append(_per_second(stage, way, threads))
            inserts.append(_per_second(stage, Way.INSERT, threads))
        for way, runs in ours.items():
            yield _figure(way, threads, runs, inserts)


def _figure(way: Way, threads: int, runs: list[float], inserts: list[float]) -> Figure:
    gizmosql, quack, postgres = _PUBLISHED[threads]
    published = f"GizmoSQL {gizmosql / postgres:.2f}x, Quack {quack / postgres:.2f}x"
    return Figure(
        benchmark="quack",
        what=f"single-row writes, {threads} thread{'s'[: threads > 1]}, {_WAYS[way]}",
        unit="rows/s",
        runs=runs,
        limit=f"single-row INSERTs into the same Postgres (published of theirs: {published})",
        limit_runs=inserts,
    )


def _per_second(stage: Stage, way: Way, clients: int) -> float:
    into_postgres = way is Way.INSERT
    latencies = stage.crew.write(
        way,
        stage.dsn if into_postgres else stage.uri,
        table=_LIMIT if into_postgres else _OURS,
        clients=clients,
        seconds=stage.sizes.seconds,
    )
    return len(latencies) / stage.sizes.seconds
