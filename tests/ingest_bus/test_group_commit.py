"""Group commit: who leads, who waits, who fails. The commit itself is the test's."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from duckmesh.errors import Conflict, ErrorCode, Unavailable
from duckmesh.identifiers import TenantId
from duckmesh.tokens import VisibilityToken
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Envelope, Receipt
from ingest_bus.group_commit import (
    GROUP_MAX_BYTES,
    GROUP_MAX_ENVELOPES,
    GroupCommit,
    _Waiting,
)
from tests.bus_worlds import PATIENCE_SECONDS, until, write
from tests.ingest_bus.watched_house import no_threads

ACME = TenantId(1)


class Ledger:
    """A commit that keeps its groups, waits at a gate, and refuses what carries a fault."""

    def __init__(self) -> None:
        self.groups: list[list[Envelope]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.faults: dict[str, BaseException] = {}
        self.leaders: list[threading.Thread] = []

    def commit(self, _tenant_id: TenantId, envelopes: Sequence[Envelope]) -> list[Receipt]:
        self.entered.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        for e in envelopes:
            if e.trace_id in self.faults:
                raise self.faults[e.trace_id]
        self.groups.append(list(envelopes))
        self.leaders.append(threading.current_thread())
        first = sum(map(len, self.groups)) - len(envelopes) + 1
        return [
            Receipt(e.event_id, VisibilityToken(token), e.row_count)
            for token, e in enumerate(envelopes, first)
        ]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def groups(ledger: Ledger) -> Iterator[GroupCommit]:
    opened = GroupCommit(ledger.commit)
    yield opened
    ledger.gate.set()
    opened.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


Calls = list[Acceptance]


def hold_one(ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor) -> Future[object]:
    """A publish that stands at the gate: whatever comes now gathers behind it."""
    ledger.gate.clear()
    held: Future[object] = threads.submit(groups.publish, ACME, [write(ACME)])
    assert ledger.entered.acquire(timeout=PATIENCE_SECONDS)
    return held


def test_calls_that_come_during_a_commit_share_the_next_one(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    held = hold_one(ledger, groups, threads)
    calls = [groups.submit(ACME, [write(ACME)]) for _ in range(20)]
    ledger.gate.set()
    assert [c.result(PATIENCE_SECONDS)[0].visibility_token for c in calls] == list(range(2, 22))
    held.result(PATIENCE_SECONDS)
    assert [len(group) for group in ledger.groups] == [1, 20]


def test_the_leader_does_not_wait_for_the_groups_behind_its_own(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    held = hold_one(ledger, groups, threads)
    waiting = [threads.submit(groups.publish, ACME, [write(ACME)]) for _ in range(5)]
    until(lambda: len(groups._lanes[ACME].waiting) == 5)
    ledger.gate.set()
    held.result(PATIENCE_SECONDS)
    assert sorted(w.result(PATIENCE_SECONDS)[0].visibility_token for w in waiting) == [*range(2, 7)]


def test_who_waits_on_a_thread_of_his_own_leads_the_next_group(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    hold_one(ledger, groups, threads)
    submitted = groups.submit(ACME, [write(ACME)])

    def publish() -> tuple[threading.Thread, int]:
        (receipt,) = groups.publish(ACME, [write(ACME)])
        return threading.current_thread(), receipt.visibility_token

    waiting = threads.submit(publish)
    until(lambda: len(groups._lanes[ACME].waiting) == 2)
    ledger.gate.set()
    assert submitted.result(PATIENCE_SECONDS)[0].visibility_token == 2
    assert waiting.result(PATIENCE_SECONDS) == (ledger.leaders[1], 3)
    assert len(ledger.groups) == 2


def interrupt_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on whoever has waited for his answer, or for the lead, is interrupted."""
    wait = _Waiting.wait

    def interrupted(call: _Waiting) -> None:
        wait(call)
        raise KeyboardInterrupt

    monkeypatch.setattr(_Waiting, "wait", interrupted)


