"""Threads: work runs at once, threads are used again, and go when they are not wanted."""

import threading

import pytest

from duckmesh.threads import Threads
from tests.processes import until

NAME = "threads-under-test"


@pytest.fixture
def threads():
    threads = Threads(NAME)
    yield threads
    threads.close()
    until(lambda: not alive(), seconds=5)


def alive():
    return [each for each in threading.enumerate() if each.name == NAME]


def test_work_runs_at_once_also_when_all_are_busy(threads):
    ends, begun = threading.Event(), threading.Semaphore(0)

    def work():
        begun.release()
        ends.wait(10)

    for number in range(1, 41):
        threads.run(work)
        assert begun.acquire(timeout=5), f"the {number}th waits for those before it"
    assert len(alive()) == 40
    ends.set()


def test_work_given_all_at_once_runs_all_at_once(threads):
    together = threading.Barrier(21, timeout=10)
    for _ in range(3):
        for _ in range(20):
            threads.run(together.wait)
        together.wait()


def test_an_idle_thread_is_used_again(threads):
    seen = []
    for number in range(1, 51):
        threads.run(lambda: seen.append(threading.current_thread()))
        until(lambda number=number: len(seen) == number and threads._idle > 0, seconds=5)
    assert len(set(seen)) == 1
    assert len(alive()) == 1


def test_an_idle_thread_goes_after_a_while(threads, monkeypatch):
    monkeypatch.setattr("duckmesh.threads._IDLE_SECONDS", 0.05)
    ran = threading.Event()
    threads.run(ran.set)
    assert ran.wait(5)
    until(lambda: not alive(), seconds=5)
    ran.clear()
    threads.run(ran.set)
    assert ran.wait(5)


def test_idle_threads_end_on_close_and_who_works_ends_with_its_work(threads):
    together, ends, ended = threading.Barrier(6, timeout=5), threading.Event(), threading.Event()

    def work():
        ends.wait(10)
        ended.set()

    for _ in range(5):
        threads.run(together.wait)
    threads.run(work)
    together.wait()
    until(lambda: threads._idle == 5, seconds=5)
    threads.close()
    until(lambda: len(alive()) == 1, seconds=5)
    assert not ended.is_set()
    ends.set()
    until(lambda: not alive(), seconds=5)
    assert ended.is_set()


def test_what_was_given_before_the_close_is_done():
    done, threads = threading.Semaphore(0), Threads(NAME, most=1)
    for _ in range(20):
        threads.run(done.release)
    threads.close()
    assert all(done.acquire(timeout=5) for _ in range(20))
    until(lambda: not alive(), seconds=5)


def test_no_more_threads_work_than_may():
    ends, begun, threads = threading.Event(), threading.Semaphore(0), Threads(NAME, most=3)

    def work():
        begun.release()
        ends.wait(10)

    for _ in range(9):
        threads.run(work)
    assert all(begun.acquire(timeout=5) for _ in range(3))
    assert len(alive()) == 3
    assert not begun.acquire(timeout=0.1)
    ends.set()
    assert all(begun.acquire(timeout=5) for _ in range(6))
    threads.close()
    until(lambda: not alive(), seconds=5)


def test_many_who_give_work_lose_none(threads):
    done = threading.Semaphore(0)
    givers = [
        threading.Thread(target=lambda: [threads.run(done.release) for _ in range(200)])
        for _ in range(8)
    ]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join(10)
    assert all(done.acquire(timeout=5) for _ in range(8 * 200))


@pytest.fixture
def no_more_threads(monkeypatch):
    """From now on the system gives none; called again it does."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    def change(*, are_there):
        if are_there:
            monkeypatch.undo()
        else:
            monkeypatch.setattr(threading.Thread, "start", refuse)

    return change


def test_work_that_the_system_gives_no_thread_for_is_refused_and_never_runs(
    threads, no_more_threads
):
    ran = []
    no_more_threads(are_there=False)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="thread"):
            threads.run(lambda: ran.append("refused"))
    no_more_threads(are_there=True)
    done = threading.Event()
    threads.run(lambda: (ran.append("run"), done.set()))
    assert done.wait(5)
    assert ran == ["run"]


def test_of_bounded_threads_one_that_works_takes_what_no_new_one_is_given_for(no_more_threads):
    threads = Threads(NAME, most=2)
    ends, begun, done = threading.Event(), threading.Event(), threading.Event()
    threads.run(lambda: (begun.set(), ends.wait(10)))
    assert begun.wait(5)
    no_more_threads(are_there=False)
    threads.run(done.set)
    no_more_threads(are_there=True)
    ends.set()
    assert done.wait(5)
    # The one that could not be started does not count.
    together = threading.Barrier(3, timeout=5)
    threads.run(together.wait)
    threads.run(together.wait)
    together.wait()
    threads.close()
