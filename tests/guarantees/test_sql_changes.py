"""UPDATE and DELETE by the real ADBC driver and by HTTP, against real processes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import httpx
import pytest

from tests.processes import Service, service

HEADER = "adbc.flight.sql.rpc.call_header.x-duckmesh-"
TOKEN = "adbc.flight.sql.session.option.last_visibility_token"
ROWS = [(n, n * 10, f"row {n}") for n in range(1_000)]


@pytest.fixture(scope="module")
def both(
    module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, list[str]]]:
    """Two serving processes of one service."""
    settings = {"DUCKMESH_QUERY_CONSISTENCY_TIMEOUT_MS": "30000"}
    folder = tmp_path_factory.mktemp("changes")
    with service(module_database_dsn, folder, **settings) as running:
        running.coordinate("c1")
        yield running, [running.serve()[1] for _ in range(2)]


@pytest.fixture
def uri(both: tuple[Service, list[str]]) -> str:
    return both[1][0]


@pytest.fixture
def table(request: pytest.FixtureRequest, uri: str) -> str:
    """A keyed table of a thousand rows that no other test uses."""
    name = request.node.name[:60]
    with connected(uri) as db, db.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, n BIGINT, name VARCHAR)")
        cursor.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", ROWS)
    return str(name)


@contextlib.contextmanager
def connected(uri: str, *, autocommit: bool = True) -> Iterator[Any]:
    with flightsql.connect(uri, autocommit=autocommit) as connection:
        yield connection


def ask(connection: Any, sql: str, bound: Any = None, **options: str) -> list[tuple[Any, ...]]:
    with connection.cursor(adbc_stmt_kwargs=options) as cursor:
        cursor.execute(sql, bound)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def last_token(connection: Any) -> int:
    return int(connection.adbc_connection.get_option_int(TOKEN))


def test_a_session_reads_what_it_changed(uri: str, table: str) -> None:
    with connected(uri) as db:
        for n in range(20):
            ((count, token),) = ask(db, f"UPDATE {table} SET n = n + 1 WHERE id < ?", (n,))
            assert count == n
            assert (token is None) == (n == 0), "what matches nothing has no token"
            assert ask(db, f"SELECT n FROM {table} WHERE id = 0") == [(n,)]
        assert ask(db, f"DELETE FROM {table} WHERE id % 2 = 1")[0][0] == 500
        assert last_token(db) == token + 1
        assert ask(db, f"SELECT count(*), count(*) FILTER (id % 2 = 1) FROM {table}") == [(500, 0)]
        assert ask(db, f"DELETE FROM {table}")[0][0] == 500
        assert ask(db, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_change_sees_what_others_have_written_before(
    both: tuple[Service, list[str]], table: str
) -> None:
    first, second = both[1]
    with connected(first) as here, connected(second) as there:
        for n in range(10):
            ask(here, f"INSERT INTO {table} VALUES ({2_000 + n}, 0, 'here')")
            assert ask(there, f"DELETE FROM {table} WHERE id >= 2000")[0][0] == 1


def test_executemany_changes_a_row_for_each_of_its_rows(uri: str, table: str) -> None:
    with connected(uri) as db, db.cursor() as cursor:
        cursor.executemany(
            f"UPDATE {table} SET name = ?, n = ? WHERE id = ?",
            [(f"new {n}", -n, n) for n in range(600)],
        )
        assert cursor.rowcount == 600
        first = last_token(db)
        cursor.executemany(f"DELETE FROM {table} WHERE id = ?", [(n,) for n in range(300, 1_300)])
        assert cursor.rowcount == 700
        assert last_token(db) == first + 1, "each is one write"
        assert ask(db, f"SELECT count(*), sum(n)::BIGINT, max(name) FROM {table}") == [
            (300, -sum(range(300)), "new 99")
        ]
        with pytest.raises(adbc_driver_manager.Error, match="two bound rows change the same row"):
            cursor.executemany(f"UPDATE {table} SET n = ? WHERE id = ?", [(1, 1), (2, 1)])


def test_a_prepared_change_takes_parameters_of_the_columns_types(uri: str, table: str) -> None:
    with connected(uri) as db, db.cursor() as cursor:
        taken = cursor.adbc_prepare(f"UPDATE {table} SET name = ?, n = ? WHERE id = ?")
        assert [str(field.type) for field in taken] == ["string", "int64", "int32"]


def test_an_update_call_answers_with_the_count(uri: str, table: str) -> None:
    with connected(uri) as db, db.cursor() as cursor:
        for sql, count in (
            (f"UPDATE {table} SET n = 0 WHERE id < 30", 30),
            (f"DELETE FROM {table} WHERE n = 0", 30),
            (f"DELETE FROM {table} WHERE n = 0", 0),
        ):
            cursor.adbc_statement.set_sql_query(sql)
            assert cursor.adbc_statement.execute_update() == count


def test_a_repeated_change_with_a_key_is_made_once(
    both: tuple[Service, list[str]], table: str
) -> None:
    outcomes = set()
    for attempt in range(6):
        with connected(both[1][attempt % 2]) as db:
            key = {HEADER + "idempotency-key": "once"}
            (outcome,) = ask(db, f"UPDATE {table} SET n = n + 1 WHERE id = 7", **key)
            outcomes.add(outcome)
    assert len(outcomes) == 1
    with connected(both[1][0]) as db:
        strong = {HEADER + "consistency": "strong"}
        assert ask(db, f"SELECT n FROM {table} WHERE id = 7", **strong) == [(71,)]


def test_a_transaction_changes_at_its_commit_or_never(uri: str, table: str) -> None:
    strong = {HEADER + "consistency": "strong"}
    with connected(uri, autocommit=False) as db, connected(uri) as watcher:

        def left() -> int:
            return int(ask(watcher, f"SELECT count(*) FROM {table}", **strong)[0][0])

        assert ask(db, f"DELETE FROM {table} WHERE id < 100") == [(100, None)]
        assert ask(db, f"DELETE FROM {table} WHERE id = 100") == [(1, None)]
        with pytest.raises(adbc_driver_manager.Error, match="commit first"):
            ask(db, f"UPDATE {table} SET n = 0")
        assert left() == 1_000
        db.rollback()
        assert left() == 1_000
        assert ask(db, f"UPDATE {table} SET n = -1 WHERE id < 100") == [(100, None)]
        db.commit()
        assert ask(db, f"DELETE FROM {table} WHERE n < 0") == [(100, None)]
        db.commit()
        assert left() == 900


def test_http_takes_the_same_statements(both: tuple[Service, list[str]], table: str) -> None:
    service, (uri, _) = both
    with httpx.Client(base_url=service.http_of(uri)) as http:

        def run(sql: str, **body: Any) -> dict[str, Any]:
            answer = http.post("/v1/query", json={"sql": sql, **body})
            found: dict[str, Any] = answer.json()
            return found

        done = run(f"UPDATE {table} SET name = ? WHERE id < ?", params=["http", 10])
        assert (done["row_count"], done["visibility_token"] > 0) == (10, True)
        assert run(f"DELETE FROM {table} WHERE name = 'http'")["row_count"] == 10
        gone = {"row_count": 0, "visibility_token": None}
        assert run(f"DELETE FROM {table} WHERE name = 'http'") == gone
        once = {"sql": f"UPDATE {table} SET n = n + 1 WHERE id = 50", "idempotency_key": "k"}
        assert run(**once) == run(**once)
        left = run(f"SELECT n FROM {table} WHERE id = 50", consistency="strong")
        assert "501" in str(left)
        assert "NOT_SUPPORTED" in str(run(f"UPDATE {table} SET id = 1"))
