"""Snapshots under queries: swaps, open streams, changed columns, many threads, many tenants."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, Invalid, NotFound, Unavailable
from query_engine.engine import QueryEngine
from query_engine.relations import Relation, RelationSet
from tests.query_engine.conftest import HERE_AND_WORKERS, NUMBERS, Lake


def growing(lake: Lake, snapshots: int, rows: int = 1) -> list[RelationSet]:
    """Snapshots of one table `t`, each with one file more than the one before."""
    files: tuple[Path, ...] = ()
    sets = []
    for number in range(1, snapshots + 1):
        columns = {"a": [number] * rows, "b": ["x"] * rows}
        files = (*files, lake.write(NUMBERS, columns))
        sets.append(lake.snapshot(Relation("t", NUMBERS, files)))
    return sets


def instances(engine: QueryEngine) -> int | None:
    """DuckDB instances in this process; None where they are the workers'."""
    return getattr(engine._answers, "instances", None)


def test_an_empty_relation_has_its_columns_and_no_rows(numbers, ask) -> None:
    table = ask.table("SELECT * FROM nothing", numbers)
    assert table.schema.names == ["a", "b"]
    assert table.schema.types == [pa.int64(), pa.string()]
    assert table.num_rows == 0
    assert ask.rows("SELECT count(*) FROM nothing", numbers) == [(0,)]


def test_each_snapshot_is_read_as_it_was_in_any_order(lake, ask, engine) -> None:
    sets = growing(lake, 6)
    for at in (5, 0, 3, 3, 1, 4, 2, 5):
        assert ask.rows("SELECT count(*), sum(a) FROM t", sets[at]) == [
            (at + 1, (at + 1) * (at + 2) // 2)
        ]
    assert instances(engine) in (1, None), "one instance reads every snapshot of the same columns"


def test_an_open_stream_keeps_its_snapshot_while_others_are_queried(lake, engine, ask) -> None:
    rows = 300_000
    files: tuple[Path, ...] = ()
    for number in (1, 2):
        filled = {"a": pa.array([number] * rows), "b": pa.array(["x" * 30] * rows)}
        files = (*files, lake.write(NUMBERS, filled))
    old = lake.snapshot(Relation("t", NUMBERS, files))
    with engine.run("SELECT * FROM t", old) as running:
        got = [running.reader.read_next_batch()]
        for grown in growing(lake, 10):
            last = grown.relations[0].files[-1]
            newer = lake.snapshot(Relation("t", NUMBERS, (*files, last)))
            assert ask.rows("SELECT count(*) FROM t", newer) == [(2 * rows + 1,)]
        empty = lake.snapshot(Relation("t", NUMBERS, ()))
        assert ask.rows("SELECT count(*) FROM t", empty) == [(0,)]
        got += list(running.reader)
    table = pa.Table.from_batches(got)
    assert table.num_rows == 2 * rows
    assert sum(table["a"].to_pylist()) == 3 * rows


def test_eight_threads_at_different_snapshots_get_exact_results(lake, engine, ask) -> None:
    sets = growing(lake, 12, rows=50)
    failures: list[str] = []

    def query(seed: int) -> None:
        for turn in range(25):
            at = (seed * 7 + turn * 5) % len(sets)
            found = ask.rows("SELECT count(*), sum(a), max(a) FROM t", sets[at])
            expected = [(50 * (at + 1), 25 * (at + 1) * (at + 2), at + 1)]
            if found != expected:
                failures.append(f"snapshot {at}: {found} is not {expected}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(query, range(8)))
    assert failures == []
    assert instances(engine) in (1, None)


def test_streams_of_eight_threads_survive_the_swaps_of_all(lake, engine) -> None:
    sets = growing(lake, 8, rows=40_000)
    start = threading.Barrier(8)

    def query(at: int) -> tuple[int, int]:
        start.wait(timeout=30)
        counted = total = 0
        for _ in range(3):
            with engine.run("SELECT a FROM t", sets[at]) as running:
                for batch in running.reader:
                    counted += batch.num_rows
                    total += pa.compute.sum(batch["a"]).as_py()
        return counted, total

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(query, range(8)))
    assert results == [
        (3 * 40_000 * (at + 1), 3 * 40_000 * (at + 1) * (at + 2) // 2) for at in range(8)
    ]


def test_columns_change_between_snapshots_and_each_is_read_with_its_own(lake, ask, engine) -> None:
    first = lake.schema(a=(1, pa.int32()), b=(2, pa.string()), c=(3, pa.int64()))
    old_file = lake.write(first, {"a": [1], "b": ["x"], "c": [9]})
    # b is renamed, a is widened, c is dropped, d is added; then c comes back as another column.
    second = lake.schema(bee=(2, pa.string()), a=(1, pa.int64()), d=(4, pa.float64()))
    new_file = lake.write(second, {"a": [2**40], "bee": ["y"], "d": [1.5]})
    third = lake.schema(a=(1, pa.int64()), c=(5, pa.string()))
    before = lake.snapshot(Relation("t", first, (old_file,)))
    after = lake.snapshot(Relation("t", second, (old_file, new_file)))
    last = lake.snapshot(Relation("t", third, (old_file, new_file)))

    for _ in range(2):
        assert ask.rows("SELECT * FROM t", before) == [(1, "x", 9)]
        assert ask.rows("SELECT * FROM t ORDER BY a", after) == [
            ("x", 1, None),
            ("y", 2**40, 1.5),
        ]
        assert ask.rows("SELECT * FROM t ORDER BY a", last) == [(1, None), (2**40, None)]
    assert ask.rows("SELECT bee FROM t WHERE a = 1", after) == [("x",)]
    assert ask.rows("SELECT count(*) FROM t WHERE d IS NULL", after) == [(1,)]
    assert ask.rows("SELECT a FROM t WHERE a > 1", after) == [(2**40,)]
    assert instances(engine) in (3, None)
    assert ask.table("SELECT * FROM t", after).schema.types == [
        pa.string(),
        pa.int64(),
        pa.float64(),
    ]


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        (pa.int8(), pa.int64(), 7),
        (pa.uint32(), pa.int64(), 2**32 - 1),
        (pa.float32(), pa.float64(), 0.5),
        (pa.int32(), pa.float64(), 3),
    ],
)
def test_a_widened_column_filters_old_files_by_its_new_type(old, new, value, lake, ask):
    path = lake.write(lake.schema(a=(1, old)), {"a": [value, 0]})
    relations = lake.snapshot(Relation("t", lake.schema(a=(1, new)), (path,)))
    assert ask.rows("SELECT a FROM t WHERE a > 0", relations) == [(value,)]
    assert ask.rows(f"SELECT a FROM t WHERE a = {value}", relations) == [(value,)]
    assert ask.table("SELECT a FROM t", relations).schema.types == [new]


