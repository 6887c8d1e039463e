"""What the ADBC Flight SQL driver does through Python's DB-API. Run with 1.13 and with 1.9."""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any
from uuid import uuid4

import adbc_driver_flightsql
import pyarrow as pa
from adbc_driver_flightsql import dbapi

HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
LAST_TOKEN = "adbc.flight.sql.session.option.last_visibility_token"
AUTHORIZATION = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
ROOT_CERTIFICATES = adbc_driver_flightsql.DatabaseOptions.TLS_ROOT_CERTS.value
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["a", "b", None]})


def version() -> str:
    return version_of("adbc-driver-flightsql")


@contextmanager
def connected(place: Any, **options: Any) -> Iterator[Any]:
    credentials = {"username": "anyone", "password": place.key}
    options.setdefault("autocommit", True)
    with dbapi.connect(place.uri, db_kwargs=credentials, **options) as connection:
        yield connection


def new_table() -> str:
    return f"t_{uuid4().hex[:12]}"


def ask(connection: Any, sql: str, parameters: Any = None) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def ingest(connection: Any, table: str, rows: Any, mode: str) -> int:
    with connection.cursor() as cursor:
        return int(cursor.adbc_ingest(table, rows, mode=mode))


def refused(act: Callable[[], Any], *words: str) -> str:
    try:
        act()
    except dbapi.Error as error:
        text = str(error)
        assert any(word in text for word in words), text
        return text
    raise AssertionError("it was not refused")


def case_user_and_password(place: Any) -> None:
    with connected(place) as connection:
        assert ask(connection, "SELECT 1") == [(1,)]


def case_bearer_token(place: Any) -> None:
    options = {AUTHORIZATION: f"Bearer {place.key}"}
    with dbapi.connect(place.uri, db_kwargs=options, autocommit=True) as connection:
        assert ask(connection, "SELECT 1") == [(1,)]


def case_tls(place: Any) -> None:
    address = f"grpc+tls://{place.host}:{place.tls_port}"
    login = {"username": "anyone", "password": place.key}
    trusting = {ROOT_CERTIFICATES: Path(place.certificate).read_text(encoding="ascii")}
    with dbapi.connect(address, db_kwargs=login | trusting, autocommit=True) as connection:
        assert ask(connection, "SELECT 1") == [(1,)]

    def act() -> None:
        with dbapi.connect(address, db_kwargs=login, autocommit=True) as connection:
            ask(connection, "SELECT 1")

    refused(act, "certificate", "x509")


def case_wrong_key_is_refused(place: Any) -> None:
    def act() -> None:
        options = {"username": "anyone", "password": "wrong"}
        with dbapi.connect(place.uri, db_kwargs=options, autocommit=True) as connection:
            ask(connection, "SELECT 1")

    text = refused(act, "UNAUTHORIZED", "Unauthenticated", "UNAUTHENTICATED")
    assert "Traceback" not in text


def case_four_ingest_modes(place: Any) -> None:
    table = new_table()
    count = f"SELECT count(*), sum(id) FROM {table}"
    with connected(place) as connection:
        assert ingest(connection, table, ROWS, "create") == 3
        refused(lambda: ingest(connection, table, ROWS, "create"), "TABLE_EXISTS")
        assert ingest(connection, table, ROWS, "append") == 3
        assert ingest(connection, table, ROWS, "create_append") == 3
        assert ask(connection, count) == [(9, 18)]
        assert ingest(connection, table, ROWS.slice(1), "replace") == 2
        assert ask(connection, count) == [(2, 5)]


def case_reads_its_own_writes(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        for number in range(1, 16):
            ingest(connection, table, ROWS, "create_append")
            assert ask(connection, f"SELECT count(*) FROM {table}") == [(3 * number,)]


def case_token_and_another_connection(place: Any) -> None:
    table = new_table()
    with connected(place) as writer:
        ingest(writer, table, ROWS, "create")
        token = writer.adbc_connection.get_option_int(LAST_TOKEN)
    with connected(place) as reader:
        options = {f"{HEADER}min-visibility-token": str(token)}
        with reader.cursor(adbc_stmt_kwargs=options) as cursor:
            cursor.execute(f"SELECT count(*) FROM {table}")
            assert cursor.fetchall() == [(3,)]


def case_idempotency_key(place: Any) -> None:
    table = new_table()
    keyed = ROWS.replace_schema_metadata({"idempotency_key": table})
    with connected(place) as connection:
        ingest(connection, table, keyed, "create_append")
        ingest(connection, table, keyed, "create_append")
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(3,)]


