"""The Postgres bus in its world, for what only that bus can promise."""

from collections.abc import Iterator

import pytest

from tests.bus_worlds import PostgresWorld


@pytest.fixture
def world(database_dsn: str) -> Iterator[PostgresWorld]:
    opened = PostgresWorld(database_dsn)
    yield opened
    opened.close()
