"""What a plain ADBC client does, against the whole door."""

import json

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from flight_server.session_options import LAST_TOKEN

STATUS = adbc_driver_manager.AdbcStatusCode
CALL_HEADER = "adbc.flight.sql.rpc.call_header."
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["a", "b", None]})


@pytest.fixture
def connection(uri):
    with adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection:
        yield connection


@pytest.fixture
def cursor(connection):
    with connection.cursor() as cursor:
        yield cursor


def session_option(connection, name):
    return connection.adbc_connection.get_option_int(f"adbc.flight.sql.session.option.{name}")


def test_connecting_begins_a_transaction_without_a_warning(uri):
    with (
        adbc_driver_flightsql.dbapi.connect(uri) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1 AS one")
        assert cursor.fetchall() == [(1,)]


@pytest.mark.parametrize("mode", ["create", "append", "replace", "create_append"])
def test_ingest_in_each_mode(house, cursor, mode):
    if mode == "append":
        cursor.adbc_ingest("t", ROWS, mode="create")
    assert cursor.adbc_ingest("t", ROWS, mode=mode) == 3
    cursor.execute("SELECT count(*), sum(id) FROM t")
    assert cursor.fetchall() == [(6, 12) if mode == "append" else (3, 6)]
    if mode == "create":
        with pytest.raises(adbc_driver_manager.Error, match="TABLE_EXISTS"):
            cursor.adbc_ingest("t", ROWS, mode=mode)
    else:
        cursor.adbc_ingest("t", ROWS, mode=mode)
        cursor.execute("SELECT count(*) FROM t")
        expected = {"append": 9, "replace": 3, "create_append": 6}[mode]
        assert cursor.fetchall() == [(expected,)]


def test_a_missing_table_is_not_found(cursor):
    with pytest.raises(adbc_driver_manager.Error, match="TABLE_NOT_FOUND") as caught:
        cursor.adbc_ingest("nowhere", ROWS, mode="append")
    assert caught.value.status_code is STATUS.NOT_FOUND
    with pytest.raises(adbc_driver_manager.Error, match="TABLE_NOT_FOUND"):
        cursor.execute("SELECT * FROM nowhere")


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (pa.table({"id": ["x"], "name": ["a"]}), "SCHEMA_INCOMPATIBLE"),
        (pa.table({"id": pa.array([1], pa.int64())}), "SCHEMA_INCOMPATIBLE"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(house, cursor, rows, code):
    cursor.adbc_ingest("t", ROWS, mode="create")
    with pytest.raises(adbc_driver_manager.Error, match=code):
        cursor.adbc_ingest("t", rows, mode="append")
    assert house.rows_of(2, "t") == 3


def test_parameters_are_bound_row_by_row(cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.execute("SELECT name FROM t WHERE id = ?", (2,))
    assert cursor.fetchall() == [("b",)]
    cursor.execute("SELECT name FROM t WHERE id = ?", (1,))
    assert cursor.fetchall() == [("a",)]
    with pytest.raises(adbc_driver_manager.Error, match="takes 1 parameters and none is bound"):
        cursor.execute("SELECT id FROM t WHERE name = ?")


def test_statements_that_are_no_query_run_once_and_tell_their_token(house, cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.execute("DROP TABLE t")
    table = cursor.fetch_arrow_table()
    assert table.to_pylist() == [{"Count": None, "visibility_token": 2}]
    assert house.rows_of(2, "t") is None
    with pytest.raises(adbc_driver_manager.Error, match="TABLE_NOT_FOUND"):
        cursor.execute("DROP TABLE t")


def test_executescript_runs_statements(house, connection, cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    # The driver takes no script on a cursor that has ingested.
    with connection.cursor() as fresh:
        fresh.executescript("DROP TABLE t")
    assert house.rows_of(2, "t") is None


def test_the_session_reads_its_own_writes_with_no_option(house, connection, cursor):
    assert session_option(connection, LAST_TOKEN) == 0
    cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.adbc_ingest("t", ROWS, mode="append")
    assert session_option(connection, LAST_TOKEN) == 2
    house.points.clear()
    cursor.execute("SELECT count(*) FROM t")
    assert cursor.fetchall() == [(6,)]
    assert {point.min_token for point in house.points} == {2}
    cursor.execute("SELECT last_visibility_token()")
    assert cursor.fetchall() == [(2,)]


def test_another_server_with_the_secret_continues_the_session(house, open_door):
    first, second = open_door(), open_door()
    with (
        adbc_driver_flightsql.dbapi.connect(
            f"grpc://127.0.0.1:{first.port}", autocommit=True
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.adbc_ingest("t", ROWS, mode="create")
        cursor.adbc_statement.set_sql_query("SELECT count(*) AS n FROM t")
        partitions, _, _ = cursor.adbc_statement.execute_partitions()
    with adbc_driver_flightsql.dbapi.connect(
        f"grpc://127.0.0.1:{second.port}", autocommit=True
    ) as connection:
        handle = connection.adbc_connection.read_partition(partitions[0])
        reader = pa.RecordBatchReader._import_from_c(handle.address)
        assert reader.read_all().to_pylist() == [{"n": 3}]


def test_call_headers_choose_snapshot_and_token(house, connection):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("t", ROWS, mode="create")
        cursor.adbc_ingest("t", ROWS, mode="append")
    kwargs = {f"{CALL_HEADER}x-duckmesh-snapshot-id": "1"}
    with connection.cursor(adbc_stmt_kwargs=kwargs) as cursor:
        cursor.execute("SELECT count(*) AS n FROM t")
        table = cursor.fetch_arrow_table()
    assert table.to_pylist() == [{"n": 3}]
    assert table.schema.metadata[b"duckmesh.snapshot_id"] == b"1"
    kwargs = {f"{CALL_HEADER}x-duckmesh-min-visibility-token": "77"}
    with (
        connection.cursor(adbc_stmt_kwargs=kwargs) as cursor,
        pytest.raises(adbc_driver_manager.Error, match="VISIBILITY_TOKEN_INVALID"),
    ):
        cursor.execute("SELECT 1")


@pytest.mark.parametrize("channel", ["call header", "schema metadata"])
def test_an_idempotency_key_writes_once(house, connection, channel):
    kwargs, rows = {}, ROWS
    if channel == "call header":
        kwargs = {f"{CALL_HEADER}x-duckmesh-idempotency-key": "k1"}
    else:
        rows = ROWS.replace_schema_metadata({"idempotency_key": "k1"})
    with connection.cursor(adbc_stmt_kwargs=kwargs) as cursor:
        assert cursor.adbc_ingest("t", rows, mode="create_append") == 3
        assert cursor.adbc_ingest("t", rows, mode="create_append") == 3
        with pytest.raises(adbc_driver_manager.Error, match="IDEMPOTENCY_CONFLICT"):
            cursor.adbc_ingest("t", rows.slice(0, 1), mode="create_append")
    assert house.rows_of(2, "t") == 3
    assert session_option(connection, LAST_TOKEN) == 1


def test_a_wait_that_times_out_says_that_the_write_stands(house, connection):
    house.visible = False
    kwargs = {f"{CALL_HEADER}x-duckmesh-wait": "true"}
    with (
        connection.cursor(adbc_stmt_kwargs=kwargs) as cursor,
        pytest.raises(adbc_driver_manager.Error, match="accepted, not visible") as caught,
    ):
        cursor.adbc_ingest("t", ROWS, mode="create")
    assert caught.value.status_code is STATUS.TIMEOUT
    details = {name.decode(): value for name, value in caught.value.details}
    assert json.loads(details["x-duckmesh-error"])["context"]["requested_token"] == 1


def test_metadata_calls(connection, cursor):
    cursor.adbc_ingest("flights", ROWS, mode="create")
    objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    (catalog,) = [each for each in objects if each["catalog_name"] == "duckmesh"]
    schemas = {each["db_schema_name"]: each for each in catalog["catalog_db_schemas"]}
    assert set(schemas) == {"duckmesh_system", "main"}
    schema = schemas["main"]
    assert schema["db_schema_name"] == "main"
    (table,) = schema["db_schema_tables"]
    assert (table["table_name"], table["table_type"]) == ("flights", "TABLE")
    columns = [column["column_name"] for column in table["table_columns"]]
    assert columns == ["id", "name"]
    assert connection.adbc_get_table_schema("flights").names == ["id", "name"]
    assert connection.adbc_get_table_types() == ["SYSTEM TABLE", "TABLE", "VIEW"]
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "duckmesh"
    assert info["vendor_version"].startswith("duckdb v")
    assert connection.adbc_current_catalog == "duckmesh"
    assert connection.adbc_current_db_schema == "main"
    with pytest.raises(adbc_driver_manager.Error):
        connection.adbc_get_table_schema("nowhere")


def test_pandas_and_polars_round_trip(uri, connection):
    frame = pd.DataFrame({"id": [1, 2], "x": [0.5, None]})
    assert frame.to_sql("from_pandas", connection, index=False, if_exists="append") == 2
    back = pd.read_sql("SELECT * FROM from_pandas ORDER BY id", connection)
    assert back["id"].tolist() == [1, 2]
    polars = pl.DataFrame({"id": [3, 4], "name": ["c", "d"]})
    polars.write_database("from_polars", connection, engine="adbc", if_table_exists="replace")
    read = pl.read_database("SELECT * FROM from_polars ORDER BY id", connection)
    assert read.rows() == [(3, "c"), (4, "d")]


def test_tenants_do_not_meet(house, open_door, ada, anybody):
    door = open_door({"ada-key": ada})
    uri = f"grpc://127.0.0.1:{door.port}"
    authorization = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
    with (
        adbc_driver_flightsql.dbapi.connect(
            uri, db_kwargs={authorization: "Bearer ada-key"}, autocommit=True
        ) as hers,
        adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as theirs,
        hers.cursor() as her_cursor,
        theirs.cursor() as their_cursor,
    ):
        her_cursor.adbc_ingest("t", ROWS, mode="create")
        with pytest.raises(adbc_driver_manager.Error, match="TABLE_NOT_FOUND"):
            their_cursor.execute("SELECT * FROM t")
        her_cursor.adbc_statement.set_sql_query("SELECT * FROM t")
        partitions, _, _ = her_cursor.adbc_statement.execute_partitions()
        with pytest.raises(adbc_driver_manager.Error, match="TICKET_INVALID"):
            theirs.adbc_connection.read_partition(partitions[0])
        assert theirs.adbc_get_objects(depth="tables").read_all().num_rows == 1


def test_a_large_result_streams_in_small_messages(uri, connection, cursor):
    wide = pa.table({"id": range(20_000), "text": ["x" * 1000] * 20_000})
    reader = pa.RecordBatchReader.from_batches(wide.schema, wide.to_batches(max_chunksize=5000))
    assert cursor.adbc_ingest("wide", reader, mode="create") == 20_000
    cursor.execute("SELECT * FROM wide")
    reader = cursor.fetch_record_batch()
    sizes = [batch.nbytes for batch in reader]
    assert sum(1 for _ in sizes) > 5
    assert max(sizes) < 4 * 2**20


def test_a_cursor_that_has_ingested_hears_why_a_statement_is_refused(cursor):
    cursor.adbc_ingest("t", ROWS, mode="create")
    cursor.execute("SELECT count(*) FROM t")
    with pytest.raises(adbc_driver_manager.ProgrammingError, match=r"\[NOT_SUPPORTED\] PIVOT"):
        cursor.execute("PIVOT t ON name USING count(*)")
    cursor.execute("SELECT count(*) FROM t")
    assert cursor.fetchall() == [(3,)]


def test_an_error_midway_is_typed_and_says_nothing_of_the_inside(cursor):
    cursor.execute(
        "SELECT CASE WHEN i = 400000 THEN error('boom') ELSE i::VARCHAR END FROM range(500000) r(i)"
    )
    with pytest.raises((OSError, pa.ArrowException, adbc_driver_manager.Error)) as caught:
        cursor.fetch_arrow_table()
    assert "QUERY_EXECUTION_FAILED" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert ".py" not in str(caught.value)
