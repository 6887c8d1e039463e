"""Answers questions through workers, and puts up with their deaths.

A query whose worker dies before any of its rows were handed on is asked again, of a worker that it
has to itself: a query that kills its worker takes nobody along twice. Later the loss is the
caller's to know, as a retryable error.
"""

import logging
import signal
import time
from datetime import timedelta
from functools import partial
from typing import Final

import pyarrow as pa

from duckmesh.errors import Cancelled, DuckMeshError
from query_engine import wire
from query_engine.failures import memory_exceeded
from query_engine.pulled import PulledRows
from query_engine.question import Description, Question
from query_engine.running import Interruption, RunningQuery
from query_engine.stream import QueryStats, message_bytes
from query_engine.watch import Guard, Watch
from query_engine.wire import Ask, Lost, Reply
from query_engine.worker_pool import Lease, WorkerPool, lost

_ATTEMPTS_MAX: Final = 3
_DEAF_SECONDS: Final = 0.25
"""A worker that has not heeded for so long gets no further query."""

_log = logging.getLogger(__name__)


class RemoteAnswers:
    """Runs questions in workers. Safe from any thread."""

    def __init__(self, pool: WorkerPool, *, memory_limit_bytes: int) -> None:
        self.pool = pool
        self._memory_limit_bytes = memory_limit_bytes
        self._watch = Watch()

    def close(self) -> None:
        """End the workers; queries under way end with their readers."""
        self.pool.close()
        self._watch.close()

    def await_ready(self, timeout: timedelta) -> bool:
        return self.pool.await_spare(timeout)

    def run(self, question: Question, stop: Interruption) -> RunningQuery:
        """Start a query; returns when its first rows are under way, which may take long."""
        guard = Guard(question.limits.wall_time)
        stats = QueryStats(
            question.scanned_files, replica_files=question.replica_files, guard=guard
        )
        rows = RemoteRows(self._inquiry(question, Ask.RUN, guard), stats)
        self._watch.add(guard)
        stop.connect(partial(self._watch.cancel, guard))
        return RunningQuery(rows, rows.open(), stats, stop)

    def describe(self, question: Question, stop: Interruption) -> Description:
        """The schemas of a query, bound and not run. What is constant in it is computed."""
        guard = Guard(question.limits.wall_time)
        inquiry = self._inquiry(question, Ask.DESCRIBE, guard)
        self._watch.add(guard)
        former = stop.connect(partial(self._watch.cancel, guard))
        try:
            while True:
                try:
                    return inquiry.description()
                except Lost:
                    failure = inquiry.lose()
                if failure is not None:
                    raise failure
        finally:
            stop.connect(former)
            inquiry.finish()

    def _inquiry(self, question: Question, ask: Ask, guard: Guard) -> "Inquiry":
        return Inquiry(
            self.pool,
            self._watch,
            guard=guard,
            question=question,
            ask=ask,
            memory_limit_bytes=self._memory_limit_bytes,
        )


class Errand:
    """One attempt: a question put to one worker. What a guard strikes."""

    def __init__(self, lease: Lease, grace: timedelta) -> None:
        self.lease = lease
        self.source = lease.channel.source
        self.asked = False
        self.answered = False
        self.stopped_at: float | None = None
        self._killed = False
        self._grace_seconds = grace.total_seconds()

    def interrupt(self) -> None:
        """Stop it; struck again after the grace, kill the worker. Under the guard's lock."""
        if self.answered or self._killed or not self.asked:
            return
        now = time.monotonic()
        if self.stopped_at is None:
            self.stopped_at = now
            self.lease.stop()
        elif now - self.stopped_at > self._grace_seconds:
            self._killed = True
            _log.warning("a worker does not heed: it is killed (pid %s)", self.lease.pid)
            self.lease.kill()
        elif now - self.stopped_at > _DEAF_SECONDS:
            self.lease.avoid()

    def trailer(self) -> DuckMeshError | None:
        """What the worker says at the end of its answer."""
        failure, retire = wire.read_trailer(self.source)
        self.answered = True
        if retire:
            self.lease.avoid()
        return failure


