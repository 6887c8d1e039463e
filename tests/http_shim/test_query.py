"""`POST /v1/query`: forms, points in time, limits, and what it refuses."""

import io
import json
from datetime import UTC, datetime

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.reads import ReadPoint
from tests.rooms import Rooms, rows

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"


def ask(client: httpx.Client, sql: str, *, accept: str | None = None, **more: object):
    headers = {} if accept is None else {"accept": accept}
    return client.post("/v1/query", json={"sql": sql, **more}, headers=headers)


@pytest.fixture
def visible(rooms: Rooms) -> int:
    """A table of three rows; the snapshot that shows them."""
    rooms.write("t", rows(1, 2, 3, word=["a", None, 'c"\n']))
    rooms.publish_all()
    return int(rooms.reads.pin(rooms.acme, None, ReadPoint()).snapshot_id)


def test_an_answer_names_columns_rows_snapshot_and_what_was_read(http, visible) -> None:
    answer = ask(http, "SELECT * FROM t ORDER BY v")
    assert answer.status_code == 200
    body = answer.json()
    assert body["columns"] == [
        {"name": "v", "type": "bigint", "nullable": True},
        {"name": "word", "type": "varchar", "nullable": True},
    ]
    assert body["rows"] == [[1, "a"], [2, None], [3, 'c"\n']]
    assert body["snapshot_id"] == visible == int(answer.headers["x-duckmesh-snapshot-id"])
    assert body["max_visibility_token"] == 1
    assert datetime.fromisoformat(body["snapshot_time"]) <= datetime.now(UTC)
    assert body["stats"]["scanned_files"] == 1
    assert body["stats"]["scanned_bytes"] > 0
    assert body["stats"]["pruned_files"] == 0
    assert (body["row_count"], body["truncated"]) == (3, False)


def test_each_form_holds_the_same_rows(http, visible) -> None:
    sql = "SELECT v, word FROM t ORDER BY v"
    expected = [{"v": 1, "word": "a"}, {"v": 2, "word": None}, {"v": 3, "word": 'c"\n'}]
    lines = ask(http, sql, accept="application/x-ndjson").text.splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert ask(http, sql, accept="text/csv").text == 'v,word\r\n1,a\r\n2,\r\n3,"c""\n"\r\n'
    with pa.ipc.open_stream(ask(http, sql, accept=ARROW).content) as stream:
        assert stream.schema.metadata[b"duckmesh.snapshot_id"] == str(visible).encode()
        assert stream.read_all().to_pylist() == expected
    parquet = ask(http, sql, accept=PARQUET)
    assert pq.read_table(io.BytesIO(parquet.content)).to_pylist() == expected
    assert parquet.headers["content-type"] == PARQUET


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("text/csv;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0, text/csv", "text/csv"),
        ("TEXT/CSV", "text/csv"),
    ],
)
def test_accept_chooses_the_form(http, accept, form) -> None:
    answer = ask(http, "SELECT 1", accept=accept)
    assert answer.headers["content-type"].partition(";")[0] == form


def test_a_form_that_is_not_there_is_406(http) -> None:
    answer = ask(http, "SELECT 1", accept="image/png")
    assert answer.status_code == 406
    assert "application/x-ndjson" in answer.json()["message"]


def test_a_long_answer_is_whole_in_every_form(http) -> None:
    sql = "SELECT i, repeat('x', 50) || i AS s FROM range(200000) r(i)"
    body = ask(http, sql).json()
    assert [row[0] for row in body["rows"]] == list(range(200_000))
    assert body["row_count"] == 200_000
    table = pa.ipc.open_stream(ask(http, sql, accept=ARROW).content).read_all()
    assert table["i"].to_pylist() == list(range(200_000))
    assert ask(http, sql, accept="text/csv").text.count("\r\n") == 200_001


def test_an_empty_answer_is_whole_in_every_form(http) -> None:
    sql = "SELECT 1 AS a WHERE false"
    assert ask(http, sql).json()["rows"] == []
    assert ask(http, sql, accept="application/x-ndjson").content == b""
    assert ask(http, sql, accept="text/csv").content == b"a\r\n"
    assert pa.ipc.open_stream(ask(http, sql, accept=ARROW).content).read_all().num_rows == 0
    assert pq.read_table(io.BytesIO(ask(http, sql, accept=PARQUET).content)).num_rows == 0


def test_parameters_by_place_and_by_name(http) -> None:
    by_place = ask(http, "SELECT ? + 1, upper(?), ?", params=[2**62, "a", None]).json()
    assert by_place["rows"] == [[str(2**62 + 1), "A", None]]
    by_name = ask(http, "SELECT $b - $a AS d, $l[2] AS l", params={"a": 1, "b": 3.5, "l": [7, 8]})
    assert by_name.json()["rows"] == [[2.5, 8]]
    wide = ask(http, "SELECT ?, ?", params=[2**64 - 1, 10**37]).json()
    assert wide["rows"] == [[str(2**64 - 1), str(10**37)]]


@pytest.mark.parametrize("limit", [0, 1, 3, 70_000])
def test_a_row_limit_cuts_and_says_so(http, limit) -> None:
    body = ask(http, "SELECT i FROM range(70000) r(i)", row_limit=limit).json()
    assert [row[0] for row in body["rows"]] == list(range(limit))
    assert body["truncated"] == (limit < 70_000)