def test_a_caller_who_is_interrupted_as_he_is_to_lead_leaves_the_lane_a_leader(
    ledger: Ledger,
    groups: GroupCommit,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_one(ledger, groups, threads)
    interrupt_who_waits(monkeypatch)
    leaving = threads.submit(groups.publish, ACME, [write(ACME)])
    until(lambda: len(groups._lanes[ACME].waiting) == 1)
    submitted = groups.submit(ACME, [write(ACME)])
    ledger.gate.set()
    assert isinstance(leaving.exception(PATIENCE_SECONDS), KeyboardInterrupt)
    assert submitted.result(PATIENCE_SECONDS)[0].visibility_token == 3
    monkeypatch.undo()
    assert groups.publish(ACME, [write(ACME)])[0].visibility_token == 4


def test_tenants_do_not_wait_for_one_another(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    hold_one(ledger, groups, threads)
    threads.submit(groups.publish, TenantId(2), [write(TenantId(2))])
    assert ledger.entered.acquire(timeout=PATIENCE_SECONDS)
    ledger.gate.set()


def test_a_group_is_bounded_by_envelopes_and_bytes(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    hold_one(ledger, groups, threads)
    half = GROUP_MAX_ENVELOPES // 2 + 1
    calls = [groups.submit(ACME, [write(ACME)] * half) for _ in range(2)]
    large = GROUP_MAX_BYTES * 2 // 3
    calls += [groups.submit(ACME, [write(ACME, byte_count=large)]) for _ in range(2)]
    calls += [groups.submit(ACME, [write(ACME, byte_count=2 * GROUP_MAX_BYTES)])]
    ledger.gate.set()
    for call in calls:
        call.result(PATIENCE_SECONDS)
    assert [len(group) for group in ledger.groups] == [1, half, half + 1, 1, 1]


@pytest.mark.parametrize(
    "fault", [Conflict(ErrorCode.IDEMPOTENCY_CONFLICT, "seen"), ValueError("not storable")]
)
def test_a_call_that_breaks_its_group_fails_alone(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor, fault: Exception
) -> None:
    ledger.faults["bad"] = fault
    hold_one(ledger, groups, threads)
    good = [groups.submit(ACME, [write(ACME)])]
    bad = groups.submit(ACME, [write(ACME), write(ACME, trace_id="bad")])
    good += [groups.submit(ACME, [write(ACME)]) for _ in range(3)]
    ledger.gate.set()
    assert bad.exception(PATIENCE_SECONDS) is fault
    assert [c.result(PATIENCE_SECONDS)[0].visibility_token for c in good] == [2, 3, 4, 5]


def test_when_the_database_fails_the_whole_group_is_told_and_nothing_is_repeated(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    ledger.faults["bad"] = Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "gone")
    hold_one(ledger, groups, threads)
    calls = [groups.submit(ACME, [write(ACME, trace_id=name)]) for name in ("good", "bad")]
    ledger.gate.set()
    assert all(isinstance(c.exception(PATIENCE_SECONDS), Unavailable) for c in calls)
    assert len(ledger.groups) == 1
    assert groups.publish(ACME, [write(ACME)])[0].visibility_token == 2


def test_an_interrupted_leader_leaves_nobody_waiting(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    ledger.faults["bad"] = KeyboardInterrupt()
    hold_one(ledger, groups, threads)
    bad = groups.submit(ACME, [write(ACME, trace_id="bad")])
    ledger.gate.set()
    assert isinstance(bad.exception(PATIENCE_SECONDS), KeyboardInterrupt)
    assert groups.submit(ACME, [write(ACME)]).result(PATIENCE_SECONDS)


def test_close_waits_for_those_who_gather_behind_a_commit(
    ledger: Ledger, groups: GroupCommit, threads: ThreadPoolExecutor
) -> None:
    hold_one(ledger, groups, threads)
    waiting = [threads.submit(groups.publish, ACME, [write(ACME)]) for _ in range(3)]
    until(lambda: len(groups._lanes[ACME].waiting) == 3)
    closing = threads.submit(groups.close)
    until(lambda: groups._closed)
    ledger.gate.set()
    closing.result(PATIENCE_SECONDS)
    assert sum(map(len, ledger.groups)) == 4
    assert all(w.result(PATIENCE_SECONDS)[0].inserted for w in waiting)


def test_what_comes_after_close_is_refused_and_may_be_retried_elsewhere(
    groups: GroupCommit,
) -> None:
    groups.close()
    with pytest.raises(Unavailable) as refused:
        groups.publish(ACME, [write(ACME)])
    assert refused.value.code is ErrorCode.NOT_READY


# -- where the system gives no thread


def test_a_submit_is_committed_by_its_caller(groups: GroupCommit) -> None:
    with no_threads(groups):
        answers = [groups.submit(ACME, [write(ACME)]) for _ in range(3)]
        assert [a.result(0)[0].visibility_token for a in answers] == [1, 2, 3]
    assert groups.submit(ACME, [write(ACME)]).result(PATIENCE_SECONDS)[0].visibility_token == 4


def test_a_leader_who_finds_nobody_to_lead_after_him_is_answered_and_leads_on(
    ledger: Ledger,
    groups: GroupCommit,
    threads: ThreadPoolExecutor,
) -> None:
    held = hold_one(ledger, groups, threads)
    answers = [groups.submit(ACME, [write(ACME)]) for _ in range(5)]
    with no_threads(groups):
        ledger.gate.set()
        assert held.exception(PATIENCE_SECONDS) is None
        tokens = [a.result(PATIENCE_SECONDS)[0].visibility_token for a in answers]
    assert tokens == [2, 3, 4, 5, 6]
    assert groups.publish(ACME, [write(ACME)])[0].visibility_token == 7


def test_a_caller_who_is_interrupted_as_he_is_to_lead_leads_before_he_goes(
    ledger: Ledger,
    groups: GroupCommit,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_one(ledger, groups, threads)
    interrupt_who_waits(monkeypatch)
    leaving = threads.submit(groups.publish, ACME, [write(ACME)])
    until(lambda: len(groups._lanes[ACME].waiting) == 1)
    submitted = groups.submit(ACME, [write(ACME)])
    with no_threads(groups):
        ledger.gate.set()
        assert isinstance(leaving.exception(PATIENCE_SECONDS), KeyboardInterrupt)
        assert submitted.result(PATIENCE_SECONDS)[0].visibility_token == 3
    monkeypatch.undo()
    assert groups.publish(ACME, [write(ACME)])[0].visibility_token == 4
