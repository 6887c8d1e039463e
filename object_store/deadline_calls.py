"""Calls with a deadline, into code that has none."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MAX_STALLED: Final = 64
"""Abandoned threads allowed at once: past that, calls fail at once instead of piling up."""


class Stalled(Exception):
    """The call did not end in time. It may still run, in a thread that nobody waits for."""


class DeadlineCalls:
    """Runs calls on a connection that `connect` makes, each in a thread of its own.

    A call that ends in time returns or raises what it did. One that does not is abandoned, its
    connection is given up, and the next call makes a new one. Connecting runs under the deadline of
    the call that needs it, and under a lock of its own that no caller's thread takes.
    """

    def __init__(self, timeout: timedelta, connect: Callable[[], Any]) -> None:
        self._timeout_seconds = timeout.total_seconds()
        self._connect = connect
        self._connecting = threading.Lock()
        self._counting = threading.Lock()
        self._connection: Any = None
        self._stalled = 0

    def call(self, act: Callable[[Any], T]) -> T:
        """Do `act`, or raise Stalled at the deadline."""
        with self._counting:
            if self._stalled >= _MAX_STALLED:
                raise Stalled
        outcome: Future[T] = Future()
        # A daemon: a process that ends does not wait for a peer that never answers.
        thread = threading.Thread(
            target=self._work, args=(act, outcome), name="duckmesh-fsspec", daemon=True
        )
        thread.start()
        try:
            return outcome.result(self._timeout_seconds)
        except TimeoutError:
            if outcome.done():
                return outcome.result()
            self._abandon(outcome)
            raise Stalled from None

    def _work(self, act: Callable[[Any], T], outcome: "Future[T]") -> None:
        try:
            outcome.set_result(act(self._connected()))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            outcome.set_exception(error)

    def _connected(self) -> Any:
        connection = self._connection
        if connection is not None:
            return connection
        with self._connecting:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._connect()
            return connection

    def _abandon(self, outcome: "Future[Any]") -> None:
        self._connection = None
        with self._counting:
            self._stalled += 1
        outcome.add_done_callback(self._came_back)

    def _came_back(self, _: "Future[Any]") -> None:
        with self._counting:
            self._stalled -= 1
