"""`POST /v1/ingest/{table}` with JSON records."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from gateway import tenancy
from gateway.identity import Role
from tests.http_shim.conftest import OpenHttp
from tests.rooms import Rooms, open_rooms

Send = Callable[..., httpx.Response]
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("name", pa.string()),
        ("price", pa.decimal128(20, 2)),
        ("seen", pa.timestamp("us", tz="UTC")),
        ("tags", pa.list_(pa.string())),
    ]
)


@pytest.fixture
def send(http: httpx.Client, rooms: Rooms) -> Send:
    """Send records to a table of several types."""
    rooms.write("t", SCHEMA.empty_table())
    rooms.publish_all()

    def sent(*records: object, **more: object) -> httpx.Response:
        return http.post("/v1/ingest/t?results=records", json={"records": records, **more})

    return sent


def record(number: int, key: str | None = None, **payload: object) -> dict[str, object]:
    said = {"payload": {"id": number, **payload}}
    return said if key is None else {"idempotency_key": key, **said}


def ids(rooms: Rooms) -> list[int]:
    rooms.publish_all()
    return rooms.query("SELECT id FROM t ORDER BY id")["id"].to_pylist()


def test_records_are_accepted_together_and_answered_one_by_one(send, rooms) -> None:
    answer = send(record(1, "a"), record(2), record(3, "b"), record(4))
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted_count": 4,
        "duplicate_count": 0,
        "max_visibility_token": 4,
        "visible_snapshot_id": None,
        "status": "accepted",
        "results": [
            {"record": 0, "visibility_token": 2, "duplicate": False},
            # Records without a key are one write.
            {"record": 1, "visibility_token": 3, "duplicate": False},
            {"record": 2, "visibility_token": 4, "duplicate": False},
            {"record": 3, "visibility_token": 3, "duplicate": False},
        ],
    }
    assert ids(rooms) == [1, 2, 3, 4]


def test_a_repeated_key_adds_nothing_and_has_the_first_token(send, rooms) -> None:
    first = send(record(1, "a"), record(2, "b")).json()
    again = send(record(2, "b"), record(3, "c"), record(3, "c")).json()
    assert (again["accepted_count"], again["duplicate_count"]) == (1, 2)
    assert again["status"] == "partial_duplicate"
    tokens = {each["record"]: each["visibility_token"] for each in again["results"]}
    assert tokens[0] == first["results"][1]["visibility_token"]
    assert tokens[1] == tokens[2] == again["max_visibility_token"]
    assert ids(rooms) == [1, 2, 3]


def test_a_key_with_another_payload_is_a_conflict_and_nothing_is_accepted(send, rooms) -> None:
    send(record(1, "a"))
    answer = send(record(5, "new"), record(2, "a"))
    assert answer.status_code == 409
    assert answer.json()["error_code"] == "IDEMPOTENCY_CONFLICT"
    assert ids(rooms) == [1]


def test_values_arrive_exactly(send, rooms) -> None:
    answer = send(
        {
            "event_time": "2024-05-01T12:00:00.123456+02:00",
            "payload": {
                "ID": str(2**62 + 1),
                "name": "é😀\u0000",
                "price": "123456789012345678.99",
                "tags": ["x", None],
            },
        }
    )
    assert answer.status_code == 200, answer.text
    rooms.publish_all()
    (row,) = rooms.query("SELECT * FROM t").to_pylist()
    assert row["id"] == 2**62 + 1
    assert row["name"] == "é😀\u0000"
    assert str(row["price"]) == "123456789012345678.99"
    assert row["seen"] == datetime.fromisoformat("2024-05-01T10:00:00.123456+00:00")
    assert row["tags"] == ["x", None]


def test_a_decimal_sent_as_a_number_keeps_every_digit(http, send, rooms) -> None:
    body = b'{"records":[{"payload":{"id":2,"price":123456789012345678.07}}]}'
    headers = {"content-type": "application/json"}
    assert http.post("/v1/ingest/t", content=body, headers=headers).status_code == 200
    rooms.publish_all()
    (row,) = rooms.query("SELECT price FROM t").to_pylist()
    assert str(row["price"]) == "123456789012345678.07"


def test_a_request_that_waits_is_answered_when_its_rows_are_visible(
    send, rooms, coordinator
) -> None:
    answer = send(record(1), wait_for_visibility=True, visibility_timeout_ms=30_000)
    said = answer.json()
    assert (answer.status_code, said["status"]) == (200, "visible")
    assert rooms.query_at("SELECT id FROM t", said["visible_snapshot_id"]).num_rows == 1


def test_a_wait_that_ends_too_early_still_gives_the_token(send, rooms) -> None:
    answer = send(record(1), wait_for_visibility=True, visibility_timeout_ms=20)
    said = answer.json()
    assert (answer.status_code, said["status"]) == (202, "accepted")
    assert said["accepted_count"] == 1
    assert said["max_visibility_token"] == int(answer.headers["x-duckmesh-visibility-token"])
    assert said["wait"]["error_code"] == "CONSISTENCY_TIMEOUT"
    assert ids(rooms) == [1]


@pytest.mark.parametrize(
    ("bad", "code", "context"),
    [
        ({"payload": {"id": 1.5}}, "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
        ({"payload": {"id": "x"}}, "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
        ({"payload": {"id": True}}, "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
        ({"payload": {"id": 2**63}}, "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
        ({"payload": {"id": None}}, "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
        ({"payload": {}}, "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
        ({"payload": {"id": 1, "nam": "x"}}, "INVALID_PAYLOAD", {"record": 1, "column": "nam"}),
        ({"payload": {"id": 1, "name": 5}}, "INVALID_PAYLOAD", {"record": 1, "column": "name"}),
        ({"payload": {"id": 1, "price": "1.001"}}, "INVALID_PAYLOAD", {"column": "price"}),
        ({"payload": {"id": 1, "seen": "2024-01-01"}}, "INVALID_PAYLOAD", {"column": "seen"}),
        ({"payload": {"id": 1, "tags": ["a", 1]}}, "INVALID_PAYLOAD", {"column": "tags[]"}),
        ({"payload": {"id": 1, "ID": 2}}, "INVALID_PAYLOAD", {"record": 1, "column": "ID"}),
        ({"payload": {"id": 1}, "op": "delete"}, "INVALID_OP", {"record": 1, "op": "delete"}),
        ({"payload": {"id": 1}, "op": "merge"}, "INVALID_OP", {"record": 1}),
        ({"payload": [1]}, "PAYLOAD_REQUIRED", {"record": 1}),
        ({}, "PAYLOAD_REQUIRED", {"record": 1}),
        ({"payload": {"id": 1}, "idempotency_key": 1}, "IDEMPOTENCY_KEY_REQUIRED", {"record": 1}),
        ({"payload": {"id": 1}, "idempotency_key": ""}, "IDEMPOTENCY_KEY_REQUIRED", {}),
        ({"payload": {"id": 1}, "key": "a"}, "INVALID_JSON", {"record": 1}),
    ],
)
def test_a_bad_record_is_named_and_nothing_is_accepted(send, rooms, bad, code, context) -> None:
    answer = send(record(7), bad)
    said = answer.json()
    assert (answer.status_code, said["error_code"]) == (400, code), said
    assert context.items() <= said["context"].items()
    assert ids(rooms) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "INVALID_JSON"),
        (b"{", "INVALID_JSON"),
        (b"[]", "INVALID_JSON"),
        (b"{}", "RECORDS_REQUIRED"),
        (b'{"records":[]}', "RECORDS_REQUIRED"),
        (b'{"records":{}}', "RECORDS_REQUIRED"),
        (b'{"records":[{"payload":{"id":NaN}}]}', "INVALID_JSON"),
        (b"[" * 100_000, "INVALID_JSON"),
        (b'{"records":[{"payload":{"name":"\xff"}}]}', "INVALID_JSON"),
        (b'{"records":[{"payload":{"id":1,"name":"\\ud800"}}]}', "INVALID_PAYLOAD"),
        (b'{"records":[{"payload":{"id":1e999999}}]}', "INVALID_PAYLOAD"),
        (b'{"records":[{"payload":{"id":1,"price":1e999999}}]}', "INVALID_PAYLOAD"),
        (b'{"records":[{"payload":{"id":' + b"9" * 5000 + b"}}]}", "INVALID_JSON"),
        (b'{"records":[{"payload":{"id":1}}],"more":1}', "INVALID_JSON"),
    ],
)
def test_a_body_that_is_no_request_is_refused(http, send, rooms, body, code) -> None:
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/ingest/t", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (400, code), answer.text
    assert ids(rooms) == []


def test_a_table_that_is_not_there_is_refused(http) -> None:
    answer = http.post("/v1/ingest/nowhere", json={"records": [{"payload": {}}]})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "TABLE_NOT_FOUND")


def test_too_many_records_or_bytes_are_413(open_http: OpenHttp, rooms: Rooms) -> None:
    rooms.write("t", SCHEMA.empty_table())
    door = open_http(records_max=2, json_max_bytes=200)
    with httpx.Client(base_url=door.uri) as client:
        three = client.post("/v1/ingest/t", json={"records": [record(n) for n in range(3)]})
        assert (three.status_code, three.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")
        large = client.post("/v1/ingest/t", json={"records": [record(1, name="x" * 300)]})
        assert (large.status_code, large.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")
        # Without a length that tells it before.
        parts = (b'{"records":' for _ in range(100))
        headers = {"content-type": "application/json"}
        streamed = client.post("/v1/ingest/t", content=parts, headers=headers)
        assert (streamed.status_code, streamed.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_an_operation_of_a_key_needs_a_table_with_one(http) -> None:
    column = [{"name": "id", "type": "bigint"}]
    http.post("/v1/tables", json={"name": "k", "schema": column, "primary_key_cols": ["id"]})
    http.post("/v1/tables", json={"name": "plain", "schema": column})
    for op in ("upsert", "delete"):
        body = {"records": [{"payload": {"id": 1}, "op": op}]}
        said = http.post("/v1/ingest/plain", json=body).json()
        assert said["error_code"] == "INVALID_OP"
        assert "needs a table with a primary key" in said["message"]
        assert "CREATE OR REPLACE TABLE" in said["message"]
        assert http.post("/v1/ingest/k", json=body).status_code == 200


def test_operations_of_one_request_happen_in_its_order(http, rooms: Rooms) -> None:
    columns = [{"name": "id", "type": "bigint"}, {"name": "v", "type": "varchar"}]
    http.post("/v1/tables", json={"name": "k", "schema": columns, "primary_key_cols": ["id"]})

    def record(op: str, number: int, v: str | None = None, key: str | None = None) -> Any:
        payload = {"id": number} | ({"v": v} if v else {})
        return {"op": op, "payload": payload, "idempotency_key": key}

    records = [
        record("insert", 1, "a"),
        record("upsert", 2, "a", "two"),
        record("upsert", 1, "b"),
        record("delete", 2),
        record("delete", 3, "what else it says is not looked at"),
        record("insert", 3, "c"),
        record("delete", 1, key="gone"),
        record("upsert", 4, "d"),
        record("delete", 4),
        record("insert", 4, "e"),
    ]
    said = http.post("/v1/ingest/k?results=records", json={"records": records})
    assert said.status_code == 200, said.text
    assert (said.json()["accepted_count"], said.json()["duplicate_count"]) == (10, 0)
    rooms.publish_all()
    expected = [{"id": 3, "v": "c"}, {"id": 4, "v": "e"}]
    assert rooms.query("FROM k ORDER BY id").to_pylist() == expected
    # Again: what has a key is a duplicate. The others are new writes, to the same end.
    again = http.post("/v1/ingest/k", json={"records": records}).json()
    assert (again["accepted_count"], again["duplicate_count"]) == (8, 2)
    rooms.publish_all()
    assert rooms.query("FROM k WHERE id > 2 ORDER BY id").to_pylist() == expected


@pytest.mark.parametrize(
    "payload", [{}, {"id": None}, {"id": "x"}, {"id": 1, "unknown": 1}, {"v": "a"}]
)
def test_a_delete_that_names_no_key_is_refused_whole(
    http, rooms: Rooms, payload: dict[str, Any]
) -> None:
    columns = [{"name": "id", "type": "bigint"}, {"name": "v", "type": "varchar"}]
    http.post("/v1/tables", json={"name": "k", "schema": columns, "primary_key_cols": ["id"]})
    records = [{"op": "upsert", "payload": {"id": 7}}, {"op": "delete", "payload": payload}]
    said = http.post("/v1/ingest/k", json={"records": records})
    assert (said.status_code, said.json()["error_code"]) == (400, "INVALID_PAYLOAD")
    assert said.json()["context"]["record"] == 1
    rooms.publish_all()
    assert rooms.query("FROM k").num_rows == 0


def test_records_meet_the_table_as_it_is_though_another_process_has_just_changed_it(
    http, rooms: Rooms, tmp_path: Path
) -> None:
    """This process knows the table of a moment ago: nothing is refused, or taken, for that."""
    http.post("/v1/tables", json={"name": "t", "schema": [{"name": "id", "type": "bigint"}]})

    def write(payload: dict[str, object], key: str) -> httpx.Response:
        record = {"payload": payload, "idempotency_key": key}
        return http.post("/v1/ingest/t", json={"records": [record]})

    with open_rooms(rooms.dsn, tmp_path / "other") as other:
        assert write({"id": 1}, "a").status_code == 200
        other.execute("ALTER TABLE t ADD COLUMN word VARCHAR")
        assert write({"id": 2, "word": "two"}, "b").status_code == 200
        other.execute("ALTER TABLE t DROP COLUMN word")
        refused = write({"id": 3, "word": "three"}, "c")
        assert refused.json()["error_code"] == "INVALID_PAYLOAD"
        assert write({"id": 2}, "d").status_code == 200
        other.execute("DROP TABLE t")
        assert write({"id": 4}, "e").json()["error_code"] == "TABLE_NOT_FOUND"
        other.execute("CREATE TABLE t (id BIGINT)")
        assert write({"id": 5}, "f").status_code == 200
    rooms.publish_all()
    answer = http.post("/v1/query", json={"sql": "SELECT id FROM t"})
    assert answer.json()["rows"] == [[5]]


def test_who_may_not_write_is_refused_whatever_the_size_of_the_body(
    open_http: OpenHttp, rooms: Rooms
) -> None:
    closed = open_http(open_tenant=None).uri
    _, secret = tenancy.create_key(rooms.catalog, "acme", name="r", roles=[Role.QUERY_READER])
    for size in (1, 200_000):
        body = {"records": [{"payload": {"id": 1, "word": "x" * size}}]}
        assert httpx.post(f"{closed}/v1/ingest/t", json=body).status_code == 401
        shown = {"x-api-key": secret}
        assert httpx.post(f"{closed}/v1/ingest/t", json=body, headers=shown).status_code == 403
