"""How a process is asked to end, and how it ends when it cannot do so in time."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType

from command_line.failures import CHECK_FAILED
from duckmesh.telemetry import get_logger

_log = get_logger(__name__)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, for the length of the block. Main thread only.

    The signals arrive over a pipe, in a thread of their own: setting an event inside a signal
    handler can meet the main thread inside that event's own lock, and a main thread that works
    in C code would not notice them.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    former = {number: signal.signal(number, _noted) for number in (signal.SIGTERM, signal.SIGINT)}
    watcher = threading.Thread(target=_watch, args=(reader, stop), name="signals", daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(writer)  # The watcher reads the end of the pipe, and ends.
        watcher.join()
        os.close(reader)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Python's half of the handler has nothing to do: the wake-up pipe carries the signal."""


def _watch(reader: int, stop: threading.Event) -> None:
    while received := os.read(reader, 64):
        if {signal.SIGTERM, signal.SIGINT} & set(received):
            stop.set()


def end_hard_after(span: timedelta, stop: threading.Event) -> None:
    """End the process `span` after `stop` is set, whatever it is doing then.

    What was answered is durable; what is cut off is retried by its caller, or found again by the
    next coordinator when its lease has run out.
    """

    def end() -> None:
        stop.wait()
        threading.Event().wait(span.total_seconds())
        _log.warning("cut_off", after_seconds=span.total_seconds())
        end_now(CHECK_FAILED)

    threading.Thread(target=end, name="hard-end", daemon=True).start()


def end_now(exit_code: int) -> None:
    """End the process without waiting for threads that hold calls."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
