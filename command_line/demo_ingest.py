"""The demo's writers: several ADBC clients at once, each with a connection of its own."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

CHUNK_ROWS: Final = 20_000
MIN_TOKEN_OPTION: Final = "adbc.flight.sql.rpc.call_header.x-duckmesh-min-visibility-token"  # noqa: S105
TIMEOUT_OPTION: Final = "adbc.flight.sql.rpc.call_header.x-duckmesh-consistency-timeout-ms"
_LAST_TOKEN_OPTION: Final = "adbc.flight.sql.session.option.last_visibility_token"  # noqa: S105
_PATIENCE_MS: Final = 30_000

Connect = Callable[[Mapping[str, str]], Any]
"""Opens an ADBC connection with further options."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one table that are one write."""

    table: str
    first_row: int
    rows: pa.Table

    @property
    def idempotency_key(self) -> str:
        """Names the rows, not the attempt: a demo run twice on one service writes nothing twice."""
        return f"demo/{self.table}/{self.first_row}+{self.rows.num_rows}"


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write, and how long that took."""

    table: str
    rows: int
    token: int
    sent_at: float
    acked_at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer of a query that named a table's last token."""

    table: str
    rows: int
    token: int
    seconds: float
    """From the sending of the write with that token to the answer."""


def chunks_of(tables: Mapping[str, pa.Table]) -> Iterator[Chunk]:
    """The tables cut into writes, at the same rows every time."""
    for name, table in tables.items():
        for first in range(0, table.num_rows, CHUNK_ROWS):
            yield Chunk(name, first, table.slice(first, CHUNK_ROWS))


class Ingest:
    """Writes chunks through `writers` connections. Used once."""

    def __init__(self, connect: Connect, chunks: list[Chunk], *, writers: int) -> None:
        self._connect = connect
        self._waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._happened: queue.SimpleQueue[Written | Seen | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self._last: dict[str, Written] = {}
        for chunk in chunks:
            self._waiting.put(chunk)
            self._left[chunk.table] = self._left.get(chunk.table, 0) + 1
        self._outcomes = len(chunks) + len(self._left)
        self._threads = [
            threading.Thread(target=self._write_all, name=f"writer-{number}", daemon=True)
            for number in range(writers)
        ]

    def run(self) -> Iterator[Written | Seen]:
        """Write everything; yield each write when it is durable, each table when it is seen.

        Raises what a writer raised; what was acknowledged by then stays written.
        """
        for thread in self._threads:
            thread.start()
        for _ in range(self._outcomes):
            outcome = self._happened.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
        for thread in self._threads:
            thread.join()

    def _write_all(self) -> None:
        try:
            with self._connect({}) as connection:
                while (chunk := self._next()) is not None:
                    self._write(connection, chunk)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._happened.put(error)

    def _next(self) -> Chunk | None:
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None

    def _write(self, connection: Any, chunk: Chunk) -> None:
        rows = chunk.rows.replace_schema_metadata({"idempotency_key": chunk.idempotency_key})
        sent_at = time.monotonic()
        with connection.cursor() as cursor:
            cursor.adbc_ingest(chunk.table, rows, mode="create_append")
        acked_at = time.monotonic()
        token = connection.adbc_connection.get_option_int(_LAST_TOKEN_OPTION)
        written = Written(chunk.table, rows.num_rows, token, sent_at, acked_at)
        self._happened.put(written)
        if (last := self._count(written)) is not None:
            self._happened.put(see(connection, last))

    def _count(self, written: Written) -> Written | None:
        """The write of the table's largest token, once the table's last write is acknowledged."""
        with self._lock:
            former = self._last.get(written.table)
            if former is None or former.token < written.token:
                self._last[written.table] = written
            self._left[written.table] -= 1
            return self._last[written.table] if self._left[written.table] == 0 else None


def see(connection: Any, written: Written) -> Seen:
    """Count the table's rows in a query that waits for the write's token."""
    options = {MIN_TOKEN_OPTION: str(written.token), TIMEOUT_OPTION: str(_PATIENCE_MS)}
    with connection.cursor(adbc_stmt_kwargs=options) as cursor:
        cursor.execute(f'SELECT count(*) FROM "{written.table}"')  # noqa: S608 - a name of ours
        (rows,) = cursor.fetchone()
    return Seen(written.table, rows, written.token, time.monotonic() - written.sent_at)
