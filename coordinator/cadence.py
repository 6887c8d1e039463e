"""When to publish: at once when somebody waits or all was quiet, else after gathering for a while.

A publication costs a few milliseconds and leaves a file per table. So writes that nobody waits for
are gathered for up to the flush interval, and many of them share one file.
"""

import threading
import time
from datetime import timedelta


class Cadence:
    """One coordinator's rhythm. `want` may be called from any thread."""

    def __init__(self, flush_interval: timedelta) -> None:
        self._interval_seconds = flush_interval.total_seconds()
        self._wanted = threading.Event()
        self._round_began = float("-inf")

    def want(self) -> None:
        """Somebody waits: end a gathering, or skip the next one."""
        self._wanted.set()

    def begin_round(self) -> None:
        self._round_began = time.monotonic()
        self._wanted.clear()

    def gather(self) -> None:
        """Wait until the interval since the round began is over, or somebody waits."""
        left = self._round_began + self._interval_seconds - time.monotonic()
        if left > 0:
            self._wanted.wait(left)
