"""No message is too large for its client; a row that would be says what to do."""

import random

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from pyarrow import flight

from catalog.table_schema import TableSchema
from duckmesh.identifiers import TenantId
from flight_server import messages, tickets
from query_engine.stream import QueryLimits
from tests.flight_server.small_house import SmallTable

GRPC_DEFAULT = 4 * 2**20
LIMIT = "adbc.flight.sql.client_option.with_max_msg_size"
COLOURS = "SELECT (['red', 'green', NULL])[1 + range % 3]::ENUM ('red', 'green') AS colour"
REFUSALS = (pa.ArrowException, KeyError, NotImplementedError)


@pytest.fixture
def narrow_client(uri):
    """A client that refuses what gRPC's default limit refuses."""
    options = [("grpc.max_receive_message_length", GRPC_DEFAULT)]
    with flight.connect(uri, generic_options=options) as client:
        yield client


@pytest.fixture
def narrow_cursor(uri):
    options = {LIMIT: str(GRPC_DEFAULT)}
    with (
        adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=options, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        yield cursor


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT range, repeat('x', 1000) AS wide FROM range(30000)", 30_000),
        ("SELECT repeat('y', 2000000) FROM range(5)", 5),
        ("SELECT list_transform(range(200), lambda i: i * range) FROM range(10000)", 10_000),
        ("SELECT {'a': repeat('z', 500), 'b': [range, NULL]} AS s FROM range(20000)", 20_000),
        ("SELECT MAP {'k' || range: repeat('m', 300)} FROM range(30000)", 30_000),
        (f"{COLOURS}, repeat('e', 200) FROM range(60000)", 60_000),
    ],
)
def test_results_of_every_shape_fit_grpcs_default(narrow_cursor, sql, rows):
    narrow_cursor.execute(sql)
    assert narrow_cursor.fetch_arrow_table().num_rows == rows


def test_an_enum_keeps_its_values(narrow_cursor):
    narrow_cursor.execute(f"{COLOURS} FROM range(200000)")
    colours = narrow_cursor.fetch_arrow_table()["colour"]
    assert pa.types.is_dictionary(colours.type)
    assert colours.slice(199_998).to_pylist() == ["red", "green"]


def test_metadata_of_many_tables_fits_grpcs_default(house, narrow_client):
    wide = pa.schema([(f"column_{i}", pa.list_(pa.int64())) for i in range(60)])
    table = SmallTable(TableSchema.first(wide))
    house.snapshots.append({(TenantId(2), f"t{i}"): table for i in range(1500)})
    command = messages.wrap(messages.sql("CommandGetTables")(include_schema=True))
    info = narrow_client.get_flight_info(flight.FlightDescriptor.for_command(command))
    tables = narrow_client.do_get(info.endpoints[0].ticket).read_all()
    assert tables.nbytes > GRPC_DEFAULT
    assert len(set(tables["table_name"].to_pylist())) >= 1500


def test_the_ticket_of_a_large_statement_fits_grpcs_default(narrow_client):
    sql = "SELECT length('" + "\N{SNOWMAN}" * 900_000 + "') AS n"
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    info = narrow_client.get_flight_info(flight.FlightDescriptor.for_command(command))
    assert len(info.serialize()) < GRPC_DEFAULT
    assert narrow_client.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [{"n": 900_000}]


def test_bound_rows_travel_as_far_as_they_fit_and_no_further(uri):
    drawn = random.Random(7)  # noqa: S311 - incompressible, no secret
    with (
        adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        fits = drawn.randbytes(2 * 2**20)
        cursor.execute("SELECT octet_length(?::BLOB) AS n", (fits,))
        assert cursor.fetchall() == [(len(fits),)]
        for size in (tickets.SEALED_MAX_BYTES, 6 * 2**20):
            with pytest.raises(adbc_driver_manager.Error) as caught:
                cursor.execute("SELECT octet_length(?::BLOB) AS n", (drawn.randbytes(size),))
            assert "[PAYLOAD_TOO_LARGE]" in str(caught.value)
            assert "ingest" in str(caught.value)


def test_a_row_above_its_limit_says_what_to_do(house, uri):
    house.limits = QueryLimits(row_bytes=15 * 2**20)
    with (
        adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT repeat('x', 12000000) AS wide")
        assert len(cursor.fetchall()[0][0]) == 12_000_000
        with pytest.raises(Exception, match="QUOTA_EXCEEDED") as caught:  # noqa: PT012 - one act
            cursor.execute("SELECT range, repeat('x', 16000000) AS wide FROM range(3)")
            cursor.fetchall()
    assert "query.row_max_bytes" in str(caught.value)
    assert house.all_turns.taken == 0
