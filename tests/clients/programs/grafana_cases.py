"""The calls of Grafana's Flight SQL data source, as it sends them, over pyarrow.flight.

The data source runs inside Grafana, so its calls are replayed: a query is CommandStatementQuery and
a DoGet of its one endpoint; tables are those of the types "BASE TABLE" and "table"; columns are a
GetTables with schemas. Its client takes messages of at most 4 MiB.
https://github.com/influxdata/grafana-flightsql-datasource
"""

from typing import Any
from uuid import uuid4

import pyarrow as pa
from adbc_cases import connected, ingest
from pyarrow import flight

PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
MAX_MESSAGE_BYTES = 4 * 2**20


def version() -> str:
    return "replayed"


def field(number: int, value: bytes | str | bool) -> bytes:
    """One field of a protobuf message: a flag, or bytes of any length."""
    if isinstance(value, bool):
        return bytes([number << 3, int(value)])
    content = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class Grafana:
    def __init__(self, place: Any) -> None:
        limit = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        self._client = flight.connect(place.uri, generic_options=limit)
        # As the data source does with user and password.
        header = self._client.authenticate_basic_token("anyone", place.key)
        self._options = flight.FlightCallOptions(headers=[header], timeout=30)

    def ask(self, message: str, *fields: bytes) -> pa.Table:
        body = field(1, PREFIX + message) + field(2, b"".join(fields))
        descriptor = flight.FlightDescriptor.for_command(body)
        info = self._client.get_flight_info(descriptor, self._options)
        assert len(info.endpoints) == 1
        return self._client.do_get(info.endpoints[0].ticket, self._options).read_all()

    def query(self, sql: str) -> pa.Table:
        return self.ask("CommandStatementQuery", field(1, sql))


def table_of_points(place: Any) -> str:
    name = f"t_{uuid4().hex[:12]}"
    hour = 3_600_000_000
    moments = pa.array([i * hour // 4 for i in range(96)], pa.timestamp("us"))
    with connected(place) as connection:
        ingest(
            connection, name, pa.table({"moment": moments, "value": pa.array(range(96))}), "create"
        )
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {name}")
            assert cursor.fetchall() == [(96,)]
    return name


def case_health_check_and_sql_info(place: Any) -> None:
    grafana = Grafana(place)
    assert grafana.query("select 1").num_rows == 1
    info = grafana.ask("CommandGetSqlInfo")
    assert info.num_rows > 50
    assert info.schema.names == ["info_name", "value"]


def case_table_and_column_pickers(place: Any) -> None:
    name = table_of_points(place)
    grafana = Grafana(place)
    found = grafana.ask("CommandGetTables", field(4, "BASE TABLE"), field(4, "table"))
    assert name in found["table_name"].to_pylist()
    described = grafana.ask("CommandGetTables", field(3, name), field(5, True))
    schema = pa.ipc.read_schema(pa.py_buffer(described["table_schema"][0].as_py()))
    assert schema.names == ["moment", "value"]


def case_time_series_with_macros_expanded(place: Any) -> None:
    """$__timeFrom, $__timeTo, $__dateBin and $__timeGroup, as the data source expands them."""
    name = table_of_points(place)
    got = Grafana(place).query(
        "SELECT date_bin(interval '3600 second', moment, timestamp '1970-01-01T00:00:00Z')"
        " AS moment_binned, avg(value) AS value "
        f"FROM {name} WHERE moment >= cast('1970-01-01T00:00:00Z' as timestamp) "
        "AND moment <= cast('1970-01-02T00:00:00Z' as timestamp) GROUP BY 1 ORDER BY 1"
    )
    assert got.num_rows == 24
    grouped = Grafana(place).query(
        f"SELECT datepart('hour', moment), datepart('day', moment) FROM {name} GROUP BY ALL"
    )
    assert grouped.num_rows == 24


def case_types_that_grafana_draws(place: Any) -> None:
    got = Grafana(place).query(
        "SELECT 'a' AS s, 1::BIGINT AS i, 0.5::DOUBLE AS f, true AS b, now()::TIMESTAMP AS t"
    )
    kinds = [str(kind) for kind in got.schema.types]
    assert kinds == ["string", "int64", "double", "bool", "timestamp[us]"]


def case_messages_stay_below_four_mebibytes(place: Any) -> None:
    got = Grafana(place).query("SELECT i, repeat('x', 1000) AS text FROM range(30000) r(i)")
    assert got.num_rows == 30_000