class Inquiry:
    """A question until it is answered, whatever becomes of the workers. Used by one thread."""

    def __init__(
        self,
        pool: WorkerPool,
        watch: Watch,
        *,
        guard: Guard,
        question: Question,
        ask: Ask,
        memory_limit_bytes: int,
    ) -> None:
        self.guard = guard
        self._pool = pool
        self._watch = watch
        self._question = question
        self._ask = ask
        self._memory_limit_bytes = memory_limit_bytes
        self._attempts = 0
        self._errand: Errand | None = None

    def interrupt(self) -> None:
        """Cancel it, from any thread."""
        self._watch.cancel(self.guard)

    def rows(self) -> pa.RecordBatchReader:
        """Ask; the stream of rows, under way. Raises Lost, and what the worker said instead."""
        errand = self._send()
        self.guard.start()
        try:
            reply = wire.read_reply(errand.source)
            if reply is Reply.WHOLE:
                return wire.open_whole(errand.source)
            if reply is Reply.ROWS:
                return wire.open_rows(errand.source)
            failure = self._judged(errand)
        finally:
            self.guard.stop()
        raise failure or Lost()

    def description(self) -> Description:
        """Ask; the answer. Raises as `rows` does."""
        errand = self._send()
        self.guard.start()
        try:
            described = None
            if wire.read_reply(errand.source) is Reply.DESCRIPTION:
                described = wire.read_description(errand.source)
            failure = self._judged(errand)
        finally:
            self.guard.stop()
        if described is None or failure is not None:
            raise failure or Lost()
        return described

    def trailer(self) -> DuckMeshError | None:
        """What stands behind the rows."""
        if self._errand is None:
            raise Lost
        return self._judged(self._errand)

    def _judged(self, errand: Errand) -> DuckMeshError | None:
        failure = errand.trailer()
        # The worker knows that it was stopped; why, is known here.
        return (self.guard.verdict() or failure) if isinstance(failure, Cancelled) else failure

    def lose(self) -> DuckMeshError | None:
        """The worker is gone. What to raise; None to ask again, which the next call does."""
        errand, self._errand = self._errand, None
        self.guard.hold(None)
        if errand is not None:
            # Whatever it sends from now on is not to be trusted, nor is another query to it.
            errand.lease.avoid()
            errand.lease.end(reuse=False)
        verdict = self.guard.verdict()
        if verdict is not None or self._attempts < _ATTEMPTS_MAX:
            return verdict
        if errand is not None and errand.lease.exit_code() == -signal.SIGABRT:
            # Alone in its worker, and each time: an allocation failed where nothing could catch it.
            return memory_exceeded(self._question.limits.memory_bytes or self._memory_limit_bytes)
        return lost(self._attempts)

    def give_up(self) -> DuckMeshError:
        """The worker is gone, and its rows were handed on already."""
        self._attempts = _ATTEMPTS_MAX
        return self.lose() or lost(self._attempts)

    def finish(self) -> None:
        """Give everything back. Never waits: what is still under way is stopped and read off."""
        errand, self._errand = self._errand, None
        if errand is not None and errand.asked and not errand.answered:
            self._watch.cancel(self.guard)
            errand.lease.abandon(partial(self._read_off, errand))
            return
        self.guard.hold(None)
        self._watch.remove(self.guard)
        if errand is not None:
            errand.lease.end(reuse=errand.stopped_at is None)

    def _read_off(self, errand: Errand) -> None:
        self.guard.hold(None)
        self._watch.remove(self.guard)
        errand.lease.end(reuse=False)

    def _send(self) -> Errand:
        self._attempts += 1
        lease = self._pool.lease(self._question, self.guard, alone=self._attempts > 1)
        self._errand = errand = Errand(lease, self._pool.settings.kill_grace)
        self.guard.hold(errand)
        self.guard.check()
        errand.asked = True
        # A stopped query is left at once; its worker has the grace to notice, unwatched by us.
        errand.source.check = self.guard.check
        wire.send_question(lease.channel.socket, self._ask, self._question)
        return errand


class RemoteRows(PulledRows):
    """The rows of one query, as a worker sends them."""

    def __init__(self, inquiry: Inquiry, stats: QueryStats) -> None:
        super().__init__(inquiry.guard)
        self._inquiry = inquiry
        self._stats = stats
        self._reader: pa.RecordBatchReader | None = None
        self._schema: pa.Schema | None = None

    def _start(self) -> pa.Schema:
        while self._reader is None:
            try:
                self._reader = self._inquiry.rows()
            except Lost:
                failure = self._inquiry.lose()
                if failure is not None:
                    raise failure from None
        if self._schema is None:
            self._schema = self._reader.schema
        return self._schema

    def _pull(self) -> pa.RecordBatch | None:
        while True:
            try:
                return self._next()
            except Lost:
                self._reader = None
                failure = self._lost()
            if failure is not None:
                raise failure
            if self._start() != self._reader_schema():
                raise self._inquiry.give_up()

    def _next(self) -> pa.RecordBatch | None:
        self._guard.start()
        try:
            batch = wire.read_batch(self._reader)
            failure = self._inquiry.trailer() if batch is None else None
        finally:
            self._guard.stop()
        if failure is not None:
            raise failure
        if batch is None:
            self._finished = True
            return None
        self._stats.rows += batch.num_rows
        self._stats.batches += 1
        self._stats.bytes += message_bytes(batch)
        return batch

    def _lost(self) -> DuckMeshError | None:
        return self._inquiry.give_up() if self._stats.batches else self._inquiry.lose()

    def _reader_schema(self) -> pa.Schema | None:
        return None if self._reader is None else self._reader.schema

    def _judge(self, error: BaseException) -> BaseException:
        return error

    def _interrupt(self) -> None:
        self._inquiry.interrupt()

    def _release(self) -> None:
        self._reader = None
        self._inquiry.finish()
