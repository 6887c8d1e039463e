"""A prepared statement straight through libpq: what it answers, raises and survives."""

from collections.abc import Iterator

import psycopg
import pytest

from ingest_bus.prepared import BYTEA, INT8, PreparedStatement

_SUM = PreparedStatement(
    "test_sum",
    "SELECT %(a)s + length(%(content)b) WHERE %(a)s >= 0",
    {"a": INT8, "content": BYTEA},
)


@pytest.fixture
def connection(database_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_dsn, autocommit=True) as connection:
        yield connection


def test_it_answers_the_first_value(connection: psycopg.Connection) -> None:
    assert _SUM.first_value(connection, {"a": b"40", "content": b"\x00\xff"}) == b"42"


def test_no_row_is_none(connection: psycopg.Connection) -> None:
    assert _SUM.first_value(connection, {"a": b"-1", "content": b""}) is None


def test_it_is_prepared_again_where_it_was_forgotten(connection: psycopg.Connection) -> None:
    assert _SUM.first_value(connection, {"a": b"1", "content": b"x"}) == b"2"
    connection.execute("DEALLOCATE ALL")
    assert _SUM.first_value(connection, {"a": b"2", "content": b"x"}) == b"3"


def test_what_postgres_refuses_is_raised_by_its_class(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        _SUM.first_value(connection, {"a": b"one", "content": b"x"})
    assert _SUM.first_value(connection, {"a": b"1", "content": b"x"}) == b"2"


def test_a_lost_connection_is_an_operational_error(connection: psycopg.Connection) -> None:
    pid = connection.info.backend_pid
    with psycopg.connect(
        connection.info.dsn, autocommit=True, password=connection.info.password
    ) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(psycopg.OperationalError):
        _SUM.first_value(connection, {"a": b"1", "content": b"x"})
