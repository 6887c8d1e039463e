"""What becomes of writes that their caller does not wait for."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from ingest_bus.envelope import Receipt

_log: Final = logging.getLogger(__name__)


class Acceptance:
    """The receipts of submitted writes, or what kept them out: there once, and for good.

    It has what is used of `concurrent.futures.Future`, and does without that one's locks: every
    small write would pay for them several times. Here an outcome is set before it is told, each
    callback is taken from the list by one thread, and whoever adds one looks again behind it.
    Thread-safe; `answer` or `fail` is called once, by who accepts.
    """

    __slots__ = ("_callbacks", "_error", "_is_done", "_receipts")

    def __init__(self) -> None:
        self._is_done = False
        self._receipts: list[Receipt] = []
        self._error: BaseException | None = None
        self._callbacks: deque[Callable[[Acceptance], object]] = deque()

    # ---- Of who waits for it

    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._is_done

    def result(self, timeout: float | None = None) -> list[Receipt]:
        """The receipts, in the order of the envelopes; else raises the error.

        Blocks until either is there, for `timeout` seconds at most: then raises TimeoutError.
        """
        if not self._is_done:
            self._wait(timeout)
        if self._error is not None:
            raise self._error
        return self._receipts

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error; None when there are receipts. Blocks as `result` does."""
        if not self._is_done:
            self._wait(timeout)
        return self._error

    def add_done_callback(self, act: Callable[["Acceptance"], object]) -> None:
        """Have `act` called with this, once, on the thread that ends it; now when it is done."""
        self._callbacks.append(act)
        if self._is_done:
            self._call_back()

    # ---- Of who accepts

    def answer(self, receipts: list[Receipt]) -> None:
        """The writes are durable."""
        self._check_open()
        self._receipts = receipts
        self._is_done = True
        self._call_back()

    def fail(self, error: BaseException) -> None:
        """They were refused, or what became of them is not known."""
        self._check_open()
        self._error = error
        self._is_done = True
        self._call_back()

    @classmethod
    def of(cls, receipts: list[Receipt]) -> Self:
        """Of writes that are durable already."""
        made = cls()
        made.answer(receipts)
        return made

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Of writes that were refused already."""
        made = cls()
        made.fail(error)
        return made

    def _check_open(self) -> None:
        if self._is_done:
            raise RuntimeError("a write was answered twice")

    def _call_back(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                act = callbacks.popleft()
            except IndexError:
                # Another thread has it.
                return
            try:
                act(self)
            except Exception:  # noqa: BLE001 - logged
                # Whoever accepts goes on with the others: it is not their fault.
                _log.exception("a callback of an acceptance failed")

    def _wait(self, timeout: float | None) -> None:
        wake = threading.Lock()
        wake.acquire()
        self.add_done_callback(lambda _: wake.release())
        if not wake.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError
