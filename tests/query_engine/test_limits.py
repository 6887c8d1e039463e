"""Streams and limits: bounded memory, message sizes, time, interruption, release."""

import gc
import io
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import psutil
import pyarrow as pa
import pytest

from duckmesh.errors import Cancelled, ErrorCode, Exceeded, Invalid
from query_engine.engine import Interruption, QueryEngine
from query_engine.relations import RelationSet
from query_engine.remote import RemoteAnswers
from query_engine.stream import MESSAGE_BYTES_MAX, QueryLimits, rows_per_batch, split
from tests.query_engine.conftest import HERE_AND_WORKERS

FOREVER = "SELECT sum(x.range * y.range) FROM range(10000000) x, range(10000000) y"
ROWS_THEN_NONE = (
    "SELECT range FROM range(500000) UNION ALL "
    "SELECT x.range FROM range(10000000) x, range(10000000) y WHERE x.range * y.range = -1"
)
EMPTY = RelationSet("acme", 1, (), ())


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        waiting.wait(0.005)


def message_sizes(batch: pa.RecordBatch) -> int:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        start = sink.tell()
        writer.write_batch(batch)
        return sink.tell() - start


def test_a_large_result_streams_in_bounded_memory(engine: QueryEngine) -> None:
    process = psutil.Process()
    with engine.run("SELECT range AS i, range * 2 AS j FROM range(60000000)", EMPTY) as running:
        first = running.reader.read_next_batch()
        rows, before, most = first.num_rows, process.memory_info().rss, 0
        for batch in running.reader:
            rows += batch.num_rows
            most = max(most, process.memory_info().rss)
    assert rows == 60_000_000
    assert most - before < 150 * 2**20, "960 MB of rows passed through"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 1000) AS s FROM range(100000)",
        "SELECT repeat('x', (range % 5000)::INT) AS s, range FROM range(50000)",
        "SELECT " + ", ".join(f"range + {n} AS c{n}" for n in range(60)) + " FROM range(200000)",
        "SELECT [range, range + 1, range + 2] AS l FROM range(300000)",
        "SELECT {'a': range, 's': repeat('y', 300)} AS s FROM range(60000)",
        "SELECT repeat('x', 2000000) AS s FROM range(5)",
        "SELECT ['a', 'b'][range % 2 + 1]::ENUM('a', 'b') e, repeat('z', 500) s FROM range(40000)",
    ],
)
def test_every_message_is_smaller_than_four_mebibytes(sql: str, engine: QueryEngine) -> None:
    with engine.run(sql, EMPTY) as running:
        batches = list(running.reader)
    assert max(map(message_sizes, batches)) < 4 * 2**20
    expected = engine.run(f"SELECT count(*) FROM ({sql})", EMPTY).reader.read_all()[0][0].as_py()
    assert sum(batch.num_rows for batch in batches) == expected


def test_narrow_rows_are_not_cut_smaller_than_they_need(engine: QueryEngine) -> None:
    with engine.run("SELECT range AS i FROM range(1000000)", EMPTY) as running:
        sizes = [batch.num_rows for batch in running.reader]
    assert max(sizes) >= 32_768


def test_one_row_larger_than_a_message_is_passed_whole(engine: QueryEngine) -> None:
    with engine.run(f"SELECT repeat('x', {2 * MESSAGE_BYTES_MAX}) AS s", EMPTY) as running:
        assert [batch.num_rows for batch in running.reader] == [1]


def test_a_query_past_its_time_is_exceeded(engine: QueryEngine) -> None:
    limits = QueryLimits(wall_time=timedelta(seconds=0.3))
    started = time.monotonic()
    with pytest.raises(Exceeded) as late:
        engine.run(FOREVER, EMPTY, limits=limits).reader.read_all()
    assert late.value.code is ErrorCode.QUERY_TIMEOUT
    used = late.value.context.pop("used")
    assert 300 <= used < 5000
    assert late.value.context == {"quota": "query_time_ms", "limit": 300, "limit_seconds": 0.3}
    assert f"ran {used / 1000:.2f} s and may run 0.3 s" in late.value.message
    assert 0.3 <= time.monotonic() - started < 5


def test_a_stream_past_its_time_is_exceeded_midway(engine: QueryEngine) -> None:
    with engine.run(
        ROWS_THEN_NONE, EMPTY, limits=QueryLimits(wall_time=timedelta(seconds=1))
    ) as running:
        assert running.reader.read_next_batch().num_rows > 0
        with pytest.raises(Exceeded) as late:
            running.reader.read_all()
    assert late.value.code is ErrorCode.QUERY_TIMEOUT


