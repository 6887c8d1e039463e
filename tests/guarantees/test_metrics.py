"""Every metric moves by what happened, in real processes; without a catalog the pages go on."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from tests.processes import PlainClient, Service, free_port, service, until
from tests.scraping import Scraped, scraped

SCRAPE_SECONDS = 30.0
Scrape = Callable[[], Scraped]


def scraping(url: str) -> Scrape:
    return lambda: scraped(httpx.get(url, timeout=SCRAPE_SECONDS).text)


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(database_dsn, tmp_path, DUCKMESH_QUERY_WORKERS="0") as processes:
        yield processes


def post(door: str, *values: int, key: str | None = None) -> httpx.Response:
    records = [{"payload": {"v": value}} for value in values]
    if key is not None:
        records = [{**each, "idempotency_key": key} for each in records]
    return httpx.post(f"{door}/v1/ingest/t", json={"records": records}, timeout=30)


def test_each_metric_moves_by_what_happened(running: Service) -> None:
    _, uri = running.serve()
    door = running.http_of(uri)
    serve = scraping(f"{door}/v1/metrics")
    client = PlainClient(uri)
    batch = pa.record_batch({"v": pa.array([1, 2, 3], pa.int64())})
    made = httpx.post(
        f"{door}/v1/tables",
        json={"name": "t", "schema": [{"name": "v", "type": "bigint"}]},
        timeout=30,
    )
    assert made.status_code == 201, made.text

    # Two writes over Flight, one a repeat; one record over HTTP; one request refused.
    before = serve()
    client.put("t", batch, key="k")
    client.put("t", batch, key="k")
    token = post(door, 4).json()["max_visibility_token"]
    assert post(door, 2**70).status_code == 400
    written = serve().since(before)
    assert written("duckmesh_ingest_requests_total", code="OK") == 3
    assert written("duckmesh_ingest_records_total") == 4
    assert written("duckmesh_ingest_duplicates_total") == 1
    assert written("duckmesh_ingest_ack_latency_count") == 3
    assert written("duckmesh_group_commit_size_sum") == 3
    assert written("duckmesh_http_requests_total", code="400") == 1

    # Nobody publishes yet: the lag is there, and a wait for it times out.
    late = {"sql": "SELECT * FROM t", "min_visibility_token": token, "consistency_timeout_ms": 50}
    assert httpx.post(f"{door}/v1/query", json=late, timeout=30).status_code == 504
    # What a scrape asked the catalog is kept for a second.
    until(lambda: serve()("duckmesh_ingest_lag_events") == 2)
    waiting = serve()
    assert waiting("duckmesh_visibility_lag") > 0
    assert waiting("duckmesh_latest_visibility_token") == 0
    assert waiting.since(before)("duckmesh_consistency_timeout_total") == 1
    assert "acme" not in httpx.get(f"{door}/v1/metrics", timeout=30).text

    # A coordinator publishes both events.
    port = free_port()
    running.coordinate("c1", DUCKMESH_COORDINATOR_METRICS_PORT=str(port))
    assert client.query("SELECT sum(v) AS s FROM t", token=token)["s"].to_pylist() == [10]
    coordinate = scraping(f"http://127.0.0.1:{port}/metrics")
    page = coordinate()
    assert page("duckmesh_claim_batch_size_sum") == 2
    assert page("duckmesh_write_to_visible_latency_count") == 2
    assert page("duckmesh_write_to_visible_latency_sum") > 0
    assert page("duckmesh_commit_batch_latency_count") == page("duckmesh_claim_batch_size_count")
    assert page("duckmesh_snapshot_publish_failures_total") == 0
    until(lambda: coordinate()("duckmesh_duty_runs_total", duty="sweep", code="OK") > 0)
    until(lambda: coordinate()("duckmesh_latest_visibility_token") == token)

    # One query, of one file for each publication.
    asked = serve()
    assert client.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [4]
    # A call is over a moment after its client has the answer.
    calls = {"method": "do_get", "code": "OK"}
    until(lambda: serve().since(asked)("duckmesh_flight_requests_total", **calls) == 1)
    read = serve().since(asked)
    assert read("duckmesh_query_requests_total", code="OK") == 1
    assert read("duckmesh_query_latency_count") == 1
    assert read("duckmesh_query_queue_latency_count") == 1
    assert read("duckmesh_query_scanned_files_count") == 1
    assert read("duckmesh_query_scanned_files_sum") >= 1
    assert read("duckmesh_query_scanned_bytes_sum") > 0
    assert read("duckmesh_flight_request_duration_seconds_count", method="do_get") == 1
    client.close()


def test_without_a_catalog_the_pages_answer_and_readiness_does_not(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as postgres:
        migrate_up(postgres.dsn)
        with service(postgres.dsn, tmp_path, DUCKMESH_QUERY_WORKERS="0") as processes:
            _, uri = processes.serve()
            port = free_port()
            coordinator = processes.coordinate("c1", DUCKMESH_COORDINATOR_METRICS_PORT=str(port))
            until(lambda: coordinator.said("metrics_listening"))
            doors = [f"{processes.http_of(uri)}/v1", f"http://127.0.0.1:{port}"]
            for door in doors:
                assert tells(door, ready=True)
            os.kill(postgres.pid, signal.SIGQUIT)
            until(lambda: not postgres.running)
            for door in doors:
                assert tells(door, ready=False)
            postgres.restart()
            for door in doors:
                until(lambda door=door: tells(door, ready=True))


def tells(door: str, *, ready: bool) -> bool:
    """Whether all pages of a door say that the catalog is there, or that it is away."""
    expected = 200 if ready else 503
    page = scraping(f"{door}/metrics")
    # The verdict is kept for a second, and so is the lag: each from when it was last asked for.
    until(lambda: httpx.get(f"{door}/ready", timeout=30).status_code == expected)
    until(lambda: ("duckmesh_visibility_lag" in page().names) == ready)
    said = httpx.get(f"{door}/ready", timeout=30)
    assert httpx.get(f"{door}/health", timeout=30).status_code == 200
    if ready:
        return said.status_code == 200
    assert said.json()["error_code"] == "NOT_READY"
    assert said.json()["context"]["failed"] == ["catalog", "schema"]
    before = page()
    return page().since(before)("duckmesh_scrape_failures_total") == 1
