"""A worker thread that encodes while the caller receives: both release the GIL for their bulk."""

import queue
import threading
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from data_files.batch_size import bytes_of

_START_FROM_BYTES: Final = 2 * 2**20
_WAITING_BATCHES: Final = 4


class Pump:
    """Hands batches to `sink`, in order; from a few MiB on, on a thread of its own.

    Small writes never pay for a thread. An error of the sink is raised at the next `put`, or at
    `finish`.
    """

    def __init__(self, sink: Callable[[pa.RecordBatch], None]) -> None:
        self._sink = sink
        self._bytes = 0
        self._queue: queue.Queue[pa.RecordBatch | None] = queue.Queue(_WAITING_BATCHES)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = False

    def put(self, batch: pa.RecordBatch) -> None:
        self._bytes += bytes_of(batch)
        if self._thread is None and self._bytes < _START_FROM_BYTES:
            self._sink(batch)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
            self._thread.start()
        self._raise_error()
        self._queue.put(batch)

    def finish(self) -> None:
        """Return when the sink has taken every batch."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._raise_error()

    def abandon(self) -> None:
        """Stop soon; batches still waiting are dropped."""
        self._abandoned = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None and not self._abandoned:
                try:
                    self._sink(batch)
                except BaseException as error:  # noqa: BLE001 - raised again in the caller
                    self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
