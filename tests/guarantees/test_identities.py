"""Who is let in, by real processes: tokens of an identity provider, at both doors."""

import time
from collections.abc import Iterator
from pathlib import Path

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import httpx
import pyarrow as pa
import pytest

from catalog.connection import Catalog
from gateway import tenancy
from tests.identity_provider import AUDIENCE, ISSUER, Provider, identity_provider
from tests.processes import Service, service, until

AUTHORIZATION = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
STATUS = adbc_driver_manager.AdbcStatusCode


@pytest.fixture
def provider() -> Iterator[Provider]:
    with identity_provider() as started:
        yield started


@pytest.fixture
def closed_service(database_dsn: str, tmp_path: Path, provider: Provider) -> Iterator[Service]:
    """Serving processes that believe the provider, and let nobody in without a credential."""
    with Catalog(database_dsn) as catalog:
        tenancy.ensure_tenant(catalog, "acme", principal="test")
    settings = {
        "DUCKMESH_AUTH_OPEN_MODE": "false",
        "DUCKMESH_AUTH_JWT_ISSUER": ISSUER,
        "DUCKMESH_AUTH_JWT_AUDIENCE": AUDIENCE,
        "DUCKMESH_AUTH_JWKS_URL": provider.url,
        "DUCKMESH_AUTH_JWT_LEEWAY_SECONDS": "0",
        "DUCKMESH_QUERY_WORKERS": "0",
    }
    with service(database_dsn, tmp_path, **settings) as running:
        yield running


def ask_http(client: httpx.Client, credential: str, sql: str = "SELECT 1") -> httpx.Response:
    headers = {"authorization": f"Bearer {credential}"}
    return client.post("/v1/query", json={"sql": sql}, headers=headers)


def connect(uri: str, **options: str) -> adbc_driver_flightsql.dbapi.Connection:
    return adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=options, autocommit=True)


def asked(connection: adbc_driver_flightsql.dbapi.Connection, sql: str = "SELECT 1") -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return int(cursor.fetchone()[0])


def test_a_providers_token_opens_both_doors_until_it_ends(
    closed_service: Service, provider: Provider
) -> None:
    _, uri = closed_service.serve()
    reader, writer = provider.token(), provider.token(roles=["ingest_writer", "table_admin"])
    with httpx.Client(base_url=closed_service.http_of(uri), timeout=30) as http:
        assert ask_http(http, reader).status_code == 200
        assert ask_http(http, provider.token(tenant="nobody")).status_code == 401
        assert ask_http(http, provider.token(aud="another")).status_code == 401
        assert ask_http(http, writer).status_code == 403
        # A program that knows no header but the password's is let in as well.
        assert http.post("/v1/query", json={"sql": "SELECT 1"}, auth=("x", reader)).is_success

        with connect(uri, username="x", password=reader) as connection:
            assert asked(connection) == 1
        with connect(uri, **{AUTHORIZATION: f"Bearer {writer}"}) as connection:
            with connection.cursor() as cursor:
                cursor.adbc_ingest("t", pa.table({"v": [1]}), mode="create_append")
            with pytest.raises(adbc_driver_manager.Error) as refused:
                asked(connection)
            assert refused.value.status_code is STATUS.UNAUTHORIZED

        ends = int(time.time()) + 6
        short = provider.token(exp=ends)
        with connect(uri, **{AUTHORIZATION: f"Bearer {short}"}) as connection:
            assert asked(connection) == 1
            assert ask_http(http, short).status_code == 200
            # The session's own token has a day to go; what it began with has not.
            until(lambda: time.time() >= ends + 1)
            with pytest.raises(adbc_driver_manager.Error) as ended:
                asked(connection)
            assert ended.value.status_code is STATUS.UNAUTHENTICATED
        assert ask_http(http, short).status_code == 401
