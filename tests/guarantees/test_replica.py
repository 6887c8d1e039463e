"""A native replica in real processes: hot tables get one, which outlives a kill -9."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pytest
from pyarrow import flight

from tests.processes import PlainClient, Service, service, until, wait_until_served
from tests.scraping import Scraped, scraped

HALVES = 2
ROWS = 20_000


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(database_dsn, tmp_path, DUCKMESH_QUERY_WORKERS="1") as processes:
        processes.coordinate("c1")
        yield processes


def page(running: Service, uri: str) -> Scraped:
    return scraped(httpx.get(f"{running.http_of(uri)}/v1/metrics", timeout=30).text)


def filled(client: PlainClient, http: str) -> int:
    """A table of 1 MiB and more, and the token of its last write."""
    columns = [{"name": "v", "type": "bigint"}, {"name": "s", "type": "varchar"}]
    made = httpx.post(f"{http}/v1/tables", json={"name": "t", "schema": columns}, timeout=30)
    assert made.status_code == 201, made.text
    token = 0
    for half in range(HALVES):
        # Digits that compress to about their half: enough bytes for a replica by default.
        numbers = pa.array([(each + half * ROWS) * 2_654_435_761 % 2**61 for each in range(ROWS)])
        texts = pa.array([f"{each.as_py() ** 3:060d}" for each in numbers])
        token = client.put("t", pa.record_batch({"v": numbers, "s": texts}))["visibility_token"]
    return token


def answer(client: PlainClient, token: int) -> tuple[int, int]:
    found = client.query("SELECT count(*) AS n, count(DISTINCT s) AS d FROM t", token=token)
    (row,) = found.to_pylist()
    return row["n"], row["d"]


def test_a_replica_by_default_answers_alike_outlives_a_kill_and_is_out_of_reach(
    running: Service, tmp_path: Path
) -> None:
    first, uri = running.serve()
    client = PlainClient(uri)
    token = filled(client, running.http_of(uri))
    expected = (HALVES * ROWS, HALVES * ROWS)

    def has_a_replica() -> bool:
        assert answer(client, token) == expected
        return page(running, uri)("duckmesh_replica_queries_total", source="replica") > 0

    until(has_a_replica)
    seen = page(running, uri)
    assert seen("duckmesh_replica_segments") >= 1
    assert seen("duckmesh_replica_builds_total", code="OK") >= 1
    cache = tmp_path / f"cache-{uri.rpartition(':')[2]}"
    (segment,) = (cache / "acme" / ".replica").glob("*.duckdb")
    for sql in (
        f"FROM duckmesh_segment_{segment.stem}.main.rows",
        f"FROM read_duckdb('{segment}')",
        f"FROM read_blob('{segment}')",
        f"COPY (SELECT 1) TO '{segment}' (USE_TMP_FILE false)",
    ):
        with pytest.raises((flight.FlightError, pa.ArrowException)) as caught:
            client.query(sql, token=token)
        assert segment.name not in str(caught.value).replace(sql, "")
    client.close()

    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    psutil.wait_procs(workers, timeout=30)
    (segment.parent / f"{'0' * 32}.building").write_bytes(b"half of one")
    first.start()
    wait_until_served(uri)
    assert page(running, uri)("duckmesh_replica_segments") >= 1
    assert {each.suffix for each in segment.parent.iterdir()} == {".duckdb", ".json"}
    client = PlainClient(uri)
    assert answer(client, token) == expected
    assert page(running, uri)("duckmesh_replica_queries_total", source="replica") == 1
    client.close()


def test_without_the_setting_nothing_is_kept(running: Service, tmp_path: Path) -> None:
    _, uri = running.serve(DUCKMESH_QUERY_REPLICA="false")
    client = PlainClient(uri)
    token = filled(client, running.http_of(uri))
    for _ in range(6):
        assert answer(client, token) == (HALVES * ROWS, HALVES * ROWS)
    seen = page(running, uri)
    assert seen("duckmesh_replica_queries_total", source="parquet") >= 6
    assert seen("duckmesh_replica_segments") == 0
    assert not list(tmp_path.rglob(".replica"))
    client.close()
