"""When to publish: at once when somebody waits or all was quiet, else after gathering for a while.

A publication costs a few milliseconds and leaves a file per table. So writes that nobody waits for
are gathered, and many of them share one file: for as long as keeps publishing to an eighth of the
time, and never for longer than the flush interval (docs/adr/0023-gathering-in-proportion.md).
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

_ROUND_IN: Final = 8
"""Rounds that publish take at most one in so many parts of the time."""

_REMEMBERED: Final = 8
"""So many rounds, about, tell what one takes: every eighth folds a tail, and is no measure."""


class Cadence:
    """One coordinator's rhythm. `want` may be called from any thread."""

    def __init__(
        self, flush_interval: timedelta, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_seconds = flush_interval.total_seconds()
        self._monotonic = monotonic
        self._wanted = threading.Event()
        self._round_began = float("-inf")
        self._usual_seconds: float | None = None

    def want(self) -> None:
        """Somebody waits: end a gathering, or skip the next one."""
        self._wanted.set()

    def begin_round(self) -> None:
        self._round_began = self._monotonic()
        self._wanted.clear()

    def gather(self) -> None:
        """Wait until the round that published was an eighth of the time, or somebody waits."""
        left = self.gathering_seconds()
        self._usual_seconds = self._usual_with(self._took())
        if left > 0:
            self._wanted.wait(left)

    def gathering_seconds(self) -> float:
        """How long to gather from now on, if nobody comes who waits."""
        took = self._took()
        return min(self._interval_seconds, _ROUND_IN * self._usual_with(took)) - took

    def _took(self) -> float:
        return self._monotonic() - self._round_began

    def _usual_with(self, took: float) -> float:
        """What a round takes of late, this one included."""
        usual = self._usual_seconds
        return took if usual is None else usual + (took - usual) / _REMEMBERED
