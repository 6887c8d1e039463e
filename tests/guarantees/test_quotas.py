"""Quotas by real processes, at both doors: refused with the figure, and taken again in time."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import httpx
import pyarrow as pa
import pytest

from catalog.connection import Catalog
from duckmesh.quotas import Quota, Quotas
from gateway import tenancy, tenant_quotas
from tests.processes import Service, service, until
from tests.scraping import scraped

ROWS = pa.table({"v": pa.array(range(1000), pa.int64())})
SLOW = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range % 7 = b.range % 11"
SORT = "SELECT list(range ORDER BY hash(range)) FROM range(4000000)"


class World:
    """Two serving processes and a coordinator, whose callers are of the tenant acme."""

    def __init__(self, catalog: Catalog, running: Service, uris: list[str]) -> None:
        self.catalog = catalog
        self.running = running
        self.uris = uris
        self.clients = [httpx.Client(base_url=running.http_of(u), timeout=60) for u in uris]
        self.http = self.clients[0]

    def set(self, **values: int) -> None:
        """Change quotas, and wait until both processes go by them."""
        tenant_quotas.set_quotas(self.catalog, "acme", Quotas(**values))
        self._settle()

    def reset(self) -> None:
        tenant_quotas.reset_quotas(self.catalog, "acme", None)
        self._settle()

    def _settle(self) -> None:
        # A change is heeded within a second: what a test asserts comes after it.
        ends = time.monotonic() + 1.0
        until(lambda: time.monotonic() >= ends)

    @contextmanager
    def adbc(self, **options: str) -> Iterator[flightsql.Connection]:
        with flightsql.connect(self.uris[0], db_kwargs=options, autocommit=True) as connection:
            yield connection

    def records(self, rows: int, **headers: str) -> httpx.Response:
        body = {"records": [{"payload": {"v": n}} for n in range(rows)]}
        return self.http.post("/v1/ingest/t", json=body, headers=headers)

    def ask(self, sql: str, **headers: str) -> httpx.Response:
        return self.http.post("/v1/query", json={"sql": sql}, headers=headers)

    def refused_at_both(self, sql: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The contract of the error that each door answers with."""
        over_http = self.ask(sql).json()
        with pytest.raises(adbc_driver_manager.Error) as caught:
            self.read(sql)
        return over_http, contract_of(caught.value)

    def read(self, sql: str) -> pa.Table:
        with self.adbc() as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()


def contract_of(error: adbc_driver_manager.Error) -> dict[str, Any]:
    """What the trailers of a failed call say; of an error midway, its text alone."""
    details = {name: bytes(value).decode("utf-8", "replace") for name, value in error.details}
    return details | {"text": str(error)}


@pytest.fixture(scope="module")
def world(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        Catalog(module_database_dsn) as catalog,
        service(module_database_dsn, tmp_path_factory.mktemp("quotas")) as running,
    ):
        tenancy.ensure_tenant(catalog, "acme", principal="test")
        uris = [running.serve(DUCKMESH_QUERY_WORKERS="2")[1] for _ in range(2)]
        running.coordinate("c1")
        world = World(catalog, running, uris)
        with world.adbc() as connection, connection.cursor() as cursor:
            cursor.adbc_ingest("t", ROWS, mode="create")
        yield world
        for client in world.clients:
            client.close()


@pytest.fixture(autouse=True)
def _no_quotas(world: World) -> Iterator[None]:
    yield
    world.reset()


def test_records_are_refused_with_the_time_to_wait_and_taken_after_it(world: World) -> None:
    world.set(ingest_rows_per_second=100)
    assert world.records(250).status_code == 200
    refused = world.records(1)
    said = refused.json()
    assert (refused.status_code, said["error_code"]) == (429, "RATE_LIMITED")
    context = said["context"]
    assert (context["quota"], context["limit"]) == ("ingest_rows_per_second", 100)
    assert context["used"] >= 200
    assert 0 < context["retry_after_ms"] <= 1500
    assert int(refused.headers["retry-after"]) * 1000 >= context["retry_after_ms"]
    waited = time.monotonic() + context["retry_after_ms"] / 1000
    until(lambda: time.monotonic() >= waited)
    assert world.records(1).status_code == 200


def test_statements_are_refused_over_flight_with_the_trailer(world: World) -> None:
    world.set(ingest_rows_per_second=10)
    with world.adbc() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t SELECT range FROM range(25)")
        with pytest.raises(adbc_driver_manager.Error, match="RATE_LIMITED") as caught:
            cursor.execute("INSERT INTO t VALUES (1)")
        said = contract_of(caught.value)
        # A DoPut that fails has no trailers at the driver: the contract is in its status.
        assert '"retry_after_ms":' in str(said)
        assert '"quota":"ingest_rows_per_second"' in str(said)
        until(lambda: _inserted(cursor))


def _inserted(cursor: flightsql.Cursor) -> bool:
    try:
        cursor.execute("INSERT INTO t VALUES (1)")
    except adbc_driver_manager.Error:
        return False
    return True


def bulk_ingest(world: World, table: pa.Table) -> None:
    with world.adbc() as connection, connection.cursor() as cursor:
        assert cursor.adbc_ingest("t", table.to_reader(max_chunksize=100), mode="append") == 1000


