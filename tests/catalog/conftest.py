"""A catalog with a tenant, for the repositories' tests."""

from collections.abc import Iterator

import pytest

from catalog.connection import Catalog, Connection
from catalog.tables import Table
from catalog.tenants import Tenant, ensure_tenant
from tests.catalog.publications import new_table


@pytest.fixture
def catalog(database_dsn: str) -> Iterator[Catalog]:
    with Catalog(database_dsn, pool_max=12) as opened:
        yield opened


@pytest.fixture
def connection(catalog: Catalog) -> Iterator[Connection]:
    with catalog.connect() as borrowed:
        yield borrowed


@pytest.fixture
def acme(connection: Connection) -> Tenant:
    return ensure_tenant(connection, "acme", created_by="test")


@pytest.fixture
def events(connection: Connection, acme: Tenant) -> Table:
    return new_table(connection, acme, "events")
