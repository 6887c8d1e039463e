"""The outcome of a submitted write: told once to each who asks, from whichever thread."""

import threading
import time

import pytest

from duckmesh.errors import Conflict, ErrorCode
from duckmesh.identifiers import new_event_id
from duckmesh.tokens import VisibilityToken
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt

RECEIPTS = [Receipt(new_event_id(), VisibilityToken(7), 1)]
ERROR = Conflict(ErrorCode.IDEMPOTENCY_CONFLICT, "another write has this key")


def test_each_callback_is_called_once_however_it_meets_the_answer() -> None:
    """Those that are added while another thread answers are the ones that could be lost."""
    for _ in range(300):
        acceptance = Acceptance()
        calls: list[int] = []
        begin = threading.Barrier(3)

        def ask(first: int, acceptance=acceptance, calls=calls, begin=begin) -> None:
            begin.wait()
            for number in range(first, 20, 2):
                acceptance.add_done_callback(lambda _, number=number: calls.append(number))

        asking = [threading.Thread(target=ask, args=(first,)) for first in range(2)]
        for thread in asking:
            thread.start()
        begin.wait()
        acceptance.answer(RECEIPTS)
        for thread in asking:
            thread.join()
        assert sorted(calls) == list(range(20))


def test_callbacks_find_the_outcome_and_keep_their_order() -> None:
    acceptance = Acceptance()
    found: list[object] = []
    acceptance.add_done_callback(lambda each: found.append(each.exception()))
    acceptance.add_done_callback(lambda each: found.append(each.done()))
    assert not acceptance.done()
    acceptance.fail(ERROR)
    acceptance.add_done_callback(lambda _: found.append("late"))
    assert found == [ERROR, True, "late"]
    with pytest.raises(Conflict) as raised:
        acceptance.result()
    assert raised.value is ERROR


def test_a_callback_that_fails_keeps_no_other_from_its_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    acceptance, called = Acceptance(), []
    acceptance.add_done_callback(lambda _: 1 // 0)
    acceptance.add_done_callback(called.append)
    acceptance.answer(RECEIPTS)
    assert called == [acceptance]
    assert acceptance.result() == RECEIPTS
    assert "callback" in caplog.text


@pytest.mark.parametrize("error", [None, ERROR])
def test_who_waits_is_woken(error: Conflict | None) -> None:
    acceptance = Acceptance()
    found: list[object] = []
    waiting = [
        threading.Thread(target=lambda: found.append(acceptance.exception())) for _ in range(3)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert found == []
    if error is None:
        acceptance.answer(RECEIPTS)
    else:
        acceptance.fail(error)
    for thread in waiting:
        thread.join(10)
    assert found == [error] * 3


def test_who_waits_for_a_while_is_told_that_it_is_over() -> None:
    acceptance = Acceptance()
    for ask in (acceptance.result, acceptance.exception):
        with pytest.raises(TimeoutError):
            ask(0.01)
    acceptance.answer(RECEIPTS)
    assert acceptance.result(0) == RECEIPTS
    assert acceptance.exception(0) is None


def test_an_outcome_is_for_good() -> None:
    answered, refused = Acceptance.of(RECEIPTS), Acceptance.failed(ERROR)
    for each in (answered, refused):
        with pytest.raises(RuntimeError, match="twice"):
            each.answer([])
        with pytest.raises(RuntimeError, match="twice"):
            each.fail(ERROR)
    assert answered.result() == RECEIPTS
    assert refused.exception() is ERROR
