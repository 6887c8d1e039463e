"""A question that may take long, asked by many who cannot wait for long."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """Asks on a thread of its own, one question at a time; all callers share its answer.

    A dependency that hangs holds one thread, however often it is asked for. Thread-safe.
    """

    def __init__(
        self, ask: Callable[[], T], *, patience: timedelta, kept: timedelta = timedelta(seconds=1)
    ) -> None:
        self._ask = ask
        self._patience_seconds = patience.total_seconds()
        self._kept_seconds = kept.total_seconds()
        self._changed = threading.Condition()
        self._asking = False
        self._outcome: T | None = None
        self._failure: Exception | None = None
        self._asked_at = 0.0
        self._answers = 0

    def get(self) -> T:
        """An answer no older than it is kept. Blocks for at most the patience.

        Raises TimeoutError then, and what the question itself raises.
        """
        with self._changed:
            if self._answers == 0 or time.monotonic() - self._asked_at >= self._kept_seconds:
                seen = self._answers
                self._begin()
                if not self._changed.wait_for(
                    lambda: self._answers != seen, self._patience_seconds
                ):
                    raise TimeoutError
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            assert self._answers  # noqa: S101 - somebody answered
            return self._outcome  # type: ignore[return-value]

    def _begin(self) -> None:
        # Under the lock.
        if not self._asking:
            self._asking = True
            threading.Thread(target=self._run, name="shared-answer", daemon=True).start()

    def _run(self) -> None:
        began = time.monotonic()
        outcome, failure = None, None
        try:
            outcome = self._ask()
        except Exception as error:  # noqa: BLE001 - the callers raise it
            failure = error
        with self._changed:
            self._outcome, self._failure = outcome, failure
            self._asked_at = began
            self._asking = False
            self._answers += 1
            self._changed.notify_all()
