"""A bus whose commits are watched, as one process has it, over a real Postgres."""

import contextlib
import os
import selectors
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from catalog import tenants
from catalog.connection import Catalog
from duckmesh.errors import Unavailable
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Envelope, Receipt
from ingest_bus.group_commit import GroupCommit
from ingest_bus.postgres import PostgresIngestBus
from tests.bus_worlds import PATIENCE_SECONDS, until, write

WARM = 4
"""So many tokens a house has issued when its test begins."""

HELD_SECONDS = 6


class Watcher:
    """One thread that waits for descriptors; `asked` counts how often it was to."""

    def __init__(self) -> None:
        self.asked = 0
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._ended = False
        self._woken, self._wake = os.pipe()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, descriptor: int, act: Callable[[], None]) -> bool:
        with self._lock:
            if self._ended:
                return False
            self.asked += 1
            self._selector.register(descriptor, selectors.EVENT_READ, act)
            return True

    def end(self) -> None:
        """Watch no more; whoever waits is told to look for himself."""
        os.write(self._wake, b"\0")
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._stop()
                    return
                with self._lock:
                    self._selector.unregister(key.fd)
                key.data()

    def _stop(self) -> None:
        with self._lock:
            self._ended = True
            left = [key for key in self._selector.get_map().values() if key.data is not None]
        for key in left:
            self._selector.unregister(key.fd)
            key.data()


class House:
    """A bus as one process has it, a watcher, and a tenant whose commits go out at once."""

    def __init__(self, dsn: str, *, pool_max: int = 8) -> None:
        self.dsn = dsn
        self.catalog = Catalog(dsn, pool_max=pool_max, connect_timeout=timedelta(seconds=2))
        self.bus = PostgresIngestBus(self.catalog)
        self.watcher = Watcher()
        self._watching = True
        with self.catalog.connect() as connection:
            self.acme = tenants.ensure_tenant(connection, "acme", created_by="test").tenant_id
        # All statements are prepared, the fences of the table are known, a connection is at hand.
        self.bus.publish([write(self.acme)])
        self.bus.publish([write(self.acme), write(self.acme)])
        self.bus.publish([write(self.acme, key="warm")])

    def submit(self, *envelopes: Envelope, settled: Callable[[], None] | None = None) -> Acceptance:
        return self.bus.submit(envelopes, settled=settled, watch=self.watcher.watch)

    def row(self, **fields: Any) -> Envelope:
        return write(self.acme, **fields)

    def ask(self, statement: Any, *values: Any) -> list[tuple[Any, ...]]:
        """Past the pool: what lies at hand stays there."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def stored(self) -> dict[int, Any]:
        """The event of each token. No token and no event is there twice: both are keys."""
        return dict(
            self.ask(
                "SELECT visibility_token, event_id FROM ingest_event WHERE tenant_id = %s",
                self.acme,
            )
        )

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """No commit of the tenant comes to its end within the block, nor within `HELD_SECONDS`.

        Postgres lets go by itself: whoever waits with Python's lock in hand would wait for ever.
        """
        with contextlib.closing(psycopg.connect(self.dsn, autocommit=True)) as connection:
            holder = connection.info.backend_pid
            connection.pgconn.send_query(
                b"DO $$ BEGIN"
                b" PERFORM FROM token_counter WHERE tenant_id = %d FOR UPDATE;"
                b" PERFORM pg_sleep(%d); END $$" % (self.acme, HELD_SECONDS)
            )
            asleep = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
            until(lambda: self.ask(asleep, holder))
            yield
            self.ask("SELECT pg_cancel_backend(%s)", holder)

    def commits_under_way(self) -> list[int]:
        """The backends that wait for a lock."""
        rows = self.ask(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return [pid for (pid,) in rows]

    def one_under_way(self, **fields: Any) -> Acceptance:
        """A commit that stands at the lock of `held_back`: whatever comes now gathers behind."""
        under_way = self.submit(self.row(**fields))
        until(lambda: len(self.commits_under_way()) == 1)
        return under_way

    def end_backends(self) -> None:
        """Postgres ends every connection of the pool, and has done so on return."""
        ours = (
            "FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'duckmesh'"
        )
        before = {pid for (pid,) in self.ask(f"SELECT pid {ours}")}
        self.ask(f"SELECT pg_terminate_backend(pid) {ours}")
        until(lambda: not before & {pid for (pid,) in self.ask(f"SELECT pid {ours}")})

    def accepted_at_last(self, **fields: Any) -> Receipt:
        """As a client does it: the same key again, until it is acknowledged."""
        accepted: list[Receipt] = []

        def is_accepted() -> bool:
            # DatabaseError should not come: see the test of backends that ended at hand.
            with contextlib.suppress(Unavailable, psycopg.DatabaseError):
                accepted.extend(self.submit(self.row(**fields)).result(PATIENCE_SECONDS))
            return bool(accepted)

        until(is_accepted)
        return accepted[0]

    def stop_watching(self) -> None:
        if self._watching:
            self._watching = False
            self.watcher.end()

    def close(self) -> None:
        self.bus.close()
        self.stop_watching()
        self.catalog.close()


def tokens_of(answers: Sequence[Acceptance]) -> list[int]:
    return [r.visibility_token for answer in answers for r in answer.result(PATIENCE_SECONDS)]


def is_as_told(house: House, answers: Sequence[Acceptance]) -> bool:
    stored = house.stored()
    receipts = [r for answer in answers for r in answer.result(0)]
    return all(stored[r.visibility_token] == r.event_id for r in receipts)


@contextlib.contextmanager
def no_threads(groups: GroupCommit) -> Iterator[None]:
    """No thread of the group commit begins within the block."""

    def refuse(_work: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups._leaders, "run", refuse)
        yield
