"""When a DuckDB is opened: the first one of a process early, one that may not be needed late."""

import threading
from collections.abc import Callable

import duckdb


def warm_up() -> None:
    """Open a DuckDB, ask it, and close it: the first of a process takes some 0.1 s longer.

    Every thread that it starts has ended on return.
    """
    with duckdb.connect(":memory:", config={"threads": 1}) as database:
        database.sql("SELECT 1").to_arrow_reader(1).read_all()


class DatabaseOnUse:
    """One takes tens of milliseconds to open, and most processes never need it.

    Safe from any thread. `close` ends it for good, whether it was opened or not.
    """

    def __init__(self, open_: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._open = open_
        self._lock = threading.Lock()
        self._database: duckdb.DuckDBPyConnection | None = None

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor of its own for the caller; blocks while another caller opens the database."""
        with self._lock:
            if self._database is None:
                self._database = self._open()
            return self._database.cursor()

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
