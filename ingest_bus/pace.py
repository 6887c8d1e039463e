"""How often a serving process wakes the coordinators while nobody waits for its writes."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

_BUSY_COMMITS: Final = 50
"""So many in a second, and each publication is to gather more of them."""

_AT_LEISURE: Final = timedelta(milliseconds=10)
_BUSY: Final = timedelta(milliseconds=50)


class Pace:
    """Fresh at a low load, thrifty at a high one: a publication costs as much as many writes.

    Threads may share it: a count that two of them lose changes nothing but a pause.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._second = 0
        self._commits = 0
        self._commits_before = 0

    def next(self) -> timedelta:
        """The least pause between the last wake-up and that for the commit just made."""
        second = int(self._monotonic())
        if second != self._second:
            self._commits_before = self._commits if second == self._second + 1 else 0
            self._second, self._commits = second, 0
        self._commits += 1
        busy = max(self._commits, self._commits_before) >= _BUSY_COMMITS
        return _BUSY if busy else _AT_LEISURE
