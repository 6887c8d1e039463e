"""The limit of a Flight server: plain pyarrow that stores nothing and checks nothing.

`python -m benchmarks.bare_server` prints its port and serves until its standard input ends.
"""

import os
import sys
import threading
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow import flight

from flight_server.commands import StatementQuery, parse_command

_ACKNOWLEDGED = pa.py_buffer(
    b'{"batch":0,"visibility_token":1,"row_count":1,"duplicate":false,"visible_snapshot_id":null}'
)
_BATCH_ROWS = 65_536
_NO_INFO = pa.schema(
    [
        pa.field("info_name", pa.uint32(), nullable=False),
        pa.field("value", pa.dense_union([pa.field("string_value", pa.string())])),
    ]
)


class BareServer(flight.FlightServerBase):  # type: ignore[misc]
    """Acknowledges each batch of a DoPut; answers a statement with DuckDB's own result."""

    def __init__(self) -> None:
        self._duckdb = duckdb.connect(config={"threads": "2"})
        super().__init__("grpc://127.0.0.1:0")

    def do_put(
        self,
        context: flight.ServerCallContext,  # noqa: ARG002 - pyarrow's signature
        descriptor: flight.FlightDescriptor,  # noqa: ARG002
        reader: Any,
        writer: Any,
    ) -> None:
        for _ in reader:
            writer.write(_ACKNOWLEDGED)

    def get_flight_info(
        self,
        context: flight.ServerCallContext,  # noqa: ARG002
        descriptor: flight.FlightDescriptor,
    ) -> flight.FlightInfo:
        command = parse_command(descriptor.command)
        sql = command.query if isinstance(command, StatementQuery) else ""
        schema = (
            self._duckdb.cursor().sql(sql).limit(0).to_arrow_table().schema if sql else _NO_INFO
        )
        endpoint = flight.FlightEndpoint(sql.encode(), [])
        return flight.FlightInfo(schema, descriptor, [endpoint], -1, -1)

    def do_get(
        self,
        context: flight.ServerCallContext,  # noqa: ARG002
        ticket: flight.Ticket,
    ) -> flight.RecordBatchStream:
        if not ticket.ticket:
            return flight.RecordBatchStream(_NO_INFO.empty_table())
        result = self._duckdb.cursor().sql(ticket.ticket.decode())
        return flight.RecordBatchStream(result.to_arrow_reader(_BATCH_ROWS))


def main() -> None:
    """Serve until standard input ends: with the process that started this one."""
    server = BareServer()
    print(server.port, flush=True)
    threading.Thread(target=server.serve, daemon=True).start()
    sys.stdin.read()
    # DuckDB's bindings complain of what Python's own teardown leaves to them.
    os._exit(0)


if __name__ == "__main__":
    main()
