"""SQL that writes, by the real ADBC driver, against real processes."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import pytest

from tests.processes import ProductProcess, Service, service

HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
TOKEN = "adbc.flight.sql.session.option.last_visibility_token"


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(database_dsn, tmp_path) as opened:
        opened.coordinate("c1")
        yield opened


@contextlib.contextmanager
def connected(uri: str) -> Iterator[Any]:
    with flightsql.connect(uri, autocommit=True) as connection:
        yield connection


def ask(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def last_token(connection: Any) -> int:
    return int(connection.adbc_connection.get_option_int(TOKEN))


def peak_bytes(process: ProductProcess) -> int:
    """The most memory that the process has held."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def test_a_table_lives_its_whole_life_in_sql(running: Service) -> None:
    uri = running.serve()[1]
    with connected(uri) as db:
        ask(db, "CREATE TABLE t (a INTEGER NOT NULL, b VARCHAR, d DATE, PRIMARY KEY (a))")
        assert ask(db, "INSERT INTO t VALUES (1, 'x', '2024-01-01'), (2, NULL, NULL)") == [(2, 1)]
        # No option and no token: the session reads its own writes.
        assert ask(db, "SELECT count(*) FROM t") == [(2,)]
        ask(db, "ALTER TABLE t ADD COLUMN n BIGINT")
        ask(db, "ALTER TABLE t RENAME COLUMN b TO name")
        ask(db, "INSERT INTO t SELECT a + 10, upper(name), d, a FROM t")
        assert ask(db, "SELECT a, name, n FROM t ORDER BY a") == [
            (1, "x", None),
            (2, None, None),
            (11, "X", 1),
            (12, None, 2),
        ]
        ask(db, "CREATE VIEW big AS SELECT * FROM t WHERE a > 10")
        assert ask(db, "SELECT count(*) FROM big") == [(2,)]
        assert ask(db, "CREATE OR REPLACE TABLE t2 AS FROM big") == [(2, 3)]
        ask(db, "TRUNCATE t")
        assert ask(db, "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM t2)") == [(0, 2)]
        objects = db.adbc_get_objects(depth="tables").read_all().to_pylist()
        (catalog,) = [each for each in objects if each["catalog_name"] == "duckmesh"]
        tables = {
            each["table_name"]: each["table_type"]
            for schema in catalog["catalog_db_schemas"]
            if schema["db_schema_name"] == "main"
            for each in schema["db_schema_tables"]
        }
        assert tables == {"big": "VIEW", "t": "TABLE", "t2": "TABLE"}
        for sql in ("DROP VIEW big", "DROP TABLE t", "DROP TABLE t2"):
            ask(db, sql)


def test_a_definition_is_seen_by_the_next_statement_of_any_process(running: Service) -> None:
    first, second = (running.serve()[1] for _ in range(2))
    with connected(first) as here, connected(second) as there:
        for n in range(10):
            ask(here, f"CREATE TABLE t{n} (a INTEGER)")
            assert ask(there, f"SELECT count(*) FROM t{n}") == [(0,)]
            ask(there, f"ALTER TABLE t{n} ADD COLUMN b INTEGER")
            assert ask(here, f"INSERT INTO t{n} VALUES (1, 2)")[0][0] == 1
            assert ask(here, f"SELECT a, b FROM t{n}") == [(1, 2)]


def test_a_thousand_bound_rows_are_one_write(running: Service) -> None:
    with connected(running.serve()[1]) as db, db.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a INTEGER, b VARCHAR, d DATE)")
        cursor.fetchall()
        rows = [(n, f"row {n}", "2024-02-29") for n in range(1_000)]
        cursor.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        assert cursor.rowcount == 1_000
        assert last_token(db) == 1
        assert ask(db, "SELECT count(*), sum(a)::BIGINT, max(d)::VARCHAR FROM t") == [
            (1_000, 499_500, "2024-02-29")
        ]


def test_a_repeated_statement_with_a_key_is_written_once(running: Service) -> None:
    uris = [running.serve()[1] for _ in range(2)]
    with connected(uris[0]) as db:
        ask(db, "CREATE TABLE t (a INTEGER)")
    outcomes = set()
    for attempt in range(6):
        with (
            connected(uris[attempt % 2]) as db,
            db.cursor(adbc_stmt_kwargs={HEADER + "idempotency-key": "k"}) as cursor,
        ):
            cursor.execute("INSERT INTO t SELECT 1 + count(*) FROM t")
            outcomes.update(cursor.fetchall())
    assert outcomes == {(1, 1)}
    with connected(uris[0]) as db:
        token = {HEADER + "min-visibility-token": "1"}
        with db.cursor(adbc_stmt_kwargs=token) as cursor:
            cursor.execute("FROM t")
            assert cursor.fetchall() == [(1,)]


def test_errors_of_writes_name_what_to_change(running: Service) -> None:
    with connected(running.serve()[1]) as db:
        ask(db, "CREATE TABLE t (a INTEGER NOT NULL)")
        for sql, code in (
            ("INSERT INTO t VALUES ('x')", "INVALID_PAYLOAD"),
            ("INSERT INTO t VALUES (NULL)", "INVALID_PAYLOAD"),
            ("INSERT INTO t VALUES (1, 2)", "SCHEMA_INCOMPATIBLE"),
            ("INSERT INTO absent VALUES (1)", "TABLE_NOT_FOUND"),
            ("CREATE TABLE t (a INTEGER)", "TABLE_EXISTS"),
            ("UPDATE t SET a = 1", "NOT_SUPPORTED"),
            ("DELETE FROM t", "NOT_SUPPORTED"),
            ("COPY t TO 'x.csv'", "NOT_SUPPORTED"),
        ):
            with pytest.raises(adbc_driver_manager.Error, match=code):
                ask(db, sql)
        assert ask(db, "SELECT count(*) FROM t") == [(0,)]


def test_create_table_as_of_a_million_rows_takes_bounded_memory(running: Service) -> None:
    process, uri = running.serve()
    wide = "i, i * 2.5 AS x, 'a text of some length ' || i AS name, md5(i::VARCHAR) AS hash"
    with connected(uri) as db:
        ask(db, f"CREATE TABLE warm AS SELECT {wide} FROM range(200000) AS r(i)")
        before = peak_bytes(process)
        done = ask(db, f"CREATE TABLE large AS SELECT {wide} FROM range(1000000) AS r(i)")
        assert done == [(1_000_000, 2)]
        # About 90 MB of rows. Held whole they would be there at least once more.
        assert peak_bytes(process) - before < 64 * 2**20
        assert ask(db, "SELECT count(*), max(i) FROM large") == [(1_000_000, 999_999)]
