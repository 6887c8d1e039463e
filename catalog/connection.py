"""Connections to the catalog: one pool a process, and where a Postgres failure gets its name."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, Self

import psycopg
import psycopg_pool
import structlog
from psycopg import errors as pg
from psycopg.pq import TransactionStatus

from catalog.notifications import Announcer, Listener, Subscriber
from duckmesh.errors import DuckMeshError, ErrorCode, Unavailable
from duckmesh.statements import Statements

Connection = psycopg.Connection[tuple[Any, ...]]
"""A connection in autocommit mode. A function that needs a transaction opens it itself."""


_LOG = structlog.get_logger()
_SQL = Statements("catalog", "connection.sql")
_READ_ONLY: Final = "25006"
_BROKEN: Final = "XX"
_AT_HAND_MAX: Final = 2
_AT_HAND_SECONDS: Final = 60.0


class _AtHand:
    """A few connections of a pool that are lent again at once, past the pool's own bookkeeping.

    The pool's costs a small statement as much time as the statement. Nobody waits for a connection
    that lies here: whoever finds none is counted before he asks the pool, and while anybody is,
    each connection goes back to the pool. Thread-safe.
    """

    def __init__(self, pool: "psycopg_pool.ConnectionPool[Connection]") -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._idle: deque[tuple[Connection, float]] = deque()
        self._asking = 0
        self._closed = False

    def take(self) -> tuple[Connection, float]:
        """A connection, and when it came from the pool. Raises PoolTimeout."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            self._asking += 1
        try:
            return self._pool.getconn(), time.monotonic()
        finally:
            with self._lock:
                self._asking -= 1

    def take_at_once(self) -> tuple[Connection, float] | None:
        """The same without ever waiting: None when none lies here."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give(self, connection: Connection, since: float) -> None:
        """Lend it again, or let the pool look after it: when it is old, or in some transaction."""
        clean = connection.pgconn.transaction_status == TransactionStatus.IDLE
        # The pool renews what has served for long.
        if clean and time.monotonic() - since < _AT_HAND_SECONDS:
            with self._lock:
                if not self._asking and not self._closed and len(self._idle) < _AT_HAND_MAX:
                    self._idle.append((connection, since))
                    return
        self._pool.putconn(connection)

    def empty(self) -> None:
        """Give all back to the pool."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for connection, _ in idle:
            self._pool.putconn(connection)

    def close(self) -> None:
        self._closed = True
        self.empty()


class Lent:
    """A connection that is used across calls, until `give_back` or `lost`; again is harmless."""

    def __init__(self, catalog: "Catalog", connection: Connection, since: float) -> None:
        self.connection = connection
        self._catalog = catalog
        self._since = since
        self.is_over = False

    def give_back(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._catalog.take_back(self.connection, self._since)

    def lost(self, cause: Exception) -> Unavailable:
        """It failed under its borrower; the error to tell. Never blocks."""
        if not self.is_over:
            # It may be in the middle of something, and its server may serve no more.
            self.connection.close()
        self.give_back()
        # Where the system gives no thread, each later borrower finds out for himself.
        with suppress(RuntimeError):
            threading.Thread(target=self._catalog.failed, args=(cause,), daemon=True).start()
        return unavailable()


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
            configure=_wait_for_the_disk,
            open=False,
        )
        self._pool.open(wait=False)
        self._at_hand = _AtHand(self._pool)
        self._listener = Listener(dsn)
        self._announcer = Announcer(dsn)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Borrow a connection for the length of the block.

        Raises Unavailable when Postgres cannot be reached, restarts under the caller, or gives up
        a transaction for another's sake. What was not committed by then is not there.
        """
        try:
            connection, since = self._at_hand.take()
            try:
                yield connection
            except psycopg.InternalError as cause:
                if is_unavailable(cause):
                    # Lent again, it would fail again, for as long as it lives.
                    connection.close()
                raise
            finally:
                # In a transaction, or broken, it is for the pool to put right, or to replace.
                self._at_hand.give(connection, since)
        except DuckMeshError:
            raise
        except psycopg_pool.PoolTimeout as cause:
            raise unavailable() from cause
        except psycopg.Error as cause:
            if not is_unavailable(cause):
                raise
            raise self.failed(cause) from cause

    def lend_at_once(self) -> Lent | None:
        """A connection for who must not wait; None when none is at hand."""
        taken = self._at_hand.take_at_once()
        return None if taken is None else Lent(self, *taken)

    def take_back(self, connection: Connection, since: float) -> None:
        """What `lend_at_once` lent."""
        self._at_hand.give(connection, since)

    def failed(self, cause: Exception) -> Unavailable:
        """The error for a connection that failed, once the others have been looked at."""
        if isinstance(cause, psycopg.InternalError):
            # The connections live. Each is let go by who finds that its server does no more.
            _LOG.error("catalog_server_refuses", sqlstate=cause.sqlstate)
        # A restart leaves every idle connection of the pool dead. Replacing them now saves
        # each later borrower the same error.
        elif not isinstance(cause, pg.LockNotAvailable):
            self._at_hand.empty()
            self._pool.check()
        return unavailable()

    def announce(
        self, channel: str, payload: str = "", *, patience: timedelta = timedelta(0)
    ) -> None:
        """Notify the listeners of a channel soon, off the caller's path. Never raises.

        With `patience` it may come so long after the channel's last one, and not before.
        """
        self._announcer.announce(channel, payload, patience=patience)

    def subscribe(self, channel: str, subscriber: Subscriber) -> None:
        """Call `subscriber` with each payload of a channel; "" means that some may be lost."""
        self._listener.subscribe(channel, subscriber)

    def close(self) -> None:
        """Give back every connection; what is borrowed ends with its block."""
        self._listener.close()
        self._announcer.close()
        self._at_hand.close()
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait_for_the_disk(connection: Connection) -> None:
    """A token that was given out is never forgotten: its commit waits for the disk."""
    connection.execute(_SQL["wait_for_the_disk"])


def is_unavailable(error: psycopg.Error) -> bool:
    """Whether the same may succeed later, or on another connection: it is the server's fault.

    Besides a connection that is lost, a server that only reads, as a standby does to which an
    address has moved (25006), and one that finds itself broken (class XX).
    """
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return True
    state = error.sqlstate or ""
    return state == _READ_ONLY or state.startswith(_BROKEN)


def unavailable() -> Unavailable:
    return Unavailable(
        ErrorCode.CATALOG_UNAVAILABLE,
        "the catalog database cannot be reached just now: retry with backoff",
    )