def file_ingest(world: World, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    answer = world.http.post("/v1/ingest/t", content=bytes(sink.getvalue()), headers=headers)
    assert answer.json()["accepted_count"] == 1000, answer.text


@pytest.mark.parametrize("send", [bulk_ingest, file_ingest])
def test_a_stream_is_slowed_down_and_loses_nothing(
    world: World, send: Callable[[World, pa.Table], None]
) -> None:
    world.set(ingest_rows_per_second=400)
    until(lambda: world.http.get("/v1/lag").json()["token_lag"] == 0)
    before = count(world)
    began = time.monotonic()
    send(world, ROWS)
    # 400 at once, and the last 100 may leave a debt: 500 were waited for, at 400 a second.
    assert time.monotonic() - began >= 1.0
    until(lambda: count(world) == before + 1000)


def count(world: World) -> int:
    return int(world.ask("SELECT count(*) FROM t").json()["rows"][0][0])


def test_the_keys_rate_is_its_own_and_that_of_its_tenant_holds_beside_it(world: World) -> None:
    _, secret = tenancy.create_key(
        world.catalog,
        "acme",
        name="narrow",
        roles=["ingest_writer"],
        quotas=Quotas(ingest_rows_per_second=10),
    )
    assert world.records(30, **{"x-api-key": secret}).status_code == 200
    refused = world.records(1, **{"x-api-key": secret})
    assert refused.json()["error_code"] == "RATE_LIMITED"
    assert "the API key may send 10 rows a second" in refused.json()["message"]
    assert world.records(1).status_code == 200


def test_storage_and_tables_are_refused_at_both_doors(world: World) -> None:
    until(lambda: used(world, Quota.STORAGE_BYTES) > 0)
    world.set(storage_bytes=1, tables=1)
    refused = world.records(1)
    assert (refused.status_code, refused.json()["error_code"]) == (429, "QUOTA_EXCEEDED")
    assert refused.json()["retryable"] is False
    assert refused.json()["context"]["quota"] == "storage_bytes"
    assert refused.json()["context"]["used"] > refused.json()["context"]["limit"] == 1
    with world.adbc() as connection, connection.cursor() as cursor:
        with pytest.raises(adbc_driver_manager.Error, match="QUOTA_EXCEEDED"):
            cursor.adbc_ingest("t", ROWS, mode="append")
        with pytest.raises(adbc_driver_manager.Error, match="has 1 tables and may have 1"):
            cursor.execute("CREATE TABLE another (v BIGINT)")
    schema = [{"name": "v", "type": "bigint"}]
    made = world.http.post("/v1/tables", json={"name": "another", "schema": schema})
    assert (made.status_code, made.json()["context"]["quota"]) == (429, "tables")
    world.set(tables=2)
    made = world.http.post("/v1/tables", json={"name": "another", "schema": schema})
    assert made.status_code == 201, made.text
    assert world.http.delete("/v1/tables/another").is_success


def used(world: World, quota: Quota) -> int:
    listed = world.http.get("/v1/quotas").json()["quotas"]
    return int(next(each["used"] for each in listed if each["quota"] == quota.value))


@pytest.mark.parametrize(
    ("quotas", "sql", "code", "quota"),
    [
        ({"query_time_ms": 300}, SLOW, "QUERY_TIMEOUT", "query_time_ms"),
        ({"query_memory_bytes": 64 * 2**20}, SORT, "QUERY_MEMORY", "query_memory_bytes"),
        ({"query_rows": 9}, "FROM range(10)", "QUOTA_EXCEEDED", "query_rows"),
        ({"query_bytes": 70}, "FROM range(10)", "QUOTA_EXCEEDED", "query_bytes"),
    ],
)
def test_what_a_query_breaks_is_told_with_the_figure_at_both_doors(
    world: World, quotas: dict[str, int], sql: str, code: str, quota: str
) -> None:
    world.set(**quotas)
    over_http, over_flight = world.refused_at_both(sql)
    assert over_http["error_code"] == code
    context = over_http["context"]
    assert (context["quota"], context["limit"]) == (quota, quotas[quota])
    assert context["used"] > 0
    if quota != "query_memory_bytes":
        assert context["used"] >= context["limit"]
    assert f"[{code}]" in over_flight["text"]


def test_queries_beyond_the_tenants_turns_are_refused_by_their_quota(world: World) -> None:
    world.set(concurrent_queries=1, queued_queries=0, query_time_ms=10_000)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(world.ask, SLOW)
        until(lambda: running(world) == 1)
        refused = world.ask("SELECT 1")
        said = refused.json()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert said["error_code"] == "TOO_MANY_QUERIES"
        context = said["context"]
        assert (context["quota"], context["used"], context["limit"]) == ("queued_queries", 0, 0)
        assert context["retry_after_ms"] == 1000
        # The driver does not always come to a failed stream's trailers: its text says the code.
        with pytest.raises(adbc_driver_manager.Error, match="TOO_MANY_QUERIES"):
            world.read("SELECT 1")
        # The other process has turns of its own.
        elsewhere = world.clients[1].post("/v1/query", json={"sql": "SELECT 1"})
        assert elsewhere.status_code == 200
        assert slow.result().json()["error_code"] == "QUERY_TIMEOUT"
    assert world.ask("SELECT 1").status_code == 200


def running(world: World) -> float:
    return scraped(world.http.get("/v1/metrics").text)("duckmesh_queries_running")


def test_a_change_is_heeded_by_every_serving_process_within_a_second(world: World) -> None:
    for client in world.clients:
        assert client.post("/v1/query", json={"sql": "FROM range(50)"}).is_success
    tenant_quotas.set_quotas(world.catalog, "acme", Quotas(query_rows=5))
    changed = time.monotonic()
    for client in world.clients:
        until(lambda client=client: _is_refused(client))
    # The machine may be slow to ask; what a process knows is a second old at most.
    assert time.monotonic() - changed < 5
    tenant_quotas.reset_quotas(world.catalog, "acme", None)
    for client in world.clients:
        until(lambda client=client: not _is_refused(client))


def _is_refused(client: httpx.Client) -> bool:
    return client.post("/v1/query", json={"sql": "FROM range(50)"}).status_code == 429
