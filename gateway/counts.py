"""What the gateway counts of writes and of queries, whichever door they came through."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final

from duckmesh import metrics
from duckmesh.errors import DuckMeshError, ErrorCode, NotYetVisible
from duckmesh.tracing import NOTHING, Span
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt

_ACCEPTED: Final = metrics.INGEST_REQUESTS.labels(metrics.OK)
_RECORDS: Final = metrics.INGEST_RECORDS.labels()
_ACK_SECONDS: Final = metrics.INGEST_ACK_SECONDS.labels()


def code_of(error: BaseException) -> str:
    """The error's code, as a label."""
    return error.code.value if isinstance(error, DuckMeshError) else ErrorCode.INTERNAL.value


class WriteCount:
    """Counts one attempt to write, and ends its span, once, however it ends.

    Used by one thread at a time.
    """

    def __init__(
        self, span: Span = NOTHING, *, again: Callable[[DuckMeshError], bool] | None = None
    ) -> None:
        """`again` tells whether another attempt follows an error: then that one is counted."""
        self.span = span
        self._again = again
        self._ended = False
        self._began = time.perf_counter()

    @classmethod
    def of_another(cls) -> "WriteCount":
        """Of a write that is part of one counted already: counts nothing."""
        count = cls()
        count._ended = True
        return count

    def complete(self) -> None:
        """The last row is here: the acknowledgement is awaited from now on."""
        self._began = time.perf_counter()

    def accepted(self, receipts: Sequence[Receipt]) -> None:
        """The write is durable, or was before."""
        if self._ended:
            return
        self._ended = True
        rows = inserted = duplicates = 0
        for each in receipts:
            rows += each.row_count
            if each.inserted:
                inserted += each.row_count
            else:
                duplicates += 1
        self.span.note(rows=rows)
        self.span.end()
        _ACK_SECONDS.observe(time.perf_counter() - self._began)
        _ACCEPTED.inc(len(receipts))
        _RECORDS.inc(inserted)
        if duplicates:
            metrics.INGEST_DUPLICATES.inc(duplicates)

    def refused(self, error: BaseException) -> None:
        """The write failed; of several failures of one write the first counts."""
        if not self._ended:
            self._ended = True
            self.span.end(code_of(error))
            if not (self._again and isinstance(error, DuckMeshError) and self._again(error)):
                metrics.INGEST_REQUESTS.labels(code_of(error)).inc()

    def held(self) -> None:
        """A transaction has the write: it is counted there."""
        self.span.end()

    def abandoned(self) -> None:
        """Nothing came of it, without an error."""
        self.span.end(ErrorCode.INGEST_CANCELLED.value)

    def answered(self, answer: Acceptance) -> None:
        """Count as the write ends: a callback for it."""
        error = answer.exception()
        if error is None:
            self.accepted(answer.result())
        else:
            self.refused(error)

    def refusals(self) -> "_Refusals":
        """Count the error that the block ends with."""
        return _Refusals(self)


class _Refusals:
    """Not a generator: every write passes here, and a small one notices what that costs."""

    __slots__ = ("_count",)

    def __init__(self, count: WriteCount) -> None:
        self._count = count

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._count.refused(error)


@contextlib.contextmanager
def count_query() -> Iterator[None]:
    """The block starts a query, and ends when its first rows are under way."""
    began = time.perf_counter()
    try:
        yield
    except Exception as error:
        metrics.QUERY_REQUESTS.labels(code_of(error)).inc()
        raise
    metrics.QUERY_REQUESTS.labels(metrics.OK).inc()
    metrics.QUERY_SECONDS.observe(time.perf_counter() - began)


@contextlib.contextmanager
def count_barrier() -> Iterator[None]:
    """The block waits at the barrier: count how it ends, if by visibility or by its deadline."""
    began = time.perf_counter()
    try:
        yield
    except NotYetVisible:
        metrics.CONSISTENCY_TIMEOUTS.inc()
        metrics.BARRIER_SECONDS.observe(time.perf_counter() - began)
        raise
    metrics.BARRIER_SECONDS.observe(time.perf_counter() - began)
