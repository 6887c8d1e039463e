"""The calls in flight: how many there may be, and how all of them end.

Each call takes a place here when it starts and gives it back when it completes. A part of the
places is kept for calls that are no work, such as metadata: however many statements and streams
there are, those are answered.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog

from duckmesh.errors import ErrorCode, Overloaded, Unavailable

_RESERVED: Final = 8
"""One place in so many is not for work."""

_HEED_SECONDS_MAX: Final = 5.0
"""How long a drain waits for what it has cancelled."""

_RETRY_AFTER_SECONDS: Final = 1
_log = structlog.get_logger(__name__)


class Cancellable(Protocol):
    """What is asked of grpc_transport's Call."""

    def on_cancel(self, act: Callable[[], None]) -> None: ...

    def cancel(self) -> None: ...


class Place:
    """One call's place among the calls in flight. `leave` gives it back; again does nothing."""

    __slots__ = ("_calls", "on_drain", "rpc")

    def __init__(self, calls: "CallsInFlight", rpc: Cancellable) -> None:
        self._calls = calls
        self.rpc = rpc
        self.on_drain: Callable[[], None] | None = None
        """Run when a drain's patience ends, for a call that a thread does not work for."""

    def work(self) -> None:
        """Count this call among those that do work: statements and streams. Again does nothing.

        Raises Overloaded when as many are under way as may be.
        """
        self._calls._work(self)  # noqa: SLF001 - two halves of one

    def on_cancel(self, cancel: Callable[[], None]) -> None:
        """Run `cancel` once, from another thread, when the caller goes away or the server ends.

        It must not block, and may run when the call has already come to its end.
        """
        once = _Once(cancel)
        self._calls._watch(self, once)  # noqa: SLF001 - two halves of one
        self.rpc.on_cancel(once)

    def on_leave(self, release: Callable[[], None]) -> None:
        """Run `release` when the call completes, whatever became of it. It must not block."""
        self._calls._release_later(self, release)  # noqa: SLF001 - two halves of one

    def leave(self) -> None:
        self._calls._leave(self)  # noqa: SLF001 - two halves of one


class _Once:
    """Runs its act the first time that it is called, from whichever thread."""

    __slots__ = ("_acts",)

    def __init__(self, act: Callable[[], None]) -> None:
        self._acts = [act]

    def __call__(self) -> None:
        try:
            act = self._acts.pop()
        except IndexError:
            # Another thread was first.
            return
        act()


class CallsInFlight:
    """Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._work_limit = max(1, limit - limit // _RESERVED)
        # The lock alone for what every call passes: a condition's own gate costs several times it.
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._places: set[Place] = set()
        self._working: set[Place] = set()
        self._cancels: dict[Place, list[Callable[[], None]]] = {}
        self._releases: dict[Place, list[Callable[[], None]]] = {}
        self._draining = False

    @property
    def count(self) -> int:
        with self._left:
            return len(self._places)

    def enter(self, rpc: Cancellable, *, finishes: bool = False) -> Place:
        """A place for a call that starts; `finishes` when it ends what an earlier one began.

        Raises Overloaded when all are taken, and Unavailable in a drain, which still admits the
        calls that finish something. Never blocks.
        """
        place = Place(self, rpc)
        with self._lock:
            if self._draining and not finishes:
                raise shutting_down()
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
            if self._left.wait_for(self._is_empty, seconds):
                return True
            cancels = [each for cancels in self._cancels.values() for each in cancels]
            cancels += [each.on_drain for each in self._places if each.on_drain is not None]
        for cancel in cancels:
            _run(cancel)
        heed = min(seconds, _HEED_SECONDS_MAX) / 2
        with self._left:
            # So that the others are told why.
            if self._left.wait_for(self._is_empty, heed):
                return True
            places = list(self._places)
        for place in places:
            # Who does not even read is left where he is.
            _run(place.rpc.cancel)
        with self._left:
            return self._left.wait_for(self._is_empty, heed)

    def _is_empty(self) -> bool:
        return not self._places

    def _work(self, place: Place) -> None:
        with self._lock:
            if place in self._working or place not in self._places:
                return
            if len(self._working) >= self._work_limit:
                raise _too_many(self._work_limit)
            self._working.add(place)

    def _release_later(self, place: Place, release: Callable[[], None]) -> None:
        with self._lock:
            if place in self._places:
                self._releases.setdefault(place, []).append(release)
                return
        release()

    def _watch(self, place: Place, cancel: Callable[[], None]) -> None:
        with self._lock:
            if place in self._places:
                self._cancels.setdefault(place, []).append(cancel)

    def _leave(self, place: Place) -> None:
        with self._lock:
            self._working.discard(place)
            self._cancels.pop(place, None)
            releases = self._releases.pop(place, ())
            if not releases:
                self._end(place)
                return
        for release in releases:
            _run(release)
        with self._lock:
            self._end(place)

    def _end(self, place: Place) -> None:
        # Last of all: who waits for the calls to end waits for what they held, too.
        self._places.discard(place)
        if not self._places:
            self._left.notify_all()


def shutting_down() -> Unavailable:
    """The refusal of what comes in a drain."""
    return Unavailable(ErrorCode.NOT_READY, "this server is shutting down: connect to another")


def out_of_threads() -> Overloaded:
    """The refusal of a call that the system has no thread for."""
    return Overloaded(
        ErrorCode.TOO_MANY_QUERIES,
        "this server has no thread for another call: retry in a moment",
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


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
    except Exception:  # noqa: BLE001 - one call's failure to stop must not keep the others
        _log.exception("cancel_failed")
