"""Tables, snapshots, lag, keys, and the endpoints that wait for their feature."""

import httpx
import pyarrow as pa
import pytest

from duckmesh.quotas import Quotas
from gateway import tenancy, tenant_quotas
from gateway.identity import Role
from http_shim.column_types import arrow_field, describe_field
from tests.http_shim.conftest import OpenHttp
from tests.rooms import Rooms, rows
from tests.scraping import scraped

COLUMNS = [
    {"name": "id", "type": "bigint", "nullable": False},
    {"name": "price", "type": "decimal(18,4)", "nullable": True},
    {"name": "seen", "type": "timestamptz", "nullable": True},
    {"name": "tags", "type": "list", "element": {"type": "varchar", "nullable": True}},
    {
        "name": "place",
        "type": "struct",
        "fields": [
            {"name": "city", "type": "varchar", "nullable": True},
            {"name": "at", "type": "map", "key": {"type": "date"}, "value": {"type": "double"}},
        ],
    },
]


def test_a_table_is_created_described_listed_and_dropped(http) -> None:
    made = http.post("/v1/tables", json={"name": "t", "schema": COLUMNS})
    assert made.status_code == 201, made.text
    described = http.get("/v1/tables/t").json()
    assert described == made.json()
    # What describes one table makes another.
    again = http.post("/v1/tables", json={"name": "u", "schema": described["schema"]})
    assert again.json()["schema"] == described["schema"]
    assert [each["name"] for each in http.get("/v1/tables").json()["tables"]] == ["t", "u"]
    taken = http.post("/v1/tables", json={"name": "t", "schema": COLUMNS})
    assert (taken.status_code, taken.json()["error_code"]) == (409, "TABLE_EXISTS")
    assert http.delete("/v1/tables/t").json() == {"table": "t", "dropped": True}
    assert http.delete("/v1/tables/t").status_code == 404
    assert http.get("/v1/tables/t").json()["error_code"] == "TABLE_NOT_FOUND"


def test_a_primary_key_makes_its_columns_not_null(http) -> None:
    asked = {
        "name": "t",
        "schema": [{"name": "id", "type": "bigint"}, {"name": "v", "type": "double"}],
        "primary_key_cols": ["id"],
    }
    made = http.post("/v1/tables", json=asked).json()
    assert [column["nullable"] for column in made["schema"]] == [False, True]
    asked |= {"name": "u", "primary_key_cols": ["nope"]}
    refused = http.post("/v1/tables", json=asked)
    assert (refused.status_code, refused.json()["error_code"]) == (400, "SCHEMA_INCOMPATIBLE")


def test_a_table_is_cut_by_its_partition_spec_and_by_another_later(http) -> None:
    asked = {
        "name": "t",
        "schema": [{"name": "id", "type": "bigint"}, {"name": "seen", "type": "timestamptz"}],
        "partition_spec": ["Day( seen )", "bucket(16,id)"],
    }
    made = http.post("/v1/tables", json=asked).json()
    assert made["partition_spec"] == ["day(seen)", "bucket(16, id)"]
    assert http.get("/v1/tables/t").json() == made
    changed = http.patch("/v1/tables/t", json={"partition_spec": ["month(seen)"]}).json()
    assert changed == made | {"partition_spec": ["month(seen)"]}
    assert http.get("/v1/tables").json()["tables"] == [changed]
    assert http.patch("/v1/tables/t", json={"partition_spec": []}).json()["partition_spec"] == []
    wrong = http.patch("/v1/tables/t", json={"partition_spec": ["hour(id)"]})
    assert (wrong.status_code, wrong.json()["error_code"]) == (400, "PARTITION_SPEC_INVALID")
    both = http.patch("/v1/tables/t", json={"partition_spec": [], "drop": "id"})
    assert (both.status_code, both.json()["error_code"]) == (400, "SCHEMA_REQUIRED")
    missing = http.patch("/v1/tables/u", json={"partition_spec": []})
    assert (missing.status_code, missing.json()["error_code"]) == (404, "TABLE_NOT_FOUND")


