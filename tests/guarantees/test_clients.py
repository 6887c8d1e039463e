"""What data people use works unchanged: ADBC, pandas, Polars, over real processes."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from polars.testing import assert_frame_equal
from pyarrow import flight

from flight_server import messages
from tests.processes import PlainClient, service

HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
OPTION = "adbc.flight.sql.session.option.last_visibility_token"
DAY = date(2026, 1, 31)
NOON = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["a", "b", None]})


@pytest.fixture(scope="module")
def uri(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clients")
    with service(module_database_dsn, folder) as running:
        _, uri = running.serve()
        running.coordinate("c1")
        yield uri


@pytest.fixture
def connection(uri: str) -> Iterator[dbapi.Connection]:
    with dbapi.connect(uri, autocommit=True) as connection:
        yield connection


@pytest.fixture
def table(request: pytest.FixtureRequest) -> str:
    """A table name that no other test uses."""
    return "t_" + "".join(c if c.isalnum() else "_" for c in request.node.name)[:100].lower()


def ask(connection: dbapi.Connection, sql: str, *values: Any, **headers: Any) -> list[Any]:
    options = {f"{HEADER}{k.replace('_', '-')}": str(v) for k, v in headers.items()}
    with connection.cursor(adbc_stmt_kwargs=options) as cursor:
        cursor.execute(sql, values or None)
        return list(cursor.fetchall())


def ingest(connection: dbapi.Connection, table: str, rows: Any, mode: str, **headers: Any) -> int:
    options = {f"{HEADER}{k.replace('_', '-')}": str(v) for k, v in headers.items()}
    with connection.cursor(adbc_stmt_kwargs=options) as cursor:
        return int(cursor.adbc_ingest(table, rows, mode=mode))


def last_token(connection: dbapi.Connection) -> int:
    return int(connection.adbc_connection.get_option_int(OPTION))


# ---- pandas

FRAME = pd.DataFrame(
    {
        "whole": pd.Series([1, 2, 3], dtype="int64"),
        "small": pd.Series([1, None, 3], dtype="Int16"),
        "real": [0.5, None, 2.5],
        "yes": [True, False, True],
        "text": ["a", None, "ü"],
        "moment": pd.to_datetime(["2026-01-31T12:00:00.25Z", None, "2026-02-01T00:00:00.50Z"]),
        "wall": pd.to_datetime(["2026-01-31T12:00:00", "2026-01-31T12:00:01", None]),
        "day": [DAY, None, DAY + timedelta(days=1)],
        "price": [Decimal("1.50"), Decimal("-2.25"), None],
    }
)


def read_back(connection: dbapi.Connection, table: str) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table} ORDER BY whole")
        return cursor.fetch_arrow_table().replace_schema_metadata(None)


def test_a_frame_comes_back_from_pandas_as_it_went(
    connection: dbapi.Connection, table: str
) -> None:
    FRAME.to_sql(table, connection, index=False)
    got = read_back(connection, table)
    expected = pa.Table.from_pandas(FRAME, preserve_index=False).to_pylist()
    assert got.to_pylist() == expected
    assert {field.name: str(field.type) for field in got.schema} == {
        "whole": "int64",
        "small": "int16",
        "real": "double",
        "yes": "bool",
        "text": "string",
        "moment": "timestamp[us, tz=UTC]",
        "wall": "timestamp[us]",
        "day": "date32[day]",
        "price": "decimal128(3, 2)",
    }
    frame = pd.read_sql(f"SELECT * FROM {table} ORDER BY whole", connection)
    assert frame["whole"].tolist() == [1, 2, 3]
    assert frame["text"].tolist()[0] == "a"
    assert frame["text"].isna().tolist() == [False, True, False]
    arrow = pd.read_sql(
        f"SELECT * FROM {table} ORDER BY whole",
        connection,
        dtype_backend="pyarrow",
    )
    assert arrow["price"].dropna().tolist() == [Decimal("1.50"), Decimal("-2.25")]
    assert arrow["small"].isna().tolist() == [False, True, False]


def test_pandas_appends_replaces_and_refuses(connection: dbapi.Connection, table: str) -> None:
    small = FRAME[["whole", "text"]]
    small.to_sql(table, connection, index=False, if_exists="fail")
    with pytest.raises(ValueError, match="exists"):
        small.to_sql(table, connection, index=False, if_exists="fail")
    small.to_sql(table, connection, index=False, if_exists="append")
    assert ask(connection, f"SELECT count(*), sum(whole) FROM {table}") == [(6, 12)]
    pd.DataFrame({"other": [0.5]}).to_sql(table, connection, index=False, if_exists="replace")
    assert ask(connection, f"SELECT * FROM {table}") == [(0.5,)]


# ---- Polars

POLARS = pl.DataFrame(
    {
        "whole": [1, 2, 3],
        "small": pl.Series([1, None, 3], dtype=pl.UInt8),
        "real": [0.5, None, 2.5],
        "yes": [True, None, False],
        "text": ["a", None, "ü"],
        "kind": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
        "moment": pl.Series([NOON, None, NOON], dtype=pl.Datetime("us", "UTC")),
        "day": [DAY, None, DAY],
        "price": pl.Series([Decimal("1.50"), None, Decimal(2)], dtype=pl.Decimal(9, 2)),
        "list": [[1, 2], None, []],
    }
)


def test_a_frame_comes_back_from_polars_as_it_went(
    uri: str, connection: dbapi.Connection, table: str
) -> None:
    POLARS.write_database(table, connection, engine="adbc")
    question = f"SELECT * FROM {table} ORDER BY whole"
    expected = POLARS.with_columns(pl.col("kind").cast(pl.String))
    assert_frame_equal(pl.read_database(question, connection), expected)
    over_uri = uri.replace("grpc://", "flightsql://") + "?transport=tcp"
    assert_frame_equal(pl.read_database_uri(question, over_uri, engine="adbc"), expected)


def test_polars_appends_and_replaces(connection: dbapi.Connection, table: str) -> None:
    small = POLARS.select("whole", "text")
    small.write_database(table, connection, engine="adbc")
    small.write_database(table, connection, engine="adbc", if_table_exists="append")
    assert ask(connection, f"SELECT count(*), sum(whole) FROM {table}") == [(6, 12)]
    other = pl.DataFrame({"other": ["x"]})
    other.write_database(table, connection, engine="adbc", if_table_exists="replace")
    assert ask(connection, f"SELECT * FROM {table}") == [("x",)]
    with pytest.raises(Exception, match="TABLE_EXISTS"):
        other.write_database(table, connection, engine="adbc", if_table_exists="fail")


# ---- ADBC


def reader_of(rows: pa.Table, times: int) -> pa.RecordBatchReader:
    batches = (batch for _ in range(times) for batch in rows.to_batches())
    return pa.RecordBatchReader.from_batches(rows.schema, batches)


def test_the_four_modes_take_a_reader(connection: dbapi.Connection, table: str) -> None:
    count = f"SELECT count(*), sum(id) FROM {table}"
    assert ingest(connection, table, reader_of(ROWS, 4), "create") == 12
    assert ask(connection, count) == [(12, 24)]
    with pytest.raises(dbapi.Error, match="TABLE_EXISTS"):
        ingest(connection, table, reader_of(ROWS, 1), "create")
    assert ingest(connection, table, reader_of(ROWS, 2), "append") == 6
    assert ingest(connection, table, reader_of(ROWS, 1), "create_append") == 3
    assert ask(connection, count) == [(21, 42)]
    other = pa.table({"id": [0.5], "more": [True]})
    assert ingest(connection, table, reader_of(other, 3), "replace") == 3
    assert ask(connection, f"SELECT * FROM {table}") == [(0.5, True)] * 3
    assert ingest(connection, table, other.to_batches()[0].slice(0, 0), "append") == 0


def test_metadata_shows_tables_columns_and_the_server(
    connection: dbapi.Connection, table: str
) -> None:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])
    ingest(connection, table, pa.table([[1], ["a"]], schema=schema), "create")
    assert connection.adbc_get_table_schema(table).equals(schema)
    objects = connection.adbc_get_objects(depth="all", table_name_filter=table)
    found = [
        each
        for catalog in objects.read_all().to_pylist()
        for database in catalog["catalog_db_schemas"]
        for each in database["db_schema_tables"]
    ]
    assert [each["table_name"] for each in found] == [table]
    assert [column["column_name"] for column in found[0]["table_columns"]] == ["id", "name"]
    assert "vendor_version" in connection.adbc_get_info()
    assert connection.adbc_get_table_types()
    assert connection.adbc_current_catalog == "duckmesh"
    assert connection.adbc_current_db_schema == "main"
    with pytest.raises(dbapi.Error, match=r"absent|NOT_FOUND|not found"):
        connection.adbc_get_table_schema("absent")


@pytest.mark.parametrize(
    "value",
    [
        *(7, -(2**63), 0.25, True, "ü'\"; --", "", b"\x00\xff", DAY, NOON, Decimal("12.345")),
        *(None, [1, 2, None], datetime(2026, 1, 31, 12, tzinfo=UTC).replace(tzinfo=None)),
    ],
    ids=repr,
)
def test_a_parameter_comes_back_as_it_went(connection: dbapi.Connection, value: object) -> None:
    assert ask(connection, "SELECT ? AS it", value) == [(value,)]


def test_parameters_of_a_prepared_statement(connection: dbapi.Connection, table: str) -> None:
    ingest(connection, table, ROWS, "create")
    by_id = f"SELECT name FROM {table} WHERE id = ?"
    with connection.cursor() as cursor:
        for value, expected in ((1, [("a",)]), (2, [("b",)]), (None, []), (9, [])):
            cursor.execute(by_id, (value,))
            assert cursor.fetchall() == expected
        cursor.execute(by_id, pa.record_batch({"1": [1, 2, 3]}))
        assert cursor.fetchall() == [("a",), ("b",), (None,)]
        schema = cursor.adbc_prepare(by_id)
        assert schema is not None
        assert schema.types == [pa.int64()]
    both = f"SELECT id FROM {table} WHERE name = $2 OR id = $1 ORDER BY id"
    assert ask(connection, both, 3, "a") == [(1,), (3,)]
    with pytest.raises(dbapi.Error, match="QUERY_EXECUTION_FAILED"):
        ask(connection, by_id)


def test_a_session_reads_its_own_writes_without_any_option(
    connection: dbapi.Connection, table: str
) -> None:
    for number in range(1, 16):
        ingest(connection, table, ROWS, "create_append")
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(3 * number,)]


def test_a_receipt_is_readable_in_every_way(connection: dbapi.Connection, table: str) -> None:
    rows = ROWS.replace_schema_metadata({"idempotency_key": f"run of {table}"})
    assert ingest(connection, table, rows, "create") == 3, "rowcount"
    token = last_token(connection)
    assert token > 0
    options = json.loads(connection.adbc_connection.get_option("adbc.flight.sql.session.options"))
    assert options["last_visibility_token"] == token
    assert ask(connection, "SELECT last_visibility_token()") == [(token,)]
    by_key = (
        "SELECT visibility_token, row_count FROM duckmesh_system.receipts WHERE idempotency_key = ?"
    )
    assert ask(connection, by_key, f"run of {table}") == [(token, 3)]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table}")
        metadata = cursor.fetch_arrow_table().schema.metadata
    assert int(metadata[b"duckmesh.max_visibility_token"]) >= token
    assert int(metadata[b"duckmesh.snapshot_id"]) > 0
    shown = connection.adbc_get_table_schema(table).metadata
    assert int(shown[b"duckmesh.visibility_token"]) == token


def test_a_key_in_metadata_or_header_makes_a_write_once(
    connection: dbapi.Connection, table: str
) -> None:
    ingest(connection, table, ROWS.to_batches()[0].slice(0, 0), "create")
    keyed = ROWS.replace_schema_metadata({"idempotency_key": "k1"})
    assert ingest(connection, table, keyed, "append") == 3
    token = last_token(connection)
    assert ingest(connection, table, keyed, "append") == 3
    assert ingest(connection, table, ROWS, "append", idempotency_key="k1") == 3
    assert last_token(connection) == token
    rechunked = pa.concat_tables([ROWS.slice(0, 1), ROWS.slice(1)])
    assert ingest(connection, table, rechunked, "append", idempotency_key="k1") == 3
    with pytest.raises(dbapi.Error, match="IDEMPOTENCY_CONFLICT"):
        ingest(connection, table, ROWS.slice(1), "append", idempotency_key="k1")
    assert ingest(connection, table, ROWS, "append", idempotency_key="k2") == 3
    assert ask(connection, f"SELECT count(*) FROM {table}") == [(6,)]


def test_a_write_that_waits_is_visible_when_it_answers(
    uri: str, connection: dbapi.Connection, table: str
) -> None:
    count = f"SELECT count(*) FROM {table}"
    for number in range(1, 6):
        ingest(connection, table, ROWS, "create_append", wait="true")
        assert ask(connection, count, consistency="latest") == [(3 * number,)]
    with flight.connect(uri) as client:
        options = flight.FlightCallOptions(headers=[(b"x-duckmesh-wait", b"true")])
        descriptor = flight.FlightDescriptor.for_path(table)
        writer, reader = client.do_put(descriptor, ROWS.schema, options)
        with writer:
            writer.write_table(ROWS)
            writer.done_writing()
            receipt = json.loads(reader.read().to_pybytes())
    seen = receipt["visible_snapshot_id"]
    assert ask(connection, count, snapshot_id=seen) == [(18,)]


def test_a_question_about_the_past_is_answered_from_the_past(
    connection: dbapi.Connection, table: str
) -> None:
    ingest(connection, table, ROWS, "create", wait="true")
    count = f"SELECT count(*) FROM {table}"
    newest = (
        "SELECT snapshot_id, created_at FROM duckmesh_system.snapshots "
        "ORDER BY snapshot_id DESC LIMIT 1"
    )
    ((snapshot_id, created_at),) = ask(connection, newest)
    for _ in range(3):
        ingest(connection, table, ROWS, "append")
    assert ask(connection, count) == [(12,)]
    assert ask(connection, count, snapshot_id=snapshot_id) == [(3,)]
    assert ask(connection, count, snapshot_time=created_at.isoformat()) == [(3,)]
    ingest(connection, table, ROWS.slice(0, 1), "replace", wait="true")
    assert ask(connection, count) == [(1,)]
    assert ask(connection, count, snapshot_id=snapshot_id) == [(3,)]


def test_answers_that_nobody_fetches_hold_no_turn(uri: str, connection: dbapi.Connection) -> None:
    """A client that leaves before the first row gives its turn back; four may run at once."""
    command = messages.wrap(
        messages.sql("CommandStatementQuery")(query="SELECT * FROM range(100000000)")
    )
    with flight.connect(uri) as client:
        info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
        for _ in range(20):
            client.do_get(info.endpoints[0].ticket).cancel()
    plain = PlainClient(uri)
    assert plain.query("SELECT 1 AS one")["one"].to_pylist() == [1]
    plain.close()
    assert ask(connection, "SELECT 1") == [(1,)]
