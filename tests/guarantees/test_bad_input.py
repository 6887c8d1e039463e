"""Bad input gets a typed error that says what to change, and nothing is half-written.

Over real processes, through ADBC and plain pyarrow. After each case: the same rows, the same last
token, a server that answers, and no path, DSN or traceback in any text or header of the error.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions, dbapi
from pyarrow import flight

from duckmesh.errors import ErrorCode
from flight_server import messages
from tests.processes import PlainClient, service, until

AUTHORIZATION = DatabaseOptions.AUTHORIZATION_HEADER.value
HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
LEAK = Path(tempfile.gettempdir()) / "duckmesh-leak.csv"
WRITE_MAX_BYTES = 8_000_000
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])
ROWS = pa.table([[1, 2, 3], ["a", "b", None]], schema=SCHEMA)
REFUSALS = (adbc_driver_manager.Error, pa.ArrowException, KeyError, NotImplementedError, OSError)
TELLTALES = re.compile(
    r'Traceback|File "|\.py\b|/tmp/|/home/|/work|postgres(?:ql)?://|psycopg|site-packages|s3://'
)


@dataclass(frozen=True)
class House:
    """Two serving processes, a coordinator, and an API key for each of two tenants."""

    uris: tuple[str, str]
    folder: Path
    environment: dict[str, str]
    acme: str
    zeta: str

    def command(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "command_line.main", *arguments, "--json"],
            env=self.environment,
            capture_output=True,
            check=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    def new_key(self, tenant: str, *roles: str) -> tuple[str, str]:
        named = [part for role in roles for part in ("--role", role)]
        made = self.command("keys", "create", "--tenant", tenant, "--name", "test", *named)
        return made["key_id"], made["secret"]


@pytest.fixture(scope="module")
def house(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    from catalog.connection import Catalog
    from gateway import tenancy

    folder = tmp_path_factory.mktemp("bad-input")
    settings = {
        "DUCKMESH_AUTH_OPEN_MODE": "false",
        "DUCKMESH_INGEST_WRITE_MAX_BYTES": str(WRITE_MAX_BYTES),
        "DUCKMESH_INGEST_INLINE_MAX_BYTES": "100000",
    }
    with service(module_database_dsn, folder, **settings) as running:
        uris = (running.serve()[1], running.serve()[1])
        running.coordinate("c1")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DUCKMESH_")}
        environment = {**kept, "DUCKMESH_CATALOG_DSN": module_database_dsn}
        with Catalog(module_database_dsn) as catalog:
            for tenant in ("acme", "zeta"):
                tenancy.ensure_tenant(catalog, tenant, principal="test")
        house = House(uris, folder, environment, "", "")
        roles = ("ingest_writer", "query_reader", "table_admin")
        keys = [house.new_key(tenant, *roles)[1] for tenant in ("acme", "zeta")]
        yield House(uris, folder, environment, *keys)


def connect(house: House, secret: str | None = None, number: int = 0) -> dbapi.Connection:
    options = {AUTHORIZATION: f"Bearer {secret or house.acme}"}
    return dbapi.connect(house.uris[number], db_kwargs=options, autocommit=True)


def ask(connection: dbapi.Connection, sql: str, **headers: object) -> list[tuple[Any, ...]]:
    options = {f"{HEADER}{k.replace('_', '-')}": str(v) for k, v in headers.items()}
    with connection.cursor(adbc_stmt_kwargs=options) as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def ingest(connection: dbapi.Connection, rows: Any, table: str = "t", mode: str = "append") -> int:
    with connection.cursor() as cursor:
        return int(cursor.adbc_ingest(table, rows, mode=mode))


@dataclass(frozen=True)
class Plain:
    """A Flight client with an API key and no driver."""

    client: flight.FlightClient
    options: flight.FlightCallOptions

    def info(self, command: bytes) -> flight.FlightInfo:
        descriptor = flight.FlightDescriptor.for_command(command)
        return self.client.get_flight_info(descriptor, self.options)

    def rows(self, ticket: bytes) -> pa.Table:
        return self.client.do_get(flight.Ticket(ticket), self.options).read_all()

    def put(self, descriptor: flight.FlightDescriptor, *batches: pa.RecordBatch) -> list[bytes]:
        schema = batches[0].schema if batches else SCHEMA
        writer, reader = self.client.do_put(descriptor, schema, self.options)
        answers = []
        with writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
            while (answer := reader.read()) is not None:
                answers.append(answer.to_pybytes())
        return answers


@contextmanager
def plain(house: House, secret: str | None = None, **headers: str) -> Iterator[Plain]:
    said = [(f"x-duckmesh-{k.replace('_', '-')}".encode(), v.encode()) for k, v in headers.items()]
    said.append((b"authorization", f"Bearer {secret or house.acme}".encode()))
    with flight.connect(house.uris[0]) as client:
        yield Plain(client, flight.FlightCallOptions(headers=said, timeout=30))


def question(sql: str) -> bytes:
    return messages.wrap(messages.sql("CommandStatementQuery")(query=sql))


def code_of(act: Callable[[], object]) -> ErrorCode:
    """The code that an act is refused with; everything that the client is told is looked at."""
    with pytest.raises(REFUSALS) as caught:
        act()
    error = caught.value
    # What gRPC appends in the client's own process is not the server's.
    text = str(error).split("gRPC client debug context", maxsplit=1)[0]
    details = [value for _, value in getattr(error, "details", [])]
    extra = getattr(error, "extra_info", b"")
    for said in (text, *(d.decode(errors="replace") for d in details), extra.decode("latin-1")):
        assert not TELLTALES.search(said), said
    found = re.search(r"\[([A-Z_]+)\] (.{10,})", text)
    assert found, text
    return ErrorCode(found[1])


State = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


def state(connection: dbapi.Connection) -> State:
    """All rows, and how many writes the bus has taken."""
    rows = ask(connection, "SELECT * FROM t ORDER BY id", consistency="strong")
    tables = "SELECT table_name, row_count, max_visibility_token FROM duckmesh_system.tables"
    return rows, ask(connection, f"{tables} ORDER BY 1", consistency="strong")


@pytest.fixture
def connection(house: House) -> Iterator[dbapi.Connection]:
    with connect(house) as connection:
        yield connection


@pytest.fixture
def unchanged(connection: dbapi.Connection) -> Iterator[dbapi.Connection]:
    """A table `t` that holds ROWS; after the test it holds them still, at the same token."""
    ingest(connection, ROWS, mode="replace")
    before = state(connection)
    last = last_token(connection)
    yield connection
    assert state(connection) == before
    ingest(connection, ROWS.to_batches()[0].slice(0, 0))
    assert last_token(connection) == last + 1, "a refused write took a token"


def last_token(connection: dbapi.Connection) -> int:
    option = "adbc.flight.sql.session.option.last_visibility_token"
    return int(connection.adbc_connection.get_option_int(option))


NULL_ID = pa.table({"id": pa.array([4, None, 6], pa.int64()), "name": ["x"] * 3})
WRONG_ROWS = [
    ("wrong type", pa.table({"id": ["4"], "name": ["x"]}), "SCHEMA_INCOMPATIBLE"),
    ("fraction", pa.table({"id": [4.5], "name": ["x"]}), "SCHEMA_INCOMPATIBLE"),
    ("missing column", pa.table({"id": [4]}), "SCHEMA_INCOMPATIBLE"),
    ("unknown column", ROWS.append_column("more", [[1, 2, 3]]), "SCHEMA_INCOMPATIBLE"),
    ("null", NULL_ID, "INVALID_PAYLOAD"),
    (
        "null in the second batch",
        pa.concat_tables([ROWS.cast(NULL_ID.schema), NULL_ID]),
        "INVALID_PAYLOAD",
    ),
    (
        "too large a number",
        pa.table({"id": pa.array([2**63], pa.uint64()), "name": ["x"]}),
        "INVALID_PAYLOAD",
    ),
    ("no columns", pa.table({}), "SCHEMA_INCOMPATIBLE"),
]


@pytest.mark.parametrize(
    ("rows", "code"), [case[1:] for case in WRONG_ROWS], ids=[case[0] for case in WRONG_ROWS]
)
def test_rows_that_do_not_fit(
    house: House, unchanged: dbapi.Connection, rows: pa.Table, code: str
) -> None:
    batches = rows.to_batches() or [pa.RecordBatch.from_pylist([{}], schema=rows.schema)]
    reader = pa.RecordBatchReader.from_batches(rows.schema, batches)
    assert code_of(lambda: ingest(unchanged, reader)) == code
    with plain(house) as client:
        # One batch: a stream's batches are writes of their own, and those before stand.
        descriptor = flight.FlightDescriptor.for_path("t")
        assert code_of(lambda: client.put(descriptor, batches[-1])) == code


def test_tables_and_names_that_are_not_there(house: House, unchanged: dbapi.Connection) -> None:
    assert code_of(lambda: ingest(unchanged, ROWS, "absent")) == "TABLE_NOT_FOUND"
    assert code_of(lambda: ask(unchanged, "SELECT * FROM absent")) == "TABLE_NOT_FOUND"
    assert code_of(lambda: ask(unchanged, "DROP TABLE absent")) == "TABLE_NOT_FOUND"
    assert code_of(lambda: ask(unchanged, "SELECT no_column FROM t")) == "QUERY_EXECUTION_FAILED"
    assert code_of(lambda: ingest(unchanged, ROWS, "x" * 201, "create")) == "TABLE_REQUIRED"
    assert code_of(lambda: ingest(unchanged, ROWS, "t", "create")) == "TABLE_EXISTS"
    (batch,) = ROWS.to_batches()
    with plain(house) as client:
        for path, code in (
            (["absent"], "TABLE_NOT_FOUND"),
            ([""], "TABLE_REQUIRED"),
            (["a", "b", "c", "t"], "TABLE_REQUIRED"),
            (["other_schema", "t"], "TABLE_REQUIRED"),
        ):
            descriptor = flight.FlightDescriptor.for_path(*path)
            assert code_of(lambda d=descriptor: client.put(d, batch)) == code


@pytest.mark.parametrize("mode", ["append", "replace", "create"])
def test_a_write_beyond_the_limit(house: House, unchanged: dbapi.Connection, mode: str) -> None:
    many = pa.record_batch([range(100_000), ["x" * 10] * 100_000], schema=SCHEMA)
    source = pa.RecordBatchReader.from_batches(SCHEMA, [many] * 10)
    table = "large" if mode == "create" else "t"
    assert code_of(lambda: ingest(unchanged, source, table, mode)) == "PAYLOAD_TOO_LARGE"
    assert staged_objects(house) == []
    if mode == "append":
        large = pa.record_batch([range(900_000), [""] * 900_000], schema=SCHEMA)
        with plain(house) as client:
            descriptor = flight.FlightDescriptor.for_path("t")
            assert code_of(lambda: client.put(descriptor, large)) == "PAYLOAD_TOO_LARGE"


def staged_objects(house: House) -> list[Path]:
    return [each for each in (house.folder / "objects").rglob("*") if each.is_file()]


def batches(count: int, rows: int = 2_000) -> Iterator[pa.RecordBatch]:
    for _ in range(count):
        yield pa.record_batch([range(rows), ["x" * 100] * rows], schema=SCHEMA)


def raise_midway(connection: dbapi.Connection, mode: str) -> None:
    def source() -> Iterator[pa.RecordBatch]:
        yield from batches(10)
        raise RuntimeError("the source broke")

    with pytest.raises((*REFUSALS, RuntimeError)):
        ingest(connection, pa.RecordBatchReader.from_batches(SCHEMA, source()), mode=mode)


def exceed_the_clients_limit(connection: dbapi.Connection, mode: str) -> None:
    def source() -> Iterator[pa.RecordBatch]:
        yield from batches(10)
        yield from batches(1, rows=200_000)

    with pytest.raises(REFUSALS):
        ingest(connection, pa.RecordBatchReader.from_batches(SCHEMA, source()), mode=mode)


def cancel_midway(connection: dbapi.Connection, mode: str) -> None:
    underway = threading.Event()

    def source() -> Iterator[pa.RecordBatch]:
        yield from batches(10)
        underway.set()
        while True:
            time.sleep(0.02)
            yield from batches(1, rows=1)

    outcome: list[BaseException] = []
    with connection.cursor() as cursor:

        def run() -> None:
            reader = pa.RecordBatchReader.from_batches(SCHEMA, source())
            try:
                cursor.adbc_ingest("t", reader, mode=mode)
            except Exception as error:  # noqa: BLE001 - judged below
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert underway.wait(30)
        cursor.adbc_cancel()
        thread.join(30)
        assert outcome


KILLED = """
import sys, time, adbc_driver_flightsql.dbapi as dbapi, pyarrow as pa
uri, option, bearer, mode = sys.argv[1:]
schema = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])
def source():
    for number in range(100_000):
        yield pa.record_batch([range(2000), ["x" * 100] * 2000], schema=schema)
        if number > 10:
            print("underway", flush=True)
            time.sleep(0.05)
