"""The calls in flight: how many there may be, and which of their callers have gone.

pyarrow has a thread for each call and no limit, and tells of a caller's going only when asked. So
each call takes a place here when it starts and gives it back when it completes, and one thread
asks for all of them.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog

from duckmesh.errors import ErrorCode, Overloaded, Unavailable

POLL_SECONDS: Final = 0.02
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

    def on_cancel(self, context: Cancellable, cancel: Callable[[], None]) -> None:
        """Run `cancel` once, from another thread, when the caller goes away or the server ends.

        It must not block, and may run when the call has already come to its end.
        """
        self._calls._watch(self, _Watched(context, cancel))  # noqa: SLF001 - two halves of one

    def leave(self) -> None:
        self._calls._leave(self)  # noqa: SLF001 - two halves of one


class CallsInFlight:
    """Thread-safe. `close` ends its thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._places: set[Place] = set()
        self._watched: dict[Place, list[_Watched]] = {}
        self._draining = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def count(self) -> int:
        with self._changed:
            return len(self._places)

    def enter(self, *, finishes: bool = False) -> Place:
        """A place for a call that starts; `finishes` when it ends what an earlier one began.

        Raises Overloaded when all are taken, and Unavailable in a drain, which still admits the
        calls that finish something.
        """
        place = Place(self)
        with self._changed:
            if self._draining and not finishes:
                raise Unavailable(
                    ErrorCode.NOT_READY, "this server is shutting down: connect to another"
                )
            if len(self._places) >= self._limit:
                raise Overloaded(
                    ErrorCode.TOO_MANY_QUERIES,
                    f"{self._limit} calls are in flight on this server: retry in a moment",
                    limit=self._limit,
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
            self._places.add(place)
        return place

    def drain(self, grace: timedelta) -> bool:
        """Begin nothing new; wait for what is in flight; cancel the rest. Whether all have ended.

        Blocks for at most twice `grace`.
        """
        with self._changed:
            self._draining = True
            if self._changed.wait_for(lambda: not self._places, grace.total_seconds()):
                return True
            remaining = [each for watched in self._watched.values() for each in watched]
        for each in remaining:
            _run(each.cancel)
        with self._changed:
            return self._changed.wait_for(lambda: not self._places, grace.total_seconds())

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, place: Place, watched: _Watched) -> None:
        with self._changed:
            if place not in self._places:
                return
            self._watched.setdefault(place, []).append(watched)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._poll, name="flight-cancellation", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _leave(self, place: Place) -> None:
        # The context dies with the call. The poller asks it only under this lock, and only while
        # the place is here.
        with self._changed:
            self._places.discard(place)
            self._watched.pop(place, None)
            self._changed.notify_all()

    def _poll(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._watched)
                if self._closed:
                    return
                gone = self._take_cancelled()
            for each in gone:
                _run(each.cancel)
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, POLL_SECONDS):
                    return

    def _take_cancelled(self) -> list[_Watched]:
        gone: list[_Watched] = []
        for place, watched in list(self._watched.items()):
            if watched[0].context.is_cancelled():
                gone += watched
                del self._watched[place]
        return gone


def _run(cancel: Callable[[], Any]) -> None:
    try:
        cancel()
    except Exception:  # noqa: BLE001 - one call's failure to stop must not stop the poller
        _log.exception("cancel_failed")
