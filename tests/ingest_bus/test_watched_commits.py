"""Commits that their caller waits for beside all else, over a real Postgres."""

import contextlib
import os
import selectors
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from catalog import tenants
from catalog.connection import Catalog
from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from duckmesh.errors import Conflict, ErrorCode, Unavailable
from duckmesh.identifiers import SchemaVersion, TableId
from ingest_bus.envelope import Envelope, Receipt
from ingest_bus.postgres import PostgresIngestBus
from tests.bus_worlds import PATIENCE_SECONDS, together, until, write

Answer = Future[list[Receipt]]
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

    def submit(self, *envelopes: Envelope, settled: Callable[[], None] | None = None) -> Answer:
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

    def one_under_way(self, **fields: Any) -> Answer:
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


@pytest.fixture
def house(database_dsn: str) -> Iterator[House]:
    with contextlib.closing(House(database_dsn)) as opened:
        yield opened


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A Postgres of this module's own, with its disk's safety on: it is killed."""
    data_dir = tmp_path_factory.mktemp("killed") / "data"
    with EmbeddedPostgres(data_dir, settings={"shared_buffers": "32MB"}) as started:
        migrate_up(started.dsn)
        yield started


def tokens_of(answers: Sequence[Answer]) -> list[int]:
    return [r.visibility_token for answer in answers for r in answer.result(PATIENCE_SECONDS)]


def is_as_told(house: House, answers: Sequence[Answer]) -> bool:
    stored = house.stored()
    receipts = [r for answer in answers for r in answer.result(0)]
    return all(stored[r.visibility_token] == r.event_id for r in receipts)


# -- the good case


def test_receipts_are_right_and_dense_and_in_the_order_of_the_submits(house: House) -> None:
    answers = [
        house.submit(house.row(key=f"k{n}" if n % 3 else None), house.row()) for n in range(50)
    ]
    assert tokens_of(answers) == list(range(WARM + 1, WARM + 101))
    assert all(r.inserted and r.row_count == 1 for a in answers for r in a.result())
    assert is_as_told(house, answers)
    assert len(house.stored()) == WARM + 100
    assert house.watcher.asked >= 1


def test_an_idle_tenants_commit_is_watched_and_takes_no_thread(house: House) -> None:
    for number in range(20):
        asked = house.watcher.asked
        assert tokens_of([house.submit(house.row())]) == [WARM + 1 + number]
        assert house.watcher.asked > asked


def test_submits_that_come_during_a_commit_become_one_group(house: House) -> None:
    with house.held_back():
        answers = [house.one_under_way()]
        answers += [house.submit(house.row()) for _ in range(30)]
    assert tokens_of(answers) == list(range(WARM + 1, WARM + 32))
    # One transaction wrote them all.
    writers = house.ask(
        "SELECT count(DISTINCT xmin::text) FROM ingest_event WHERE visibility_token > %s", WARM + 1
    )
    assert writers == [(1,)]
    assert is_as_told(house, answers)


def test_settled_is_called_once_for_a_group_when_all_of_it_has_ended(house: House) -> None:
    answers: list[Answer] = []
    ended: list[int] = []
    others: list[int] = []

    def settled() -> None:
        ended.append(sum(answer.done() for answer in answers))

    with house.held_back():
        answers.append(house.one_under_way())
        answers += [house.submit(house.row(), settled=settled) for _ in range(9)]
        answers.append(house.submit(house.row(), settled=lambda: others.append(len(ended))))
    tokens_of(answers)
    until(lambda: ended and others)
    assert (ended, len(others)) == ([11], 1)


def test_settled_is_called_once_for_a_group_that_fails(house: House) -> None:
    calls: list[list[bool]] = []
    answers: list[Answer] = []
    with house.held_back():
        answers.append(
            house.submit(
                house.row(),
                house.row(),
                settled=lambda: calls.append([answer.done() for answer in answers]),
            )
        )
        until(lambda: len(house.commits_under_way()) == 1)
        (backend,) = house.commits_under_way()
        house.ask("SELECT pg_terminate_backend(%s)", backend)
        assert isinstance(answers[0].exception(PATIENCE_SECONDS), Unavailable)
    until(lambda: calls)
    assert calls == [[True]]


def test_a_group_over_the_size_that_is_sent_at_once_is_accepted(house: House) -> None:
    large = house.submit(house.row(content=b"x" * 200_000))
    small = house.submit(house.row())
    assert tokens_of([large, small]) == [WARM + 1, WARM + 2]
    sizes = house.ask(
        "SELECT octet_length(payload) FROM ingest_event WHERE visibility_token = %s", WARM + 1
    )
    assert sizes == [(200_000,)]


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (1, 96 * 1024),
        (20, 4_800),
        (1_000, 1),
    ],
    ids=["one payload", "some payloads", "many small ones"],
)
def test_a_group_of_the_largest_size_that_is_sent_at_once_comes_to_its_end(
    own_server: EmbeddedPostgres, count: int, size: int
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        before = len(house.stored())
        with house.catalog.connect() as connection:
            # It goes back, and is the first at hand.
            backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            answer = house.submit(*[house.row(content=b"x" * size) for _ in range(count)])
        finally:
            os.kill(backend, signal.SIGCONT)
        try:
            receipts = answer.result(5)
        finally:
            if not answer.done():
                house.end_backends()
        first = before + 1
        assert [r.visibility_token for r in receipts] == list(range(first, first + count))


def test_without_a_connection_at_hand_a_thread_commits(house: House) -> None:
    asked = house.watcher.asked
    with house.catalog.connect(), house.catalog.connect(), house.catalog.connect():
        assert tokens_of([house.submit(house.row())]) == [WARM + 1]
    assert house.watcher.asked == asked


def test_a_tenant_that_this_process_does_not_know_yet_is_looked_up_by_a_thread(
    house: House,
) -> None:
    with house.catalog.connect() as connection:
        zeta = tenants.ensure_tenant(connection, "zeta", created_by="test").tenant_id
    asked = house.watcher.asked
    assert tokens_of([house.submit(write(zeta))]) == [1]
    assert house.watcher.asked == asked
    assert tokens_of([house.submit(write(zeta))]) == [2]


def test_tenants_do_not_wait_for_one_another(house: House) -> None:
    with house.catalog.connect() as connection:
        zeta = tenants.ensure_tenant(connection, "zeta", created_by="test").tenant_id
    house.bus.publish([write(zeta)])
    with house.held_back():
        waiting = house.one_under_way()
        assert tokens_of([house.submit(write(zeta))]) == [2]
        assert not waiting.done()
    assert tokens_of([waiting]) == [WARM + 1]


# -- keys, fences, and what cannot be stored


def test_a_key_that_was_seen_gets_the_first_receipt(house: House) -> None:
    (first,) = house.submit(house.row(key="k")).result(PATIENCE_SECONDS)
    (again,) = house.submit(house.row(key="k")).result(PATIENCE_SECONDS)
    assert (again.visibility_token, again.event_id) == (first.visibility_token, first.event_id)
    assert (first.inserted, again.inserted) == (True, False)
    assert tokens_of([house.submit(house.row(key="new"))]) == [WARM + 2]


def test_a_key_twice_in_one_group_is_accepted_once(house: House) -> None:
    with house.held_back():
        house.one_under_way()
        answers = [house.submit(house.row(key=key)) for key in ("a", "k", "k", "b")]
    assert tokens_of(answers) == [WARM + 2, WARM + 3, WARM + 3, WARM + 4]
    inserted = [a.result()[0].inserted for a in answers]
    assert inserted == [True, True, False, True]


def test_a_key_with_other_rows_is_a_conflict_for_its_call_alone(house: House) -> None:
    house.submit(house.row(key="k")).result(PATIENCE_SECONDS)
    with house.held_back():
        house.one_under_way()
        good = [house.submit(house.row(key="a"))]
        bad = house.submit(house.row(), house.row(key="k", content=b"others"))
        good += [house.submit(house.row(key=key)) for key in ("b", "c")]
    error = bad.exception(PATIENCE_SECONDS)
    assert isinstance(error, Conflict)
    assert error.code is ErrorCode.IDEMPOTENCY_CONFLICT
    assert tokens_of(good) == [WARM + 3, WARM + 4, WARM + 5]
    assert is_as_told(house, good)
    assert len(house.stored()) == WARM + 5


def test_a_write_that_postgres_cannot_store_fails_alone(house: House) -> None:
    with house.held_back():
        house.one_under_way()
        good = [house.submit(house.row())]
        bad = house.submit(house.row(trace_id="a\0b"))
        good += [house.submit(house.row())]
    assert bad.exception(PATIENCE_SECONDS) is not None
    assert tokens_of(good) == [WARM + 2, WARM + 3]


def test_a_write_that_no_statement_can_carry_fails_alone_and_keeps_no_connection(
    house: House,
) -> None:
    for number in range(20):
        bad = house.submit(house.row(trace_id="\ud800"))
        assert bad.exception(PATIENCE_SECONDS) is not None
        assert tokens_of([house.submit(house.row())]) == [WARM + 1 + number]


def test_a_fence_that_another_process_raised_sends_the_older_version_back(house: House) -> None:
    with Catalog(house.dsn) as catalog:
        other = PostgresIngestBus(catalog)
        other.fence(house.acme, TableId(1), below=SchemaVersion(2))
        other.close()
    with house.held_back():
        asked = house.watcher.asked
        below = house.one_under_way(version=1)
        assert house.watcher.asked > asked
        above = [house.submit(house.row(version=2)), house.submit(house.row(table=2))]
    error = below.exception(PATIENCE_SECONDS)
    assert isinstance(error, Conflict)
    assert error.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert error.context["min_schema_version"] == 2
    assert tokens_of(above) == [WARM + 1, WARM + 2]


def test_a_fence_that_is_raised_before_a_commit_under_way_sends_it_back(house: House) -> None:
    with house.catalog.connect() as connection, connection.transaction():
        house.bus.fence(house.acme, TableId(1), below=SchemaVersion(2), within=connection)
        # The connection at hand is the fence's: another one has to be prepared first.
        below = house.submit(house.row(version=1))
        until(lambda: len(house.commits_under_way()) == 1)
    error = below.exception(PATIENCE_SECONDS)
    assert isinstance(error, Conflict)
    assert error.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert tokens_of([house.submit(house.row(version=2))]) == [WARM + 1]


def test_a_commit_that_postgres_breaks_off_at_its_very_end_is_not_acknowledged(
    house: House,
) -> None:
    with house.catalog.connect() as connection:
        connection.execute("""
        DO $$ BEGIN
            CREATE FUNCTION end_me() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ingest_event
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.trace_id = 'ends')
            EXECUTE FUNCTION end_me();
        END $$
        """)
    with pytest.raises(Unavailable):
        house.bus.publish([house.row(trace_id="ends")])
    house.accepted_at_last(key="after")
    asked = house.watcher.asked

    def one_more_is_watched() -> bool:
        house.submit(house.row()).result(PATIENCE_SECONDS)
        return house.watcher.asked > asked

    until(one_more_is_watched)
    before = house.stored()
    asked = house.watcher.asked
    error = house.submit(house.row(trace_id="ends")).exception(PATIENCE_SECONDS)
    assert house.watcher.asked > asked
    assert house.stored() == before
    assert isinstance(error, Unavailable)


# -- nobody watches


def test_when_nobody_watches_a_thread_waits(house: House) -> None:
    answers = [house.bus.submit([house.row()], watch=lambda *_: False) for _ in range(20)]
    assert tokens_of(answers) == list(range(WARM + 1, WARM + 21))
    assert is_as_told(house, answers)


def test_when_the_watcher_ends_a_commit_under_way_comes_to_its_end(house: House) -> None:
    with house.held_back():
        answers = [house.one_under_way()]
        answers += [house.submit(house.row()) for _ in range(3)]
        house.stop_watching()
        answers += [house.submit(house.row()) for _ in range(3)]
    assert tokens_of(answers) == list(range(WARM + 1, WARM + 8))
    assert tokens_of([house.submit(house.row())]) == [WARM + 8]


def test_a_thread_that_waits_for_a_commit_lets_the_others_run(house: House) -> None:
    with house.held_back():
        answer = house.one_under_way()
        house.stop_watching()
        # Were this thread held up, the commit would have come to its end meanwhile.
        assert len(house.commits_under_way()) == 1
        assert not answer.done()
    assert tokens_of([answer]) == [WARM + 1]


def test_a_group_that_nobody_watches_and_that_takes_the_transaction_gets_it(house: House) -> None:
    (first,) = house.bus.submit([house.row(key="k")], watch=lambda *_: False).result(10)
    (again,) = house.bus.submit([house.row(key="k")], watch=lambda *_: False).result(10)
    assert (again.visibility_token, again.inserted) == (first.visibility_token, False)


# -- Postgres goes away


def test_a_backend_that_ends_under_a_commit_is_unavailable_and_the_lane_goes_on(
    house: House,
) -> None:
    with house.held_back():
        broken = house.one_under_way(key="broken")
        behind = house.submit(house.row(key="behind"))
        (backend,) = house.commits_under_way()
        house.ask("SELECT pg_terminate_backend(%s)", backend)
        error = broken.exception(PATIENCE_SECONDS)
        assert isinstance(error, Unavailable)
        assert error.code is ErrorCode.CATALOG_UNAVAILABLE
    assert behind.exception(PATIENCE_SECONDS) is None or isinstance(behind.exception(), Unavailable)
    receipts = [house.accepted_at_last(key=key) for key in ("broken", "behind")]
    assert sorted(r.visibility_token for r in receipts) == [WARM + 1, WARM + 2]
    assert len(house.stored()) == WARM + 2


def test_backends_that_ended_while_they_lay_at_hand_cost_a_call_at_most_a_repetition(
    house: House,
) -> None:
    for round_ in range(3):
        house.end_backends()
        for n in range(4):
            house.accepted_at_last(key=f"{round_}-{n}")
    assert sorted(house.stored()) == list(range(1, WARM + 13))
    assert tokens_of([house.submit(house.row())]) == [WARM + 13]


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        ("watched", signal.SIGTERM),
        ("watched", signal.SIGKILL),
        ("watched", signal.SIGQUIT),
        ("on a thread", signal.SIGTERM),
        ("on a thread", signal.SIGKILL),
        ("on a thread", signal.SIGQUIT),
    ],
)
def test_a_backend_that_ended_while_it_lay_at_hand_is_unavailable(
    own_server: EmbeddedPostgres, way: str, sent: signal.Signals
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        with house.catalog.connect() as connection:
            backend = connection.info.backend_pid
        os.kill(backend, sent)
        until(lambda: not is_alive(backend))
        watch = house.watcher.watch if way == "watched" else None
        error = house.bus.submit([house.row()], watch=watch).exception(PATIENCE_SECONDS)
        assert house.accepted_at_last(key=f"after {sent}, {way}").inserted
        assert isinstance(error, Unavailable)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def kill_the_postmaster(server: EmbeddedPostgres, _backend: int) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.running)
    server.restart()


def kill_the_backend(_server: EmbeddedPostgres, backend: int) -> None:
    os.kill(backend, signal.SIGKILL)


def restart(server: EmbeddedPostgres, _backend: int) -> None:
    server.restart()


@pytest.mark.parametrize("kill", [kill_the_postmaster, kill_the_backend, restart])
def test_a_killed_postgres_is_unavailable_and_what_was_acknowledged_stays(
    own_server: EmbeddedPostgres, kill: Callable[[EmbeddedPostgres, int], None]
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        known = house.stored()
        kept = house.submit(house.row()).result(PATIENCE_SECONDS)[0]
        with contextlib.suppress(psycopg.OperationalError), house.held_back():
            broken = [house.one_under_way(key=f"under way {kill.__name__}")]
            broken += [house.submit(house.row()) for _ in range(3)]
            (backend,) = house.commits_under_way()
            kill(own_server, backend)
            assert isinstance(broken[0].exception(PATIENCE_SECONDS), Unavailable)
        for each in broken[1:]:
            error = each.exception(PATIENCE_SECONDS)
            assert error is None or isinstance(error, Unavailable)
        again = house.accepted_at_last(key=f"under way {kill.__name__}")
        stored = house.stored()
        accepted = [each.result()[0] for each in broken[1:] if each.exception() is None]
        for receipt in (kept, again, *accepted):
            assert stored[receipt.visibility_token] == receipt.event_id
        assert sorted(stored) == list(range(1, len(stored) + 1))
        assert len(known) < len(stored) <= len(known) + 5


def test_nothing_acknowledged_is_lost_or_doubled_over_restarts_under_load(
    own_server: EmbeddedPostgres,
) -> None:
    with contextlib.closing(House(own_server.dsn)) as house:
        receipts: dict[str, Receipt] = {}
        stop = threading.Event()

        def write_on(name: str) -> int:
            number = 0
            while not stop.is_set():
                key = f"{name}-{number}"
                receipts[key] = house.accepted_at_last(key=key, content=key.encode())
                number += 1
            return number

        with ThreadPoolExecutor(4) as threads:
            try:
                writers = [threads.submit(write_on, f"w{n}") for n in range(4)]
                for _ in range(3):
                    reached = len(receipts) + 40
                    until(lambda reached=reached: len(receipts) > reached)
                    own_server.restart()
                reached = len(receipts) + 40
                until(lambda: len(receipts) > reached)
            finally:
                stop.set()
            assert sum(w.result(PATIENCE_SECONDS) for w in writers) == len(receipts)
        rows = house.ask(
            "SELECT idempotency_key, visibility_token FROM ingest_event"
            " WHERE tenant_id = %s AND idempotency_key LIKE 'w_-%%'",
            house.acme,
        )
        assert len(rows) == len(receipts)
        assert dict(rows) == {key: r.visibility_token for key, r in receipts.items()}
        stored = house.stored()
        assert sorted(stored) == list(range(1, len(stored) + 1))


# -- with others, and at the end


def test_publishes_and_watched_submits_of_one_tenant_are_dense_and_each_there_once(
    house: House,
) -> None:
    def publish() -> list[Receipt]:
        return [r for n in range(40) for r in house.bus.publish([house.row()])]

    def submit(*, key: str | None = None) -> list[Receipt]:
        answers = [house.submit(house.row(key=key and f"{key}{n}")) for n in range(100)]
        tokens = tokens_of(answers)
        assert tokens == sorted(tokens)
        return [r for answer in answers for r in answer.result()]

    def submit_plainly() -> list[Receipt]:
        answers = [house.bus.submit([house.row()]) for _ in range(40)]
        return [r for answer in answers for r in answer.result(PATIENCE_SECONDS)]

    results = together(
        publish, publish, publish, submit, lambda: submit(key="a"), submit_plainly, publish
    )
    receipts: list[Receipt] = []
    for result in results:
        assert isinstance(result, list), result
        receipts += result
    told = {r.visibility_token: r.event_id for r in receipts}
    assert sorted(told) == list(range(WARM + 1, WARM + 1 + 400))
    stored = house.stored()
    assert {token: stored[token] for token in told} == told
    assert len(stored) == WARM + 400


def test_the_connections_of_watched_commits_come_back(database_dsn: str) -> None:
    with contextlib.closing(House(database_dsn, pool_max=2)) as house:
        house.submit(house.row(key="k")).result(PATIENCE_SECONDS)
        for number in range(200):
            key = "k" if number % 10 == 0 else None
            content = b"others" if number % 20 == 0 else b"rows"
            answer = house.submit(house.row(key=key, content=content))
            assert isinstance(answer.exception(PATIENCE_SECONDS), Conflict | None)
        with house.catalog.connect() as one, house.catalog.connect() as other:
            assert one is not other
        assert house.watcher.asked >= 100


def test_close_waits_for_a_watched_commit_and_for_those_behind_it(house: House) -> None:
    with ThreadPoolExecutor(1) as threads:
        with house.held_back():
            answers = [house.one_under_way()]
            answers += [house.submit(house.row()) for _ in range(3)]
            closing = threads.submit(house.bus.close)
            until(lambda: house.bus._groups._closed)
            with pytest.raises(Unavailable) as refused:
                house.submit(house.row())
            assert not closing.done()
        closing.result(PATIENCE_SECONDS)
    assert refused.value.code is ErrorCode.NOT_READY
    assert all(answer.done() for answer in answers)
    assert tokens_of(answers) == list(range(WARM + 1, WARM + 5))


def test_close_returns_when_the_watcher_ends_meanwhile(house: House) -> None:
    with ThreadPoolExecutor(1) as threads:
        with house.held_back():
            answer = house.one_under_way()
            closing = threads.submit(house.bus.close)
            until(lambda: house.bus._groups._closed)
            house.stop_watching()
        closing.result(PATIENCE_SECONDS)
    assert tokens_of([answer]) == [WARM + 1]
