"""Answers of a long-lived ingest stream: one per batch, in order, while more batches come in."""

import queue
import threading
from collections.abc import Callable
from typing import Final, Protocol, Self

from duckmesh.errors import Cancelled, DuckMeshError, ErrorCode
from grpc_transport.calls import Gone

_END: Final = None
Answer = Callable[[], bytes]
"""Blocks until a batch is durable, and gives the message that says so."""
FailureAnswer = Callable[[DuckMeshError], bytes]


class MetadataWriter(Protocol):
    """What is used of rows_in.ResultsOut."""

    def write(self, app_metadata: bytes) -> None: ...


class ReceiptWriter:
    """Sends answers in the order in which they were put, from a thread of its own.

    At most `window` batches wait for their answer: `put` blocks beyond that, and so slows the
    sender down. A batch that fails ends the stream: its failure is sent in its place, nothing
    after it is answered, and `put` and `finish` raise it. Use it as a context manager.
    """

    def __init__(self, writer: MetadataWriter, *, window: int, on_failure: FailureAnswer) -> None:
        self._writer = writer
        self._on_failure = on_failure
        self._window = window
        self._waiting: queue.Queue[Answer | None] | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error: what is durable is answered, so that its sender need not guess.
        self._end()

    def answer_first(self, answer: Answer) -> None:
        """Send the first batch's answer on this thread; comes before every `put`.

        A stream of one batch, which is one small write, then needs no thread at all.
        """
        self._send(answer)
        self._raise_failure()

    def put(self, answer: Answer) -> None:
        """Queue the answer of the next batch. Raises the failure of an earlier one."""
        self._raise_failure()
        self._queue().put(answer)

    def finish(self) -> None:
        """Block until every answer is sent. Raises the first failure."""
        self._end()
        self._raise_failure()

    def _queue(self) -> "queue.Queue[Answer | None]":
        """The queue, and the thread that empties it: begun by the second answer."""
        if self._waiting is None:
            self._waiting = queue.Queue(self._window)
            self._thread = threading.Thread(
                target=self._run, args=(self._waiting,), name="flight-receipts", daemon=True
            )
            self._thread.start()
        return self._waiting

    def _end(self) -> None:
        if self._waiting is not None and self._thread is not None and not self._ended:
            self._waiting.put(_END)
            self._thread.join()
        self._ended = True

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self, waiting: "queue.Queue[Answer | None]") -> None:
        while (answer := waiting.get()) is not _END:
            # After a failure the rest is taken off the queue unanswered, so that `put` never hangs.
            if self._failure is None:
                self._send(answer)

    def _send(self, answer: Answer) -> None:
        try:
            message = answer()
        except DuckMeshError as error:
            self._failure = error
            message = self._on_failure(error)
        except Exception as error:  # noqa: BLE001 - raised by the thread that reads
            self._failure = error
            return
        try:
            self._writer.write(message)
        except Gone:
            # The sender has gone. The batch is durable: its key finds the receipt.
            self._failure = self._failure or Cancelled(
                ErrorCode.INGEST_CANCELLED,
                "the sender left before it was answered: repeat the batches with their keys",
            )
