"""`duckmesh up` as its user has it: processes that start, stop, die and come back."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import psutil
import pyarrow as pa
import pytest

from tests.command_line.conftest import Process, document, eventually

MIN_TOKEN = "adbc.flight.sql.rpc.call_header.x-duckmesh-min-visibility-token"
LAST_TOKEN = "adbc.flight.sql.session.option.last_visibility_token"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def start(data_dir: Path, *arguments: str) -> tuple[Process, str]:
    process = Process("up", "--data-dir", str(data_dir), "--port", "0", *arguments)
    return process, uri_of(process)


def uri_of(process: Process) -> str:
    return process.line("DuckMesh is up at").split()[4]


def ask(uri: str, sql: str, **options: str) -> list[Any]:
    connect = adbc_driver_flightsql.dbapi.connect
    with (
        connect(uri, db_kwargs=options, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
        return cursor.fetchall()


def write(uri: str, table: str, rows: pa.Table) -> int:
    """Write, and return the token."""
    with adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="create_append")
        return connection.adbc_connection.get_option_int(LAST_TOKEN)


def answers(uri: str) -> bool:
    try:
        return ask(uri, "SELECT 1") == [(1,)]
    except adbc_driver_manager.Error:
        return False


def test_the_printed_lines_work_and_the_next_start_finds_the_data(data_dir: Path) -> None:
    process, uri = start(data_dir)
    with process:
        process.line("data: ")
        process.line("")
        snippet = "\n".join(process.line("") for _ in range(4))
        done = subprocess.run(
            [sys.executable, "-c", snippet], check=True, capture_output=True, text=True
        )
        assert done.stdout == "[('hello',)]\n"
        family = process.descendants()
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert not [each for each in family if each.is_running()]
    again, uri = start(data_dir)
    with again:
        assert ask(uri, "SELECT text FROM greetings") == [("hello",)]
        again.signal(signal.SIGTERM)
        assert again.wait() == 0


def test_a_second_up_on_the_same_directory_is_told_where_the_first_is(data_dir: Path) -> None:
    process, uri = start(data_dir)
    with process:
        with Process("up", "--data-dir", str(data_dir), "--port", "0") as second:
            assert second.wait() == 4
        assert f"another `duckmesh up` runs on this data directory and serves {uri}" in (
            second.errors
        )
        assert answers(uri)


def test_a_killed_up_leaves_no_process_and_no_lock(data_dir: Path) -> None:
    process, uri = start(data_dir)
    with process:
        token = write(uri, "t", pa.table({"x": [1, 2, 3]}))
        assert ask(uri, "SELECT sum(x) FROM t", **{MIN_TOKEN: str(token)}) == [(6,)]
        family = process.descendants()
        assert len(family) >= 3
        process.signal(signal.SIGKILL)
        process.wait()
        gone, alive = psutil.wait_procs(family, timeout=60)
        assert (len(gone), alive) == (len(family), [])
    again, uri = start(data_dir)
    with again:
        assert ask(uri, "SELECT sum(x) FROM t") == [(6,)]


def test_the_commands_beside_a_running_up_find_its_catalog(data_dir: Path, run) -> None:
    process, uri = start(data_dir)
    place = {"DUCKMESH_DATA_DIR": str(data_dir)}
    with process:
        token = write(uri, "t", pa.table({"x": [1]}))
        ask(uri, "SELECT count(*) FROM t", **{MIN_TOKEN: str(token)})
        found = document(run("tables", "--json", **place))
        assert [each["name"] for each in found["tables"]] == ["t"]
        (lag,) = document(run("lag", "--json", **place))
        assert (lag["last_token"], lag["watermark"], lag["pending_writes"]) == (token, token, 0)
        health = document(run("doctor", "--json", **place))
        assert {each["name"]: each["detail"] for each in health["checks"]}["port"] == (
            f"`duckmesh up` serves {uri}"
        )


def test_each_process_that_dies_comes_back_and_the_address_stays(data_dir: Path) -> None:
    process, uri = start(data_dir)
    with process:
        written = 0
        for words in (("command_line.main", "coordinate"), ("command_line.main", "serve")):
            victim = process.descendant(*words)
            victim.kill()
            eventually(lambda: answers(uri), f"an answer after the death of {words[-1]}")
            written = write(uri, "t", pa.table({"x": [1]}))
            assert ask(
                uri,
                "SELECT count(*) FROM t",
                **{
                    MIN_TOKEN: str(written),
                    "adbc.flight.sql.rpc.call_header.x-duckmesh-consistency-timeout-ms": "50000",
                },
            ) == [(written,)]
            assert process.descendant(*words).pid != victim.pid
        assert written == 2


def test_a_postgres_that_dies_comes_back_with_what_was_acknowledged(data_dir: Path) -> None:
    process, uri = start(data_dir)
    with process:
        token = write(uri, "t", pa.table({"x": [1, 2]}))
        pid = int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        named = [each for each in process.descendants() if each.name() == "postgres"]
        postmaster = next(each for each in named if each.pid == pid)
        postmaster.kill()
        psutil.wait_procs([postmaster], timeout=30)

        def found() -> bool:
            try:
                return ask(uri, "SELECT sum(x) FROM t", **{MIN_TOKEN: str(token)}) == [(3,)]
            except adbc_driver_manager.Error:
                return False

        eventually(found, "the rows after the death of Postgres")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


def test_a_taken_port_is_told_before_anything_starts(data_dir: Path, taken_port: int) -> None:
    with Process("up", "--data-dir", str(data_dir), "--port", str(taken_port)) as process:
        assert process.wait() == 4
    assert f"port {taken_port} of 127.0.0.1 cannot be listened on" in process.errors
    assert not (data_dir / "postgres").exists()


@pytest.mark.parametrize("command", ["up", "serve"])
@pytest.mark.parametrize("door", ["flight", "http"])
def test_open_mode_beyond_this_machine_is_refused(run, command: str, door: str) -> None:
    beyond = {f"DUCKMESH_{door.upper()}_HOST": "0.0.0.0"}  # noqa: S104
    result = run(command, "--port", "0", **beyond)
    assert result.exit_code == 2
    assert f"{door}.host" in result.stderr
    assert "auth.open_mode" in result.stderr


def test_an_ephemeral_up_leaves_nothing(tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    with Process("up", "--ephemeral", "--port", "0", environment=environment) as process:
        uri = uri_of(process)
        write(uri, "t", pa.table({"x": [1]}))
        assert list(tmp_path.glob("duckmesh-up-*"))
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert not list(tmp_path.glob("duckmesh-*"))


def test_the_user_s_own_catalog_and_store_win(
    database_dsn: str, data_dir: Path, tmp_path: Path
) -> None:
    environment = {
        "DUCKMESH_CATALOG_DSN": database_dsn,
        "DUCKMESH_STORE_URL": (tmp_path / "own").as_uri(),
        "DUCKMESH_INGEST_INLINE_MAX_BYTES": "0",
    }
    arguments = ("up", "--data-dir", str(data_dir), "--port", "0")
    with Process(*arguments, environment=environment) as process:
        uri = uri_of(process)
        token = write(uri, "t", pa.table({"x": [1]}))
        assert ask(uri, "SELECT x FROM t", **{MIN_TOKEN: str(token)}) == [(1,)]
        assert not (data_dir / "postgres").exists()
        assert list((tmp_path / "own").rglob("*.parquet"))
        process.signal(signal.SIGINT)
        assert process.wait() == 0


def test_the_demo_counts_right_twice_and_notices_a_row_too_many(data_dir: Path) -> None:
    process, uri = start(data_dir)
    with process:
        for _ in range(2):  # The second run's writes are duplicates of the first's.
            with Process("demo", "--uri", uri) as demo:
                lines = demo.rest()
                assert demo.wait() == 0, demo.errors
            assert any("367,687 of 367,687 rows" in line for line in lines)
            assert [line for line in lines if line.startswith("flights ") and "336,776" in line]
            assert any(line.startswith("all is right") for line in lines)
        token = write(uri, "airlines", pa.table({"carrier": ["ZZ"], "name": ["One too many"]}))
        ask(uri, "SELECT count(*) FROM airlines", **{MIN_TOKEN: str(token)})
        with Process("demo", "--uri", uri) as demo:
            lines = demo.rest()
            assert demo.wait() == 1
        (airlines,) = [line for line in lines if line.endswith("WRONG")]
        assert airlines.split() == ["airlines", "16", "17", "WRONG"]


STALLED_READER = """
import sys, adbc_driver_flightsql.dbapi as adbc
cursor = adbc.connect(sys.argv[1], autocommit=True).cursor()
cursor.execute("SELECT range AS x, repeat('y', 100) AS y FROM range(50_000_000)")
next(iter(cursor.fetch_record_batch()))
print("reading", flush=True)
sys.stdin.read()
"""


def test_a_reader_who_stalls_does_not_keep_a_serving_process_alive(
    database_dsn: str, tmp_path: Path
) -> None:
    environment = {
        "DUCKMESH_CATALOG_DSN": database_dsn,
        "DUCKMESH_STORE_URL": (tmp_path / "objects").as_uri(),
        "DUCKMESH_DATA_DIR": str(tmp_path / "data"),
    }
    arguments = ("serve", "--port", "0", "--grace-seconds", "0.5")
    with Process(*arguments, environment=environment) as process:
        uri = process.line("ready grpc://").split()[1]
        reader = subprocess.Popen(
            [sys.executable, "-c", STALLED_READER, uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            reader.kill()
    assert "calls_cut_off" not in process.errors
    assert "Traceback" not in process.errors


def test_a_serving_process_waits_for_its_catalog_and_ends_when_told(tmp_path: Path) -> None:
    environment = {
        "DUCKMESH_CATALOG_DSN": "postgresql://u:hidden@127.0.0.1:1/nowhere",
        "DUCKMESH_STORE_URL": (tmp_path / "objects").as_uri(),
        "DUCKMESH_DATA_DIR": str(tmp_path / "data"),
    }
    with Process("serve", "--port", "0", environment=environment) as process:
        eventually(lambda: process.errors.count("catalog_awaited") >= 2, "a second attempt")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.rest() == []
    assert "hidden" not in process.errors
