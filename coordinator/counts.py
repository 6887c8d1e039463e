"""What a coordinator counts of its claims, its commits and its duties."""

import contextlib
import time
from collections.abc import Collection, Iterator

from catalog.snapshots import Snapshot
from duckmesh import metrics
from duckmesh.errors import DuckMeshError, ErrorCode
from duckmesh.identifiers import EventId
from ingest_bus.envelope import Claim


def count_claim(claim: Claim) -> None:
    """A claim is held."""
    metrics.CLAIM_SIZE.observe(len(claim.events))
    if claim.attempt > 1 or any(event.attempts for event in claim.events):
        metrics.CLAIM_RETRIES.inc()


@contextlib.contextmanager
def count_failure() -> Iterator[None]:
    """The block publishes a claim: count the error that it ends with."""
    try:
        yield
    except Exception as error:
        metrics.PUBLISH_FAILURES.labels(_code_of(error)).inc()
        raise


@contextlib.contextmanager
def count_turn(duty: str) -> Iterator[None]:
    """The block is a turn of a duty."""
    began = time.perf_counter()
    code = metrics.OK
    try:
        yield
    except Exception as error:
        code = _code_of(error)
        raise
    finally:
        metrics.DUTY_RUNS.labels(duty, code).inc()
        metrics.DUTY_SECONDS.labels(duty).observe(time.perf_counter() - began)


class CommitClock:
    """How long a claim takes to its commit, and how long its writes took to become visible.

    Made when the claim is held.
    """

    def __init__(self) -> None:
        self._claimed_at = time.perf_counter()
        self._written_at = 0.0

    def written(self) -> None:
        """The snapshot has its time; its transaction is still open."""
        self._written_at = time.perf_counter()

    def committed(self, claim: Claim, born: Snapshot, *, without: Collection[EventId]) -> None:
        """The transaction has committed. `without` the events that it gave up."""
        # The snapshot's time and the events' are of one clock. The commit came a moment later.
        now = time.perf_counter()
        commit_seconds = now - self._written_at
        metrics.COMMIT_SECONDS.observe(now - self._claimed_at)
        for event in claim.events:
            if event.envelope.event_id not in without:
                waited = (born.created_at - event.ingested_at).total_seconds()
                metrics.WRITE_TO_VISIBLE_SECONDS.observe(max(0.0, waited) + commit_seconds)


def _code_of(error: Exception) -> str:
    return error.code.value if isinstance(error, DuckMeshError) else ErrorCode.INTERNAL.value
