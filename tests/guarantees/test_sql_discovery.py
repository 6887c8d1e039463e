"""Listings and time travel over real processes: what DBeaver, dbt and SQLAlchemy ask for."""

from pathlib import Path

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pytest

from tests.processes import service

PATIENT = {"adbc.flight.sql.rpc.call_header.x-duckmesh-consistency-timeout-ms": "60000"}
ROWS = pa.table(
    [[1, 2], ["a", "b"]],
    schema=pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())]),
)


def test_tables_are_listed_described_and_read_as_they_were(
    database_dsn: str, tmp_path: Path
) -> None:
    with service(database_dsn, tmp_path) as running:
        _, uri = running.serve()
        running.coordinate("c1")
        with (
            flightsql.connect(uri, db_kwargs=PATIENT, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):

            def ask(sql: str) -> list[tuple[object, ...]]:
                cursor.execute(sql)
                return list(cursor.fetchall())

            cursor.adbc_ingest("orders", ROWS, mode="create")
            cursor.execute("SELECT count(*) FROM orders")
            first = cursor.fetch_arrow_table().schema.metadata[b"duckmesh.snapshot_id"].decode()
            cursor.adbc_ingest("orders", ROWS, mode="append")
            assert ask("SELECT count(*) FROM orders") == [(4,)]
            assert ask(f"SELECT count(*) FROM orders AT (VERSION => {first})") == [(2,)]
            changed = (
                "SELECT (SELECT count(*) FROM orders) - "
                "(SELECT count(*) FROM orders AT (TIMESTAMP => now() + INTERVAL 1 DAY))"
            )
            assert ask(changed) == [(0,)]
            assert ask("SHOW TABLES") == [("orders",)]
            assert [row[:3] for row in ask("DESCRIBE orders")] == [
                ("id", "BIGINT", "NO"),
                ("name", "VARCHAR", "YES"),
            ]
            listed = (
                "SELECT table_catalog, table_schema, table_name, table_type "
                "FROM information_schema.tables WHERE table_schema = 'main'"
            )
            assert ask(listed) == [("duckmesh", "main", "orders", "BASE TABLE")]
            with pytest.raises(connection.DatabaseError, match="SNAPSHOT_NOT_FOUND"):
                ask("SELECT * FROM orders AT (VERSION => 999999999)")
            with pytest.raises(connection.DatabaseError, match="SNAPSHOT_NOT_FOUND"):
                ask("SELECT * FROM orders AT (TIMESTAMP => TIMESTAMP '2001-01-01')")
