"""Rows of the query audit on their way to the catalog: gathered in memory, written in batches.

A query waits for none of this. The buffer is bounded: while the catalog is away its rows wait, and
when it is full the newest are lost, counted and logged. Died: what was gathered since the last
batch is lost with the process; a process that drains writes it first.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from catalog import queries
from catalog.connection import Catalog
from catalog.queries import AuditedQuery
from duckmesh import metrics
from duckmesh.errors import DuckMeshError
from duckmesh.telemetry import get_logger

BATCH_ROWS: Final = 500
_PAUSE_SECONDS: Final = 0.25
_PAUSE_SECONDS_MAX: Final = 10.0
_LOG_EVERY_SECONDS: Final = 60.0
_log = get_logger(__name__)

Row = Callable[[], AuditedQuery]
"""Makes the row; called where it is written, off the query's path."""


class AuditBuffer:
    """Thread-safe. `close` writes what is left."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        rows_max: int,
        flush_interval: timedelta = timedelta(seconds=1),
    ) -> None:
        self._catalog = catalog
        self._rows_max = rows_max
        self._interval_seconds = flush_interval.total_seconds()
        self._changed = threading.Condition()
        self._rows: deque[Row] = deque()
        self._writing = 0
        self._closing = False
        self._abandoned = False
        self._logged_loss_at = 0.0
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """How many rows the catalog does not have yet."""
        with self._changed:
            return len(self._rows) + self._writing

    def add(self, row: Row) -> None:
        """Write a row soon. Never blocks and never raises; a full buffer loses and counts it."""
        with self._changed:
            kept = not self._abandoned and len(self._rows) + self._writing < self._rows_max
            if kept:
                self._rows.append(row)
                if self._thread is None:
                    self._start()
                # The writer sleeps without rows, and while it gathers them.
                if len(self._rows) in (1, BATCH_ROWS):
                    self._changed.notify()
        if not kept:
            self._lose(1)

    def close(self, patience: timedelta) -> None:
        """Write what is left, for at most so long; what is not written then is lost and counted.

        Idempotent. A row that is added later is lost.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(patience.total_seconds())
        with self._changed:
            if self._abandoned:
                return
            self._abandoned = True
            left = len(self._rows) + self._writing
            self._rows.clear()
            self._changed.notify_all()
        if left:
            self._lose(left)

    def _start(self) -> None:
        # Under the lock.
        self._thread = threading.Thread(target=self._write_all, name="query-audit", daemon=True)
        self._thread.start()

    def _write_all(self) -> None:
        while batch := self._gathered():
            written = self._write(batch)
            with self._changed:
                self._writing = 0
                if self._abandoned:
                    # `close` has counted them as lost. They may be there all the same.
                    return
            metrics.QUERY_AUDIT_ROWS.inc(written)
            if written < len(batch):
                self._lose(len(batch) - written)

    def _gathered(self) -> list[Row]:
        """The next batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._closing)
            self._changed.wait_for(
                lambda: len(self._rows) >= BATCH_ROWS or self._closing, self._interval_seconds
            )
            batch = [self._rows.popleft() for _ in range(min(BATCH_ROWS, len(self._rows)))]
            self._writing = len(batch)
        return batch

    def _write(self, batch: Sequence[Row]) -> int:
        """Write a batch, however long the catalog is away; how many rows of it are there then."""
        rows: list[AuditedQuery] = []
        pause = _PAUSE_SECONDS
        logged_at = 0.0
        while True:
            try:
                rows = rows or [row() for row in batch]
                with self._catalog.connect() as connection:
                    queries.write(connection, rows)
            except DuckMeshError as error:
                if time.monotonic() - logged_at > _LOG_EVERY_SECONDS:
                    logged_at = time.monotonic()
                    _log.warning(
                        "query_audit_waits", rows=self.waiting, error_code=error.code.value
                    )
            except Exception:  # noqa: BLE001 - a row of ours that no insert takes must not stop others
                if len(batch) > 1:
                    return sum(self._write([row]) for row in batch)
                _log.exception("query_audit_failed")
                return 0
            else:
                if logged_at:
                    _log.info("query_audit_resumed", rows=self.waiting)
                return len(rows)
            with self._changed:
                if self._changed.wait_for(lambda: self._abandoned, pause):
                    return 0
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def _lose(self, count: int) -> None:
        metrics.QUERY_AUDIT_DROPPED.inc(count)
        now = time.monotonic()
        if now - self._logged_loss_at > _LOG_EVERY_SECONDS or not self._logged_loss_at:
            self._logged_loss_at = now
            _log.error("query_audit_dropped", rows=count, waiting=self.waiting)
