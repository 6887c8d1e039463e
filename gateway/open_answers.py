"""Answers under way, and those among them that nobody reads.

A client may open a result and read it slowly, or never. While it does not read, its query does
nothing: its turn goes to another query until it reads on. When it has not read for too long the
query is ended, and what it held is free.
"""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

from duckmesh.errors import ErrorCode, Exceeded
from duckmesh.tracing import NOTHING, Span
from gateway.counts import code_of
from gateway.query_audit import OK, StatementRecord
from gateway.turns import TenantTurns
from object_store.file_cache import PinnedFiles
from query_engine.engine import Interruption, RunningQuery
from query_engine.stream import QueryStats
from query_engine.wire import first_rows

_LOOK_SECONDS: Final = 0.1
"""How often the open answers are looked at; one that is idle for so long gives its turn back."""

_QUIET_ROUNDS_MAX: Final = 100
"""After so many rounds with nothing to look at the thread ends; the next answer starts another."""


class OpenAnswers:
    """The answers of a process that are not read to their end. Thread-safe."""

    def __init__(self, fetch_timeout: timedelta) -> None:
        self.fetch_timeout = fetch_timeout
        self._lock = threading.Lock()
        self._answers: set[Answer] = set()
        self._watched = False

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._answers)

    def add(self, answer: "Answer") -> None:
        """Look after `answer` until `discard`."""
        with self._lock:
            self._answers.add(answer)
            if self._watched:
                return
            self._watched = True
        threading.Thread(target=self._watch, name="open-answers", daemon=True).start()

    def discard(self, answer: "Answer") -> None:
        with self._lock:
            self._answers.discard(answer)

    def _watch(self) -> None:
        pause = threading.Event()
        quiet = 0
        while True:
            pause.wait(_LOOK_SECONDS)
            with self._lock:
                answers = list(self._answers)
                quiet = 0 if answers else quiet + 1
                if quiet > _QUIET_ROUNDS_MAX:
                    self._watched = False
                    return
            now = time.monotonic()
            for answer in answers:
                answer.look(now)


class Answer:
    """A query whose rows are under way, with its turn, and the files it reads held in place.

    Read from one thread. `close`, or the end of the `with` block, gives everything back.
    """

    def __init__(
        self,
        running: RunningQuery,
        pinned: PinnedFiles,
        turns: TenantTurns,
        *,
        stop: Interruption,
        among: OpenAnswers,
        scanned_bytes: int = 0,
        pruned_files: int = 0,
        record: StatementRecord | None = None,
        span: Span = NOTHING,
        on_failure: Callable[[BaseException], object] = lambda _: None,
    ) -> None:
        """Takes over a turn that has been taken, and ends the record and the span with itself.

        `on_failure` is told why reading on failed.
        """
        self.scanned_bytes = scanned_bytes
        """The size of the data files that the query reads from."""
        self.pruned_files = pruned_files
        """Files of its tables that were left out: they hold no row that it asks for."""
        self._running = running
        self._pinned = pinned
        self._turns = turns
        self._stop = stop
        self._among = among
        self._record = record
        self._span = span
        self._outcome = OK
        self._whole = False
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._has_turn = True
        self._closed = False
        self._expired = False
        self._idle_since: float | None = time.monotonic()
        among.add(self)

    @property
    def schema(self) -> pa.Schema:
        return self._running.schema

    @property
    def reader(self) -> pa.RecordBatchReader:
        """The rows as they come; raises only errors of duckmesh.errors."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    @property
    def stats(self) -> QueryStats:
        return self._running.stats

    def next_batch(self) -> pa.RecordBatch | None:
        """The next rows, or None after the last.

        Waits for a turn when the query gave its own back meanwhile. Raises Exceeded
        (QUERY_TIMEOUT) when nothing was read for longer than the fetch timeout, and what the
        query raises.
        """
        with self._lock:
            self._idle_since = None
            waits = not self._has_turn and not self._closed
        try:
            if waits:
                self._take_turn_again()
            batch = next(self._running.reader, None)
        except Exception as error:
            if self._expired:
                self._outcome = ErrorCode.QUERY_TIMEOUT.value
                raise self._too_late() from None
            self._outcome = code_of(error)
            self._on_failure(error)
            raise
        else:
            self._whole = batch is None
            if self._record is not None and batch is not None:
                self._record.gave(batch)
            return batch
        finally:
            with self._lock:
                self._idle_since = time.monotonic()

    def first_rows(self) -> tuple[list[pa.RecordBatch], bool]:
        """The first rows, and whether they are all: then the answer is closed, and holds nothing.

        Asked for once, before any others. After few rows it waits for the next ones, which tell
        whether there are any. Raises what `next_batch` does.
        """
        first, ended = first_rows(self.next_batch)
        if ended:
            self.close()
        return first, ended

    def look(self, now: float) -> None:
        """Give the turn back when nobody reads; end the query when nobody has for too long."""
        with self._lock:
            if self._closed or self._idle_since is None:
                return
            idle_seconds = now - self._idle_since
            if idle_seconds >= _LOOK_SECONDS:
                self._give_turn_back()
            self._expired = idle_seconds >= self._among.fetch_timeout.total_seconds()
        if self._expired:
            self.close()

    def enough(self) -> None:
        """The reader wants no more rows: closed now, the query has not been cancelled."""
        self._whole = True

    def interrupt(self) -> None:
        """Stop the query, from any thread. Idempotent."""
        self._stop.interrupt()

    def close(self) -> None:
        """Release everything. Idempotent, from any thread; never waits for the query."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._running.close()
        self._pinned.release()
        with self._lock:
            self._give_turn_back()
        self._among.discard(self)
        ending = self._ending()
        if self._record is not None:
            self._record.run_seconds = self.stats.seconds
            self._record.ended(ending)
        self._span.note(rows=self.stats.rows)
        self._span.end(ending)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ending(self) -> str:
        if self._whole or self._outcome != OK:
            return self._outcome
        expired, left = ErrorCode.QUERY_TIMEOUT, ErrorCode.QUERY_CANCELLED
        return expired.value if self._expired else left.value

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while (batch := self.next_batch()) is not None:
            yield batch

    def _take_turn_again(self) -> None:
        self._turns.take_again(self._among.fetch_timeout, self._stop)
        with self._lock:
            self._has_turn = True
            if self._closed:
                self._give_turn_back()

    def _give_turn_back(self) -> None:
        # Under the lock.
        if self._has_turn:
            self._has_turn = False
            self._turns.give_back()

    def _too_late(self) -> Exceeded:
        seconds = self._among.fetch_timeout.total_seconds()
        return Exceeded(
            ErrorCode.QUERY_TIMEOUT,
            f"no rows were fetched for {seconds:g} s, so the query was ended: "
            "fetch without such a pause, or raise query.fetch_timeout_seconds",
            fetch_timeout_seconds=seconds,
        )
