"""Which tickets are being fetched in this process, and which of them were cancelled.

A ticket is a sealed value that any process answers. So a cancellation reaches what runs here, and
makes the ticket dead here; it does not reach another process.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Final

from duckmesh.errors import Cancelled, ErrorCode
from query_engine.engine import Interruption

_DEAD_MAX: Final = 100_000


class Fetches:
    """Thread-safe. Of the cancelled tickets the newest 100,000 are remembered."""

    def __init__(self, dead_max: int = _DEAD_MAX) -> None:
        self._lock = threading.Lock()
        self._running: defaultdict[bytes, set[Interruption]] = defaultdict(set)
        self._dead: OrderedDict[bytes, None] = OrderedDict()
        self._dead_max = dead_max

    @property
    def count(self) -> int:
        """How many tickets are being fetched."""
        with self._lock:
            return len(self._running)

    def begin(self, ticket_id: bytes, stop: Interruption) -> Callable[[], None]:
        """Note that a fetch begins; `stop` is pressed when its ticket is cancelled.

        Returns what ends the note. Raises Cancelled (QUERY_CANCELLED) for a dead ticket.
        """
        with self._lock:
            self._check_live(ticket_id)
            self._running[ticket_id].add(stop)

        def end() -> None:
            with self._lock:
                self._running[ticket_id].discard(stop)
                if not self._running[ticket_id]:
                    del self._running[ticket_id]

        return end

    def check_live(self, ticket_id: bytes) -> None:
        """Raise Cancelled (QUERY_CANCELLED) for a ticket that was cancelled here."""
        with self._lock:
            self._check_live(ticket_id)

    def cancel(self, ticket_id: bytes) -> bool:
        """Make the ticket dead, and stop what fetches it; whether anything did."""
        with self._lock:
            self._dead[ticket_id] = None
            if len(self._dead) > self._dead_max:
                self._dead.popitem(last=False)
            stops = list(self._running.get(ticket_id, ()))
        for stop in stops:
            stop.interrupt()
        return bool(stops)

    def _check_live(self, ticket_id: bytes) -> None:
        if ticket_id in self._dead:
            raise Cancelled(
                ErrorCode.QUERY_CANCELLED, "the ticket was cancelled: ask for the flight info again"
            )
