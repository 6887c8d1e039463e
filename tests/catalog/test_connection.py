"""The pool: what a Postgres failure is called, and how it heals."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import psycopg
import pytest
from psycopg import sql

from catalog import snapshots, tenants
from catalog.connection import Catalog, Connection
from catalog.embedded_postgres import EmbeddedPostgres
from duckmesh.errors import ErrorCode, NotFound, Unavailable
from ingest_bus.postgres import PostgresIngestBus
from tests.bus_worlds import PATIENCE_SECONDS, claimed, together, tokens_of, until, write
from tests.catalog.publications import publish, up_to

SHORT = timedelta(seconds=1)


@pytest.fixture
def restarted(own_server: EmbeddedPostgres) -> Iterator[Catalog]:
    """A catalog on the server that the test restarts."""
    own_server.start()
    with Catalog(own_server.dsn, pool_min=4, connect_timeout=SHORT) as opened:
        yield opened


def ask(catalog: Catalog) -> int:
    with catalog.connect() as connection:
        row = connection.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])


def answers(catalog: Catalog) -> bool:
    with contextlib.suppress(Unavailable):
        return ask(catalog) == 1
    return False


def test_connections_are_lent_in_autocommit(catalog: Catalog) -> None:
    with catalog.connect() as connection:
        assert connection.autocommit


def test_opening_does_not_wait_for_postgres(database_dsn: str) -> None:
    nowhere = psycopg.conninfo.make_conninfo(database_dsn, host="/nonexistent")
    with Catalog(nowhere, connect_timeout=timedelta(seconds=0.2)) as catalog:
        with pytest.raises(Unavailable) as raised:
            ask(catalog)
        assert raised.value.code is ErrorCode.CATALOG_UNAVAILABLE
        assert raised.value.retryable
        assert "nonexistent" not in str(raised.value.as_contract())


def test_an_exhausted_pool_is_unavailable_and_lends_again(database_dsn: str) -> None:
    with Catalog(database_dsn, pool_max=1, connect_timeout=timedelta(seconds=0.2)) as catalog:
        with catalog.connect(), pytest.raises(Unavailable):
            ask(catalog)
        assert ask(catalog) == 1


def test_a_closed_catalog_is_unavailable(database_dsn: str) -> None:
    catalog = Catalog(database_dsn)
    catalog.close()
    with pytest.raises(Unavailable):
        ask(catalog)


def test_our_own_errors_pass_as_they_are(catalog: Catalog) -> None:
    with pytest.raises(NotFound), catalog.connect() as connection:
        tenants.find_tenant(connection, "nobody")
    assert ask(catalog) == 1


def test_a_block_that_raises_leaves_no_transaction_behind(catalog: Catalog) -> None:
    def fail(connection: Connection) -> None:
        with connection.transaction():
            tenants.ensure_tenant(connection, "acme", created_by="test")
            raise KeyError

    with pytest.raises(KeyError), catalog.connect() as connection:
        fail(connection)
    with catalog.connect() as connection:
        assert tenants.list_tenants(connection) == []


def test_a_deadlock_is_unavailable_to_the_one_who_gave_up(catalog: Catalog) -> None:
    with catalog.connect() as connection:
        for name in ("a", "b"):
            tenants.ensure_tenant(connection, name, created_by="test")
    locked: list[str] = []

    def lock(*names: str) -> str:
        with catalog.connect() as connection, connection.transaction():
            for name in names:
                connection.execute("SELECT FROM tenant WHERE name = %s FOR UPDATE", (name,))
                locked.append(name)
                until(lambda: len(locked) >= 2)
        return "done"

    one, other = together(lambda: lock("a", "b"), lambda: lock("b", "a"))
    assert {type(one), type(other)} == {str, Unavailable}


def read_only(dsn: str, state: str) -> None:
    """Let sessions that begin from now on read only, as after a failover to a standby, or not."""
    name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    statement = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    with psycopg.connect(
        dsn, autocommit=True, options="-c default_transaction_read_only=off"
    ) as connection:
        connection.execute(statement.format(name, sql.SQL(state)))


def test_a_server_that_only_reads_is_unavailable_and_its_connections_are_let_go(
    database_dsn: str,
) -> None:
    def make(tenant: str) -> str:
        with catalog.connect() as connection:
            return tenants.ensure_tenant(connection, tenant, created_by="test").name

    def made(tenant: str) -> bool:
        with contextlib.suppress(Unavailable):
            return make(tenant) == tenant
        return False

    read_only(database_dsn, "on")
    with Catalog(database_dsn, pool_min=4) as catalog:
        for _ in range(3):
            with pytest.raises(Unavailable) as raised:
                make("acme")
            assert raised.value.code is ErrorCode.CATALOG_UNAVAILABLE
            assert ask(catalog) == 1, "it reads all the while"
        read_only(database_dsn, "off")
        until(lambda: made("acme"))
        # None is kept of those that were opened before.
        until(lambda: together(*[partial(made, f"t{n}") for n in range(4)]) == [True] * 4)


@pytest.mark.parametrize("state", ["XX000", "XX001", "XX002"])
def test_a_server_that_finds_itself_broken_is_unavailable(catalog: Catalog, state: str) -> None:
    def backend() -> int:
        with catalog.connect() as connection:
            return connection.info.backend_pid

    before = backend()
    with pytest.raises(Unavailable), catalog.connect() as connection:
        connection.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
    assert backend() != before


def test_a_fault_of_ours_keeps_its_name_and_its_connection(catalog: Catalog) -> None:
    def go_on_after_an_error() -> None:
        with catalog.connect() as connection, connection.transaction():
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                connection.execute("SELECT FROM nothing")
            connection.execute("SELECT 1")

    with catalog.connect() as connection:
        before = connection.info.backend_pid
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        go_on_after_an_error()
    with catalog.connect() as connection:
        assert connection.info.backend_pid == before


def test_a_restart_under_the_pool_is_unavailable_at_most_for_a_moment(
    own_server: EmbeddedPostgres, restarted: Catalog
) -> None:
    assert together(*[lambda: ask(restarted)] * 4) == [1] * 4
    own_server.restart()
    # Idle connections are dead now. The first call may meet one; then all are replaced.
    until(lambda: answers(restarted))
    assert together(*[lambda: ask(restarted)] * 4) == [1] * 4


def test_a_stopped_postgres_is_unavailable_and_heals_when_it_is_back(
    own_server: EmbeddedPostgres, restarted: Catalog
) -> None:
    assert ask(restarted) == 1
    own_server.stop()
    for _ in range(3):
        with pytest.raises(Unavailable):
            ask(restarted)
    own_server.start()
    # Its address is a new one now; a catalog on it answers at once.
    with Catalog(own_server.dsn, connect_timeout=timedelta(seconds=PATIENCE_SECONDS)) as again:
        assert ask(again) == 1


def test_a_transaction_under_a_restart_is_unavailable_and_leaves_nothing(
    own_server: EmbeddedPostgres, restarted: Catalog
) -> None:
    with restarted.connect() as connection:
        acme = tenants.ensure_tenant(connection, "interrupted", created_by="test")

    def publish_over_a_restart() -> None:
        with restarted.connect() as connection, connection.transaction():
            snapshots.commit_snapshot(connection, up_to(acme.tenant_id, 1))
            own_server.restart()

    with pytest.raises(Unavailable):
        publish_over_a_restart()
    until(lambda: answers(restarted))
    with restarted.connect() as connection:
        assert snapshots.newest(connection, acme.tenant_id).max_visibility_token == 0
        assert publish(connection, up_to(acme.tenant_id, 1)).max_visibility_token == 1


def test_what_was_accepted_or_published_survives_a_crash_of_postgres(
    own_server: EmbeddedPostgres, restarted: Catalog
) -> None:
    with restarted.connect() as connection:
        acme = tenants.ensure_tenant(connection, "crashed", created_by="test")
    bus = PostgresIngestBus(restarted)
    receipts = bus.publish([write(acme.tenant_id, key="k"), write(acme.tenant_id)])
    held = claimed(bus, limit=1)
    with restarted.connect() as connection, connection.transaction():
        snapshots.commit_snapshot(
            connection, up_to(acme.tenant_id, 1, epoch=held.epoch, after=held.after_token)
        )
        bus.ack(held, [held.events[0].envelope.event_id], within=connection)
    own_server.restart()
    until(lambda: answers(restarted))
    with restarted.connect() as connection:
        assert snapshots.newest(connection, acme.tenant_id).max_visibility_token == 1
    assert bus.last_token(acme.tenant_id) == 2
    assert tokens_of(claimed(bus)) == [2]
    again = bus.publish([write(acme.tenant_id, key="k")])[0]
    assert (again.event_id, again.inserted) == (receipts[0].event_id, False)
    bus.close()
