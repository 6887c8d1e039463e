"""Connections to the catalog: one pool a process, and where a Postgres failure gets its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

import psycopg
import psycopg_pool
from psycopg import errors as pg

from catalog.notifications import Announcer, Listener, Subscriber
from duckmesh.errors import DuckMeshError, ErrorCode, Unavailable

Connection = psycopg.Connection[tuple[Any, ...]]
"""A connection in autocommit mode. A function that needs a transaction opens it itself."""


class Catalog:
    """A bounded pool of connections to one catalog database. Thread-safe.

    Opening does not wait for Postgres: a process may start before its catalog does.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_min: int = 1,
        pool_max: int = 8,
        connect_timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        self.dsn = dsn
        self._pool = psycopg_pool.ConnectionPool(
            dsn,
            min_size=pool_min,
            max_size=pool_max,
            timeout=connect_timeout.total_seconds(),
            kwargs={"autocommit": True, "application_name": "duckmesh"},
            open=False,
        )
        self._pool.open(wait=False)
        self._listener = Listener(dsn)
        self._announcer = Announcer(dsn)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Borrow a connection for the length of the block.

        Raises Unavailable when Postgres cannot be reached, restarts under the caller, or gives up
        a transaction for another's sake. What was not committed by then is not there.
        """
        try:
            with self._pool.connection() as connection:
                yield connection
        except DuckMeshError:
            raise
        except psycopg_pool.PoolTimeout as cause:
            raise unavailable() from cause
        except (psycopg.OperationalError, psycopg.InterfaceError) as cause:
            # A restart leaves every idle connection of the pool dead. Replacing them now saves
            # each later borrower the same error.
            if not isinstance(cause, pg.LockNotAvailable):
                self._pool.check()
            raise unavailable() from cause

    def announce(self, channel: str, payload: str = "") -> None:
        """Notify the listeners of a channel soon, off the caller's path. Never raises."""
        self._announcer.announce(channel, payload)

    def subscribe(self, channel: str, subscriber: Subscriber) -> None:
        """Call `subscriber` with each payload of a channel; "" means that some may be lost."""
        self._listener.subscribe(channel, subscriber)

    def close(self) -> None:
        """Give back every connection; what is borrowed ends with its block."""
        self._listener.close()
        self._announcer.close()
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unavailable() -> Unavailable:
    return Unavailable(
        ErrorCode.CATALOG_UNAVAILABLE,
        "the catalog database cannot be reached just now: retry with backoff",
    )
