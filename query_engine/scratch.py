"""A sealed in-memory DuckDB in which nothing lasts: it judges statements, and holds no rows.

No file, network, extension or setting is within its reach, and no tenant's data. What runs here
costs what its text costs: definitions over empty tables, and rows that are written out.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import duckdb

from duckmesh.errors import DuckMeshError, Exceeded
from duckmesh.statements import Statements
from query_engine.failures import FailureContext, translate

_SQL: Final = Statements("query_engine", "engine.sql")
_MEMORY_LIMIT_BYTES: Final = 256 * 2**20


class Scratch:
    """One DuckDB for one caller at a time. Safe from any thread: callers wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._database = duckdb.connect(
            ":memory:", config={"threads": 1, "memory_limit": f"{_MEMORY_LIMIT_BYTES}B"}
        )
        self._database.execute(_SQL["open"])
        self._database.execute(_SQL["seal_parser"])

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction that is always rolled back; DuckDB's failures come as our errors."""
        with self._lock, self._database.cursor() as cursor:
            cursor.begin()
            try:
                yield cursor
            except duckdb.Error as error:
                failure = _failure(error)
            else:
                return
            finally:
                cursor.rollback()
        raise failure


def _failure(error: duckdb.Error) -> DuckMeshError:
    failure = translate(error, FailureContext(_MEMORY_LIMIT_BYTES, ()))
    if isinstance(failure, Exceeded):
        failure.message = "the statement is too large to be read: send it in parts"
    return failure
