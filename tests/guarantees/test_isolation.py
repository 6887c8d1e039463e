"""Two tenants, four roles, every endpoint, RPC and action: exactly what is allowed passes.

docs/security.md shows the same table to operators.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh.identifiers import ConsumerId
from duckmesh.quotas import NO_QUOTAS
from flight_server import messages, rpcs
from flight_server.server import DoorOptions, FlightDoor
from flight_server.tickets import Seal
from gateway import tenancy
from gateway.api_keys import ApiKeys
from gateway.dead_letters import DeadLetters
from gateway.history import History
from gateway.identity import EVERY_ROLE, Identity, Role
from gateway.pins import SnapshotPins
from gateway.readiness import Readiness
from gateway.reads import ReadPoint
from gateway.restores import Restores
from gateway.sessions import ClientSessions
from gateway.tables import TableAdministration
from gateway.tenancy import Tenancy
from gateway.tenant_quotas import TenantQuotas
from gateway.transactions import Transactions
from http_shim.door import HttpDoor, HttpOptions
from http_shim.openapi import openapi_document
from http_shim.rooms import HttpLimits, HttpRooms
from tests.rooms import Rooms, open_rooms, rows

READER, WRITER = {Role.QUERY_READER}, {Role.INGEST_WRITER}
TABLES, OPERATOR = {Role.TABLE_ADMIN}, {Role.OPS_ADMIN}
ANY = set(EVERY_ROLE)
SCHEMA = [{"name": "v", "type": "bigint"}]

# Method, path, body, and the roles each of which suffices. `{role}` keeps the cases apart.
HTTP: list[tuple[str, str, dict[str, Any] | None, set[Role]]] = [
    ("POST", "/v1/ingest/{table}", {"records": [{"payload": {"v": 1}}]}, WRITER),
    ("POST", "/v1/query", {"sql": "SELECT v FROM t"}, READER),
    ("GET", "/v1/tables", None, READER | TABLES),
    ("POST", "/v1/tables", {"name": "made_{role}", "schema": SCHEMA}, TABLES),
    ("GET", "/v1/tables/{table}", None, READER | TABLES),
    ("PATCH", "/v1/tables/{table}", {"add": {"name": "{role}", "type": "date"}}, TABLES),
    ("DELETE", "/v1/tables/{table}", None, TABLES),
    ("GET", "/v1/snapshots", None, READER),
    ("GET", "/v1/snapshots/{snapshot_id}", None, READER),
    ("GET", "/v1/snapshots/pins", None, READER),
    ("POST", "/v1/snapshots/pin", {"snapshot_id": "{snapshot}", "tag": "{role}"}, OPERATOR),
    ("POST", "/v1/snapshots/unpin", {"tag": "{role}"}, OPERATOR),
    (
        *("POST", "/v1/snapshots/restore"),
        {"snapshot_id": "{snapshot}", "tables": ["t"], "dry_run": True},
        OPERATOR,
    ),
    ("POST", "/v1/compaction/run", {"dry_run": True}, OPERATOR),
    ("POST", "/v1/retention/run", {"dry_run": True}, OPERATOR),
    ("POST", "/v1/integrity/run", {}, OPERATOR),
    ("GET", "/v1/dead-letters", None, OPERATOR),
    ("GET", "/v1/dead-letters/{visibility_token}", None, OPERATOR),
    ("POST", "/v1/dead-letters/replay", {"visibility_tokens": ["{dead}"]}, OPERATOR),
    ("GET", "/v1/lag", None, OPERATOR),
    ("GET", "/v1/quotas", None, OPERATOR),
    ("GET", "/v1/keys", None, TABLES | OPERATOR),
    ("POST", "/v1/keys", {"name": "n", "roles": ["{role}"]}, TABLES | OPERATOR),
    ("POST", "/v1/keys/{key_id}/rotate", None, TABLES | OPERATOR),
    ("DELETE", "/v1/keys/{key_id}", None, TABLES | OPERATOR),
]
NO_CREDENTIAL = {("GET", "/v1/health"), ("GET", "/v1/ready"), ("GET", "/v1/metrics")}

SQL: list[tuple[str, set[Role]]] = [
    ("SELECT v FROM t", READER),
    ("EXPLAIN SELECT v FROM t", READER),
    ("SELECT count(*) FROM duckmesh_system.receipts", READER),
    ("INSERT INTO t VALUES (1)", WRITER),
    ("CREATE TABLE sql_made_{role} (v BIGINT)", TABLES),
    ("ALTER TABLE sql_{role} ADD COLUMN w DATE", TABLES),
    ("DROP TABLE sql_{role}", TABLES),
]

TRICKS = [
    "SELECT * FROM zeta.secret_zeta",
    "SELECT * FROM duckmesh.zeta.secret_zeta",
    "SELECT * FROM secret_zeta",
    "WITH x AS (SELECT * FROM secret_zeta) SELECT * FROM x",
    "SELECT (SELECT count(*) FROM secret_zeta)",
    "SELECT * FROM read_parquet('/**/zeta/**/*.parquet')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/**')",
    "SELECT getenv('HOME')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM postgres_scan('', 'public', 'api_key')",
    "SELECT * FROM query('SELECT * FROM secret_zeta')",
    "SELECT * FROM query_table('secret_zeta')",
    "ATTACH '/tmp/x.db' AS x",
    "COPY t TO '/tmp/x.parquet'",
    "INSTALL httpfs",
    "SET memory_limit = '1TB'",
    "PRAGMA database_list",
    "SELECT 1; SELECT 2",
    "INSERT INTO zeta.secret_zeta VALUES (1)",
    "INSERT INTO secret_zeta VALUES (1)",
    "DROP TABLE secret_zeta",
    "CREATE VIEW peek AS SELECT * FROM secret_zeta",
]


@dataclass
class World:
    """Both doors over one process's rooms; acme is the caller's tenant, zeta the other one."""

    rooms: Rooms
    http: httpx.Client
    flight: flight.FlightClient
    zeta: Identity
    keys: dict[Role | None, str]
    zetas_key_id: str

    def snapshot_of(self, who: Identity) -> int:
        return int(self.rooms.reads.pin(who, None, ReadPoint()).snapshot_id)

    def dead_letter(self) -> int:
        """The token of a write of acme that was given up, once for all."""
        if not (known := self.rooms.bus.dead_letters(self.rooms.acme.tenant_id, limit=1)):
            self.rooms.write("t", rows(3))
            lease = timedelta(seconds=30)
            held = self.rooms.bus.claim_batch(
                ConsumerId("c"), limit=1, max_bytes=2**20, lease=lease
            )
            assert held is not None
            event = held.events[0]
            self.rooms.bus.nack(held, [event.envelope.event_id], "broken", dead=True)
            return event.visibility_token
        return known[0].visibility_token

    def key_of(self, tenant: str, roles: list[str]) -> tuple[str, str]:
        return tenancy.create_key(self.rooms.catalog, tenant, name="test", roles=roles)

    def ask(self, secret: str | None, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {} if secret is None else {"x-api-key": secret}
        return self.http.request(method, path, json=body, headers=headers)

    def options(self, secret: str) -> flight.FlightCallOptions:
        shown = [(b"authorization", f"Bearer {secret}".encode())]
        return flight.FlightCallOptions(headers=shown, timeout=60)


@pytest.fixture(scope="module")
def world(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("isolation")
    with open_rooms(module_database_dsn, folder) as rooms, ExitStack() as ends:
        zeta = rooms.identity("zeta")
        rooms.write("t", rows(1, 2))
        rooms.write("secret_zeta", rows(7, 8, 9), identity=zeta)
        rooms.publish_all()
        keys = Tenancy(rooms.catalog)
        reached = HttpRooms(
            reads=rooms.reads,
            writes=rooms.writes,
            sql_writes=rooms.sql_writes,
            authenticator=keys,
            tables=TableAdministration(rooms.reads, rooms.writes, rooms.sql_writes),
            history=History(rooms.catalog, rooms.bus),
            api_keys=ApiKeys(rooms.catalog),
            dead_letters=DeadLetters(rooms.catalog, rooms.bus),
            pins=SnapshotPins(rooms.catalog),
            restores=Restores(rooms.catalog, rooms.bus, rooms.visibility),
            maintenance=rooms.maintenance(),
            catalog=rooms.catalog,
            readiness=Readiness(rooms.catalog, rooms.store),
            quotas=TenantQuotas(rooms.catalog, rooms.bus, NO_QUOTAS),
        )
        http = HttpDoor(HttpOptions(), reached, HttpLimits())
        ends.callback(http.close)
        ends.callback(http.drain, timedelta(seconds=5))
        door = FlightDoor(
            DoorOptions(),
            reads=rooms.reads,
            writes=rooms.writes,
            sessions=ClientSessions(rooms.catalog),
            sql_writes=rooms.sql_writes,
            transactions=Transactions(rooms.catalog, rooms.bus, rooms.store),
            authenticator=keys,
            seal=Seal(b"s" * 32),
        )
        ends.callback(door.close)
        ends.callback(door.drain, timedelta(seconds=5))
        client = ends.enter_context(flight.connect(f"grpc://127.0.0.1:{door.port}"))
        plain = ends.enter_context(httpx.Client(base_url=http.uri, timeout=60))
        made = World(rooms, plain, client, zeta, {}, "")
        made.zetas_key_id, _ = made.key_of("zeta", ["ops_admin"])
        for role in Role:
            made.keys[role] = made.key_of("acme", [role.value])[1]
        made.keys[None] = made.key_of("acme", [role.value for role in Role])[1]
        yield made


each_role = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)


def test_the_matrix_holds_every_endpoint() -> None:
    paths = openapi_document()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served == {(method, path) for method, path, _, _ in HTTP} | NO_CREDENTIAL


@each_role
def test_each_role_passes_its_endpoints_and_no_other(world: World, role: Role) -> None:
    secret = world.keys[role]
    for method, path, body, allowed in HTTP:
        table = f"mine_{role.value}_{method.lower()}"
        world.rooms.write(table, rows(1))
        world.rooms.publish_all()
        # A key that gives no more than the caller holds.
        spare, _ = world.key_of("acme", [role.value])
        snapshot_id, dead = world.snapshot_of(world.rooms.acme), world.dead_letter()
        named = path.format(
            table=table, key_id=spare, snapshot_id=snapshot_id, visibility_token=dead
        )
        numbers = {"{snapshot}": snapshot_id, "{dead}": dead}
        sent = None if body is None else _filled(body, role, numbers)
        assert world.ask(None, method, named, sent).status_code == 401, path
        answer = world.ask(secret, method, named, sent)
        expected = answer.is_success if role in allowed else answer.status_code == 403
        assert expected, f"{method} {path}: {answer.status_code} {answer.text}"


def _filled(body: Any, role: Role, numbers: dict[str, int]) -> Any:
    if isinstance(body, dict):
        return {name: _filled(value, role, numbers) for name, value in body.items()}
    if isinstance(body, list):
        return [_filled(value, role, numbers) for value in body]
    if isinstance(body, str):
        return numbers.get(body, body.replace("{role}", role.value))
    return body


@each_role
@pytest.mark.parametrize("door", ["http", "flight"])
def test_each_role_passes_its_statements_and_no_other(world: World, role: Role, door: str) -> None:
    name = f"{role.value}_{door}"
    world.rooms.write(f"sql_{name}", rows(1))
    world.rooms.publish_all()
    for sql, allowed in SQL:
        refusal = _refusal(world, world.keys[role], sql.replace("{role}", name), door)
        if role in allowed:
            assert refusal is None, f"{sql}: {refusal}"
        else:
            assert refusal is not None, sql
            assert "FORBIDDEN" in refusal, f"{sql}: {refusal}"


def _refusal(world: World, secret: str, sql: str, door: str) -> str | None:
    """What a statement is refused with; None when it ran."""
    if door == "http":
        answer = world.ask(secret, "POST", "/v1/query", {"sql": sql})
        return None if answer.is_success else answer.text
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    options = world.options(secret)
    try:
        info = world.flight.get_flight_info(flight.FlightDescriptor.for_command(command), options)
        world.flight.do_get(info.endpoints[0].ticket, options).read_all()
    except (flight.FlightError, pa.ArrowException) as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("door", ["http", "flight"])
def test_no_statement_reaches_what_is_another_tenants_or_the_machines(
    world: World, door: str
) -> None:
    for sql in TRICKS:
        refusal = _refusal(world, world.keys[None], sql, door)
        assert refusal is not None, sql
        assert "INTERNAL" not in refusal, f"{sql}: {refusal}"
        assert str(world.rooms.store) not in refusal
    kept = world.rooms.query("SELECT v FROM secret_zeta", identity=world.zeta)
    assert kept["v"].to_pylist() == [7, 8, 9]


def test_another_tenants_names_are_answered_as_names_that_were_never_given(world: World) -> None:
    unborn = 2**60
    pairs = [
        ("GET", "/v1/tables/{}", None, "secret_zeta", "secret_none"),
        ("DELETE", "/v1/tables/{}", None, "secret_zeta", "secret_none"),
        ("PATCH", "/v1/tables/{}", {"drop": "v"}, "secret_zeta", "secret_none"),
        (
            *("POST", "/v1/ingest/{}", {"records": [{"payload": {"v": 1}}]}),
            *("secret_zeta", "secret_none"),
        ),
        ("GET", "/v1/snapshots/{}", None, str(world.snapshot_of(world.zeta)), str(unborn)),
        *(
            ("POST", path, {"snapshot_id": "{}"}, str(world.snapshot_of(world.zeta)), str(unborn))
            for path in ("/v1/snapshots/pin", "/v1/snapshots/restore")
        ),
        ("GET", "/v1/dead-letters/{}", None, "1", str(unborn)),
        ("DELETE", "/v1/keys/{}", None, world.zetas_key_id, "0" * 12),
        ("POST", "/v1/keys/{}/rotate", None, world.zetas_key_id, "0" * 12),
    ]
    for method, path, body, foreign, missing in pairs:
        answers = []
        for name in (foreign, missing):
            sent = body
            if body == {"snapshot_id": "{}"}:
                sent = {"snapshot_id": int(name)}
            answer = world.ask(world.keys[None], method, path.format(name), sent)
            said = answer.json()
            del said["trace_id"]
            answers.append((answer.status_code, str(said).replace(name, "<name>")))
        assert answers[0] == answers[1], path
        assert answers[0][0] == 404, path
    for door in ("http", "flight"):
        for sql in ("SELECT * FROM {}", "INSERT INTO {} VALUES (1)", "DROP TABLE {}"):
            said = [
                _refusal(world, world.keys[None], sql.format(name), door)
                for name in ("secret_zeta", "secret_none")
            ]
            texts = [
                _without_trace(str(text)).replace(n, "")
                for text, n in zip(said, ("secret_zeta", "secret_none"), strict=True)
            ]
            assert texts[0] == texts[1], sql


def _without_trace(text: str) -> str:
    return re.sub(r'"trace_id":"[^"]*"|[0-9a-f]{32}', "", text)


def test_a_listing_holds_the_callers_own_alone(world: World) -> None:
    secret = world.keys[None]
    for path in ("/v1/tables", "/v1/keys", "/v1/snapshots", "/v1/lag", "/v1/quotas"):
        said = world.ask(secret, "GET", path).text
        assert "zeta" not in said
        assert world.zetas_key_id not in said
    listed = messages.wrap(messages.sql("CommandGetTables")(include_schema=True))
    options = world.options(secret)
    info = world.flight.get_flight_info(flight.FlightDescriptor.for_command(listed), options)
    names = world.flight.do_get(info.endpoints[0].ticket, options).read_all()["table_name"]
    assert "t" in names.to_pylist()
    assert not [name for name in names.to_pylist() if "zeta" in name]
    for table in ("receipts", "snapshots", "tables", "data_files"):
        answer = world.ask(
            secret, "POST", "/v1/query", {"sql": f"SELECT * FROM duckmesh_system.{table}"}
        )
        assert answer.is_success, answer.text
        assert "zeta" not in answer.text


@each_role
def test_each_role_passes_its_flight_calls_and_no_other(world: World, role: Role) -> None:
    options = world.options(world.keys[role])

    def action(kind: str, body: bytes = b"") -> None:
        list(world.flight.do_action(flight.Action(kind, body), options))

    def put() -> None:
        descriptor = flight.FlightDescriptor.for_path("t")
        batch = pa.record_batch({"v": pa.array([1], pa.int64())})
        writer, reader = world.flight.do_put(descriptor, batch.schema, options)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            reader.read()

    def listed(name: str, **fields: Any) -> None:
        command = messages.wrap(messages.sql(name)(**fields))
        info = world.flight.get_flight_info(flight.FlightDescriptor.for_command(command), options)
        world.flight.do_get(info.endpoints[0].ticket, options).read_all()

    prepared = messages.wrap(
        messages.sql("ActionCreatePreparedStatementRequest")(query="SELECT v FROM t")
    )
    closed = messages.wrap(messages.sql("ActionClosePreparedStatementRequest")())
    calls: list[tuple[Any, set[Role]]] = [
        (put, WRITER),
        (lambda: listed("CommandGetTables", include_schema=True), READER | TABLES),
        (lambda: listed("CommandGetPrimaryKeys", table="t"), READER | TABLES),
        (lambda: listed("CommandGetSqlInfo"), ANY),
        (lambda: listed("CommandGetCatalogs"), ANY),
        (lambda: list(world.flight.list_actions(options)), ANY),
        (lambda: list(world.flight.list_flights(options=options)), ANY),
        (lambda: action("CreatePreparedStatement", prepared), READER),
        (lambda: action("ClosePreparedStatement", closed), ANY),
        (lambda: action("GetSessionOptions"), ANY),
        (lambda: action("SetSessionOptions"), ANY),
        (lambda: action("CloseSession"), ANY),
    ]
    for number, (call, allowed) in enumerate(calls):
        said = ""
        try:
            call()
        except (flight.FlightError, pa.ArrowException) as refused:
            said = str(refused)
        assert bool(said) == (role not in allowed), f"call {number}: {said or 'passed'}"
        assert not said or "FORBIDDEN" in said, f"call {number}: {said}"


def test_the_matrix_knows_every_action() -> None:
    # Of those not called above: tickets are bound to their tenant (tests/flight_server/
    # test_tickets.py), and a transaction writes by statements that ask for the role themselves.
    apart = {"CancelFlightInfo", "RenewFlightEndpoint", "BeginTransaction", "EndTransaction"}
    called = {
        *("CreatePreparedStatement", "ClosePreparedStatement"),
        *("GetSessionOptions", "SetSessionOptions", "CloseSession"),
    }
    assert set(rpcs._ACTIONS) == apart | called
