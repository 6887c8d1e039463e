"""Answers that nobody reads: their turn goes on, and in the end their query does too."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from duckmesh.errors import Cancelled, ErrorCode, Exceeded, Overloaded
from duckmesh.identifiers import SnapshotId
from gateway.open_answers import Answer, OpenAnswers
from gateway.turns import Turns
from object_store.file_cache import PinnedFiles
from query_engine.engine import Interruption, QueryEngine
from query_engine.relations import RelationSet
from tests.processes import until

WIDE = "SELECT range, repeat('x', 100) FROM range(1000000)"


class Desk:
    """Starts answers, as Reads does, over an engine without tables."""

    def __init__(self, folder: Path, *, running: int, fetch_timeout: timedelta) -> None:
        self.engine = QueryEngine(threads=1, memory_limit_bytes=2**29, temp_directory=None)
        self.all_turns = Turns(running=running, waiting=4, patience=timedelta(seconds=0.3))
        self.turns = self.all_turns.of("acme")
        self.open = OpenAnswers(fetch_timeout)
        self.pins = 0
        self._relations = RelationSet("acme", SnapshotId(1), (), (folder,))

    def ask(self, sql: str = WIDE, stop: Interruption | None = None) -> Answer:
        stop = stop or Interruption()
        self.turns.take(stop)
        running = self.engine.run(sql, self._relations, interruption=stop)
        self.pins += 1
        return Answer(running, PinnedFiles((), self._unpin), self.turns, stop=stop, among=self.open)

    def _unpin(self) -> None:
        self.pins -= 1

    def nothing_is_held(self) -> bool:
        return (self.all_turns.taken, self.open.count, self.pins) == (0, 0, 0)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, running=1, fetch_timeout=timedelta(minutes=1))
    with desk.engine:
        yield desk


@pytest.fixture
def hasty_desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, running=1, fetch_timeout=timedelta(seconds=0.3))
    with desk.engine:
        yield desk


def test_an_answer_that_nobody_reads_lets_others_run_and_goes_on_later(desk: Desk) -> None:
    with desk.ask() as slow:
        first = slow.next_batch()
        assert first is not None
        until(lambda: desk.all_turns.taken == 0)
        with desk.ask("SELECT 42 AS answer") as other:
            assert other.reader.read_all().to_pylist() == [{"answer": 42}]
        rest = slow.reader.read_all()
        assert first.num_rows + rest.num_rows == 1_000_000
    assert desk.nothing_is_held()


def test_a_reader_who_comes_back_waits_for_its_turn(desk: Desk) -> None:
    with desk.ask() as slow, ThreadPoolExecutor() as threads:
        until(lambda: desk.all_turns.taken == 0)
        desk.turns.take()
        read = threads.submit(slow.next_batch)
        # Longer than a new query would wait: this one is not refused.
        threading.Event().wait(0.5)
        assert not read.done()
        desk.turns.give_back()
        assert read.result(timeout=30) is not None
    assert desk.nothing_is_held()


def test_a_reader_who_waits_for_its_turn_can_leave(desk: Desk) -> None:
    stop = Interruption()
    with desk.ask(stop=stop) as slow, ThreadPoolExecutor() as threads:
        until(lambda: desk.all_turns.taken == 0)
        desk.turns.take()
        read = threads.submit(slow.next_batch)
        stop.interrupt()
        with pytest.raises(Cancelled):
            read.result(timeout=30)
        desk.turns.give_back()
    assert desk.nothing_is_held()


def test_an_answer_that_is_not_fetched_in_time_is_ended_and_says_so(hasty_desk: Desk) -> None:
    answer = hasty_desk.ask()
    assert answer.next_batch() is not None
    until(hasty_desk.nothing_is_held)
    with pytest.raises(Exceeded) as caught:
        answer.next_batch()
    assert caught.value.code is ErrorCode.QUERY_TIMEOUT
    assert "query.fetch_timeout_seconds" in caught.value.message
    with hasty_desk.ask("SELECT 1") as other:
        assert other.reader.read_all().num_rows == 1


def test_an_answer_may_be_closed_from_any_thread_and_twice(desk: Desk) -> None:
    answer = desk.ask()
    with ThreadPoolExecutor(4) as threads:
        for closing in [threads.submit(answer.close) for _ in range(8)]:
            closing.result(timeout=30)
    assert desk.nothing_is_held()


def test_who_waits_for_a_turn_can_leave_and_the_turn_is_not_lost(desk: Desk) -> None:
    stop = Interruption()
    desk.turns.take()
    with ThreadPoolExecutor() as threads:
        patient = threads.submit(desk.turns.take_again, timedelta(seconds=30), None)
        leaving = threads.submit(desk.turns.take_again, timedelta(seconds=30), stop)
        stop.interrupt()
        with pytest.raises(Cancelled):
            leaving.result(timeout=30)
        desk.turns.give_back()
        patient.result(timeout=30)
    with pytest.raises(Overloaded) as caught:
        desk.turns.take()
    assert caught.value.context["retry_after_seconds"] == 1
    desk.turns.give_back()
    assert desk.nothing_is_held()


def test_a_small_answer_holds_nothing_when_its_rows_are_here(desk: Desk) -> None:
    for sql, rows in (("SELECT 42 AS answer", 1), ("SELECT 1 AS a WHERE false", 0)):
        first, ended = desk.ask(sql).first_rows()
        assert (sum(batch.num_rows for batch in first), ended) == (rows, True)
        assert desk.nothing_is_held()


def test_the_first_rows_of_a_large_answer_leave_the_others_under_way(desk: Desk) -> None:
    with desk.ask() as answer:
        first, ended = answer.first_rows()
        assert not ended
        rest = answer.reader.read_all()
        assert sum(batch.num_rows for batch in first) + rest.num_rows == 1_000_000
    assert desk.nothing_is_held()