def test_a_dropped_table_is_gone_from_the_next_snapshot(numbers, lake, ask) -> None:
    assert ask.rows("SELECT count(*) FROM t", numbers) == [(3,)]
    with pytest.raises(NotFound):
        ask.rows("SELECT count(*) FROM t", lake.snapshot())
    # A CTE of the dropped table's name reads the CTE, never the files of the older snapshot.
    assert ask.rows("WITH t AS (SELECT 5 AS a) SELECT a FROM t", lake.snapshot()) == [(5,)]
    assert ask.rows("SELECT count(*) FROM t", numbers) == [(3,)]


def test_a_lost_file_is_a_retryable_error_without_its_name(lake, ask) -> None:
    (relations,) = growing(lake, 1)
    relations.relations[0].files[0].unlink()
    with pytest.raises(Unavailable) as lost:
        ask.rows("SELECT * FROM t", relations)
    assert lost.value.retryable
    assert str(lake.directory) not in str(lost.value.as_contract())


def test_a_broken_file_is_an_error_without_its_name(lake, ask) -> None:
    (relations,) = growing(lake, 1)
    relations.relations[0].files[0].write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DuckMeshError) as broken:
        ask.rows("SELECT * FROM t", relations)
    assert str(lake.directory) not in str(broken.value.as_contract())
    assert "part-0" not in str(broken.value.as_contract())


def test_tenants_never_see_each_other(tmp_path, ask) -> None:
    lakes = [Lake(tmp_path / name, name) for name in ("one", "two")]
    sets = []
    for number, lake in enumerate(lakes):
        path = lake.write(NUMBERS, {"a": [number], "b": ["x"]})
        sets.append(lake.snapshot(Relation("t", NUMBERS, (path,))))
    for _ in range(2):
        for number, relations in enumerate(sets):
            assert ask.rows("SELECT a FROM t", relations) == [(number,)]
    # Even a relation that names the other's file cannot open it.
    stolen = RelationSet("one", 9, sets[1].relations, sets[0].directories)
    with pytest.raises(Invalid) as refused:
        ask.rows("SELECT a FROM t", stolen)
    assert str(tmp_path) not in str(refused.value)


def test_instances_are_bounded_and_an_evicted_one_ends_its_streams(
    tmp_path, local_engine, ask_here
) -> None:
    lakes = [Lake(tmp_path / f"t{number}", f"t{number}") for number in range(6)]
    sets = []
    for number, lake in enumerate(lakes):
        filled = {"a": pa.array([number] * 200_000), "b": pa.array(["x" * 40] * 200_000)}
        sets.append(lake.snapshot(Relation("t", NUMBERS, (lake.write(NUMBERS, filled),))))
    with local_engine.run("SELECT * FROM t", sets[0]) as running:
        first = running.reader.read_next_batch()
        for number in (1, 2, 3, 4, 5):
            assert ask_here.rows("SELECT max(a) FROM t", sets[number]) == [(number,)]
        assert local_engine._answers.instances == 4
        rest = sum(batch.num_rows for batch in running.reader)
    assert first.num_rows + rest == 200_000
    assert ask_here.rows("SELECT max(a) FROM t", sets[0]) == [(0,)]


@pytest.mark.parametrize("workers", HERE_AND_WORKERS)
def test_an_engine_leaves_nothing_behind(tmp_path: Path, lake: Lake, workers) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    (relations,) = growing(lake, 1)
    with QueryEngine(
        threads=1, memory_limit_bytes=2**28, temp_directory=spill, workers=workers
    ) as engine:
        with engine.run("SELECT a FROM t", relations) as running:
            assert running.reader.read_all().num_rows == 1
        assert list(spill.iterdir())
    assert list(spill.iterdir()) == []


def test_the_files_of_the_named_tables_are_counted(numbers, engine) -> None:
    with engine.run("SELECT count(*) FROM t", numbers) as running:
        running.reader.read_all()
        assert running.stats.scanned_files == 2
        assert running.stats.rows == 1
    with engine.run("SELECT 1", numbers) as running:
        assert running.stats.scanned_files == 0


def test_rows_come_in_the_order_of_the_files(lake, ask) -> None:
    relations = growing(lake, 20)[-1]
    found = [row for (row,) in ask.rows("SELECT a FROM t", relations)]
    assert all(left < right for left, right in pairwise(found))
