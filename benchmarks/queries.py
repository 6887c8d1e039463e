"""The smallest query and a large result, beside a bare server over the same DuckDB result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from adbc_driver_flightsql import dbapi

from benchmarks.clients import PlainClient
from benchmarks.data import bulk_rows, one_row_batch
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.processor import processor_seconds
from benchmarks.stage import Stage

_TABLE: Final = "answers"
_POINT_QUESTIONS: Final = 40


_INLINE: Final = ", queries in the serving process"


def measure(stage: Stage) -> Iterator[Figure]:
    """`SELECT 1` and a point query over ADBC, and DoGet of the bulk rows.

    Each in workers, and in the serving process itself, in turns with the limit.
    """
    with stage.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(_TABLE, bulk_rows(stage.sizes.bulk_rows), mode="create")
        cursor.execute(f"SELECT count(*) FROM {_TABLE}")  # noqa: S608 - a name of ours
        cursor.fetchall()
        # A session that has written: each query passes the barrier and resolves a snapshot.
        cursor.adbc_ingest("asked", one_row_batch(1), mode="create")
    for name, uri in (("", stage.uri), (_INLINE, stage.inline_uri)):
        yield from _smallest(stage, name, uri, "SELECT 1")
    # Literals are answered without a worker; this sum is not.
    yield from _smallest(stage, "", stage.uri, "SELECT 1 + 1")
    for name, uri in (("", stage.uri), (_INLINE, stage.inline_uri)):
        yield _point(stage, name, uri)
    for name, uri in (("", stage.uri), (_INLINE, stage.inline_uri)):
        yield from _large(stage, name, uri)


class _Processor:
    """The processor time of the server at an address, one run after the other."""

    def __init__(self, stage: Stage, uri: str) -> None:
        self._pid = stage.pids[uri]
        self.runs: list[float] = []

    @contextmanager
    def run(self, *, per: float) -> Iterator[None]:
        before = processor_seconds(self._pid)
        yield
        self.runs.append((processor_seconds(self._pid) - before) / per)


def _processor_figure(what: str, unit: str, ours: _Processor, bare: _Processor) -> Figure:
    return Figure(
        benchmark="queries",
        what=f"processor time of the server and its workers: {what}",
        unit=unit,
        runs=ours.runs,
        limit="bare pyarrow server",
        # Clocks of processes tick in hundredths of a second: a short run may see none.
        limit_runs=[max(each, 1e-3) for each in bare.runs],
        direction=Direction.LOWER,
    )


def _smallest(stage: Stage, name: str, uri: str, sql: str) -> Iterator[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    used, used_bare = _Processor(stage, uri), _Processor(stage, stage.bare_uri)
    per = stage.sizes.questions / 1000
    with stage.connect(uri) as connection, dbapi.connect(stage.bare_uri, autocommit=True) as limit:
        with connection.cursor() as cursor:
            cursor.adbc_ingest("asked", one_row_batch(1), mode="append")
        for _ in range(stage.sizes.repetitions):
            with used.run(per=per):
                ours.append(_median_ms(connection, stage.sizes.questions, sql))
            with used_bare.run(per=per):
                bare.append(_median_ms(limit, stage.sizes.questions, sql))
    yield Figure(
        benchmark="queries",
        what=f"{sql} over ADBC, end to end, one client, p50{name}",
        unit="ms",
        runs=ours,
        limit="bare pyarrow server over DuckDB",
        limit_runs=bare,
        direction=Direction.LOWER,
        target=Target(3.0, 1.5),
    )
    yield _processor_figure(f"{sql}{name}", "ms a query", used, used_bare)


def _point(stage: Stage, name: str, uri: str) -> Figure:
    ours: list[float] = []
    bare: list[float] = []
    asked = f"SELECT value FROM {{}} WHERE id = {stage.sizes.bulk_rows // 3}"  # noqa: S608
    with stage.connect(uri) as connection, dbapi.connect(stage.bare_uri, autocommit=True) as limit:
        for _ in range(stage.sizes.repetitions):
            ours.append(_median_ms(connection, _POINT_QUESTIONS, asked.format(_TABLE)))
            bare.append(_median_ms(limit, _POINT_QUESTIONS, asked.format(_files(stage))))
    return Figure(
        benchmark="queries",
        what=f"one row of {stage.sizes.bulk_rows:,} by its number, over ADBC, p50{name}",
        unit="ms",
        runs=ours,
        limit="bare pyarrow server over DuckDB on the same files",
        limit_runs=bare,
        direction=Direction.LOWER,
        target=Target(3.0, 1.5),
    )


def _median_ms(connection: Any, questions: int, sql: str) -> float:
    took: list[float] = []
    with connection.cursor() as cursor:
        for _ in range(questions):
            asked_at = time.monotonic()
            cursor.execute(sql)
            assert len(cursor.fetchall()) == 1
            took.append((time.monotonic() - asked_at) * 1000)
    return percentile(took, 50)


def _files(stage: Stage) -> str:
    return f"read_parquet('{stage.objects}/*/{_TABLE}-*/*.parquet')"


def _large(stage: Stage, name: str, uri: str) -> Iterator[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    used, used_bare = _Processor(stage, uri), _Processor(stage, stage.bare_uri)
    for _ in range(stage.sizes.repetitions):
        with used.run(per=1e-3):
            ours.append(_rows_per_second(stage, uri, _TABLE))
        with used_bare.run(per=1e-3):
            bare.append(_rows_per_second(stage, stage.bare_uri, _files(stage)))
    what = f"DoGet of {stage.sizes.bulk_rows:,} rows{name}"
    yield _processor_figure(what, "ms", used, used_bare)
    yield Figure(
        benchmark="queries",
        what=f"DoGet of {stage.sizes.bulk_rows:,} rows, drained by one client{name}",
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
