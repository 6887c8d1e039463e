"""The calls in flight: how many there may be, and which of their callers have gone.

pyarrow has a thread for each call and no limit, and tells of a caller's going only when asked. So
each call takes a place here when it starts and gives it back when it completes, and one thread
asks for all of them. A part of the places is kept for calls that are no work, such as metadata:
however many statements and streams there are, those are answered.
"""

import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog

from duckmesh.errors import ErrorCode, Overloaded, Unavailable

POLL_SECONDS: Final = 0.02
"""How often each caller is asked after, while there are few."""

_ASKED_AT_ONCE: Final = 4
"""One question takes 50 us and more, and holds the GIL: gRPC polls the connection for it."""

_PAUSE_SECONDS_MIN: Final = 0.01
"""Between two rounds, so that a crowd's questions take two percent of the time at most."""

_QUIET_ROUNDS_MAX: Final = 50
"""So many rounds with nobody to ask for, and the thread sleeps until it is woken."""

_RESERVED: Final = 8
"""One place in so many is not for work."""

_HEED_SECONDS_MAX: Final = 5.0
"""How long a drain waits for what it has cancelled."""

_RETRY_AFTER_SECONDS: Final = 1
_log = structlog.get_logger(__name__)


class Cancellable(Protocol):
    """What is asked of pyarrow's ServerCallContext."""

    def is_cancelled(self) -> bool: ...


class _Watched:
    __slots__ = ("cancel", "context")

    def __init__(self, context: Cancellable, cancel: Callable[[], None]) -> None:
        self.context = context
        self.cancel = cancel


class Place:
    """One call's place among the calls in flight. `leave` gives it back; again does nothing."""

    __slots__ = ("_calls",)

    def __init__(self, calls: "CallsInFlight") -> None:
        self._calls = calls

    def work(self) -> None:
        """Count this call among those that do work: statements and streams. Again does nothing.

        Raises Overloaded when as many are under way as may be.
        """
        self._calls._work(self)  # noqa: SLF001 - two halves of one

    def on_cancel(self, context: Cancellable, cancel: Callable[[], None]) -> None:
        """Run `cancel` once, from another thread, when the caller goes away or the server ends.

        It must not block, and may run when the call has already come to its end.
        """
        self._calls._watch(self, _Watched(context, cancel))  # noqa: SLF001 - two halves of one

    def on_leave(self, release: Callable[[], None]) -> None:
        """Run `release` when the call completes, whatever became of it. It must not block."""
        self._calls._release_later(self, release)  # noqa: SLF001 - two halves of one

    def leave(self) -> None:
        self._calls._leave(self)  # noqa: SLF001 - two halves of one


class CallsInFlight:
    """Thread-safe. `close` ends its thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._work_limit = max(1, limit - limit // _RESERVED)
        lock = threading.Lock()
        self._left = threading.Condition(lock)
        self._wake = threading.Condition(lock)
        self._places: set[Place] = set()
        self._working: set[Place] = set()
        self._watched: dict[Place, list[_Watched]] = {}
        self._releases: dict[Place, list[Callable[[], None]]] = {}
        self._draining = False
        self._closed = False
        self._asleep = False
        self._thread: threading.Thread | None = None

    @property
    def count(self) -> int:
        with self._left:
            return len(self._places)

    def enter(self, *, finishes: bool = False) -> Place:
        """A place for a call that starts; `finishes` when it ends what an earlier one began.

        Raises Overloaded when all are taken, and Unavailable in a drain, which still admits the
        calls that finish something.
        """
        place = Place(self)
        with self._left:
            if self._draining and not finishes:
                raise Unavailable(
                    ErrorCode.NOT_READY, "this server is shutting down: connect to another"
                )
            if len(self._places) >= self._limit:
                raise _too_many(self._limit)
            self._places.add(place)
        return place

    def drain(self, grace: timedelta) -> bool:
        """Begin nothing new; wait for what is in flight; cancel the rest. Whether all have ended.

        Blocks for at most twice `grace`.
        """
        seconds = grace.total_seconds()
        with self._left:
            self._draining = True
            if self._left.wait_for(lambda: not self._places, seconds):
                return True
            remaining = [each for watched in self._watched.values() for each in watched]
        for each in remaining:
            _run(each.cancel)
        with self._left:
            # Whoever has not left soon after neither reads nor writes: no longer wait moves him.
            return self._left.wait_for(lambda: not self._places, min(seconds, _HEED_SECONDS_MAX))

    def close(self) -> None:
        with self._left:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self, place: Place) -> None:
        with self._left:
            if place in self._working or place not in self._places:
                return
            if len(self._working) >= self._work_limit:
                raise _too_many(self._work_limit)
            self._working.add(place)

    def _release_later(self, place: Place, release: Callable[[], None]) -> None:
        with self._left:
            if place in self._places:
                self._releases.setdefault(place, []).append(release)
                return
        release()

    def _watch(self, place: Place, watched: _Watched) -> None:
        with self._left:
            if place not in self._places:
                return
            self._watched.setdefault(place, []).append(watched)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._poll, name="flight-cancellation", daemon=True
                )
                self._thread.start()
            elif self._asleep:
                self._wake.notify_all()

    def _leave(self, place: Place) -> None:
        # The context dies with the call. The poller asks it only under this lock, and only while
        # the place is here.
        with self._left:
            self._working.discard(place)
            self._watched.pop(place, None)
            releases = self._releases.pop(place, ())
        for release in releases:
            _run(release)
        with self._left:
            # Last of all: who waits for the calls to end waits for what they held, too.
            self._places.discard(place)
            if not self._places:
                self._left.notify_all()

    def _poll(self) -> None:
        quiet = 0
        while True:
            with self._left:
                if quiet > _QUIET_ROUNDS_MAX:
                    self._sleep()
                if self._closed:
                    return
                quiet = 0 if self._watched else quiet + 1
                gone = self._take_cancelled()
                rounds = -(-len(self._watched) // _ASKED_AT_ONCE)
            for each in gone:
                _run(each.cancel)
            pause = max(POLL_SECONDS / max(rounds, 1), _PAUSE_SECONDS_MIN)
            with self._left:
                self._wake.wait_for(lambda: self._closed, pause)

    def _sleep(self) -> None:
        self._asleep = True
        self._wake.wait_for(lambda: self._closed or self._watched)
        self._asleep = False

    def _take_cancelled(self) -> list[_Watched]:
        """Ask after those who were not asked after for the longest time."""
        gone: list[_Watched] = []
        for place in list(itertools.islice(self._watched, _ASKED_AT_ONCE)):
            watched = self._watched.pop(place)
            if watched[0].context.is_cancelled():
                gone += watched
            else:
                self._watched[place] = watched
        return gone


def _too_many(limit: int) -> Overloaded:
    return Overloaded(
        ErrorCode.TOO_MANY_QUERIES,
        f"{limit} calls are in flight on this server: retry in a moment",
        limit=limit,
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


def _run(act: Callable[[], Any]) -> None:
    try:
        act()
    except Exception:  # noqa: BLE001 - one call's failure to stop must not stop the poller
        _log.exception("cancel_failed")
