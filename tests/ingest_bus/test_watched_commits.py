"""Commits that their caller waits for beside all else, over a real Postgres."""

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from catalog import tenants
from catalog.connection import Catalog
from catalog.embedded_postgres import EmbeddedPostgres
from duckmesh.errors import Conflict, ErrorCode, Unavailable
from duckmesh.identifiers import SchemaVersion, TableId
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt
from ingest_bus.postgres import PostgresIngestBus
from tests.bus_worlds import PATIENCE_SECONDS, together, until, write
from tests.ingest_bus.watched_house import (
    WARM,
    House,
    is_as_told,
    tokens_of,
)

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
    answers: list[Acceptance] = []
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
    answers: list[Acceptance] = []
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


def test_a_watch_that_tells_twice_harms_nothing(house: House) -> None:
    acts: list[Callable[[], None]] = []

    def watch(descriptor: int, act: Callable[[], None]) -> bool:
        acts.append(act)
        return house.watcher.watch(descriptor, act)

    answer = house.bus.submit([house.row()], watch=watch)
    assert tokens_of([answer]) == [WARM + 1]
    until(lambda: not house.bus._groups._lanes[house.acme].leading)
    for act in acts:
        act()
    assert tokens_of([house.submit(house.row())]) == [WARM + 2]
    assert is_as_told(house, [answer])


def test_a_publish_that_is_over_touches_its_connection_no_more(house: House) -> None:
    begun = house.bus._publisher.begin_group(house.acme, [house.row()], accepted=lambda: None)
    assert begun is not None
    receipts = begun.receipts()
    assert receipts is not None
    assert [r.visibility_token for r in receipts] == [WARM + 1]
    # Another has the connection now.
    for ask in (begun.has_come, begun.receipts):
        with pytest.raises(RuntimeError):
            ask()
    assert tokens_of([house.submit(house.row())]) == [WARM + 2]


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
