"""The same questions through both doors of real processes: same rows, same types, same codes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import httpx
import pyarrow as pa
import pytest

from tests.processes import PlainClient, Service, service, until

ARROW = "application/vnd.apache.arrow.stream"
HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
ROWS = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "word": ["a", None, "é😀\n"],
        "price": pa.array(["1.50", None, "-0.01"]).cast(pa.decimal128(18, 2)),
        "seen": pa.array([0, None, 1_700_000_000_123_456]).cast(pa.timestamp("us", "UTC")),
        "tags": pa.array([["x"], None, []], pa.list_(pa.string())),
    }
)
QUERIES = (
    "SELECT * FROM t ORDER BY id",
    "SELECT count(*) AS n FROM t",
    "SELECT id, word FROM t WHERE word IS NULL",
    "SELECT sum(id) AS s, avg(id) AS a, max(price) AS m FROM t",
    "SELECT 1 AS one",
    "SELECT NULL AS nothing",
    "SELECT 1 AS a WHERE false",
    "SELECT true AS b, 1::TINYINT AS t, 2::UBIGINT AS u, 3::HUGEINT AS h",
    "SELECT 'NaN'::DOUBLE AS n, 'Infinity'::DOUBLE AS i, 0.1::FLOAT AS f",
    "SELECT DATE '2024-02-29' AS d, TIME '12:30:00.5' AS t",
    "SELECT TIMESTAMP '2024-02-29 12:00:00' AS ts, TIMESTAMPTZ '2024-02-29 12:00:00+02' AS tz",
    "SELECT INTERVAL '1 month 2 days 3 seconds' AS i",
    "SELECT '\\xAB'::BLOB AS b, '00000000-0000-0000-0000-000000000005'::UUID AS u",
    "SELECT [1, NULL, 3] AS l, {'a': 1, 'b': 'x'} AS s, MAP {'k': 1} AS m",
    "SELECT i, repeat('x', 100) AS s FROM range(50000) r(i)",
    "WITH c AS (SELECT id FROM t) SELECT * FROM c ORDER BY id DESC",
    "SELECT a.id, b.word FROM t a JOIN t b USING (id) ORDER BY 1",
    "EXPLAIN SELECT 1",
    "SELECT table_name FROM information_schema.tables WHERE table_name = 't'",
    "SELECT table_name, row_count FROM duckmesh_system.tables ORDER BY 1",
)
REFUSED = (
    "   ",
    "-- nothing",
    "SELEKT 1",
    "SELECT 1; SELECT 2",
    "SELECT * FROM nowhere",
    "SELECT nope FROM t",
    "SELECT 'x'::INTEGER",
    "SELECT error('late')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "COPY t TO '/tmp/x'",
    "ATTACH '/tmp/x.db'",
    "SET memory_limit = '1TB'",
    "INSTALL httpfs",
    "PRAGMA version",
    "UPDATE t SET id = 1",
    "DELETE FROM t",
    "DROP TABLE nowhere",
    "CREATE TABLE t (id BIGINT)",
    "INSERT INTO nowhere VALUES (1)",
    "INSERT INTO t (id) VALUES ('x')",
    "SELECT ?",
)
POINTS: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
    ({"snapshot_id": 10**9}, {"snapshot-id": str(10**9)}),
    ({"snapshot_time": "1999-01-01T00:00:00Z"}, {"snapshot-time": "1999-01-01T00:00:00Z"}),
    ({"min_visibility_token": 10**6}, {"min-visibility-token": str(10**6)}),
    (
        {"min_visibility_token": 1, "snapshot_id": 1},
        {"min-visibility-token": "1", "snapshot-id": "1"},
    ),
)


class Doors:
    """One serving process, asked through both of its doors."""

    def __init__(self, uri: str, http: httpx.Client) -> None:
        self.uri = uri
        self.http = http

    def over_flight(self, sql: str, options: dict[str, str]) -> pa.Table | str:
        """The rows, or the error's code."""
        headers = {HEADER + name: value for name, value in options.items()}
        with (
            flightsql.connect(self.uri, db_kwargs=headers, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            try:
                cursor.execute(sql)
                return cursor.fetch_arrow_table()
            except adbc_driver_manager.Error as error:
                found = re.search(r"\[([A-Z_]+)\]", str(error))
                return str(error) if found is None else found[1]

    def over_http(self, sql: str, options: dict[str, Any]) -> pa.Table | str:
        answer = self.http.post(
            "/v1/query", json={"sql": sql, **options}, headers={"accept": ARROW}
        )
        if answer.status_code != 200:
            return str(answer.json()["error_code"])
        if answer.headers["content-type"] != ARROW:
            return pa.table({"outcome": [answer.text]})
        return pa.ipc.open_stream(answer.content).read_all()


@pytest.fixture
def doors(database_dsn: str, tmp_path: Path) -> Iterator[tuple[Service, Doors]]:
    with service(database_dsn, tmp_path) as running:
        _, uri = running.serve()
        coordinator = running.coordinate("c1")
        until(lambda: coordinator.said("ready"))
        with httpx.Client(base_url=running.http_of(uri), timeout=60) as http:
            yield running, Doors(uri, http)


def send(http: httpx.Client, table: str, rows: pa.Table, query: str = "", **headers: str) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    body = bytes(sink.getvalue())
    headers = {"content-type": ARROW, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return http.post(f"/v1/ingest/{table}{query}", content=body, headers=headers).json()


def test_both_doors_answer_alike(doors: tuple[Service, Doors]) -> None:
    """Each question of the lists above; what differs is listed in one failure."""
    _, both = doors
    send(both.http, "t", ROWS, "?mode=create&wait_for_visibility=true&visibility_timeout_ms=30000")
    asked = [(sql, {}, {}) for sql in (*QUERIES, *REFUSED)]
    asked += [("SELECT * FROM t", http, flight) for http, flight in POINTS]
    assert len(asked) >= 40
    differing = []
    for sql, http_options, flight_options in asked:
        flight = both.over_flight(sql, flight_options)
        http = both.over_http(sql, http_options)
        same = flight == http if isinstance(flight, str) else _same_rows(flight, http)
        if not same or isinstance(http, str) != (sql in REFUSED or bool(http_options)):
            differing.append((sql, http_options, flight, http))
    assert differing == []


def _same_rows(flight: pa.Table, http: pa.Table | str) -> bool:
    if isinstance(http, str) or not flight.schema.equals(http.schema):
        return False
    # As texts: NaN is not equal to itself.
    return str(flight.to_pylist()) == str(http.to_pylist())


def test_a_key_of_one_door_is_known_at_the_other(doors: tuple[Service, Doors]) -> None:
    _, both = doors
    rows = pa.table({"v": pa.array([1, 2], pa.int64())})
    first = send(both.http, "t", rows, "?mode=create_append", idempotency_key="k1/0")
    client = PlainClient(both.uri)
    # A stream names its batches by its own key and their number.
    (batch,) = rows.to_batches()
    again = client.put("t", batch, key="k1")
    assert again["visibility_token"] == first["max_visibility_token"]
    assert again["duplicate"] is True
    theirs = client.put("t", batch, key="k2")
    ours = send(both.http, "t", rows, idempotency_key="k2/0")
    assert ours["max_visibility_token"] == theirs["visibility_token"]
    assert ours["status"] == "partial_duplicate"
    # What one door wrote the other reads, by its token.
    token = theirs["visibility_token"]
    body = {
        "sql": "SELECT count(*) FROM t",
        "min_visibility_token": token,
        "consistency_timeout_ms": 30_000,
    }
    assert both.http.post("/v1/query", json=body).json()["rows"] == [[4]]
    assert client.query("SELECT count(*) AS n FROM t", token=token).to_pylist() == [{"n": 4}]
    client.close()