def test_a_query_names_its_point_in_time(http, rooms, visible) -> None:
    rooms.write("t", rows(4, word=["d"]))
    rooms.publish_all()
    count = "SELECT count(*) FROM t"
    assert ask(http, count).json()["rows"] == [[4]]
    assert ask(http, count, snapshot_id=visible).json()["rows"] == [[3]]
    then = ask(http, count, snapshot_id=visible).json()["snapshot_time"]
    assert ask(http, count, snapshot_time=then).json()["rows"] == [[3]]
    assert ask(http, count, min_visibility_token=2).json()["rows"] == [[4]]
    assert ask(http, count, consistency="strong").json()["rows"] == [[4]]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "SQL_REQUIRED"),
        ({"sql": " "}, 400, "SQL_REQUIRED"),
        ({"sql": 1}, 400, "SQL_REQUIRED"),
        ({"sql": "SELECT 1; SELECT 2"}, 400, "SQL_NOT_ALLOWED"),
        ({"sql": "SELECT * FROM nowhere"}, 404, "TABLE_NOT_FOUND"),
        ({"sql": "SELECT", "sqll": 1}, 400, "INVALID_JSON"),
        ({"sql": "SELECT 1", "snapshot_id": 10**9}, 404, "SNAPSHOT_NOT_FOUND"),
        ({"sql": "SELECT 1", "snapshot_id": 0}, 400, "INVALID_JSON"),
        ({"sql": "SELECT 1", "snapshot_time": "2020-01-01T00:00:00"}, 400, "INVALID_JSON"),
        ({"sql": "SELECT 1", "snapshot_time": "1999-01-01T00:00:00Z"}, 404, "SNAPSHOT_NOT_FOUND"),
        ({"sql": "SELECT 1", "min_visibility_token": 0}, 400, "VISIBILITY_TOKEN_INVALID"),
        ({"sql": "SELECT 1", "min_visibility_token": 99}, 400, "VISIBILITY_TOKEN_INVALID"),
        ({"sql": "SELECT 1", "min_visibility_token": "1"}, 400, "VISIBILITY_TOKEN_INVALID"),
        (
            {"sql": "SELECT 1", "min_visibility_token": 1, "snapshot_id": 1},
            400,
            "SNAPSHOT_SELECTOR_CONFLICT",
        ),
        ({"sql": "SELECT ?", "params": []}, 400, "QUERY_EXECUTION_FAILED"),
        ({"sql": "SELECT ?", "params": [[1, "a"]]}, 400, "INVALID_PAYLOAD"),
        ({"sql": "SELECT ?", "params": [10**40]}, 400, "INVALID_PAYLOAD"),
        ({"sql": "SELECT 'x'::INT"}, 400, "QUERY_EXECUTION_FAILED"),
        ([], 400, "INVALID_JSON"),
    ],
)
def test_a_wrong_query_is_refused_by_its_code(http, body, status, code) -> None:
    answer = http.post("/v1/query", json=body)
    said = answer.json()
    assert (answer.status_code, said["error_code"]) == (status, code), said
    assert said["trace_id"] == answer.headers["x-trace-id"]
    assert set(said) == {"error_code", "message", "retryable", "context", "trace_id"}


def test_a_token_that_does_not_become_visible_is_504_with_both_tokens(http, rooms, visible) -> None:
    rooms.write("t", rows(4, word=["d"]))
    answer = ask(http, "SELECT * FROM t", min_visibility_token=2, consistency_timeout_ms=50)
    assert answer.status_code == 504
    said = answer.json()
    assert said["error_code"] == "CONSISTENCY_TIMEOUT"
    assert said["retryable"] is True
    assert said["context"] == {"requested_token": 2, "latest_token": 1}


def test_an_error_midway_cuts_the_answer_short(http) -> None:
    sql = "SELECT CASE WHEN i = 3000000 THEN error('late') ELSE i END FROM range(4000000) r(i)"
    with pytest.raises(httpx.RemoteProtocolError):
        ask(http, sql)


def test_a_statement_that_writes_is_answered_by_its_token(http, rooms) -> None:
    created = ask(http, "CREATE TABLE s (id BIGINT NOT NULL, word VARCHAR)")
    assert created.json() == {"row_count": None, "visibility_token": None}
    insert = {"sql": "INSERT INTO s VALUES (?, ?)", "params": [1, "a"], "idempotency_key": "k"}
    first = http.post("/v1/query", json=insert).json()
    assert first["row_count"] == 1
    again = http.post("/v1/query", json=insert).json()
    assert again["visibility_token"] == first["visibility_token"]
    rooms.publish_all()
    read = ask(http, "SELECT * FROM s", min_visibility_token=first["visibility_token"])
    assert read.json()["rows"] == [[1, "a"]]


def test_a_drop_runs_once_and_says_that_it_counts_nothing(http, visible) -> None:
    done = ask(http, "DROP TABLE t")
    assert done.status_code == 200
    assert done.json() == {"row_count": None, "visibility_token": None}
    assert ask(http, "SELECT * FROM t").status_code == 404
