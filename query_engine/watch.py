"""Stopping queries: at their time limit, or when the caller says so.

DuckDB's own `max_execution_time` counts the time in which a client reads slowly. Here only the
time counts in which the caller waits for DuckDB.
"""

import threading
import time
from datetime import timedelta
from typing import Final, Protocol

from duckmesh.errors import DuckMeshError
from query_engine.failures import cancelled, timed_out

_REPEAT_SECONDS: Final = 0.05


class Interruptible(Protocol):
    def interrupt(self) -> None: ...


class Guard:
    """The stopwatch and the stop button of one query."""

    def __init__(self, limit: timedelta | None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._cursor: Interruptible | None = None
        self._used = 0.0
        self._since: float | None = None
        self._cancelled = False
        self._timed_out = False

    @property
    def stopped(self) -> bool:
        return self._cancelled or self._timed_out

    @property
    def seconds(self) -> float:
        """Time spent waiting for DuckDB so far."""
        since = self._since
        return self._used + (time.monotonic() - since if since is not None else 0.0)

    def hold(self, cursor: Interruptible | None) -> None:
        """What to interrupt from now on. After `hold(None)` no interrupt reaches the old one."""
        with self._lock:
            self._cursor = cursor

    def start(self) -> None:
        """DuckDB works from here. Raises what stopped the query, if anything has."""
        self.check()
        self._since = time.monotonic()

    def stop(self) -> None:
        self._used, self._since = self.seconds, None

    def check(self) -> None:
        """Raise Cancelled or Exceeded (QUERY_TIMEOUT) when the query was stopped."""
        verdict = self.verdict()
        if verdict is not None:
            raise verdict

    def verdict(self) -> DuckMeshError | None:
        """Why the query was stopped; the caller's word goes before the clock's."""
        if self._cancelled:
            return cancelled()
        if self._timed_out and self._limit is not None:
            return timed_out(self._limit, max(self.seconds, self._limit.total_seconds()))
        return None

    def cancel(self) -> None:
        self._cancelled = True
        self.strike()

    def strike(self) -> None:
        with self._lock:
            if self._cursor is not None:
                self._cursor.interrupt()

    def seconds_left(self) -> float:
        """Until the next strike may be due; the limit itself marks the query as timed out."""
        if self._cancelled:
            return 0.0
        if self._limit is None:
            return float("inf")
        left = self._limit.total_seconds() - self.seconds
        if left <= 0:
            self._timed_out = True
        return max(0.0, left)


class Watch:
    """One thread that strikes what is overdue, and again until it ends.

    Again, because DuckDB forgets an interrupt that arrives just before a statement starts.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._guards: set[Guard] = set()
        self._wakes_at = float("inf")
        self._ended = False
        self._thread: threading.Thread | None = None

    def add(self, guard: Guard) -> None:
        """Strike `guard` when it is due, until `remove`."""
        due_at = time.monotonic() + guard.seconds_left()
        with self._changed:
            self._guards.add(guard)
            if due_at == float("inf"):
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="query-watch", daemon=True)
                self._thread.start()
            elif due_at < self._wakes_at:
                self._changed.notify()

    def remove(self, guard: Guard) -> None:
        with self._changed:
            self._guards.discard(guard)

    def cancel(self, guard: Guard) -> None:
        """Strike now, and again while it does not heed."""
        guard.cancel()
        with self._changed:
            known = guard in self._guards
        if known:
            self.add(guard)

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                left = min((each.seconds_left() for each in self._guards), default=float("inf"))
                for guard in self._guards:
                    if guard.stopped:
                        guard.strike()
                wait = max(left, _REPEAT_SECONDS)
                self._wakes_at = time.monotonic() + wait
                self._changed.wait(None if wait == float("inf") else wait)
