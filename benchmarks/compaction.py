"""A table of a thousand micro-batches before and after compaction, beside the same rows at once."""

import time
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from benchmarks.clients import PlainClient
from benchmarks.data import bulk_rows
from benchmarks.figures import Direction, Figure, Target, percentile
from benchmarks.stage import Stage

_MICRO: Final = "micro"
_WHOLE: Final = "whole"
_ROWS_PER_BATCH: Final = 100
_QUESTIONS: Final = 20
_ASKED: Final = "SELECT site, count(*) AS n, avg(value) AS mean FROM {} GROUP BY site"
_SEEN: Final = f"SELECT 1 AS one WHERE EXISTS (FROM {_MICRO})"
_TARGET: Final = Target(3.0, 1.5)
"""Of the same rows in one file."""


def measure(stage: Stage) -> Iterator[Figure]:
    """The same group-by: every batch published by itself, then compacted."""
    batches = 10 * stage.sizes.scan_files
    rows = bulk_rows(batches * _ROWS_PER_BATCH)
    stage.create_table(_MICRO, rows.schema)
    with stage.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(_WHOLE, rows, mode="create")
    _write_one_by_one(stage, rows, batches)
    yield _beside_whole(stage, f"group-by over {batches:,} micro-batches, as they were published")
    stage.compact(_MICRO)
    yield _beside_whole(stage, f"group-by over {batches:,} micro-batches, compacted")


def _write_one_by_one(stage: Stage, rows: pa.Table, batches: int) -> None:
    """Each write is seen before the next one: so each is a publication."""
    client = PlainClient(stage.uri)
    for number in range(batches):
        part = rows.slice(number * _ROWS_PER_BATCH, _ROWS_PER_BATCH).combine_chunks()
        token = client.put(_MICRO, part.to_batches()[0])
        client.read(_SEEN, token=token).read_all()
    client.close()


def _beside_whole(stage: Stage, what: str) -> Figure:
    ours: list[float] = []
    whole: list[float] = []
    client = PlainClient(stage.uri)
    for _ in range(stage.sizes.repetitions):
        ours.append(_median_ms(client, _MICRO))
        whole.append(_median_ms(client, _WHOLE))
    client.close()
    return Figure(
        benchmark="compaction",
        what=what,
        unit="ms",
        runs=ours,
        limit="the same rows, written at once",
        limit_runs=whole,
        direction=Direction.LOWER,
        target=_TARGET,
    )


def _median_ms(client: PlainClient, table: str) -> float:
    took: list[float] = []
    for _ in range(_QUESTIONS):
        asked_at = time.monotonic()
        assert client.answer(_ASKED.format(table)).num_rows > 0
        took.append((time.monotonic() - asked_at) * 1000)
    return percentile(took, 50)
