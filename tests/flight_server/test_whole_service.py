"""The door over the real gateway: Postgres, a directory store, a coordinator, and plain clients."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import flight

from catalog.connection import Catalog
from coordinator.run import Coordinator, CoordinatorOptions
from flight_server import answers, messages
from flight_server.server import DoorOptions, FlightDoor
from flight_server.session_options import LAST_TOKEN
from flight_server.tickets import Seal
from gateway import tenancy
from gateway.identity import EVERY_ROLE
from gateway.limits import IngestLimits
from gateway.reads import ReadLimits, Reads
from gateway.sessions import ClientSessions
from gateway.sql_writes import SqlWrites
from gateway.staging import StagingLimits
from gateway.tenancy import Tenancy
from gateway.transactions import Transactions
from gateway.visibility import Visibility
from gateway.writes import Writes
from ingest_bus.postgres import PostgresIngestBus
from object_store.directory import DirectoryStore
from object_store.file_cache import FileCache
from query_engine.engine import QueryEngine
from tests.rooms import WORKERS

AUTHORIZATION = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
CALL_HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
STATUS = adbc_driver_manager.AdbcStatusCode
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["a", "b", None]})


class Service:
    """One database and one store; doors and coordinators over them as asked."""

    def __init__(self, dsn, directory):
        self.catalog = Catalog(dsn, pool_max=16)
        self.bus = PostgresIngestBus(self.catalog)
        self.directory = directory
        self.store = DirectoryStore(directory / "objects")
        self.ends = ExitStack()
        self.ends.callback(self.catalog.close)
        self.ends.callback(self.bus.close)
        self.doors = 0
        self.opened = []

    def open_door(self, *, open_tenant="default", **options):
        self.doors += 1
        cache_root = self.directory / f"cache-{self.doors}"
        engine = QueryEngine(
            threads=2, memory_limit_bytes=512 * 2**20, temp_directory=None, workers=WORKERS
        )
        self.ends.callback(engine.close)
        cache = FileCache(cache_root, capacity_bytes=2**28)
        self.ends.callback(cache.close)
        writes = Writes(
            self.catalog, self.bus, self.store, limits=IngestLimits(), staging=StagingLimits()
        )
        reads = Reads(
            self.catalog,
            self.bus,
            self.store,
            engine=engine,
            cache=cache,
            visibility=Visibility(self.catalog, self.bus),
            limits=ReadLimits(),
        )
        sql_writes = SqlWrites(reads, writes, engine=engine)
        self.ends.callback(sql_writes.close)
        door = FlightDoor(
            DoorOptions(**options),
            reads=reads,
            writes=writes,
            sessions=ClientSessions(self.catalog),
            sql_writes=sql_writes,
            transactions=Transactions(self.catalog, self.bus, self.store),
            authenticator=Tenancy(self.catalog, open_tenant=open_tenant),
            seal=Seal(b"s" * 32),
        )
        self.opened.append((door, reads))
        self.ends.callback(door.close)
        self.ends.callback(door.drain, timedelta(seconds=5))
        return f"grpc://127.0.0.1:{door.port}"

    @contextmanager
    def coordinating(self):
        stop = threading.Event()
        options = CoordinatorOptions(
            consumer_id="test", poll=timedelta(milliseconds=200), flush_interval=timedelta(0)
        )
        coordinator = Coordinator(self.catalog, self.bus, self.store, options=options)
        thread = threading.Thread(target=coordinator.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            self.bus.wake()
            thread.join(20)
            assert not thread.is_alive()

    def key_of(self, tenant, roles=tuple(EVERY_ROLE)):
        tenancy.ensure_tenant(self.catalog, tenant, principal="test")
        _, secret = tenancy.create_key(
            self.catalog, tenant, name="test", roles=[role.value for role in roles]
        )
        return secret


@pytest.fixture
def stopped_service(database_dsn, tmp_path):
    """A service whose writes become visible only while `coordinating`."""
    service = Service(database_dsn, tmp_path)
    with service.ends:
        yield service


@pytest.fixture
def service(stopped_service):
    with stopped_service.coordinating():
        yield stopped_service


@pytest.fixture
def uri(service):
    return service.open_door()


def connect(uri, secret=None):
    options = {} if secret is None else {AUTHORIZATION: f"Bearer {secret}"}
    return adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=options, autocommit=True)


@pytest.fixture
def connection(uri):
    with connect(uri) as connection:
        yield connection


@pytest.fixture
def cursor(connection):
    with connection.cursor() as cursor:
        yield cursor


def ask(connection, sql, **headers):
    kwargs = {f"{CALL_HEADER}{k.replace('_', '-')}": str(v) for k, v in headers.items()}
    with connection.cursor(adbc_stmt_kwargs=kwargs) as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def last_token(connection):
    option = f"adbc.flight.sql.session.option.{LAST_TOKEN}"
    return connection.adbc_connection.get_option_int(option)


def test_a_plain_client_reads_its_own_write_at_once(connection, cursor):
    for number in range(1, 31):
        cursor.adbc_ingest("t", ROWS, mode="create_append")
        assert ask(connection, "SELECT count(*) FROM t") == [(3 * number,)]
    assert last_token(connection) == 30


def test_the_four_modes(connection, cursor):
    assert cursor.adbc_ingest("t", ROWS, mode="create") == 3
    with pytest.raises(adbc_driver_manager.Error, match="TABLE_EXISTS"):
        cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.adbc_ingest("t", ROWS, mode="append")
    assert ask(connection, "SELECT count(*), sum(id) FROM t") == [(6, 12)]
    cursor.adbc_ingest("t", pa.table({"x": [1.5]}), mode="replace")
    assert ask(connection, "SELECT * FROM t") == [(1.5,)]
    cursor.adbc_ingest("t", pa.table({"x": [2.5]}), mode="create_append")
    assert ask(connection, "SELECT sum(x) FROM t") == [(4.0,)]


def test_a_large_ingest_is_staged_and_read_back(connection, cursor):
    rows = pa.table({"id": pa.array(range(500_000)), "text": ["x" * 20] * 500_000})
    reader = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches(max_chunksize=50_000))
    assert cursor.adbc_ingest("big", reader, mode="create") == 500_000
    assert ask(connection, "SELECT count(*), sum(id) FROM big") == [(500_000, sum(range(500_000)))]
    cursor.execute("SELECT * FROM big")
    assert cursor.fetch_arrow_table().num_rows == 500_000


def test_a_token_of_one_connection_is_the_minimum_of_another(service, uri, connection, cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    token = last_token(connection)
    with connect(service.open_door()) as other:
        assert ask(other, "SELECT count(*) FROM t", min_visibility_token=token) == [(3,)]
        with pytest.raises(adbc_driver_manager.Error, match="VISIBILITY_TOKEN_INVALID"):
            ask(other, "SELECT count(*) FROM t", min_visibility_token=token + 1)


def test_a_token_that_is_not_visible_in_time_says_so(stopped_service):
    uri = stopped_service.open_door()
    with connect(uri) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("t", ROWS, mode="create")
        with pytest.raises(adbc_driver_manager.Error, match="CONSISTENCY_TIMEOUT") as caught:
            ask(connection, "SELECT count(*) FROM t", consistency_timeout_ms=100)
        assert caught.value.status_code is STATUS.TIMEOUT
        details = {name.decode(): value for name, value in caught.value.details}
        context = json.loads(details["x-duckmesh-error"])["context"]
        assert context["requested_token"] == 1
        assert details["x-duckmesh-visibility-token"] == b"0"
        assert ask(connection, "SELECT count(*) FROM t", consistency="latest") == [(0,)]
        with stopped_service.coordinating():
            assert ask(connection, "SELECT count(*) FROM t", consistency="strong") == [(3,)]


def test_a_write_may_wait_until_it_is_visible(uri):
    with flight.connect(uri) as client, connect(uri) as connection:
        with connection.cursor() as cursor:
            cursor.adbc_ingest("t", ROWS, mode="create")
        wait = flight.FlightCallOptions(headers=[(b"x-duckmesh-wait", b"true")])
        target = flight.FlightDescriptor.for_path("t")
        writer, receipts = client.do_put(target, ROWS.schema, wait)
        with writer:
            writer.write_table(ROWS)
            receipt = json.loads(receipts.read().to_pybytes())
            writer.done_writing()
        seen = receipt["visible_snapshot_id"]
        assert ask(connection, "SELECT count(*) FROM t", snapshot_id=seen) == [(6,)]


def test_a_snapshot_answers_the_same_for_ever(connection, cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.execute("SELECT * FROM t ORDER BY id")
    before = cursor.fetch_arrow_table()
    snapshot_id = int(before.schema.metadata[b"duckmesh.snapshot_id"])
    for _ in range(5):
        cursor.adbc_ingest("t", ROWS, mode="append")
    assert ask(connection, "SELECT count(*) FROM t") == [(18,)]
    kwargs = {f"{CALL_HEADER}snapshot-id": str(snapshot_id)}
    with connection.cursor(adbc_stmt_kwargs=kwargs) as pinned:
        pinned.execute("SELECT * FROM t ORDER BY id")
        assert pinned.fetch_arrow_table().equals(before, check_metadata=True)
    with pytest.raises(adbc_driver_manager.Error, match="SNAPSHOT_NOT_FOUND") as caught:
        ask(connection, "SELECT 1", snapshot_id=10**12)
    assert caught.value.status_code is STATUS.NOT_FOUND


def test_a_key_from_eight_clients_at_once_writes_once(uri, connection):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("t", ROWS.to_batches()[0].slice(0, 0), mode="create")
    rows = ROWS.replace_schema_metadata({"idempotency_key": "k"})

    def send(_):
        with connect(uri) as mine, mine.cursor() as cursor:
            return cursor.adbc_ingest("t", rows, mode="append"), last_token(mine)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert len(set(answers)) == 1
    assert ask(connection, "SELECT count(*) FROM t", consistency="strong") == [(3,)]
    with (
        connection.cursor() as cursor,
        pytest.raises(adbc_driver_manager.Error, match="IDEMPOTENCY_CONFLICT"),
    ):
        cursor.adbc_ingest("t", rows.slice(0, 1), mode="append")


@pytest.mark.parametrize("batches", [50])
def test_a_stream_has_a_dense_token_for_each_batch(uri, connection, batches):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("t", ROWS, mode="create")
    with flight.connect(uri) as client:
        writer, receipts = client.do_put(flight.FlightDescriptor.for_path("t"), ROWS.schema)
        with writer:
            for number in range(batches):
                key = json.dumps({"idempotency_key": f"b{number}"}).encode()
                writer.write_with_metadata(ROWS.to_batches()[0], key)
            writer.done_writing()
            got = [json.loads(receipts.read().to_pybytes()) for _ in range(batches)]
    assert [each["visibility_token"] for each in got] == list(range(2, batches + 2))
    count = ask(connection, "SELECT count(*) FROM t", min_visibility_token=batches + 1)
    assert count == [(3 * (batches + 1),)]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (pa.table({"id": ["x"], "name": ["a"]}), "SCHEMA_INCOMPATIBLE"),
        (pa.table({"id": pa.array([1], pa.int64())}), "SCHEMA_INCOMPATIBLE"),
        (pa.table({"id": pa.array([None], pa.int64()), "name": ["a"]}), "INVALID_PAYLOAD"),
    ],
    ids=["wrong type", "missing column", "null"],
)
def test_rows_that_do_not_fit_leave_nothing(connection, cursor, rows, code):
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.utf8())])
    cursor.adbc_ingest("t", pa.table([[1], ["a"]], schema=strict), mode="create")
    with pytest.raises(adbc_driver_manager.Error, match=code) as caught:
        cursor.adbc_ingest("t", rows, mode="append")
    assert caught.value.status_code is STATUS.INVALID_ARGUMENT
    assert ask(connection, "SELECT count(*) FROM t", consistency="strong") == [(1,)]
    assert last_token(connection) == 1


def test_tenants_do_not_meet(service):
    uri = service.open_door(open_tenant=None)
    with connect(uri, service.key_of("acme")) as hers, connect(uri, service.key_of("zeta")) as his:
        with hers.cursor() as cursor:
            cursor.adbc_ingest("t", ROWS, mode="create")
            cursor.execute("SELECT * FROM t")
            table = cursor.fetch_arrow_table()
            cursor.adbc_statement.set_sql_query("SELECT * FROM t")
            partitions, _, _ = cursor.adbc_statement.execute_partitions()
        with pytest.raises(adbc_driver_manager.Error, match="TABLE_NOT_FOUND"):
            ask(his, "SELECT * FROM t")
        with pytest.raises(adbc_driver_manager.Error, match="SNAPSHOT_NOT_FOUND"):
            ask(his, "SELECT 1", snapshot_id=int(table.schema.metadata[b"duckmesh.snapshot_id"]))
        with pytest.raises(adbc_driver_manager.Error, match="TICKET_INVALID"):
            his.adbc_connection.read_partition(partitions[0])
        with pytest.raises(adbc_driver_manager.Error, match="VISIBILITY_TOKEN_INVALID"):
            ask(his, "SELECT 1", min_visibility_token=1)


def test_roles_are_asked_for(service, uri, cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    reader = service.key_of("default", [role for role in EVERY_ROLE if role == "query_reader"])
    writer = service.key_of("default", [role for role in EVERY_ROLE if role == "ingest_writer"])
    with (
        connect(uri, reader) as reading,
        reading.cursor() as forbidden,
        pytest.raises(adbc_driver_manager.Error, match="FORBIDDEN") as caught,
    ):
        forbidden.adbc_ingest("t", ROWS, mode="append")
    assert caught.value.status_code is STATUS.UNAUTHORIZED
    with (
        connect(uri, writer) as writing,
        pytest.raises(adbc_driver_manager.Error, match="FORBIDDEN"),
    ):
        ask(writing, "SELECT * FROM t")


def test_drop_table_runs_once(connection, cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.execute("DROP TABLE t")
    assert cursor.fetchall() == [(None, None)]
    with pytest.raises(adbc_driver_manager.Error, match="TABLE_NOT_FOUND"):
        ask(connection, "SELECT * FROM t")
    with pytest.raises(adbc_driver_manager.Error, match="NOT_SUPPORTED") as caught:
        ask(connection, "COPY t TO 't.csv'")
    assert caught.value.status_code is STATUS.NOT_IMPLEMENTED


def test_pandas_and_polars_round_trips(connection):
    frame = pd.DataFrame({"id": [1, 2], "x": [0.5, None], "at": pd.to_datetime(["2026-01-01"] * 2)})
    frame.to_sql("p", connection, index=False, if_exists="append")
    back = pd.read_sql("SELECT * FROM p ORDER BY id", connection)
    assert back["id"].tolist() == [1, 2]
    polars = pl.DataFrame({"id": [3, 4], "name": ["c", "d"]})
    for mode in ("replace", "append"):
        polars.write_database("q", connection, engine="adbc", if_table_exists=mode)
    read = pl.read_database("SELECT * FROM q ORDER BY id", connection)
    assert read.rows() == [(3, "c"), (3, "c"), (4, "d"), (4, "d")]


def test_objects_and_schemas_show_what_is_there(connection, cursor):
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.utf8())])
    cursor.adbc_ingest("t", pa.table([[1], ["a"]], schema=strict), mode="create")
    schema = connection.adbc_get_table_schema("t")
    assert schema.equals(strict)
    assert schema.field("id").metadata[b"ARROW:FLIGHT:SQL:TYPE_NAME"] == b"BIGINT"
    objects = connection.adbc_get_objects(depth="columns").read_all().to_pylist()
    (catalog,) = [each for each in objects if each["catalog_name"] == "duckmesh"]
    (main,) = [s for s in catalog["catalog_db_schemas"] if s["db_schema_name"] == "main"]
    tables = main["db_schema_tables"]
    assert [table["table_name"] for table in tables] == ["t"]


def test_the_receipt_is_readable_by_sql_and_by_key(connection, cursor):
    rows = ROWS.replace_schema_metadata({"idempotency_key": "run-9"})
    cursor.adbc_ingest("t", rows, mode="create")
    token = last_token(connection)
    assert ask(connection, "SELECT last_visibility_token()") == [(token,)]
    found = ask(
        connection,
        "SELECT visibility_token FROM duckmesh_system.receipts WHERE idempotency_key = 'run-9'",
    )
    assert found == [(token,)]


def put(client, message, **fields):
    """Send a command by DoPut with one row of no columns; return the record count."""
    command = messages.wrap(messages.sql(message)(**fields))
    descriptor = flight.FlightDescriptor.for_command(command)
    writer, reader = client.do_put(descriptor, pa.schema([]))
    writer.done_writing()
    count, _ = answers.read_update_result(reader.read().to_pybytes())
    writer.close()
    return count


def test_a_definition_has_no_count_and_a_prepared_one_counts_no_rows(uri):
    """ADBC knows -1 as "no count". JDBC takes it for "not run yet", and would run it again."""
    with flight.connect(uri) as client:
        assert put(client, "CommandStatementUpdate", query="CREATE TABLE a (x INTEGER)") == -1
        request = messages.sql("ActionCreatePreparedStatementRequest")(
            query="CREATE TABLE b (x INTEGER)"
        )
        action = flight.Action("CreatePreparedStatement", messages.wrap(request))
        (result,) = client.do_action(action)
        prepared = messages.sql("ActionCreatePreparedStatementResult")()
        prepared.ParseFromString(messages.any_of(result.body.to_pybytes())[1])
        handle = prepared.prepared_statement_handle
        sent = put(client, "CommandPreparedStatementUpdate", prepared_statement_handle=handle)
        assert sent == 0