def test_a_slow_reader_does_not_spend_the_querys_time(engine: QueryEngine) -> None:
    limits = QueryLimits(wall_time=timedelta(seconds=1))
    with engine.run("SELECT range FROM range(3000000)", EMPTY, limits=limits) as running:
        rows = running.reader.read_next_batch().num_rows
        resumes_at = time.monotonic() + 1.2
        until(lambda: time.monotonic() >= resumes_at)
        rows += running.reader.read_all().num_rows
    assert rows == 3_000_000


def test_an_interrupt_stops_a_stream_and_the_engine_goes_on(engine: QueryEngine) -> None:
    running = engine.run("SELECT range FROM range(1000000000)", EMPTY)
    running.reader.read_next_batch()
    running.interrupt()
    with pytest.raises(Cancelled) as stopped:
        running.reader.read_all()
    assert stopped.value.code is ErrorCode.QUERY_CANCELLED
    running.close()
    running.close()
    assert engine.run("SELECT 1", EMPTY).reader.read_all().num_rows == 1


def test_an_interruption_stops_a_query_that_has_given_no_row_yet(engine: QueryEngine) -> None:
    interruption = Interruption()
    outcome: list[BaseException] = []

    def query() -> None:
        try:
            engine.run(FOREVER, EMPTY, interruption=interruption).reader.read_all()
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=query)
    thread.start()
    pressed_at = time.monotonic() + 0.2
    until(lambda: time.monotonic() >= pressed_at)
    interruption.interrupt()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert [type(error) for error in outcome] == [Cancelled]


def test_an_interruption_pressed_before_the_query_stops_it_at_once(engine: QueryEngine) -> None:
    interruption = Interruption()
    interruption.interrupt()
    with pytest.raises(Cancelled):
        engine.run(FOREVER, EMPTY, interruption=interruption)


def test_closing_from_another_thread_ends_the_reader_without_waiting(engine: QueryEngine) -> None:
    running = engine.run(ROWS_THEN_NONE, EMPTY)
    ended = threading.Event()

    def read() -> None:
        try:
            running.reader.read_all()
        except Cancelled:
            pass
        finally:
            ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    started = time.monotonic()
    until(lambda: running.stats.rows > 0)
    closing = time.monotonic()
    running.close()
    assert time.monotonic() - closing < 1
    assert ended.wait(10)
    thread.join()
    assert time.monotonic() - started < 30


def test_a_stream_closed_before_its_end_does_not_pass_for_a_whole_one(engine: QueryEngine) -> None:
    running = engine.run("SELECT range FROM range(3000000)", EMPTY)
    running.reader.read_next_batch()
    running.close()
    with pytest.raises(Cancelled):
        running.reader.read_all()


def test_a_stream_read_to_its_end_stays_ended(engine: QueryEngine) -> None:
    with engine.run("SELECT 1", EMPTY) as running:
        assert running.reader.read_all().num_rows == 1
        assert running.reader.read_all().num_rows == 0


def test_an_error_carries_no_trace_of_duckdb(engine: QueryEngine) -> None:
    with pytest.raises(Invalid) as wrong:
        engine.run("SELECT nosuch", EMPTY)
    assert wrong.value.__context__ is None
    assert wrong.value.__cause__ is None


def test_a_query_dropped_unread_gives_its_place_back(engine: QueryEngine) -> None:
    for _ in range(30):
        engine.run("SELECT range FROM range(100000000)", EMPTY)
    gc.collect()
    if isinstance(engine._answers, RemoteAnswers):
        pool = engine._answers.pool
        until(lambda: pool.users == 0)
    else:
        (_, instance), *_ = engine._answers._pool._instances
        until(lambda: instance.users == 0)


@pytest.mark.parametrize("workers", HERE_AND_WORKERS)
def test_too_little_memory_is_exceeded_with_the_limit(workers) -> None:
    with QueryEngine(
        threads=2, memory_limit_bytes=64 * 2**20, temp_directory=None, workers=workers
    ) as engine:
        with pytest.raises(Exceeded) as large:
            engine.run(
                "SELECT list(range ORDER BY hash(range)) FROM range(50000000)", EMPTY
            ).reader.read_all()
        assert large.value.code is ErrorCode.QUERY_MEMORY
        used = large.value.context.pop("used")
        assert 0 < used <= 64 * 2**20
        assert large.value.context == {
            "quota": "query_memory_bytes",
            "limit": 64 * 2**20,
            "limit_bytes": 64 * 2**20,
        }
        assert f"where it has {used / 2**20:.0f} MiB already" in large.value.message
        assert "temp_directory" not in str(large.value)
        assert engine.run("SELECT 1", EMPTY).reader.read_all().num_rows == 1


