"""The thread that encodes while the caller receives."""

import threading
from collections import deque

import pyarrow as pa
import pytest

from duckmesh.errors import ErrorCode, Unavailable
from gateway.pump import Pump
from tests.processes import until

SMALL = pa.record_batch({"v": [1]})
LARGE = pa.record_batch({"v": pa.array(range(300_000), pa.int64())})  # 2.4 MB


def test_small_writes_never_leave_the_callers_thread() -> None:
    threads = []
    pump = Pump(lambda _: threads.append(threading.current_thread()))
    for _ in range(20):
        pump.put(SMALL)
    pump.finish()
    assert threads == [threading.current_thread()] * 20


def test_batches_arrive_once_and_in_order_across_the_change_of_threads() -> None:
    taken: list[int] = []
    threads = set()

    def sink(batch: pa.RecordBatch) -> None:
        taken.append(batch.num_rows)
        threads.add(threading.current_thread().name)

    pump = Pump(sink)
    sizes = [1, 2, 3, 300_000, 4, 299_999, 5, 6, 7, 8, 9]
    for size in sizes:
        pump.put(LARGE.slice(0, size))
    pump.finish()
    assert taken == sizes
    assert len(threads) == 2


def test_an_error_of_the_sink_is_raised_at_finish() -> None:
    def fail(_: pa.RecordBatch) -> None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the store is down")

    pump = Pump(fail)
    pump.put(LARGE)
    with pytest.raises(Unavailable, match="the store is down"):
        pump.finish()
    pump.abandon()


def test_an_error_of_the_sink_stops_the_sender_and_never_blocks_it() -> None:
    seen = []

    def fail(batch: pa.RecordBatch) -> None:
        seen.append(batch)
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the store is down")

    pump = Pump(fail)
    with pytest.raises(Unavailable):
        deque((pump.put(LARGE) for _ in range(10_000)), maxlen=0)
    pump.abandon()
    assert len(seen) == 1, "nothing is handed on after an error"


def test_a_slow_sink_slows_the_sender_down() -> None:
    go = threading.Event()
    put = []
    pump = Pump(lambda _: go.wait(30))

    def send() -> None:
        for number in range(20):
            pump.put(LARGE)
            put.append(number)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(0.3)
    waiting = len(put)
    go.set()
    sender.join(30)
    pump.finish()
    assert waiting <= 6, "a few batches wait in memory, never the whole write"
    assert len(put) == 20


def test_what_waits_is_dropped_when_the_write_is_abandoned() -> None:
    go, begun = threading.Event(), threading.Event()
    taken = []

    def sink(batch: pa.RecordBatch) -> None:
        taken.append(batch)
        begun.set()
        go.wait(30)

    pump = Pump(sink)
    for _ in range(4):
        pump.put(LARGE)
    assert begun.wait(30)
    ended = threading.Thread(target=pump.abandon)
    ended.start()
    until(lambda: pump._abandoned)
    go.set()
    ended.join(30)
    assert not ended.is_alive()
    assert len(taken) == 1
