"""A bulk `adbc_ingest` in each mode, beside pyarrow's own Parquet write of the same rows."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import bulk_rows
from benchmarks.figures import Direction, Figure, Target
from benchmarks.memory import MemoryWatch, resident_megabytes
from benchmarks.stage import Stage

_MODES: Final = ("create", "append", "create_append", "replace")
_RATIO: Final = Target(0.3, 0.6)
_TIMEOUT: Final = "adbc.flight.sql.rpc.call_header.x-duckmesh-consistency-timeout-ms"
_LIMIT: Final = "pyarrow write_table (snappy) and fsync of the same rows"


@dataclass(slots=True)
class _Runs:
    """Rows per second, run by run."""

    acked: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    parquet: list[float] = field(default_factory=list)


def measure(stage: Stage) -> Iterator[Figure]:
    """Acknowledged and visible rows per second for each mode, and the memory of `serve`."""
    rows = bulk_rows(stage.sizes.bulk_rows)
    pid = stage.serve.pid
    assert pid is not None, "the serving process has ended"
    idle = resident_megabytes(pid)
    runs = {mode: _Runs() for mode in _MODES}
    added: list[float] = []
    for number in range(stage.sizes.bulk_repetitions):
        for mode in _MODES:
            with MemoryWatch(pid) as memory:
                acked, visible = _ingest(stage, rows, f"bulk_{number}", mode)
            added.append(memory.peak_megabytes - memory.before_megabytes)
            parquet = _write_parquet(rows, stage.directory / "limit.parquet")
            runs[mode].acked.append(rows.num_rows / acked)
            runs[mode].visible.append(rows.num_rows / visible)
            runs[mode].parquet.append(rows.num_rows / parquet)
    size = f"{rows.num_rows:,} rows x {rows.num_columns} columns"
    for mode, measured in runs.items():
        yield _figure(f"adbc_ingest of {size}, {mode}, acknowledged", measured.acked, measured)
        yield _figure(f"adbc_ingest of {size}, {mode}, visible", measured.visible, measured)
    seen = [each for measured in runs.values() for each in measured.visible]
    yield Figure(
        benchmark="ingest",
        what="the same in rows per second, all modes, visible",
        unit="rows/s",
        runs=seen,
        target=Target(None, 1_000_000, of_ratio=False),
    )
    yield _memory("memory of serve, idle, before the first bulk ingest", [idle], 300)
    yield _memory("memory that one bulk ingest adds to serve at its peak", added, 500)


def _figure(what: str, runs: list[float], measured: _Runs) -> Figure:
    return Figure(
        benchmark="ingest",
        what=what,
        unit="rows/s",
        runs=runs,
        limit=_LIMIT,
        limit_runs=measured.parquet,
        target=_RATIO,
    )


def _memory(what: str, runs: list[float], floor: float) -> Figure:
    return Figure(
        benchmark="ingest",
        what=what,
        unit="MB",
        runs=runs,
        direction=Direction.LOWER,
        target=Target(floor, None, of_ratio=False),
    )


def _ingest(stage: Stage, rows: pa.Table, name: str, mode: str) -> tuple[float, float]:
    """Seconds from the call to its acknowledgement, and to a query that sees the rows."""
    # A session reads its own writes: the query waits for the ingest's token.
    with stage.connect() as connection:
        began = time.monotonic()
        with connection.cursor() as cursor:
            counted = cursor.adbc_ingest(name, rows, mode=mode)
        acked = time.monotonic() - began
        with connection.cursor(adbc_stmt_kwargs={_TIMEOUT: "60000"}) as cursor:
            cursor.execute(f"SELECT count(*) FROM {name}")  # noqa: S608 - a name of ours
            (found,) = cursor.fetchone()
        visible = time.monotonic() - began
    assert counted == rows.num_rows
    expected = {"create": 1, "append": 2, "create_append": 3, "replace": 1}[mode]
    assert found == expected * rows.num_rows
    return acked, visible


def _write_parquet(rows: pa.Table, path: Path) -> float:
    began = time.monotonic()
    with path.open("wb") as file:
        pq.write_table(rows, file, compression="snappy")
        file.flush()
        os.fsync(file.fileno())
    took = time.monotonic() - began
    path.unlink()
    return took