@pytest.mark.parametrize("workers", HERE_AND_WORKERS)
def test_with_a_temp_directory_a_sort_spills_instead(tmp_path, workers) -> None:
    with QueryEngine(
        threads=2, memory_limit_bytes=96 * 2**20, temp_directory=tmp_path, workers=workers
    ) as engine:
        sql = "SELECT range AS i FROM range(10000000) ORDER BY hash(range)"
        with engine.run(sql, EMPTY) as running:
            assert sum(batch.num_rows for batch in running.reader) == 10_000_000


@pytest.mark.parametrize(
    ("limits", "unit"), [(QueryLimits(rows=100_000), "rows"), (QueryLimits(bytes=10**6), "bytes")]
)
def test_a_result_past_its_size_is_exceeded(limits, unit, engine: QueryEngine) -> None:
    with (
        engine.run("SELECT range FROM range(10000000)", EMPTY, limits=limits) as running,
        pytest.raises(Exceeded) as large,
    ):
        running.reader.read_all()
    context = large.value.context
    assert (context["unit"], context["quota"]) == (unit, f"query_{unit}")
    assert context["used"] > context["limit"]
    assert f"{context['used']} {unit} so far and may have {context['limit']}" in large.value.message


@pytest.mark.parametrize("workers", HERE_AND_WORKERS)
def test_too_much_on_disk_is_exceeded_with_the_limit(tmp_path, workers) -> None:
    with (
        QueryEngine(
            threads=2,
            memory_limit_bytes=96 * 2**20,
            temp_directory=tmp_path,
            temp_limit_bytes=16 * 2**20,
            workers=workers,
        ) as engine,
        pytest.raises(Exceeded) as large,
    ):
        engine.run(
            "SELECT range AS i FROM range(50000000) ORDER BY hash(range)", EMPTY
        ).reader.read_all()
    assert large.value.code is ErrorCode.QUERY_MEMORY
    assert large.value.context["setting"] == "query.spill_max_bytes"
    assert large.value.context["limit"] == 16 * 2**20
    assert 0 < large.value.context["used"] <= 16 * 2**20


@pytest.mark.parametrize("workers", HERE_AND_WORKERS)
def test_a_query_may_have_less_memory_than_another_of_its_tenant(workers) -> None:
    sql = "SELECT count(*) FROM (SELECT range AS i FROM range(4000000) ORDER BY hash(range))"
    hungry = "SELECT list(range ORDER BY hash(range)) FROM range(3000000)"
    with QueryEngine(
        threads=2, memory_limit_bytes=2**30, temp_directory=None, workers=workers
    ) as engine:
        assert engine.run(hungry, EMPTY).reader.read_all().num_rows == 1
        with pytest.raises(Exceeded) as large:
            engine.run(hungry, EMPTY, limits=QueryLimits(memory_bytes=64 * 2**20)).reader.read_all()
        assert large.value.context["limit"] == 64 * 2**20
        assert engine.run(sql, EMPTY).reader.read_all().to_pydict() == {"count_star()": [4000000]}


def test_an_error_midway_is_mapped_like_any_other(engine: QueryEngine) -> None:
    # DuckDB's threads run ahead of the reader, and a reader that waits for a processor may find
    # two million rows computed: the error lies far behind those.
    sql = "SELECT CASE WHEN range = 20000000 THEN 'x' ELSE '1' END::INT AS a FROM range(30000000)"
    with engine.run(sql, EMPTY) as running:
        assert running.reader.read_next_batch().num_rows > 0
        with pytest.raises(Invalid, match="Could not convert") as wrong:
            deque(running.reader, maxlen=0)
    assert wrong.value.code is ErrorCode.QUERY_EXECUTION_FAILED


@pytest.mark.parametrize("columns", [1, 6, 300, 8000])
def test_a_batch_fits_a_message_of_4_mib_however_many_columns_it_has(columns: int) -> None:
    rows, bounded = rows_per_batch(["BIGINT"] * columns, 2**22)
    assert bounded
    numbers = pa.array(range(rows), pa.int64(), mask=np.arange(rows) == 0)
    batch = pa.record_batch([numbers] * columns, names=[f"c{at}" for at in range(columns)])
    assert 2**20 < pa.ipc.get_record_batch_size(batch) < 4 * 2**20
    texts = pa.array([None, *("x" * (2**23 // columns // 5) for _ in range(4))], pa.large_string())
    batch = pa.record_batch([texts] * columns, names=[f"c{at}" for at in range(columns)])
    parts = list(split(batch))
    assert sum(part.num_rows for part in parts) == 5
    assert max(map(pa.ipc.get_record_batch_size, parts)) < 4 * 2**20
