"""Group commit without linger: while one commit is in flight, the next group gathers.

A publish that finds its tenant idle commits at once, on the caller's own thread. Those that come
meanwhile wait together and go in one transaction when that commit ends, led by the first of them
who waits on a thread of his own, or by a thread of the pool. Waiting longer to gather more only
adds its own length to every answer (docs/adr/0001-tokens-by-counter-row-and-group-commit.md).
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from duckmesh import metrics
from duckmesh.errors import DuckMeshError, ErrorCode, Unavailable
from duckmesh.identifiers import TenantId
from duckmesh.threads import Threads
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Envelope, Receipt
from ingest_bus.port import Watch

Commit = Callable[[TenantId, Sequence[Envelope]], list[Receipt]]
"""Publishes envelopes of one tenant in one transaction, all or none."""


class Begun(Protocol):
    """A commit under way."""

    @property
    def is_sent(self) -> bool:
        """Whether nothing is left to be sent."""

    @property
    def is_over(self) -> bool:
        """Whether it has its outcome, and may be asked no more."""

    @property
    def descriptor(self) -> int:
        """What has bytes to read when it goes on."""

    def has_come(self) -> bool:
        """Whether `receipts` would not wait. Never blocks."""

    def receipts(self) -> list[Receipt] | None:
        """The receipts; None when it takes `Commit`, with nothing accepted."""

    def give_up(self) -> DuckMeshError:
        """Wait no more, and never block; the error to tell. It may be accepted all the same."""


GROUP_MAX_ENVELOPES: Final = 1_000
_GROUP_SIZE: Final = metrics.GROUP_COMMIT_SIZE.labels()
GROUP_MAX_BYTES: Final = 16 * 2**20


class _Submitted(Acceptance):
    """Envelopes whose caller goes on, and the answer that he may ask for."""

    __slots__ = ("envelopes", "settled")

    def __init__(self, envelopes: Sequence[Envelope], settled: Callable[[], None] | None) -> None:
        super().__init__()
        self.envelopes = envelopes
        self.settled = settled

    @property
    def answered(self) -> bool:
        return self.done()


class _Waiting:
    """Envelopes whose caller waits on his own thread, until he is answered or is to lead.

    A bare lock wakes him: all that can do more costs more, and every small write would pay.
    """

    __slots__ = ("_outcome", "_wake", "answered", "envelopes", "here", "leads")
    settled: Callable[[], None] | None = None
    """Nobody else is told."""

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        self.envelopes = envelopes
        self.leads = False
        self.here = True
        """Whether the caller still waits; under the lock of the lanes."""
        self.answered = False
        self._outcome: list[Receipt] | BaseException = []
        self._wake = threading.Lock()
        self._wake.acquire()

    def answer(self, receipts: list[Receipt]) -> None:
        self._end(receipts)

    def fail(self, error: BaseException) -> None:
        self._end(error)

    def call_to_lead(self) -> None:
        self.leads = True
        self._wake.release()

    def wait(self) -> None:
        self._wake.acquire()

    def result(self) -> list[Receipt]:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _end(self, outcome: list[Receipt] | BaseException) -> None:
        self._outcome = outcome
        self.answered = True
        # Who leads does not wait.
        if not self.leads:
            self._wake.release()


_Call = _Submitted | _Waiting


@dataclass(slots=True)
class _Lane:
    """One tenant's queue. `leading` is true while somebody commits for it."""

    waiting: deque[_Call] = field(default_factory=deque)
    leading: bool = False