def test_columns_are_changed_and_old_rows_are_read_right(http, rooms: Rooms) -> None:
    narrow = [{"name": "id", "type": "integer", "nullable": False}, {"name": "w", "type": "date"}]
    http.post("/v1/tables", json={"name": "t", "schema": narrow})
    http.post("/v1/ingest/t", json={"records": [{"payload": {"id": 1}}]})
    rooms.publish_all()
    for change in (
        {"add": {"name": "note", "type": "varchar"}},
        {"rename": {"column": "w", "to": "day"}},
        {"widen": {"column": "id", "type": "bigint"}},
        {"allow_null": "id"},
    ):
        changed = http.patch("/v1/tables/t", json=change)
        assert changed.status_code == 200, changed.text
    names = [(each["name"], each["type"], each["nullable"]) for each in changed.json()["schema"]]
    assert names == [("id", "bigint", True), ("day", "date", True), ("note", "varchar", True)]
    http.post("/v1/ingest/t", json={"records": [{"payload": {"id": 2**40, "note": "new"}}]})
    rooms.publish_all()
    read = http.post("/v1/query", json={"sql": "SELECT id, day, note FROM t ORDER BY id"})
    assert read.json()["rows"] == [[1, None, None], [2**40, None, "new"]]
    assert http.patch("/v1/tables/t", json={"drop": "note"}).status_code == 200
    for wrong, code in (
        ({}, "SCHEMA_REQUIRED"),
        ({"drop": "a", "allow_null": "b"}, "SCHEMA_REQUIRED"),
        ({"widen": {"column": "id", "type": "tinyint"}}, "SCHEMA_INCOMPATIBLE"),
        ({"widen": {"column": "id", "type": "list"}}, "SCHEMA_INCOMPATIBLE"),
    ):
        refused = http.patch("/v1/tables/t", json=wrong)
        assert (refused.status_code, refused.json()["error_code"]) == (400, code), refused.text
    assert http.patch("/v1/tables/nope", json={"drop": "a"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"schema": COLUMNS}, 400, "TABLE_REQUIRED"),
        ({"name": " ", "schema": COLUMNS}, 400, "TABLE_REQUIRED"),
        ({"name": "x"}, 400, "SCHEMA_REQUIRED"),
        ({"name": "x", "schema": []}, 400, "SCHEMA_REQUIRED"),
        ({"name": "x", "schema": [{"name": "a", "type": "blub"}]}, 400, "SCHEMA_INCOMPATIBLE"),
        ({"name": "x", "schema": [{"name": "a", "type": "list"}]}, 400, "SCHEMA_INCOMPATIBLE"),
        ({"name": "x", "schema": [{"name": "", "type": "date"}]}, 400, "SCHEMA_INCOMPATIBLE"),
        ({"name": "x", "schema": [{"name": "a", "type": "decimal(99)"}]}, 400, None),
        ({"name": "x", "schema": [{"name": "a", "type": "null"}]}, 400, None),
        (
            {"name": "x", "schema": COLUMNS, "partition_spec": ["day(nope)"]},
            400,
            "PARTITION_SPEC_INVALID",
        ),
    ],
)
def test_a_wrong_table_is_refused(http, body, status, code) -> None:
    answer = http.post("/v1/tables", json=body)
    assert answer.status_code == status, answer.text
    assert code in (None, answer.json()["error_code"])


def test_every_type_is_described_and_read_back() -> None:
    for column in COLUMNS:
        field = arrow_field(column)
        assert arrow_field(describe_field(field)) == field
    assert describe_field(pa.field("a", pa.timestamp("ns")))["type"] == "timestamp_ns"


