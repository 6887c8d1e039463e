"""What `up` is made of: the data directory, the settings handed on, the stop request."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from command_line.children import environment_of
from command_line.data_directory import DataDirectory, Running
from command_line.stopping import stop_requests
from duckmesh.errors import Conflict
from duckmesh.settings import load_settings


def test_a_data_directory_is_one_process_s(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path / "data"), DataDirectory(tmp_path / "data")
    assert second.running() is None
    first.take()
    running = Running(os.getpid(), "grpc://127.0.0.1:5", "postgresql://u:secret@/d")
    first.tell(running)
    assert second.running() == running
    with pytest.raises(Conflict, match=r"serves grpc://127\.0\.0\.1:5: stop it first"):
        second.take()
    first.give_back()
    first.give_back()
    assert second.running() is None
    second.take()
    assert second.running() is None
    second.give_back()


def test_the_record_is_its_owner_s_alone(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.take()
    directory.tell(Running(1, "grpc://h:1", "postgresql://u:secret@/d"))
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600
    directory.give_back()
    assert not (tmp_path / "up.json").exists()


def test_a_record_of_a_killed_process_is_not_believed(tmp_path: Path) -> None:
    take_and_die = (
        "import os, sys; from pathlib import Path;"
        "from command_line.data_directory import DataDirectory, Running;"
        "d = DataDirectory(Path(sys.argv[1])); d.take(); d.tell(Running(1, 'grpc://h:1', 'x'));"
        "os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", take_and_die, tmp_path], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "up.json").exists()
    assert DataDirectory(tmp_path).running() is None


def test_settings_handed_on_in_the_environment_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUCKMESH_AUTH_DEFAULT_TENANT", "other")
    config = tmp_path / "empty.toml"
    config.touch()
    settings = load_settings(
        config_file=config,
        environment={},
        overrides={
            "data_dir": tmp_path / "with space",
            "catalog.dsn": "postgresql://u:p%20w@/d?host=%2Ftmp",
            "store.secret_access_key": "s3cret",
            "store.allow_http": True,
            "flight.port": 0,
            "coordinator.poll_seconds": 0.25,
            "auth.sealing_secret": "x" * 32,
        },
    )
    # A file in the working directory, written later, must not reach a child.
    (tmp_path / "duckmesh.toml").write_text('[store]\nregion = "elsewhere"\n')
    given = load_settings(environment=environment_of(settings, config=config))
    assert given == settings
    assert given.store.secret_access_key == settings.store.secret_access_key
    assert given.auth.default_tenant == "default"


def test_a_stop_request_is_noticed_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
    assert signal.getsignal(signal.SIGTERM) is before
