"""Threads for what may block: as many as there is work, and none that idles for long."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

_IDLE_SECONDS: Final = 30.0

Work = Callable[[], None]


class Threads:
    """Runs each piece of work at once, on a thread that has nothing to do or on a new one.

    Who gives the work bounds how much there is, or `most` does: beyond so many threads it waits. It
    must not raise. Thread-safe.
    """

    def __init__(self, name: str, *, most: int | None = None) -> None:
        self._name = name
        self._most = most
        self._count = 0
        lock = threading.Lock()
        self._given = threading.Condition(lock)
        self._work: deque[Work] = deque()
        self._idle = 0
        self._closed = False

    def run(self, work: Work) -> None:
        """Begin `work`, and return.

        Raises RuntimeError when the system gives no thread for it: then it never runs.
        """
        with self._given:
            self._work.append(work)
            if self._idle >= len(self._work):
                self._given.notify()
                return
            if self._count == self._most:
                return
            self._count += 1
        try:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        except RuntimeError:
            if not self._takes_over(work):
                raise

    def _takes_over(self, work: Work) -> bool:
        """No thread could be started: whether another one has the work, or will."""
        with self._given:
            self._count -= 1
            if self._most is not None and self._count:
                # It waits for one of those, as it would beyond `most`.
                return True
            with contextlib.suppress(ValueError):
                self._work.remove(work)
                return False
            return True

    def close(self) -> None:
        """Let the idle ones go; who works ends with its work."""
        with self._given:
            self._closed = True
            self._given.notify_all()

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work

    def _next(self) -> Work | None:
        with self._given:
            if not self._work:
                self._idle += 1
                self._given.wait_for(lambda: self._work or self._closed, _IDLE_SECONDS)
                self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._count -= 1
            return None