def test_snapshots_are_listed_newest_first_page_by_page(http, rooms: Rooms) -> None:
    for value in range(3):
        rooms.write("t", rows(value))
        rooms.publish_all()
    whole = http.get("/v1/snapshots").json()["snapshots"]
    numbers = [each["snapshot_id"] for each in whole]
    assert numbers == sorted(numbers, reverse=True)
    assert {each["operation"] for each in whole} >= {"publish", "create_table"}
    first = http.get("/v1/snapshots", params={"limit": 2}).json()
    rest = http.get("/v1/snapshots", params={"through": first["next_through"]}).json()
    assert [*first["snapshots"], *rest["snapshots"]] == whole
    assert http.get(f"/v1/snapshots/{numbers[1]}").json() == whole[1]
    assert http.get("/v1/snapshots/999999999").json()["error_code"] == "SNAPSHOT_NOT_FOUND"
    assert http.get("/v1/snapshots/x").status_code == 400


def test_lag_tells_what_is_accepted_and_not_visible(http, rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    before = http.get("/v1/lag").json()
    assert (before["token_lag"], before["pending_events"]) == (1, 1)
    assert before["oldest_pending_lag_ms"] > 0
    (table,) = before["tables"]
    assert table.pop("oldest_pending_lag_ms") > 0
    assert table.pop("pending_bytes") > 0
    assert table == {
        "table": "t",
        "latest_token": 1,
        "visible_token": 0,
        "token_lag": 1,
        "pending_events": 1,
    }
    rooms.publish_all()
    after = http.get("/v1/lag").json()
    assert (after["token_lag"], after["pending_events"]) == (0, 0)
    assert after["oldest_pending_lag_ms"] is None
    assert after["tables"][0]["visible_token"] == 1
    assert after["tables"][0]["oldest_pending_lag_ms"] is None
    assert after["visible_token"] == after["latest_token"] == 1


@pytest.fixture
def closed(open_http: OpenHttp) -> str:
    """The address of a door that asks for credentials."""
    return open_http(open_tenant=None).uri


def client_of(uri: str, secret: str) -> httpx.Client:
    return httpx.Client(base_url=uri, headers={"x-api-key": secret}, timeout=30)


def key_for(rooms: Rooms, *roles: Role) -> str:
    _, secret = tenancy.create_key(rooms.catalog, "acme", name="test", roles=roles)
    return secret


def test_a_key_is_created_used_rotated_and_revoked(closed: str, rooms: Rooms) -> None:
    with client_of(closed, key_for(rooms, Role.OPS_ADMIN)) as admin:
        made = admin.post("/v1/keys", json={"name": "etl", "roles": ["query_reader"]})
        assert made.status_code == 201, made.text
        old = made.json()
        rotated = admin.post(f"/v1/keys/{old['key_id']}/rotate").json()
        with client_of(closed, rotated["secret"]) as reader:
            assert reader.post("/v1/query", json={"sql": "SELECT 1"}).status_code == 200
            assert reader.get("/v1/keys").status_code == 403
        with client_of(closed, old["secret"]) as reader:
            assert reader.post("/v1/query", json={"sql": "SELECT 1"}).status_code == 401
        listed = {each["key_id"]: each for each in admin.get("/v1/keys").json()["keys"]}
        assert listed[old["key_id"]]["revoked_at"] is not None
        assert listed[rotated["key_id"]]["name"] == "etl"
        assert not any("secret" in each for each in listed.values())
        assert admin.delete(f"/v1/keys/{rotated['key_id']}").json()["revoked"] is True
        assert admin.delete(f"/v1/keys/{rotated['key_id']}").status_code == 404
        assert admin.post("/v1/keys/nope/rotate").status_code == 404


def test_a_key_may_take_no_more_than_that_of_its_maker(closed: str, rooms: Rooms) -> None:
    narrow = Quotas(query_rows=10, query_time_ms=5000)
    _, secret = tenancy.create_key(
        rooms.catalog, "acme", name="n", roles=["table_admin", "ops_admin"], quotas=narrow
    )
    wide_id, _ = tenancy.create_key(rooms.catalog, "acme", name="w", roles=["query_reader"])
    with client_of(closed, secret) as admin:
        asked = {"name": "x", "roles": ["query_reader"], "quotas": {"query_rows": 7}}
        made = admin.post("/v1/keys", json=asked).json()
        wider = admin.post("/v1/keys", json={**asked, "quotas": {"query_rows": 70}}).json()
        listed = {each["key_id"]: each["quotas"] for each in admin.get("/v1/keys").json()["keys"]}
        assert listed[made["key_id"]] == {"query_rows": 7, "query_time_ms": 5000}
        assert listed[wider["key_id"]] == {"query_rows": 10, "query_time_ms": 5000}
        assert listed[wide_id] == {}
        assert admin.post(f"/v1/keys/{made['key_id']}/rotate").status_code == 201
        refused = admin.post(f"/v1/keys/{wide_id}/rotate")
        assert (refused.status_code, refused.json()["error_code"]) == (403, "FORBIDDEN")
        for wrong in ({"tables": 3}, {"query_rows": 0}, {"nothing": 3}):
            assert admin.post("/v1/keys", json={**asked, "quotas": wrong}).status_code == 400


def test_operators_see_their_quotas(http, rooms: Rooms) -> None:
    tenant_quotas.set_quotas(rooms.catalog, "acme", Quotas(tables=3))
    listed = {each["quota"]: each for each in http.get("/v1/quotas").json()["quotas"]}
    assert listed["tables"] == {"quota": "tables", "limit": 3, "used": 0, "is_own": True}
    assert listed["ingest_rows_per_second"]["limit"] is None


def test_nobody_gives_a_role_away_that_they_lack(closed: str, rooms: Rooms) -> None:
    with client_of(closed, key_for(rooms, Role.TABLE_ADMIN)) as admin:
        refused = admin.post("/v1/keys", json={"name": "x", "roles": ["ops_admin"]})
        assert (refused.status_code, refused.json()["error_code"]) == (403, "FORBIDDEN")
        given = admin.post("/v1/keys", json={"name": "x", "roles": ["table_admin"]})
        assert given.status_code == 201
        for body in ({"name": "x", "roles": []}, {"name": "", "roles": ["table_admin"]}):
            assert admin.post("/v1/keys", json=body).status_code == 400
        assert admin.post("/v1/keys", json={"name": "x", "roles": ["king"]}).status_code == 400


def test_each_credential_is_taken_and_a_wrong_one_is_not(closed: str, rooms: Rooms) -> None:
    secret = key_for(rooms, Role.QUERY_READER)
    body = {"sql": "SELECT 1"}
    for headers in (
        {"x-api-key": secret},
        {"authorization": f"Bearer {secret}"},
        {"authorization": httpx.BasicAuth("any", secret)._auth_header},
    ):
        answer = httpx.post(f"{closed}/v1/query", json=body, headers=headers)
        assert answer.status_code == 200, headers
    for headers in (
        {},
        {"x-api-key": "wrong"},
        {"authorization": "Digest x"},
        {"x-api-key": secret, "authorization": f"Bearer {secret}"},
        {"x-tenant-id": "acme"},
    ):
        answer = httpx.post(f"{closed}/v1/query", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/v1/ingest/t", Role.INGEST_WRITER),
        ("POST", "/v1/query", Role.QUERY_READER),
        ("POST", "/v1/tables", Role.TABLE_ADMIN),
        ("DELETE", "/v1/tables/t", Role.TABLE_ADMIN),
        ("GET", "/v1/snapshots", Role.QUERY_READER),
        ("GET", "/v1/lag", Role.OPS_ADMIN),
    ],
)
def test_each_endpoint_needs_its_role(closed: str, rooms: Rooms, method, path, role) -> None:
    rooms.write("t", rows(1))
    others = [each for each in Role if each is not role]
    bodies = {
        "/v1/query": {"sql": "SELECT 1"},
        "/v1/tables": {"name": "n", "schema": [{"name": "a", "type": "date"}]},
        "/v1/ingest/t": {"records": [{"payload": {"v": 1}}]},
    }
    body = bodies.get(path) if method == "POST" else None
    with client_of(closed, key_for(rooms, *others)) as client:
        refused = client.request(method, path, json=body)
        assert (refused.status_code, refused.json()["error_code"]) == (403, "FORBIDDEN")
    with client_of(closed, key_for(rooms, role)) as client:
        assert client.request(method, path, json=body).status_code in (200, 201)


