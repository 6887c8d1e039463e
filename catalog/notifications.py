"""LISTEN and NOTIFY: wake-ups between processes.

A lost one costs time, never truth: all who wait also poll.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from math import inf
from typing import Final

import psycopg
import structlog
from psycopg import sql

from duckmesh.clock import Deadline
from duckmesh.statements import Statements

_SQL = Statements("catalog", "notifications.sql")
_LOG = structlog.get_logger()
_POLL_SECONDS: Final = 0.5
_COALESCE_SECONDS: Final = 0.005
_RECONNECT_FIRST_SECONDS: Final = 0.1
_RECONNECT_MAX_SECONDS: Final = 3.0

PUBLISHED_CHANNEL: Final = "duckmesh_published"
"""A tenant has a new snapshot: {"tenant_id", "snapshot_id", "watermark"}."""
WANTED_CHANNEL: Final = "duckmesh_wanted"
"""Somebody waits for what is accepted: publish now, do not gather."""
CREDENTIALS_CHANNEL: Final = "duckmesh_credentials"
"""Keys or tenants were shut out: ask the catalog again who is let in."""
QUOTAS_CHANNEL: Final = "duckmesh_quotas"
"""A tenant's quotas were changed: ask the catalog again."""

Subscriber = Callable[[str], None]


class Listener:
    """One connection that listens, on a thread of its own, and calls the subscribers.

    A subscriber gets the payload. It gets "" after every (re)connection: it may have missed some.
    Subscribers run on the listening thread: they only take note.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._subscribers: dict[str, list[Subscriber]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._resubscribe = threading.Event()
        self._thread: threading.Thread | None = None

    def subscribe(self, channel: str, subscriber: Subscriber) -> None:
        """Call `subscriber` for every notification on `channel` from now on."""
        with self._lock:
            self._subscribers.setdefault(channel, []).append(subscriber)
            self._resubscribe.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="listen", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        delay = _RECONNECT_FIRST_SECONDS
        while not self._stopping.is_set():
            try:
                with psycopg.connect(
                    self._dsn, autocommit=True, application_name="duckmesh listen"
                ) as connection:
                    delay = _RECONNECT_FIRST_SECONDS
                    self._resubscribe.set()
                    self._listen(connection)
            except psycopg.Error as cause:
                _LOG.warning("listener_lost", retry_seconds=delay, reason=type(cause).__name__)
                self._stopping.wait(delay)
                delay = min(delay * 2, _RECONNECT_MAX_SECONDS)

    def _listen(self, connection: psycopg.Connection) -> None:
        while not self._stopping.is_set():
            if self._resubscribe.is_set():
                self._resubscribe.clear()
                self._subscribe_all(connection)
            for note in connection.notifies(timeout=_POLL_SECONDS):
                self._tell(note.channel, note.payload)
                if self._resubscribe.is_set() or self._stopping.is_set():
                    break

    def _subscribe_all(self, connection: psycopg.Connection) -> None:
        with self._lock:
            channels = list(self._subscribers)
        for channel in channels:
            connection.execute(sql.SQL(_SQL["listen"]).format(sql.Identifier(channel)))
        for channel in channels:
            self._tell(channel, "")

    def _tell(self, channel: str, payload: str) -> None:
        with self._lock:
            subscribers = list(self._subscribers.get(channel, ()))
        for subscriber in subscribers:
            subscriber(payload)

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)


class Announcer:
    """Sends notifications off the caller's path, on a thread of its own.

    NOTIFY takes a lock of the whole database at commit; inside a publish transaction it would queue
    every tenant's commits behind one another, and it wakes every process that listens. Equal
    announcements that wait together are sent once.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._waiting: dict[tuple[str, str], float] = {}
        """When each is due."""
        self._sent_at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def announce(
        self, channel: str, payload: str = "", *, patience: timedelta = timedelta(0)
    ) -> None:
        """Notify soon. Never blocks, never raises: the other side polls as well.

        With `patience` it may come so long after the channel's last one, and not before.
        """
        name = channel, payload
        # Under load the listeners need not wake for every write: the first announcement of a burst
        # goes at once, the rest together. Each channel for itself: who wants a write to be visible
        # says so just after the write was announced.
        apart = max(patience.total_seconds(), _COALESCE_SECONDS)
        with self._changed:
            due = self._sent_at.get(channel, 0.0) + apart
            if self._waiting.get(name, inf) <= due:
                return
            if self._thread is None and not self._start():
                return
            self._waiting[name] = due
            self._changed.notify()

    def _start(self) -> bool:
        """False when the system gives no thread; the next announcement tries again."""
        thread = threading.Thread(target=self._run, name="announce", daemon=True)
        try:
            thread.start()
        except RuntimeError as cause:
            _LOG.warning("announcer_not_started", reason=str(cause))
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while not self._stopping:
            try:
                with psycopg.connect(
                    self._dsn, autocommit=True, application_name="duckmesh announce"
                ) as connection:
                    # A wake-up needs no durability, so its commit waits for no disk.
                    connection.execute(_SQL["without_durability"])
                    self._send(connection)
            except psycopg.Error as cause:
                _LOG.warning("announcer_lost", reason=type(cause).__name__)
                with self._changed:
                    deadline = Deadline.after(timedelta(seconds=1))
                    self._changed.wait_for(lambda: self._stopping, deadline.remaining_seconds)

    def _send(self, connection: psycopg.Connection) -> None:
        while True:
            with self._changed:
                due = self._await_due()
                if self._stopping:
                    return
            for channel, payload in due:
                connection.execute(_SQL["notify"], (channel, payload))

    def _await_due(self) -> list[tuple[str, str]]:
        """Take what is due, once something is; nothing when the process stops. Under the lock."""
        while not self._stopping:
            now = time.monotonic()
            due = [name for name, moment in self._waiting.items() if moment <= now]
            if due:
                for name in due:
                    del self._waiting[name]
                    self._sent_at[name[0]] = now
                return due
            earliest = min(self._waiting.values(), default=None)
            self._changed.wait(None if earliest is None else earliest - now)
        return []

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._thread.join(timeout=5)
