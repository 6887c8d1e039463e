"""The 22 queries of TPC-H over a compacted snapshot, beside DuckDB itself on the same files."""

import fcntl
import json
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import peers
from benchmarks.figures import Direction, Figure, Target
from benchmarks.processor import processor_seconds
from benchmarks.stage import Serving, Stage

_TABLES: Final = (
    "customer",
    "lineitem",
    "nation",
    "orders",
    "part",
    "partsupp",
    "region",
    "supplier",
)
_ON_FILES: Final = Target(1.3, 1.05)
_ON_REPLICA: Final = Target(1.3, 1.0)
_GENERATE_SECONDS: Final = 900
_BATCH_ROWS: Final = 65_536
_REPLICA_WITHIN_SECONDS: Final = 300
_REPLICATED_FROM_BYTES: Final = 2**20
"""A smaller table has no native replica, and needs none."""


@dataclass(slots=True)
class _Side:
    """One that answers: how long each query took, pass after pass."""

    ask: Callable[[str], pa.Table]
    processor: Callable[[], float]
    passes: list[dict[int, float]] = field(default_factory=list)
    processor_runs: list[float] = field(default_factory=list)

    @property
    def totals(self) -> list[float]:
        return [sum(each.values()) for each in self.passes]

    @property
    def geometric_means(self) -> list[float]:
        return [
            math.exp(sum(map(math.log, each.values())) / len(each)) * 1000 for each in self.passes
        ]

    def median(self, number: int) -> float:
        took = sorted(each[number] for each in self.passes)
        return took[len(took) // 2]


def measure(stage: Stage) -> Iterator[Figure]:
    """All queries in turns: in the product from its files, from its replica, and in DuckDB."""
    scale = stage.sizes.tpch_scale
    named = f"TPC-H SF {scale:g}"
    try:
        data = _generated(scale)
    except peers.NotRun as reason:
        yield peers.not_run("tpch", f"{named}, 22 queries", "s", reason)
        return
    for table in _TABLES:
        _load(stage, table, data / f"{table}.parquet")
    texts = json.loads((data / "queries.json").read_text(encoding="utf-8"))
    queries = {int(number): text for number, text in texts.items()}
    with ExitStack() as undo:
        files, _ = _product(stage, undo, replica=False)
        replica, serving = _product(stage, undo, replica=True)
        limit = _duckdb(stage, undo)
        _agree(queries, files, limit)
        _await_replica(stage, queries, replica, serving)
        _agree(queries, replica, limit)
        for _ in range(stage.sizes.repetitions):
            _pass(queries, (files, replica, limit))
    yield from _figures(named, files, limit, _ON_FILES)
    yield from _figures(f"{named}, native replica", replica, limit, _ON_REPLICA)


def _generated(scale: float) -> Path:
    """The folder with the tables as Parquet and the queries, written once. Raises NotRun."""
    folder = peers.cache_directory() / f"tpch-{scale:g}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            # Die before the rename, and the next run begins anew.
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            peers.run("tpch_data", [str(scale), str(unfinished)], seconds=_GENERATE_SECONDS)
            unfinished.rename(folder)
    return folder


def _load(stage: Stage, table: str, file: Path) -> None:
    """Ingest the table in one stream, as a client does, and merge its files."""
    with pq.ParquetFile(file) as source:
        reader = pa.RecordBatchReader.from_batches(
            source.schema_arrow, source.iter_batches(_BATCH_ROWS)
        )
        with stage.connect() as connection, connection.cursor() as cursor:
            cursor.adbc_ingest(table, reader, mode="create")
            cursor.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - a name of ours
            assert cursor.fetchone() == (source.metadata.num_rows,)
    stage.compact(table)


def _product(stage: Stage, undo: ExitStack, *, replica: bool) -> tuple[_Side, Serving]:
    serving = stage.one_more_serve(
        undo,
        f"tpch-replica-{replica}",
        DUCKMESH_QUERY_REPLICA=str(replica).lower(),
        DUCKMESH_QUERY_REPLICA_AFTER_QUERIES="1",
    )
    connection = undo.enter_context(stage.connect(serving.uri))
    cursor = undo.enter_context(connection.cursor())

    def ask(sql: str) -> pa.Table:
        cursor.execute(sql)
        return cursor.fetch_arrow_table()

    return _Side(ask, lambda: processor_seconds(serving.pid)), serving


def _duckdb(stage: Stage, undo: ExitStack) -> _Side:
    """DuckDB in this process, with as many threads as a worker of the product has."""
    connection: Any = undo.enter_context(duckdb.connect(config={"threads": "2"}))
    for table in _TABLES:
        files = stage.files_of(table)
        connection.execute(f"CREATE VIEW {table} AS FROM read_parquet({files})")
    return _Side(lambda sql: connection.sql(sql).to_arrow_table(), _own_processor_seconds)


def _own_processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _pass(queries: dict[int, str], sides: Sequence[_Side]) -> None:
    """Each query on each side, one right after the other: a load from elsewhere weighs on all."""
    for side in sides:
        side.passes.append({})
        side.processor_runs.append(0.0)
    for number, sql in queries.items():
        for side in sides:
            before, began = side.processor(), time.monotonic()
            side.ask(sql)
            side.passes[-1][number] = time.monotonic() - began
            side.processor_runs[-1] += side.processor() - before


def _agree(queries: dict[int, str], ours: _Side, limit: _Side) -> None:
    """Both sides give the same answers. It warms both up, too."""
    for number, sql in queries.items():
        answers = [side.ask(sql).to_pylist() for side in (ours, limit)]
        alike = len(answers[0]) == len(answers[1]) and all(
            _alike(one[name], other[name])
            for one, other in zip(*answers, strict=True)
            for name in other
        )
        assert alike, f"query {number} has another answer than DuckDB's"


def _alike(one: Any, other: Any) -> bool:
    # A sum of doubles depends on the order in which threads come to it.
    if isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _await_replica(stage: Stage, queries: dict[int, str], side: _Side, serving: Serving) -> None:
    """Ask until every table that is large enough is read from a segment."""
    sizes = [sum(Path(file).stat().st_size for file in stage.files_of(t)) for t in _TABLES]
    large = sum(size >= _REPLICATED_FROM_BYTES for size in sizes)
    deadline = time.monotonic() + _REPLICA_WITHIN_SECONDS
    while serving.segments < large:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no replica within {_REPLICA_WITHIN_SECONDS} s")
        for sql in queries.values():
            side.ask(sql)


def _figures(what: str, side: _Side, limit: _Side, target: Target) -> Iterator[Figure]:
    worst = max(limit.passes[0], key=lambda number: side.median(number) / limit.median(number))
    for name, unit, runs, limits, aim in (
        ("22 queries, total", "s", side.totals, limit.totals, target),
        (
            "a query, geometric mean",
            "ms",
            side.geometric_means,
            limit.geometric_means,
            target,
        ),
        (
            f"query {worst}, which has the worst ratio",
            "ms",
            [each[worst] * 1000 for each in side.passes],
            [each[worst] * 1000 for each in limit.passes],
            Target(None, None),
        ),
        (
            "22 queries, processor time",
            "s",
            side.processor_runs,
            limit.processor_runs,
            Target(None, None),
        ),
    ):
        yield Figure(
            benchmark="tpch",
            what=f"{what}, {name}",
            unit=unit,
            runs=runs,
            limit="DuckDB in the client's process on the same files",
            limit_runs=limits,
            direction=Direction.LOWER,
            target=aim,
        )