def test_in_open_mode_a_caller_names_a_tenant_that_exists(http, rooms: Rooms) -> None:
    rooms.identity("other")
    http.post("/v1/tables", json={"name": "t", "schema": [{"name": "a", "type": "date"}]})
    other = {"x-tenant-id": "other"}
    assert http.get("/v1/tables", headers=other).json() == {"tables": []}
    unknown = http.get("/v1/tables", headers={"x-tenant-id": "nobody"})
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "TENANT_NOT_FOUND")


def test_upkeep_runs_now_and_says_what_it_did(http, rooms: Rooms) -> None:
    for value in range(4):
        rooms.write("t", rows(value))
        rooms.publish_all()
    planned = http.post("/v1/compaction/run", json={"dry_run": True}).json()
    assert (planned["status"], planned["summary"]["dry_run"]) == ("done", True)
    done = http.post("/v1/compaction/run", json={"table": "t"})
    assert done.status_code == 200, done.text
    assert done.json()["summary"]["lost"] == 0
    assert http.post("/v1/compaction/run", json={"table": "nope"}).status_code == 404
    kept = http.post("/v1/retention/run", json={"dry_run": True}).json()["summary"]
    assert (kept["dry_run"], kept["snapshots"]) == (True, 0)
    assert http.post("/v1/retention/run", json={}).json()["status"] == "done"
    checked = http.post("/v1/integrity/run", json={}).json()["summary"]
    assert (checked["missing"], checked["mismatched"], checked["damaged"]) == (0, 0, [])
    assert http.post("/v1/integrity/run", json={"deep": True}).status_code == 400
    assert rooms.query("SELECT v FROM t ORDER BY v").column(0).to_pylist() == [0, 1, 2, 3]


