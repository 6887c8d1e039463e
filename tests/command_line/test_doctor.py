"""doctor: each line says what was found, or what to do."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line.conftest import document


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def failed(result) -> dict[str, str]:
    """The details of what failed."""
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    return {each["name"]: each["detail"] for each in found["checks"] if not each["ok"]}


def test_a_machine_that_is_ready(on_catalog, tmp_path: Path) -> None:
    store = tmp_path / "objects"
    found = document(
        on_catalog("doctor", "--json", DUCKMESH_STORE_URL=store.as_uri(), DUCKMESH_FLIGHT_PORT="0")
    )
    assert found["healthy"] is True
    names = [each["name"] for each in found["checks"]]
    assert names == ["versions", "settings", "postgres", "migrations", "store", "port"]
    assert not [each for each in store.rglob("*") if each.is_file()]


def test_a_machine_for_up_needs_no_catalog_and_is_left_as_it_was(run, tmp_path: Path) -> None:
    result = run("doctor", DUCKMESH_FLIGHT_PORT="0")
    assert result.exit_code == 0, result.output
    assert "is here for `duckmesh up`" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_pending_migrations(run, empty_database_dsn: str) -> None:
    result = run(
        "doctor", "--json", DUCKMESH_CATALOG_DSN=empty_database_dsn, DUCKMESH_FLIGHT_PORT="0"
    )
    details = failed(result)
    assert set(details) == {"migrations"}
    assert "duckmesh migrate up" in details["migrations"]


def test_all_that_is_wrong_is_told_at_once(run, taken_port: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    details = failed(
        run(
            "doctor",
            "--json",
            DUCKMESH_CATALOG_DSN="postgresql://u:hidden@127.0.0.1:1/nowhere",
            DUCKMESH_STORE_URL=(tmp_path / "file" / "objects").as_uri(),
            DUCKMESH_FLIGHT_PORT=str(taken_port),
        )
    )
    assert set(details) == {"postgres", "migrations", "store", "port"}
    assert str(taken_port) in details["port"]
    assert "hidden" not in str(details)


def test_wrong_settings_are_a_finding(run) -> None:
    result = run("doctor", DUCKMESH_STORE_URL="nowhere")
    assert result.exit_code == 1
    assert "FAIL  settings" in result.stdout
    assert "store.url (environment DUCKMESH_STORE_URL)" in result.stdout
