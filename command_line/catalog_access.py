"""The catalog, and the bus in it, as every command reaches them."""

from collections.abc import Iterator
from contextlib import contextmanager

from catalog.acts import OPERATOR
from catalog.connection import Catalog
from catalog.tenants import find_tenant
from command_line.data_directory import DataDirectory
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.settings import Settings
from gateway.identity import EVERY_ROLE, Identity
from ingest_bus.port import IngestBus
from ingest_bus.postgres import PostgresIngestBus


def catalog_dsn(settings: Settings) -> str:
    """The catalog's address: of the settings, else of the `duckmesh up` that runs here.

    Raises Invalid (SETTINGS_INVALID) when there is neither.
    """
    if settings.catalog.dsn is not None:
        return settings.catalog.dsn.get_secret_value()
    running = DataDirectory(settings.data_dir).running()
    if running is None:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "there is no catalog: set catalog.dsn (DUCKMESH_CATALOG_DSN), or run `duckmesh up` "
            "on this data directory",
        )
    return running.dsn


@contextmanager
def open_catalog(settings: Settings) -> Iterator[Catalog]:
    """The catalog, open for the length of the block. Does not wait for Postgres."""
    group = settings.catalog
    with Catalog(
        catalog_dsn(settings),
        pool_min=min(group.pool_min, group.pool_max),
        pool_max=group.pool_max,
        connect_timeout=group.connect_timeout,
    ) as catalog:
        yield catalog


def open_bus(catalog: Catalog) -> IngestBus:
    """The bus that lives in the catalog's database."""
    return PostgresIngestBus(catalog)


def operator_of(catalog: Catalog, tenant: str) -> Identity:
    """Whoever holds the catalog's address, in a tenant: every role. Raises TENANT_NOT_FOUND."""
    with catalog.connect() as connection:
        found = find_tenant(connection, tenant)
    return Identity(found.tenant_id, found.name, OPERATOR, None, EVERY_ROLE)
