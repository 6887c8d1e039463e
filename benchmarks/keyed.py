"""A table with a primary key of which some rows are superseded, beside DuckDB on the rows it began
with.

The newest snapshot is asked of a process that follows it with a native replica, and of one that
reads data files: what every older snapshot and every cold table costs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.figures import Direction, Figure, Target
from benchmarks.stage import Serving, Stage

_QUESTIONS: Final = (
    "SELECT count(*) AS n FROM {table}",
    "SELECT number, count(*) AS n, sum(value) AS total FROM {table} GROUP BY number",
    "SELECT name, count(*) AS n, sum(value) AS total FROM {table} GROUP BY name",
)
_SHARES: Final = ((1, Target(3.0, 1.0), Target(3.0, 2.0)), (10, Target(5.0, 1.2), Target(5.0, 3.0)))
_COLUMNS: Final = "id BIGINT PRIMARY KEY, number BIGINT, name VARCHAR, value DOUBLE"
_REPEATED: Final = 5
_BATCH_ROWS: Final = 65_536
_FOLLOWED_WITHIN_SECONDS: Final = 300.0

_Ask = Callable[[str], pa.Table]


@dataclass
class _Side:
    """One way to be answered, and the seconds that each pass over the questions took."""

    ask: _Ask
    table: str
    totals: list[float] = field(default_factory=list)

    def answers(self) -> list[pa.Table]:
        return [self.ask(each.format(table=self.table)) for each in _QUESTIONS]

    def take(self) -> None:
        began = time.monotonic()
        self.answers()
        self.totals.append((time.monotonic() - began) * 1000)


def measure(stage: Stage) -> Iterator[Figure]:
    """Three questions over all rows, with 1 and with 10 of 100 rows superseded."""
    rows = stage.sizes.bulk_rows // 2
    with ExitStack() as undo:
        following = stage.one_more_serve(
            undo,
            "keyed-replica",
            DUCKMESH_QUERY_REPLICA="true",
            DUCKMESH_QUERY_REPLICA_AFTER_QUERIES="1",
        )
        reading = stage.one_more_serve(undo, "keyed-files", DUCKMESH_QUERY_REPLICA="false")
        for share, newest, older in _SHARES:
            yield from _superseded(
                stage, undo, (following, reading), rows, share, aims=(newest, older)
            )


def _superseded(
    stage: Stage,
    undo: ExitStack,
    servings: tuple[Serving, Serving],
    rows: int,
    share: int,
    *,
    aims: Sequence[Target],
) -> Iterator[Figure]:
    table = f"keyed_{share}"
    began_with = _rows(rows)
    _write(stage, table, began_with, create=True)
    stage.compact(table)
    files = stage.files_of(table)
    step = 100 // share
    newer = _rows(rows, step, more=1)
    _write(stage, table, newer)
    total = pc.sum(began_with.column("value")).as_py() + newer.num_rows
    followed, read = (_product(stage, undo, serving, table) for serving in servings)
    limit = _duckdb(undo, files)
    _await_replica(followed, servings[0])
    _check(rows, total, followed, read)
    for _ in range(max(_REPEATED, stage.sizes.repetitions)):
        for side in (followed, read, limit):
            side.take()
    for side, name, aim in (
        (followed, "newest snapshot, followed by a replica", aims[0]),
        (read, "read from files, as older snapshots are", aims[1]),
    ):
        yield Figure(
            benchmark="keyed",
            what=f"{share} % of {rows:,} rows superseded, three questions, {name}",
            unit="ms",
            runs=side.totals,
            limit="DuckDB in the client's process on the files without what came later",
            limit_runs=limit.totals,
            direction=Direction.LOWER,
            target=aim,
        )


def _rows(count: int, step: int = 1, *, more: int = 0) -> pa.Table:
    """Each `step`th of so many rows, their values larger by `more`."""
    ids = pa.array(range(0, count, step), pa.int64())
    scattered = pc.bit_wise_and(pc.multiply(ids, pa.scalar(2_654_435_761)), pa.scalar(2**31 - 1))
    names = pc.cast(pc.shift_right(scattered, pa.scalar(14)), pa.string())
    return pa.table(
        {
            "id": ids,
            "number": pc.bit_wise_and(scattered, pa.scalar(1023)),
            "name": pc.binary_join_element_wise("name", names, "-"),
            "value": pc.cast(
                pc.add(pc.bit_wise_and(scattered, pa.scalar(65_535)), pa.scalar(more)),
                pa.float64(),
            ),
        }
    )


def _write(stage: Stage, table: str, rows: pa.Table, *, create: bool = False) -> None:
    """Ingest the rows, and wait until they are visible."""
    with stage.connect() as connection, connection.cursor() as cursor:
        if create:
            cursor.execute(f"CREATE TABLE {table} ({_COLUMNS})")
        cursor.adbc_ingest(table, rows.to_reader(_BATCH_ROWS), mode="append")
        cursor.execute(f"SELECT count(*) FROM {table} WHERE id < 0")  # noqa: S608 - a name of ours
        cursor.fetchall()


def _product(stage: Stage, undo: ExitStack, serving: Serving, table: str) -> _Side:
    connection = undo.enter_context(stage.connect(serving.uri))
    cursor = undo.enter_context(connection.cursor())

    def ask(sql: str) -> pa.Table:
        cursor.execute(sql)
        return cursor.fetch_arrow_table()

    return _Side(ask, table)


def _duckdb(undo: ExitStack, files: Sequence[str]) -> _Side:
    """DuckDB in this process, with as many threads as a worker of the product has."""
    connection: Any = undo.enter_context(duckdb.connect(config={"threads": "2"}))
    connection.execute(f"CREATE VIEW keyed AS FROM read_parquet({list(files)})")
    return _Side(lambda sql: connection.sql(sql).to_arrow_table(), "keyed")


def _await_replica(side: _Side, serving: Serving) -> None:
    """Ask until the process follows the table: it builds no further segment."""
    deadline = time.monotonic() + _FOLLOWED_WITHIN_SECONDS
    before = serving.builds
    while True:
        quiet_from = time.monotonic()
        while serving.builds == before and time.monotonic() < quiet_from + 15:
            side.answers()
        if serving.builds == before and before:
            return
        before = serving.builds
        if time.monotonic() > deadline:
            raise RuntimeError(f"no replica within {_FOLLOWED_WITHIN_SECONDS:g} s")


def _check(rows: int, total: float, *sides: _Side) -> None:
    """Every key once, with its newest value. It warms the sides up, too."""
    for side in sides:
        counted, *grouped = side.answers()
        assert counted.column("n").to_pylist() == [rows]
        for each in grouped:
            assert pc.sum(each.column("n")).as_py() == rows
            assert pc.sum(each.column("total")).as_py() == total
