"""The smallest query and a large result, beside a bare server over the same DuckDB result."""

import time
from collections.abc import Iterator
from typing import Any, Final

from adbc_driver_flightsql import dbapi

from benchmarks.clients import PlainClient
from benchmarks.data import bulk_rows, one_row_batch
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.stage import Stage

_TABLE: Final = "answers"


def measure(stage: Stage) -> Iterator[Figure]:
    """`SELECT 1` over ADBC, and DoGet of the bulk rows."""
    with stage.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(_TABLE, bulk_rows(stage.sizes.bulk_rows), mode="create")
        cursor.execute(f"SELECT count(*) FROM {_TABLE}")  # noqa: S608 - a name of ours
        cursor.fetchall()
    yield _smallest(stage)
    yield _large(stage)


def _smallest(stage: Stage) -> Figure:
    ours: list[float] = []
    bare: list[float] = []
    with stage.connect() as connection, dbapi.connect(stage.bare_uri, autocommit=True) as limit:
        with connection.cursor() as cursor:
            # A session that has written: each query passes the barrier and resolves a snapshot.
            cursor.adbc_ingest("asked", one_row_batch(1), mode="create")
        for _ in range(stage.sizes.repetitions):
            ours.append(_median_ms(connection, stage.sizes.questions))
            bare.append(_median_ms(limit, stage.sizes.questions))
    return Figure(
        benchmark="queries",
        what="SELECT 1 over ADBC, end to end, one client, p50",
        unit="ms",
        runs=ours,
        limit="bare pyarrow server over DuckDB",
        limit_runs=bare,
        direction=Direction.LOWER,
        target=Target(3.0, 1.5),
    )


def _median_ms(connection: Any, questions: int) -> float:
    took: list[float] = []
    with connection.cursor() as cursor:
        for _ in range(questions):
            asked_at = time.monotonic()
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]
            took.append((time.monotonic() - asked_at) * 1000)
    return percentile(took, 50)


def _large(stage: Stage) -> Figure:
    files = f"read_parquet('{stage.objects}/*/{_TABLE}-*/*.parquet')"
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(stage.sizes.repetitions):
        ours.append(_rows_per_second(stage, stage.uri, _TABLE))
        bare.append(_rows_per_second(stage, stage.bare_uri, files))
    return Figure(
        benchmark="queries",
        what=f"DoGet of {stage.sizes.bulk_rows:,} rows, drained by one client",
        unit="rows/s",
        runs=ours,
        limit="bare pyarrow DoGet of the same DuckDB result",
        limit_runs=bare,
        target=Target(0.6, 0.85),
    )


def _rows_per_second(stage: Stage, uri: str, relation: str) -> float:
    client = PlainClient(uri)
    began = time.monotonic()
    read = client.read(f"SELECT id, measured_at, device, site, value, valid FROM {relation}")  # noqa: S608
    rows: int = sum(chunk.data.num_rows for chunk in read)
    took = time.monotonic() - began
    client.close()
    assert rows == stage.sizes.bulk_rows
    return rows / took