class GroupCommit:
    """Gathers concurrent publishes of a tenant into shared transactions. Thread-safe."""

    def __init__(
        self,
        commit: Commit,
        begin: Callable[[TenantId, Sequence[Envelope]], Begun | None] | None = None,
        *,
        threads: int = 8,
    ) -> None:
        """`begin` begins the commit of a usual group without waiting for it."""
        self._commit = commit
        self._begin = begin
        self._lanes: dict[TenantId, _Lane] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._closed = False
        self._leaders = Threads("group-commit", most=threads)

    def publish(self, tenant_id: TenantId, envelopes: Sequence[Envelope]) -> list[Receipt]:
        """Publish and wait. The caller's thread commits when the tenant is idle."""
        call = _Waiting(envelopes)
        if self._enqueue(tenant_id, call):
            # Nobody else can see the call before this: the lane was idle, and is led from here.
            call.leads = True
        else:
            self._wait(tenant_id, call)
        if call.leads:
            self._lead(tenant_id, until=call)
        return call.result()

    def submit(
        self,
        tenant_id: TenantId,
        envelopes: Sequence[Envelope],
        *,
        settled: Callable[[], None] | None = None,
        watch: Watch | None = None,
    ) -> Acceptance:
        """Publish without waiting. Calls of one thread keep their order.

        `settled` is called when the answer is there, once for all of a group that name it. With
        `watch` its caller waits for the commits that are led from here. Without, this blocks after
        all while the system gives no thread.
        """
        call = _Submitted(envelopes, settled)
        if self._enqueue(tenant_id, call):
            if watch is not None:
                self._lead_watching(tenant_id, watch)
            elif not self._on_a_thread(self._lead, tenant_id):
                self._lead(tenant_id, until=call)
        return call

    def close(self) -> None:
        """Finish everything submitted so far; what comes later is refused."""
        with self._idle:
            self._closed = True
            # A leader that gives its lead away still needs the pool.
            self._idle.wait_for(lambda: not any(lane.leading for lane in self._lanes.values()))
        self._leaders.close()

    def _enqueue(self, tenant_id: TenantId, call: _Call) -> bool:
        """Queue the call; True when its caller becomes the tenant's leader."""
        with self._lock:
            if self._closed:
                raise Unavailable(
                    ErrorCode.NOT_READY, "this process is stopping: retry with another"
                )
            lane = self._lanes.setdefault(tenant_id, _Lane())
            lane.waiting.append(call)
            if lane.leading:
                return False
            lane.leading = True
            return True

    def _wait(self, tenant_id: TenantId, call: _Waiting) -> None:
        try:
            call.wait()
        except BaseException:
            # Interrupted: the write may happen all the same, and the lane must not lose its leader.
            with self._lock:
                call.here = False
                leads = call.leads
            if leads and not self._on_a_thread(self._lead, tenant_id):
                self._lead(tenant_id, until=call)
            raise

    def _lead(self, tenant_id: TenantId, *, until: _Call | None = None) -> None:
        """Commit group after group until the lane is empty, or `until` is answered.

        A leader with an answer in hand gives the lead away rather than keep its caller waiting.
        """
        while group := self._next_group(tenant_id):
            self._commit_group(tenant_id, group)
            if until is not None and until.answered and self._hand_over(tenant_id):
                return

    def _lead_watching(self, tenant_id: TenantId, watch: Watch) -> None:
        """Lead without waiting: begin the next group's commit, and go on when it has come."""
        while group := self._next_group(tenant_id):
            if self._begin_watching(tenant_id, group, watch):
                return
            _settle(group)

    def _begin_watching(self, tenant_id: TenantId, group: Sequence[_Call], watch: Watch) -> bool:
        """False when the group has failed, for want of a thread that waits for it."""
        begun = None
        if self._begin is not None:
            # What goes wrong here goes wrong on the thread as well, and is told from there.
            with contextlib.suppress(Exception):
                begun = self._begin(tenant_id, [e for call in group for e in call.envelopes])
        if begun is None:
            return self._lead_elsewhere(tenant_id, group)
        return self._watch(tenant_id, group, begun, watch)

    def _watch(
        self, tenant_id: TenantId, group: Sequence[_Call], begun: Begun, watch: Watch
    ) -> bool:
        """False when the group has failed, for want of anybody who waits for it."""
        go_on = partial(self._go_on, tenant_id, group, begun, watch)
        # Whatever becomes of the watch, the lane must not lose its leader.
        if begun.is_sent:
            with contextlib.suppress(Exception):
                if watch(begun.descriptor, go_on):
                    return True
        # Nobody watches any more, or there is more to send: a thread waits.
        if self._on_a_thread(self._end_begun, tenant_id, group, begun):
            return True
        _fail(group, begun.give_up())
        return False

    def _go_on(
        self, tenant_id: TenantId, group: Sequence[_Call], begun: Begun, watch: Watch
    ) -> None:
        if begun.is_over:
            # Told twice. Whoever ended it leads on.
            return
        try:
            has_come = begun.has_come()
            receipts = begun.receipts() if has_come else None
        except Exception as error:  # noqa: BLE001 - every caller must get an answer
            _fail(group, error)
        else:
            if receipts is not None:
                _answer(group, receipts)
            elif has_come:
                if self._lead_elsewhere(tenant_id, group):
                    return
            elif self._watch(tenant_id, group, begun, watch):
                return
        try:
            # The next group is under way before this one's callers hear of theirs.
            self._lead_watching(tenant_id, watch)
        finally:
            _settle(group)

    def _end_begun(self, tenant_id: TenantId, group: Sequence[_Call], begun: Begun) -> None:
        """Wait for what was begun, then lead on."""
        try:
            receipts = begun.receipts()
        except Exception as error:  # noqa: BLE001 - every caller must get an answer
            _fail(group, error)
        else:
            if receipts is None:
                self._lead_with(tenant_id, group)
                return
            _answer(group, receipts)
        _settle(group)
        self._lead(tenant_id)

    def _lead_with(self, tenant_id: TenantId, group: Sequence[_Call]) -> None:
        """Commit a group that was taken already, then lead on."""
        self._commit_group(tenant_id, group)
        self._lead(tenant_id)

    def _lead_elsewhere(self, tenant_id: TenantId, group: Sequence[_Call]) -> bool:
        """Let a thread commit a group of which nothing is sent; False when it has failed."""
        if self._on_a_thread(self._lead_with, tenant_id, group):
            return True
        _fail(group, _no_thread())
        return False

    def _hand_over(self, tenant_id: TenantId) -> bool:
        """Give the lead away, or end it; False when nobody takes it: then it is kept."""
        with self._lock:
            lane = self._lanes[tenant_id]
            if not lane.waiting:
                self._end_lead(lane)
                return True
            for call in lane.waiting:
                if isinstance(call, _Waiting) and call.here:
                    call.call_to_lead()
                    return True
        return self._on_a_thread(self._lead, tenant_id)

    def _on_a_thread(self, act: Callable[..., None], *given: Any) -> bool:
        """Go on with `act` on a thread of the pool; False when the system gives none."""
        try:
            self._leaders.run(partial(act, *given))
        except RuntimeError:
            # At the limit of processes or of memory. Raised on, it would leave the lane without a
            # leader, and might call a write failed that is committed.
            return False
        return True

    def _next_group(self, tenant_id: TenantId) -> list[_Call]:
        """Take the calls of the next transaction; an empty lane ends the lead."""
        group: list[_Call] = []
        envelopes = size_bytes = 0
        with self._lock:
            lane = self._lanes[tenant_id]
            waiting = lane.waiting
            if not waiting:
                self._end_lead(lane)
            elif len(waiting) == 1:
                return [waiting.popleft()]
            while waiting:
                call = waiting[0]
                envelopes += len(call.envelopes)
                for e in call.envelopes:
                    size_bytes += e.byte_count
                full = envelopes > GROUP_MAX_ENVELOPES or size_bytes > GROUP_MAX_BYTES
                if group and full:
                    break
                group.append(waiting.popleft())
        return group

    def _end_lead(self, lane: _Lane) -> None:
        """Under the lock: the next call of the lane leads again."""
        lane.leading = False
        # Nobody waits for it before the end.
        if self._closed:
            self._idle.notify_all()

    def _commit_group(self, tenant_id: TenantId, group: Sequence[_Call]) -> None:
        self._answer_group(tenant_id, group)
        _settle(group)

    def _answer_group(self, tenant_id: TenantId, group: Sequence[_Call]) -> None:
        try:
            receipts = self._commit(tenant_id, [e for call in group for e in call.envelopes])
        except Exception as error:  # noqa: BLE001 - every caller must get an answer
            self._fail_alone(tenant_id, group, error)
        except BaseException as error:  # noqa: BLE001 - also when this thread is interrupted
            for call in group:
                call.fail(error)
        else:
            _answer(group, receipts)

    def _fail_alone(self, tenant_id: TenantId, group: Sequence[_Call], error: Exception) -> None:
        """A call that breaks its group fails alone; the others are committed one by one.

        A failure of the database is everybody's: whether the group was committed is not known.
        """
        if len(group) == 1 or (isinstance(error, DuckMeshError) and error.retryable):
            for call in group:
                call.fail(error)
            return
        for call in group:
            self._answer_group(tenant_id, [call])


def _answer(group: Sequence[_Call], receipts: Sequence[Receipt]) -> None:
    _GROUP_SIZE.observe(len(receipts))
    answers = iter(receipts)
    for call in group:
        call.answer([next(answers) for _ in call.envelopes])


def _settle(group: Sequence[_Call]) -> None:
    # Waking somebody gives Python's lock away: once, when all is answered.
    for settled in {call.settled for call in group}:
        if settled is not None:
            settled()


def _fail(group: Sequence[_Call], error: BaseException) -> None:
    for call in group:
        call.fail(error)


def _no_thread() -> Unavailable:
    return Unavailable(
        ErrorCode.NOT_READY, "this process has no thread left: retry with backoff, or with another"
    )