def case_parameters_of_each_type(place: Any) -> None:
    day = dt.date(2026, 1, 31)
    noon = dt.datetime(2026, 1, 31, 12, 0, 0, 250_000)  # noqa: DTZ001 - a wall time
    values = (
        *(7, -(2**63), 0.25, True, "ü'\"; --", "", b"\x00\xff", day, noon, None),
        *(noon.replace(tzinfo=dt.UTC), Decimal("12.345"), dt.time(12, 30)),
    )
    with connected(place) as connection:
        for value in values:
            assert ask(connection, "SELECT ? AS it", (value,)) == [(value,)], value


def case_prepared_statement_again_and_again(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        ingest(connection, table, ROWS, "create")
        with connection.cursor() as cursor:
            for value, expected in ((1, [("a",)]), (2, [("b",)]), (9, [])):
                cursor.execute(f"SELECT name FROM {table} WHERE id = ?", (value,))
                assert cursor.fetchall() == expected
            schema = cursor.adbc_prepare(f"SELECT name FROM {table} WHERE id = ?")
            assert schema.types == [pa.int64()]


def case_stream_of_a_large_result(place: Any) -> None:
    with connected(place) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT i, repeat('x', 100) AS text FROM range(500000) r(i)")
        reader = cursor.fetch_record_batch()
        assert sum(batch.num_rows for batch in reader) == 500_000


def case_description_and_rowcount(place: Any) -> None:
    with connected(place) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1::BIGINT AS a, 'x' AS b")
        assert [column[0] for column in cursor.description] == ["a", "b"]
        assert cursor.fetchone() == (1, "x")
        assert cursor.fetchone() is None


def case_get_objects_at_each_depth(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        ingest(connection, table, ROWS, "create")
        for depth in ("catalogs", "db_schemas", "tables", "columns", "all"):
            found = connection.adbc_get_objects(depth=depth, table_name_filter=table)
            catalogs = found.read_all().to_pylist()
            assert "duckmesh" in [each["catalog_name"] for each in catalogs]
        tables = [
            each
            for catalog in catalogs
            for schema in catalog["catalog_db_schemas"]
            for each in schema["db_schema_tables"]
        ]
        assert [each["table_name"] for each in tables] == [table]
        assert [each["column_name"] for each in tables[0]["table_columns"]] == ["id", "name"]


def case_table_schema_types_and_info(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        ingest(connection, table, ROWS, "create")
        schema = connection.adbc_get_table_schema(table)
        assert schema.names == ["id", "name"]
        assert "TABLE" in connection.adbc_get_table_types()
        assert connection.adbc_get_info()["vendor_version"].startswith("duckdb ")
        assert connection.adbc_current_catalog == "duckmesh"
        assert connection.adbc_current_db_schema == "main"
        refused(lambda: connection.adbc_get_table_schema("absent"), "not found", "NOT_FOUND", "no")


def case_partitions(place: Any) -> None:
    with connected(place) as connection, connection.cursor() as cursor:
        partitions, _ = cursor.adbc_execute_partitions("SELECT * FROM range(1000)")
        total = 0
        for partition in partitions:
            cursor.adbc_read_partition(partition)
            total += len(cursor.fetchall())
        assert total == 1000


def case_errors_are_typed_and_clean(place: Any) -> None:
    with connected(place) as connection:
        text = refused(lambda: ask(connection, "SELECT * FROM absent_table"), "TABLE_NOT_FOUND")
        assert "Traceback" not in text
        refused(lambda: ask(connection, "SELEKT 1"), "QUERY_EXECUTION_FAILED")
        refused(lambda: ask(connection, "SELECT 1; SELECT 2"), "SQL_NOT_ALLOWED")
        assert ask(connection, "SELECT 1") == [(1,)]


def case_cancel_ends_a_query(place: Any) -> None:
    with connected(place) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM range(3000000000)")
            cursor.fetchone()
            cursor.adbc_cancel()
        assert ask(connection, "SELECT 1") == [(1,)]


def case_drop_table(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        ingest(connection, table, ROWS, "create")
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {table}")
        refused(lambda: ask(connection, f"SELECT * FROM {table}"), "TABLE_NOT_FOUND")
