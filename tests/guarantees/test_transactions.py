"""Transactions as clients have them: DB-API connections, SQL text, the actions of Flight SQL.

Two serving processes over one catalog; a coordinator; real drivers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from google.protobuf import any_pb2
from pyarrow import flight

from flight_server import messages
from tests.faults.tcp_round_robin import TcpRoundRobin
from tests.guarantees.test_read_your_writes import RawSession, wait_until_published
from tests.processes import Service, service, until

ROWS = pa.table({"v": pa.array([1, 2, 3], pa.int64())})
COMMIT, ROLLBACK = 1, 2


@pytest.fixture(scope="module")
def both(
    module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, list[str]]]:
    folder: Path = tmp_path_factory.mktemp("transactions")
    settings = {
        "DUCKMESH_COORDINATOR_FLUSH_INTERVAL_MS": "10",
        "DUCKMESH_QUERY_CONSISTENCY_TIMEOUT_MS": "30000",
    }
    with service(module_database_dsn, folder, **settings) as running:
        uris = [running.serve()[1] for _ in range(2)]
        running.coordinate("c1")
        wait_until_published(uris[0])
        yield running, uris


@pytest.fixture
def uri(both: tuple[Service, list[str]]) -> str:
    return both[1][0]


@pytest.fixture
def other_uri(both: tuple[Service, list[str]]) -> str:
    return both[1][1]


@pytest.fixture
def watcher(other_uri: str) -> Iterator[dbapi.Connection]:
    """Another client, at the other process, that sees everything accepted before it asks."""
    strong = {"adbc.flight.sql.rpc.call_header.x-duckmesh-consistency": "strong"}
    with dbapi.connect(other_uri, db_kwargs=strong, autocommit=True) as connection:
        yield connection


@pytest.fixture
def table(request: pytest.FixtureRequest, watcher: dbapi.Connection) -> str:
    """An empty table of integers that no other test uses."""
    name = "t_" + "".join(c if c.isalnum() else "_" for c in request.node.name)[:80].lower()
    with watcher.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (v BIGINT)")
    return name


def ask(connection: dbapi.Connection, sql: str) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def do(connection: dbapi.Connection, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def count(connection: dbapi.Connection, table: str) -> int:
    ((found,),) = ask(connection, f"SELECT count(*) FROM {table}")
    assert isinstance(found, int)
    return found


# ---- The DB-API


def test_a_connection_is_in_a_transaction_from_its_first_statement(
    uri: str, watcher: dbapi.Connection, table: str
) -> None:
    with dbapi.connect(uri) as connection:
        do(connection, f"INSERT INTO {table} VALUES (1), (2)")
        with connection.cursor() as cursor:
            assert cursor.adbc_ingest(table, ROWS, mode="append") == 3
            cursor.executemany(f"INSERT INTO {table} VALUES (?)", [(n,) for n in range(10)])
        assert count(watcher, table) == 0
        connection.commit()
        assert count(watcher, table) == 15
        assert count(connection, table) == 15, "the next transaction reads what this one wrote"
        do(connection, f"INSERT INTO {table} VALUES (9)")
        connection.rollback()
        connection.commit()
    assert count(watcher, table) == 15


def test_leaving_a_connection_rolls_back(uri: str, watcher: dbapi.Connection, table: str) -> None:
    with dbapi.connect(uri) as connection:
        do(connection, f"INSERT INTO {table} VALUES (1)")
    assert count(watcher, table) == 0


def test_queries_of_a_transaction_read_one_snapshot(
    uri: str, watcher: dbapi.Connection, table: str
) -> None:
    with dbapi.connect(uri) as connection:
        assert count(connection, table) == 0
        do(watcher, f"INSERT INTO {table} VALUES (1)")
        assert count(watcher, table) == 1
        do(connection, f"INSERT INTO {table} VALUES (2)")
        assert count(connection, table) == 0, "neither another's writes nor its own"
        connection.commit()
        assert count(connection, table) == 2
        connection.rollback()


def test_a_cursor_that_outlives_its_transaction_runs_in_the_next(
    uri: str, watcher: dbapi.Connection, table: str
) -> None:
    """The driver keeps a prepared handle across commits; it names the transaction that is over."""
    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        for number in range(1, 4):
            cursor.execute(f"INSERT INTO {table} VALUES (?)", (number,))
            assert count(watcher, table) == number - 1
            connection.commit()
            assert count(watcher, table) == number
        cursor.execute(f"INSERT INTO {table} VALUES (?)", (9,))
        connection.rollback()
        assert count(watcher, table) == 3


def test_the_token_of_a_transaction_comes_at_its_commit(uri: str, table: str) -> None:
    option = "adbc.flight.sql.session.option.last_visibility_token"
    with dbapi.connect(uri) as connection:
        before = connection.adbc_connection.get_option_int(option)
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} VALUES (1)")
            assert cursor.fetchall() == [(1, None)]
        assert connection.adbc_connection.get_option_int(option) == before
        connection.commit()
        after = connection.adbc_connection.get_option_int(option)
        assert after > before
        assert ask(connection, "SELECT last_visibility_token()") == [(after,)]
        connection.commit()


def test_a_table_made_in_a_transaction_is_there_at_once_and_its_rows_at_commit(
    uri: str, watcher: dbapi.Connection, table: str
) -> None:
    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(table + "_made", ROWS, mode="create")
        assert count(watcher, table + "_made") == 0
        connection.rollback()
        assert count(watcher, table + "_made") == 0


def test_insert_from_a_query_reads_the_transactions_snapshot(
    uri: str, watcher: dbapi.Connection, table: str
) -> None:
    do(watcher, f"INSERT INTO {table} VALUES (1)")
    assert count(watcher, table) == 1
    with dbapi.connect(uri) as connection:
        do(connection, f"INSERT INTO {table} SELECT v + 10 FROM {table}")
        do(watcher, f"INSERT INTO {table} VALUES (2)")
        do(connection, f"INSERT INTO {table} SELECT v + 100 FROM {table}")
        connection.commit()
    assert ask(watcher, f"SELECT v FROM {table} ORDER BY v") == [(1,), (2,), (11,), (101,)]


def test_pandas_and_polars_commit_what_they_write(
    uri: str, watcher: dbapi.Connection, table: str
) -> None:
    with dbapi.connect(uri) as connection:
        pd.DataFrame({"v": [1, 2]}).to_sql(table, connection, index=False, if_exists="append")
        assert count(watcher, table) == 2
        pl.DataFrame({"v": [3]}).write_database(
            table, connection, engine="adbc", if_table_exists="append"
        )
        assert count(watcher, table) == 3
    over_uri = uri.replace("grpc://", "flightsql://") + "?transport=tcp"
    assert pl.read_database_uri(f"SELECT v FROM {table}", over_uri, engine="adbc").height == 3


# ---- SQL text


@pytest.mark.parametrize(
    "words",
    [
        ("BEGIN", "COMMIT", "ROLLBACK"),
        ("BEGIN TRANSACTION", "END", "ABORT"),
        ("start transaction;", "commit work", "-- no\nrollback transaction ;"),
    ],
)
def test_sql_begins_commits_and_rolls_back(
    uri: str, watcher: dbapi.Connection, table: str, words: tuple[str, str, str]
) -> None:
    begin, commit, rollback = words
    with dbapi.connect(uri, autocommit=True) as connection:
        do(connection, begin)
        do(connection, begin)
        do(connection, f"INSERT INTO {table} VALUES (1)")
        with connection.cursor() as cursor:
            cursor.adbc_ingest(table, ROWS, mode="append")
        assert count(watcher, table) == 0
        do(connection, commit)
        assert count(watcher, table) == 4
        do(connection, f"INSERT INTO {table} VALUES (2)")
        assert count(watcher, table) == 5, "after it every statement is its own transaction"
        do(connection, begin)
        do(connection, f"INSERT INTO {table} VALUES (3)")
        do(connection, rollback)
        do(connection, commit)
        do(connection, rollback)
    assert count(watcher, table) == 5


def test_sql_may_end_what_the_driver_began(uri: str, watcher: dbapi.Connection, table: str) -> None:
    with dbapi.connect(uri) as connection:
        do(connection, f"INSERT INTO {table} VALUES (1)")
        do(connection, "COMMIT")
        assert count(watcher, table) == 1
        connection.commit()
        connection.rollback()
        do(connection, f"INSERT INTO {table} VALUES (2)")
        do(connection, "ROLLBACK")
        connection.commit()
    assert count(watcher, table) == 1


def test_begin_without_a_session_says_what_to_do(uri: str) -> None:
    command = messages.wrap(messages.sql("CommandStatementQuery")(query="BEGIN"))
    with (
        flight.connect(uri) as client,
        pytest.raises(pa.ArrowInvalid, match="BEGIN needs a session"),
    ):
        client.get_flight_info(flight.FlightDescriptor.for_command(command))


# ---- Actions, by a client of plain Flight


def begin(client: flight.FlightClient) -> bytes:
    body = messages.wrap(messages.sql("ActionBeginTransactionRequest")())
    (result,) = client.do_action(flight.Action("BeginTransaction", body))
    begun = messages.sql("ActionBeginTransactionResult")()
    begun.ParseFromString(any_pb2.Any.FromString(result.body.to_pybytes()).value)
    return bytes(begun.transaction_id)


def end(
    client: flight.FlightClient, transaction: bytes, how: int, *, timeout: float = 60
) -> dict[str, int] | None:
    request = messages.sql("ActionEndTransactionRequest")(transaction_id=transaction, action=how)
    options = flight.FlightCallOptions(timeout=timeout)
    action = flight.Action("EndTransaction", messages.wrap(request))
    results = [json.loads(result.body.to_pybytes()) for result in client.do_action(action, options)]
    return results[0] if results else None


def put(client: flight.FlightClient, sql: str, transaction: bytes | None = None) -> None:
    command = messages.sql("CommandStatementUpdate")(query=sql)
    if transaction is not None:
        command.transaction_id = transaction
    descriptor = flight.FlightDescriptor.for_command(messages.wrap(command))
    writer, reader = client.do_put(descriptor, pa.schema([]))
    with writer:
        writer.done_writing()
        assert reader.read() is not None


def test_a_transaction_goes_on_through_any_process_and_is_committed_once(
    uri: str, other_uri: str, watcher: dbapi.Connection, table: str
) -> None:
    with flight.connect(uri) as one, flight.connect(other_uri) as other:
        transaction = begin(one)
        put(one, f"INSERT INTO {table} VALUES (1)", transaction)
        put(other, f"INSERT INTO {table} VALUES (2), (3)", transaction)
        put(other, f"INSERT INTO {table} VALUES (4)")
        assert count(watcher, table) == 1, "who names no transaction is in none"
        first = end(other, transaction, COMMIT)
        assert first is not None
        assert first["write_count"] == 2
        assert first["row_count"] == 3
        assert end(one, transaction, COMMIT) == first
        assert end(one, transaction, ROLLBACK) is None
        assert end(other, transaction, COMMIT) == first
        assert count(watcher, table) == 4
        with pytest.raises(KeyError, match="no such transaction"):
            end(one, b"0" * 16, COMMIT)
        with pytest.raises(KeyError, match="no such transaction"):
            put(one, f"INSERT INTO {table} VALUES (5)", b"0" * 16)


def test_the_process_that_began_a_transaction_may_die(
    both: tuple[Service, list[str]], uri: str, watcher: dbapi.Connection, table: str
) -> None:
    process, doomed_uri = both[0].serve()
    with flight.connect(doomed_uri) as doomed, flight.connect(uri) as other:
        transaction = begin(doomed)
        put(doomed, f"INSERT INTO {table} VALUES (1)", transaction)
        process.kill()
        put(other, f"INSERT INTO {table} VALUES (2)", transaction)
        end(other, transaction, COMMIT)
    assert count(watcher, table) == 2


def test_a_stream_is_refused_while_its_session_has_a_transaction(
    both: tuple[Service, list[str]], table: str
) -> None:
    session = RawSession(both[1])
    session.stream(0, table, ROWS)
    begin(session.clients[0])
    with pytest.raises(NotImplementedError, match="batch by batch"):
        session.stream(1, table, ROWS)
    list(session.clients[1].do_action(flight.Action("CloseSession", b"")))
    session.stream(1, table, ROWS)
    session.close()


# ---- Idleness, and death at the worst moment


def test_an_idle_transaction_ends_and_nothing_of_it_is_taken_for_autocommit(
    both: tuple[Service, list[str]],
    watcher: dbapi.Connection,
    table: str,
    module_database_dsn: str,
) -> None:
    with psycopg.connect(module_database_dsn, autocommit=True) as postgres:

        def one_has_expired() -> bool:
            question = "SELECT count(*) FROM client_transaction WHERE state = 'expired'"
            return postgres.execute(question).fetchone() == (1,)

        with dbapi.connect(both[1][0]) as connection:
            do(connection, f"INSERT INTO {table} VALUES (1)")
            postgres.execute(
                "UPDATE client_transaction SET last_seen = last_seen - interval '1 hour' "
                "WHERE state = 'open'"
            )
            until(one_has_expired)
            with pytest.raises(dbapi.Error, match="TRANSACTION_ENDED"):
                do(connection, f"SELECT count(*) FROM {table}")
            with connection.cursor() as cursor, pytest.raises(dbapi.Error, match="ENDED"):
                cursor.adbc_ingest(table, ROWS, mode="append")
            with pytest.raises(dbapi.Error, match="TRANSACTION_ENDED"):
                connection.commit()
            # The driver has no transaction now and begins none: this would be accepted alone.
            with connection.cursor() as cursor, pytest.raises(dbapi.Error, match="ENDED"):
                cursor.adbc_ingest(table, ROWS, mode="append")
        with dbapi.connect(both[1][0]) as connection:
            do(connection, f"INSERT INTO {table} VALUES (2)")
            connection.commit()
    assert ask(watcher, f"SELECT v FROM {table}") == [(2,)]


def test_a_commit_whose_answer_is_lost_with_its_process_is_found_by_repeating_it(
    both: tuple[Service, list[str]], uri: str, watcher: dbapi.Connection, table: str
) -> None:
    """Killed between the commit and the answer: the repeat, elsewhere, returns the receipt."""
    process, doomed_uri = both[0].serve()
    backend = ("127.0.0.1", int(doomed_uri.rpartition(":")[2]))
    with (
        TcpRoundRobin([backend]) as wire,
        flight.connect(f"grpc://127.0.0.1:{wire.port}") as doomed,
    ):
        transaction = begin(doomed)
        put(doomed, f"INSERT INTO {table} VALUES (1)", transaction)
        wire.carries_answers = False
        with pytest.raises(flight.FlightTimedOutError):
            end(doomed, transaction, COMMIT, timeout=2)
        until(lambda: count(watcher, table) == 1)
        process.kill()
    with flight.connect(uri) as other:
        receipt = end(other, transaction, COMMIT)
        assert receipt is not None
        assert receipt["write_count"] == 1
        assert end(other, transaction, COMMIT) == receipt
    assert count(watcher, table) == 1
