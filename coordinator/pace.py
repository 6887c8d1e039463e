"""How fast maintenance goes: slower than its setting, and behind whoever publishes."""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

_NICE: Final = 10
_SLEEP_MAX_SECONDS: Final = 1.0


def step_back() -> None:
    """Let this thread run behind the process's others, where the system knows threads apart."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Stopped(Exception):
    """The process ends. What was under way is begun anew later; it never leaves this room."""


class Pace:
    """One piece of work's rhythm. Used by one thread; `stop` may be set by any.

    `renew` is called from `spend` about every `renew_every`, to keep what the work holds.
    """

    def __init__(
        self,
        bytes_per_second: int,
        stop: threading.Event,
        *,
        renew: Callable[[], None] = lambda: None,
        renew_every: timedelta = timedelta(seconds=10),
    ) -> None:
        self._rate = bytes_per_second
        self._stop = stop
        self._renew = renew
        self._renew_seconds = renew_every.total_seconds()
        self._renewed_at = self._began_at = time.monotonic()
        self._spent_bytes = 0

    def spend(self, size_bytes: int) -> None:
        """Account for bytes that were worked on; sleep when that was too fast.

        Raises Stopped when the process ends.
        """
        self._spent_bytes += size_bytes
        due = self._began_at + self._spent_bytes / self._rate
        while True:
            now = time.monotonic()
            if now - self._renewed_at >= self._renew_seconds:
                self._renewed_at = now
                self._renew()
            if self._stop.wait(min(max(0.0, due - now), _SLEEP_MAX_SECONDS)):
                raise Stopped
            if due <= now:
                return
