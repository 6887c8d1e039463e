"""A real Postgres for the tests, private to the run, and a fresh database for each test.

`DUCKMESH_TEST_POSTGRES_DSN` names a server to use instead (any role that may create databases).
"""

import os
import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from catalog.embedded_postgres import EmbeddedPostgres

_FAST = {
    # Tests kill processes, never the machine: the kernel keeps what was written.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
}


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a server for this test process; one may create and drop databases there."""
    given = os.environ.get("DUCKMESH_TEST_POSTGRES_DSN")
    if given:
        yield given
        return
    data_dir = tmp_path_factory.mktemp("postgres") / "data"
    with EmbeddedPostgres(data_dir, settings=_FAST) as server:
        yield server.dsn


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A migrated server of a module's own, with its disk's safety on: to be killed or restarted."""
    from catalog.migrate import migrate_up

    data_dir = tmp_path_factory.mktemp("own") / "data"
    with EmbeddedPostgres(data_dir, settings={"shared_buffers": "32MB"}) as started:
        migrate_up(started.dsn)
        yield started


@pytest.fixture(scope="session")
def template_database(postgres_server: str) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    from catalog.migrate import migrate_up

    with _temporary_database(postgres_server) as name:
        migrate_up(dsn_of(postgres_server, name))
        yield name


@pytest.fixture
def database_dsn(postgres_server: str, template_database: str) -> Iterator[str]:
    """The DSN of a fresh, migrated database, dropped after the test with all who use it."""
    with _temporary_database(postgres_server, template=template_database) as name:
        yield dsn_of(postgres_server, name)


@pytest.fixture(scope="module")
def module_database_dsn(postgres_server: str, template_database: str) -> Iterator[str]:
    """`database_dsn` for all tests of a module together."""
    with _temporary_database(postgres_server, template=template_database) as name:
        yield dsn_of(postgres_server, name)


@pytest.fixture(scope="session")
def session_database_dsn(postgres_server: str, template_database: str) -> Iterator[str]:
    """`database_dsn` for all tests of a run together."""
    with _temporary_database(postgres_server, template=template_database) as name:
        yield dsn_of(postgres_server, name)


@pytest.fixture
def empty_database_dsn(postgres_server: str) -> Iterator[str]:
    """The DSN of a fresh database without migrations."""
    with _temporary_database(postgres_server) as name:
        yield dsn_of(postgres_server, name)


def dsn_of(server: str, database: str) -> str:
    """The server's address, with another database in it."""
    return urlunsplit(urlsplit(server)._replace(path=f"/{database}"))


class _temporary_database:  # noqa: N801 - read as a `with` word
    def __init__(self, server: str, *, template: str = "template0") -> None:
        self._server = server
        self._template = template
        self._name = f"duckmesh_test_{secrets.token_hex(6)}"

    def __enter__(self) -> str:
        self._execute("CREATE DATABASE {name} TEMPLATE {template}")
        return self._name

    def __exit__(self, *_: object) -> None:
        self._execute("DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(
                sql.SQL(statement).format(
                    name=sql.Identifier(self._name), template=sql.Identifier(self._template)
                )
            )
