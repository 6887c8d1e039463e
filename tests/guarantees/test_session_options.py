"""What a client says to its session holds in every serving process, by SQL and by action."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi

from tests.guarantees.test_read_your_writes import RawSession, wait_until_published
from tests.processes import service

ROWS = pa.table({"v": pa.array([1, 2, 3], pa.int64())})
OPTION = "adbc.flight.sql.session.option."


@pytest.fixture(scope="module")
def uris(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder: Path = tmp_path_factory.mktemp("options")
    with service(
        module_database_dsn, folder, DUCKMESH_QUERY_CONSISTENCY_TIMEOUT_MS="30000"
    ) as running:
        both = [running.serve()[1] for _ in range(2)]
        running.coordinate("c1")
        wait_until_published(both[0])
        yield both


@pytest.fixture
def connection(uris: list[str]) -> Iterator[dbapi.Connection]:
    with dbapi.connect(uris[0], autocommit=True) as connection:
        yield connection


@pytest.fixture
def table(request: pytest.FixtureRequest) -> str:
    return "t_" + "".join(c if c.isalnum() else "_" for c in request.node.name)[:80].lower()


def ask(connection: dbapi.Connection, sql: str) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def do(connection: dbapi.Connection, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def ingest(connection: dbapi.Connection, table: str) -> None:
    with connection.cursor() as cursor:
        cursor.adbc_ingest(table, ROWS, mode="create_append")


def options(connection: dbapi.Connection) -> dict[str, object]:
    found = json.loads(connection.adbc_connection.get_option("adbc.flight.sql.session.options"))
    assert isinstance(found, dict)
    return found


def test_a_session_set_to_a_snapshot_reads_it_until_it_is_reset(
    connection: dbapi.Connection, table: str
) -> None:
    count = f"SELECT count(*) FROM {table}"
    ingest(connection, table)
    assert ask(connection, count) == [(3,)]
    newest = (
        "SELECT snapshot_id, created_at FROM duckmesh_system.snapshots "
        "ORDER BY snapshot_id DESC LIMIT 1"
    )
    ((snapshot_id, created_at),) = ask(connection, newest)
    ingest(connection, table)
    assert ask(connection, count) == [(6,)]
    do(connection, f"SET duckmesh.snapshot_id = {snapshot_id}")
    assert ask(connection, count) == [(3,)]
    assert options(connection)["duckmesh.snapshot_id"] == str(snapshot_id)
    do(connection, f"SET SESSION duckmesh.snapshot_time TO '{created_at.isoformat()}'")  # type: ignore[attr-defined]
    assert "duckmesh.snapshot_id" not in options(connection), "one point in time ends the other"
    assert ask(connection, count) == [(3,)]
    do(connection, "RESET duckmesh.snapshot_time")
    assert ask(connection, count) == [(6,)]


def test_options_set_through_one_process_hold_in_the_other(uris: list[str]) -> None:
    session = RawSession(uris)
    session.ingest(0, "shared")
    seen = session.ask(0, 0, "SELECT max(snapshot_id) AS s FROM duckmesh_system.snapshots")[0]["s"]
    session.ask(0, 0, "SELECT count(*) AS n FROM shared")
    seen = session.ask(0, 0, "SELECT max(snapshot_id) AS s FROM duckmesh_system.snapshots")[0]["s"]
    session.ask(0, 0, f"SET duckmesh.snapshot_id = {seen}")
    session.ingest(1, "shared")
    assert session.ask(1, 0, "SELECT count(*) AS n FROM shared") == [{"n": 1}]
    session.ask(1, 1, "RESET duckmesh.snapshot_id")
    assert session.ask(0, 1, "SELECT count(*) AS n FROM shared") == [{"n": 2}]
    session.close()


def test_options_by_action_and_by_sql_are_the_same(connection: dbapi.Connection) -> None:
    native = connection.adbc_connection
    native.set_options(**{OPTION + "consistency": "strong"})
    assert options(connection)["duckmesh.consistency"] == "strong"
    do(connection, "RESET duckmesh.consistency")
    assert "duckmesh.consistency" not in options(connection)
    do(connection, "SET duckmesh.consistency_timeout = 1234")
    assert options(connection)["duckmesh.consistency_timeout"] == "1234"
    for name, value in (("consistency", "sometimes"), ("nonsense", "1"), ("tenant", "other")):
        with pytest.raises(dbapi.Error):
            native.set_options(**{OPTION + name: value})


@pytest.mark.parametrize(
    "sql",
    [
        *("USE main", "USE duckmesh", "USE duckmesh.main", "SET TimeZone = 'UTC'"),
        *("SET TIME ZONE 'utc'", "SET application_name = 'bi'", "SET search_path = 'main'"),
        *("-- why\nSET duckmesh.consistency TO latest;", "RESET duckmesh.consistency"),
    ],
)
def test_what_clients_say_at_connect_is_accepted(connection: dbapi.Connection, sql: str) -> None:
    do(connection, sql)


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SET duckmesh.consistency = 'sometimes'", "INVALID_COMMAND"),
        ("SET duckmesh.min_visibility_token = 0", "VISIBILITY_TOKEN_INVALID"),
        ("SET duckmesh.snapshot_id = 'x'", "INVALID_COMMAND"),
        ("SET duckmesh.anything = 1", "NOT_SUPPORTED"),
        ("SET threads = 4", "NOT_SUPPORTED"),
        ("SET TimeZone = 'Europe/Paris'", "NOT_SUPPORTED"),
        ("USE other", "SQL_NOT_ALLOWED"),
        ("USE other.main", "SQL_NOT_ALLOWED"),
    ],
)
def test_what_cannot_be_set_is_refused(connection: dbapi.Connection, sql: str, code: str) -> None:
    with pytest.raises(dbapi.Error, match=code):
        do(connection, sql)


def test_the_system_tables_show_sessions_and_lag(connection: dbapi.Connection, table: str) -> None:
    ingest(connection, table)
    ((token,),) = ask(connection, "SELECT last_visibility_token()")
    mine = "SELECT last_visibility_token FROM duckmesh_system.sessions WHERE session_id = '{}'"
    session_id = options(connection)["session_id"]
    assert ask(connection, mine.format(session_id)) == [(token,)]
    assert ask(connection, f"SELECT count(*) FROM {table}") == [(3,)]
    lag = "SELECT last_visibility_token, token_lag, pending_events FROM duckmesh_system.lag"
    assert ask(connection, f"{lag} WHERE table_name = '{table}'") == [(token, 0, 0)]
    assert ask(connection, f"{lag} WHERE table_name IS NULL")[0][0] >= token  # type: ignore[operator]
