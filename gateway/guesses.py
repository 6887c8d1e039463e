"""Wrong secrets, counted: who guesses is told to wait, and costs no look-up meanwhile.

The count is of one key id from one source, so that a guesser is in nobody's way but his own. A
secret that is right is let in all the same: the count stands before refusals alone, for 256
random bits are not guessed, and a guesser must not be able to lock a key's holder out.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import Final

from duckmesh.errors import ErrorCode, Overloaded

_WINDOW_SECONDS: Final = 60.0
_FREE: Final = 10
"""Wrong secrets within a window that are merely refused."""
_REMEMBERED: Final = 10_000


class Guesses:
    """Wrong secrets of this process's callers. Thread-safe; memory is bounded.

    The guess seen longest ago is forgotten first.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._counts: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def wrong(self, source: str, key_id: str) -> None:
        """Note a wrong secret. Raises Overloaded (RATE_LIMITED) when it was one too many."""
        now = self._monotonic()
        guess = source[:100], key_id
        with self._lock:
            ends, count = self._counts.pop(guess, (0.0, 0))
            if now >= ends:
                ends, count = now + _WINDOW_SECONDS, 0
            self._counts[guess] = ends, count + 1
            if len(self._counts) > _REMEMBERED:
                self._counts.popitem(last=False)
        if count >= _FREE:
            seconds = ends - now
            raise Overloaded(
                ErrorCode.RATE_LIMITED,
                f"{_FREE} wrong secrets of this key were shown within {_WINDOW_SECONDS:g} s: "
                "correct the secret, and wait",
                limit=_FREE,
                retry_after_ms=ceil(seconds * 1000),
                retry_after_seconds=ceil(seconds),
            )
