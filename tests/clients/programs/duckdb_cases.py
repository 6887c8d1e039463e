"""DuckDB as the client: the ADBC driver manager loads the Go driver, and DuckDB reads its streams.

DuckDB's `adbc_scanner` extension does the same inside DuckDB, with the same driver library.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import adbc_driver_flightsql
import adbc_driver_manager.dbapi as manager
import duckdb
import pyarrow as pa


def version() -> str:
    return duckdb.__version__


@contextmanager
def connected(place: Any) -> Iterator[Any]:
    options = {"uri": place.uri, "username": "anyone", "password": place.key}
    driver = adbc_driver_flightsql._driver_path()
    with manager.connect(driver=driver, db_kwargs=options, autocommit=True) as connection:
        yield connection


@contextmanager
def local_duckdb() -> Iterator[Any]:
    with duckdb.connect() as local:
        yield local


def case_local_duckdb_reads_a_remote_stream(place: Any) -> None:
    with connected(place) as remote, remote.cursor() as cursor, local_duckdb() as local:
        cursor.execute("SELECT i, i % 3 AS kind FROM range(100000) r(i)")
        local.register("remote", cursor.fetch_record_batch())
        got = local.sql("SELECT kind, count(*) FROM remote GROUP BY kind ORDER BY kind").fetchall()
        assert got == [(0, 33334), (1, 33333), (2, 33333)]


def case_local_duckdb_writes_a_remote_table(place: Any) -> None:
    table = f"t_{uuid4().hex[:12]}"
    with connected(place) as remote, remote.cursor() as cursor, local_duckdb() as local:
        rows = local.sql("SELECT i AS id, 'n' || i AS name FROM range(50000) r(i)")
        assert cursor.adbc_ingest(table, rows.to_arrow_reader(10_000), mode="create") == 50_000
        cursor.execute(f"SELECT count(*), sum(id) FROM {table}")
        assert cursor.fetchall() == [(50_000, 1_249_975_000)]


def case_join_of_local_and_remote_rows(place: Any) -> None:
    table = f"t_{uuid4().hex[:12]}"
    names = pa.table({"id": [1, 2], "name": ["a", "b"]})
    with connected(place) as remote, remote.cursor() as cursor, local_duckdb() as local:
        cursor.adbc_ingest(table, names, mode="create")
        cursor.execute(f"SELECT * FROM {table}")
        local.register("names", cursor.fetch_arrow_table())
        got = local.sql("SELECT name FROM names JOIN range(2, 5) r(i) ON id = i").fetchall()
        assert got == [("b",)]
