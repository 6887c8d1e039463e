"""A query under way, as its caller holds it, wherever it runs."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa

from query_engine.failures import cancelled
from query_engine.stream import QueryStats


class Interruption:
    """A stop button made before the query it stops: `run` itself may work for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._stop: Callable[[], None] | None = None

    @property
    def requested(self) -> bool:
        """Whether it has been pressed."""
        return self._requested

    def check(self) -> None:
        """Raise Cancelled (QUERY_CANCELLED) when it has been pressed."""
        if self._requested:
            raise cancelled()

    def interrupt(self) -> None:
        """Stop the query, now or as soon as it begins. Idempotent, from any thread."""
        with self._lock:
            self._requested = True
            stop = self._stop
        if stop is not None:
            stop()

    def connect(self, stop: Callable[[], None] | None) -> Callable[[], None] | None:
        """Say what stops the query from now on; returns what did until now.

        A button that was pressed before stops it at once. `stop` must not block.
        """
        with self._lock:
            former, self._stop = self._stop, stop
            requested = self._requested
        if requested and stop is not None:
            stop()
        return former


class Batches(Protocol):
    """The rows of one query. One thread reads, any thread may close; `close` never waits."""

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...

    def __next__(self) -> pa.RecordBatch: ...

    def close(self) -> None: ...


class RunningQuery:
    """A query whose rows are under way.

    `reader` gives them as they come, each batch small enough for one message of under 4 MiB
    (but one row is never cut), and raises only errors of `duckmesh.errors`. Read from one thread.
    """

    def __init__(
        self, batches: Batches, schema: pa.Schema, stats: QueryStats, stop: Interruption
    ) -> None:
        self.schema = schema
        self.stats = stats
        self.batches = batches
        """The same rows without a reader around them."""
        self._stop = stop
        self.reader: pa.RecordBatchReader = pa.RecordBatchReader.from_batches(schema, batches)

    def interrupt(self) -> None:
        """Stop the query, from any thread; the reader then raises Cancelled. Idempotent."""
        self._stop.interrupt()

    def close(self) -> None:
        """Release everything, from any thread, without waiting for DuckDB. Idempotent."""
        self.batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
