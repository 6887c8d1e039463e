"""Rows that one thread pulls and any thread may stop: what a stream from DuckDB is, near or far."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, TypeVar

import pyarrow as pa

from query_engine.failures import cancelled
from query_engine.watch import Guard

_T = TypeVar("_T")


class PulledRows(ABC):
    """An iterator over batches. One thread reads; any thread may close.

    A Python iterator stands between DuckDB and the door on purpose: a reader handed on bare would
    send its own words, with its paths, to the client when it fails midway. It holds no batch back
    and costs microseconds per batch of 65,536 rows.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._pulling = threading.Lock()
        self._closing = False
        self._finished = False
        self._released = False

    @abstractmethod
    def _start(self) -> pa.Schema:
        """Begin; return when the first rows are under way."""

    @abstractmethod
    def _pull(self) -> pa.RecordBatch | None:
        """The next batch; None at the end."""

    @abstractmethod
    def _judge(self, error: BaseException) -> BaseException:
        """What is to be raised for what a step raised."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Stop the step that another thread is in. Must not block."""

    @abstractmethod
    def _release(self) -> None:
        """Give everything back. Called once, by a thread that is in no step. Must not block."""

    def open(self) -> pa.Schema:
        """Start, once. On any error everything is released before it is raised."""
        schema = self._step(self._start)
        if schema is None:
            raise cancelled()
        return schema

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        batch = self._step(self._pull)
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def close(self) -> None:
        """Stop, and release everything. Idempotent, from any thread; never waits for DuckDB.

        When a reader is inside a step it is interrupted, and releases on its way out.
        """
        self._closing = True
        self._release_if_idle()

    def __del__(self) -> None:
        # A stream dropped unread must not keep its cursor, nor its place in the pool.
        self.close()

    def _step(self, step: Callable[[], _T]) -> _T | None:
        """Run a step of the reading thread; None when the stream has come to its end."""
        try:
            with self._pulling:
                if self._finished:
                    return None
                if self._closing:
                    # Closed before its end: to stop silently would pass for a whole result.
                    raise self._guard.verdict() or cancelled()  # noqa: TRY301 - one way out.
                return step()
        except BaseException as error:  # noqa: BLE001 - raised again below, in our words.
            self._closing = True
            failure = self._judge(error)
        finally:
            if self._closing:
                self._release_if_idle()
        # Outside the handler, so that DuckDB's error and its frames do not travel along.
        raise failure

    def _release_if_idle(self) -> None:
        if not self._pulling.acquire(blocking=False):
            # The reading thread is inside: it sees `_closing` when it comes out.
            self._interrupt()
            return
        try:
            if not self._released:
                self._released = True
                self._release()
        finally:
            self._pulling.release()