with dbapi.connect(uri, db_kwargs={option: bearer}, autocommit=True) as c, c.cursor() as cursor:
    reader = pa.RecordBatchReader.from_batches(schema, source())
    cursor.adbc_ingest("t", reader, mode=mode)
"""


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("cut", [raise_midway, exceed_the_clients_limit, cancel_midway])
def test_a_stream_cut_short(
    house: House,
    unchanged: dbapi.Connection,
    cut: Callable[[dbapi.Connection, str], None],
    mode: str,
) -> None:
    with connect(house) as other:
        cut(other, mode)
    until(lambda: staged_objects(house) == [])


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.usefixtures("unchanged")
def test_a_client_killed_midway(house: House, mode: str) -> None:
    arguments = [house.uris[0], AUTHORIZATION, f"Bearer {house.acme}", mode]
    client = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE)
    assert client.stdout is not None
    with client.stdout:
        assert client.stdout.readline() == b"underway\n"
        client.kill()
        client.wait()
    until(lambda: staged_objects(house) == [])


MALFORMED = [b"", b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"no protobuf at all", bytes(range(256))]


@pytest.mark.usefixtures("unchanged")
def test_malformed_commands(house: House) -> None:
    (batch,) = ROWS.to_batches()
    unknown = messages.wrap(messages.sql("CommandStatementQuery")(query="SELECT 1"))
    misnamed = unknown.replace(b"CommandStatementQuery", b"CommandStatementQuerz")
    with plain(house) as client:
        for command in (*MALFORMED, misnamed):
            descriptor = flight.FlightDescriptor.for_command(command)
            acts: list[Callable[[], object]] = [
                lambda c=command: client.info(c),
                lambda d=descriptor: client.client.get_schema(d, client.options),
                lambda c=command: client.rows(c),
                lambda d=descriptor: client.put(d, batch),
            ]
            for act in acts:
                assert code_of(act) in {"INVALID_COMMAND", "TICKET_INVALID", "NOT_SUPPORTED"}
        for name in ("CreatePreparedStatement", "ClosePreparedStatement", "NoSuchAction"):
            action = flight.Action(name, b"\xff\xfe")
            act = lambda a=action: list(client.client.do_action(a, client.options))  # noqa: E731
            assert code_of(act) in {"INVALID_COMMAND", "NOT_SUPPORTED", "TICKET_INVALID"}
        assert code_of(lambda: client.info(question(""))) == "SQL_REQUIRED"


@pytest.mark.usefixtures("unchanged")
def test_a_ticket_with_a_flipped_byte(house: House) -> None:
    with plain(house) as client:
        ticket = client.info(question("SELECT count(*) FROM t")).endpoints[0].ticket.ticket
        assert client.rows(ticket).num_rows == 1
        for place in range(0, len(ticket), max(1, len(ticket) // 24)):
            flipped = bytearray(ticket)
            flipped[place] ^= 0x10
            act = lambda t=bytes(flipped): client.rows(t)  # noqa: E731
            assert code_of(act) in {"TICKET_INVALID", "INVALID_COMMAND", "NOT_SUPPORTED"}


FAR = str(10**15)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"min_visibility_token": FAR}, "VISIBILITY_TOKEN_INVALID"),
        ({"min_visibility_token": "abc"}, "VISIBILITY_TOKEN_INVALID"),
        ({"min_visibility_token": "-1"}, "VISIBILITY_TOKEN_INVALID"),
        ({"min_visibility_token": "1.5"}, "VISIBILITY_TOKEN_INVALID"),
        ({"min_visibility_token": "9" * 5_000}, "VISIBILITY_TOKEN_INVALID"),
        ({"snapshot_id": FAR}, "SNAPSHOT_NOT_FOUND"),
        ({"snapshot_id": "x"}, "INVALID_COMMAND"),
        ({"snapshot_time": "yesterday"}, "INVALID_COMMAND"),
        ({"snapshot_time": "2026-01-31T12:00:00"}, "INVALID_COMMAND"),
        ({"snapshot_time": "1999-01-01T00:00:00Z"}, "SNAPSHOT_NOT_FOUND"),
        ({"snapshot_id": "1", "min_visibility_token": "1"}, "SNAPSHOT_SELECTOR_CONFLICT"),
        ({"consistency": "sometimes"}, "INVALID_COMMAND"),
        ({"consistency_timeout_ms": "soon"}, "INVALID_COMMAND"),
    ],
    ids=lambda each: str(each)[:60],
)
def test_headers_that_ask_for_what_cannot_be(
    house: House, connection: dbapi.Connection, headers: dict[str, str], code: str
) -> None:
    began = time.monotonic()
    assert code_of(lambda: ask(connection, "SELECT 1", **headers)) == code
    with plain(house, **headers) as client:
        assert code_of(lambda: client.info(question("SELECT 1"))) == code
    assert time.monotonic() - began < 3, "said at once, not at the deadline"
    assert ask(connection, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"idempotency_key": "x" * 600}, "IDEMPOTENCY_KEY_REQUIRED"),
        ({"wait": "if you like"}, "INVALID_COMMAND"),
    ],
    ids=["key", "wait"],
)
def test_headers_that_spoil_a_write(
    house: House, unchanged: dbapi.Connection, headers: dict[str, str], code: str
) -> None:
    options = {f"{HEADER}{k.replace('_', '-')}": v for k, v in headers.items()}
    with unchanged.cursor(adbc_stmt_kwargs=options) as cursor:
        assert code_of(lambda: cursor.adbc_ingest("t", ROWS, mode="append")) == code
    (batch,) = ROWS.to_batches()
    with plain(house, **headers) as client:
        descriptor = flight.FlightDescriptor.for_path("t")
        assert code_of(lambda: client.put(descriptor, batch)) == code


def test_another_tenants_snapshot_ticket_token_and_tables(
    house: House, unchanged: dbapi.Connection
) -> None:
    with unchanged.cursor() as cursor:
        cursor.execute("SELECT * FROM t")
        metadata = cursor.fetch_arrow_table().schema.metadata
        cursor.adbc_statement.set_sql_query("SELECT * FROM t")
        partitions, _, _ = cursor.adbc_statement.execute_partitions()
    with plain(house) as mine:
        ticket = mine.info(question("SELECT * FROM t")).endpoints[0].ticket.ticket
    seen = metadata[b"duckmesh.snapshot_id"].decode()
    with connect(house, house.zeta) as his, plain(house, house.zeta) as client:
        assert code_of(lambda: ask(his, "SELECT * FROM t")) == "TABLE_NOT_FOUND"
        assert code_of(lambda: ask(his, "DROP TABLE t")) == "TABLE_NOT_FOUND"
        assert code_of(lambda: ingest(his, ROWS)) == "TABLE_NOT_FOUND"
        assert code_of(lambda: ask(his, "SELECT 1", snapshot_id=seen)) == "SNAPSHOT_NOT_FOUND"
        token = last_token(unchanged)
        refused = code_of(lambda: ask(his, "SELECT 1", min_visibility_token=token))
        assert refused == "VISIBILITY_TOKEN_INVALID"
        assert code_of(lambda: his.adbc_connection.read_partition(partitions[0])) == (
            "TICKET_INVALID"
        )
        assert code_of(lambda: client.rows(ticket)) == "TICKET_INVALID"
        for name in ("receipts", "tables", "data_files"):
            assert ask(his, f"SELECT count(*) FROM duckmesh_system.{name}") == [(0,)]
        listed = his.adbc_get_objects(depth="tables").read_all().to_pylist()
        schemas = [each for c in listed for each in c["catalog_db_schemas"]]
        own = [each for each in schemas if each["db_schema_name"] == "main"]
        assert not any(schema["db_schema_tables"] for schema in own)
        paths = staged_objects(house)
        assert all(path.is_relative_to(house.folder / "objects" / "acme") for path in paths)


def test_credentials_that_are_none(house: House) -> None:
    for secret in ("dm_wrong", "x" * 3000, "Bearer"):
        with plain(house, secret) as client:
            assert code_of(lambda c=client: c.info(question("SELECT 1"))) == "UNAUTHORIZED"
    with closing(PlainClient(house.uris[0])) as nobody:
        assert code_of(lambda: nobody.query("SELECT 1")) == "UNAUTHORIZED"
    _, reader = house.new_key("acme", "query_reader")
    _, writer = house.new_key("acme", "ingest_writer")
    with connect(house, reader) as reading, connect(house, writer) as writing:
        assert code_of(lambda: ingest(reading, ROWS)) == "FORBIDDEN"
        assert code_of(lambda: ask(reading, "DROP TABLE t")) == "FORBIDDEN"
        assert code_of(lambda: ask(writing, "SELECT 1")) == "FORBIDDEN"


def test_a_revoked_key_stops_within_a_second_on_both_processes(
    house: House, connection: dbapi.Connection
) -> None:
    from catalog.connection import Catalog
    from duckmesh.identifiers import KeyId
    from gateway import tenancy

    ingest(connection, ROWS, mode="replace")
    key_id, secret = house.new_key("acme", "query_reader", "ingest_writer")
    sessions = [connect(house, secret, number) for number in (0, 1)]
    with plain(house, secret) as client, Catalog(house.environment["DUCKMESH_CATALOG_DSN"]) as own:
        descriptor = flight.FlightDescriptor.for_path("t")
        writer, receipts = client.client.do_put(descriptor, SCHEMA, client.options)
        (batch,) = ROWS.to_batches()
        writer.write_batch(batch)
        assert receipts.read() is not None
        for session in sessions:
            assert ask(session, "SELECT 1") == [(1,)]
        tenancy.revoke_key(own, "acme", KeyId(key_id))
        time.sleep(1.0)  # The promise itself is a time.
        for session in sessions:
            assert code_of(lambda s=session: ask(s, "SELECT 1")) == "UNAUTHORIZED"
            assert code_of(lambda s=session: ingest(s, ROWS)) == "UNAUTHORIZED"
            session.close()
        assert code_of(lambda: client.info(question("SELECT 1"))) == "UNAUTHORIZED"

        def write_on() -> None:
            writer.write_batch(batch)
            writer.done_writing()
            assert receipts.read() is None
            writer.close()

        assert code_of(write_on) == "UNAUTHORIZED"
    assert ask(connection, "SELECT count(*) FROM t", consistency="strong") == [(6,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE t",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_parquet('s3://bucket/key')",
        "SELECT * FROM glob('/**')",
        f"COPY t TO '{LEAK}'",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT getenv('HOME')",
        "INSERT INTO t (name) SELECT content FROM read_text('/etc/passwd')",
        "INSERT INTO t (name) VALUES ((SELECT content FROM read_text('/etc/passwd')))",
        "INSERT INTO t (name) VALUES (getenv('HOME'))",
        "UPDATE t SET id = 0",
        "DELETE FROM t",
        "CREATE TABLE x AS SELECT * FROM read_text('/etc/passwd')",
        "CREATE TABLE x (a VARCHAR DEFAULT getenv('HOME'))",
        "CREATE VIEW x AS FROM '/etc/passwd'",
        "ALTER TABLE t ADD COLUMN leak VARCHAR DEFAULT getenv('HOME')",
        "EXPORT DATABASE '/tmp/leak'",
        "SELEC 1",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_secrets()",
    ],
)
def test_sql_that_may_not_run(house: House, unchanged: dbapi.Connection, sql: str) -> None:
    allowed = {
        *("SQL_NOT_ALLOWED", "NOT_SUPPORTED", "TABLE_NOT_FOUND"),
        *("QUERY_EXECUTION_FAILED", "INVALID_COMMAND"),
    }
    assert code_of(lambda: ask(unchanged, sql)) in allowed
    with plain(house) as client:
        assert (
            code_of(lambda: client.rows(client.info(question(sql)).endpoints[0].ticket.ticket))
            in allowed
        )
    assert not LEAK.exists()