def test_traces_go_in_and_out(http) -> None:
    named = http.get("/v1/lag", headers={"x-trace-id": "run-7"})
    assert named.headers["x-trace-id"] == "run-7"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    answered = http.get("/v1/nowhere", headers=sent)
    assert answered.headers["x-trace-id"] == trace == answered.json()["trace_id"]
    assert answered.headers["traceparent"].split("-")[1] == trace


def test_metrics_count_requests_by_route_and_status(http, rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    table = {"method": "GET", "route": "/v1/tables/{table}"}
    before = scraped(http.get("/v1/metrics").text)
    http.post("/v1/ingest/t", json={"records": [{"payload": {"v": 2}}]})
    http.get("/v1/tables/some-name")
    page = http.get("/v1/metrics").text
    moved = scraped(page).since(before)
    assert moved("duckmesh_http_requests_total", code="404", **table) == 1
    assert moved("duckmesh_http_request_duration_seconds_count", **table) == 1
    assert moved("duckmesh_ingest_records_total") == 1
    assert "some-name" not in page


def test_readiness_names_what_is_away(open_http: OpenHttp, rooms: Rooms) -> None:
    door = open_http()
    with httpx.Client(base_url=door.uri) as client:
        assert client.get("/v1/ready").json()["status"] == "ready"
        with rooms.catalog.connect() as connection:
            connection.execute(
                "DELETE FROM duckmesh_schema_migrations WHERE version ="
                " (SELECT max(version) FROM duckmesh_schema_migrations)"
            )

        def refused() -> bool:
            return client.get("/v1/ready").status_code == 503

        from tests.processes import until

        until(refused, seconds=20)
        said = client.get("/v1/ready").json()
        assert (said["error_code"], said["context"]) == ("NOT_READY", {"failed": ["schema"]})
        assert client.get("/v1/health").status_code == 200
