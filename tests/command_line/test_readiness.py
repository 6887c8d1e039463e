"""What a process does not start without."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from command_line.failures import EXIT_CODES
from duckmesh.errors import Invalid
from tests.command_line.conftest import Process, Run


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a Postgres that does not wait for its disk."""
    data_dir = tmp_path_factory.mktemp("forgetful") / "data"
    with EmbeddedPostgres(data_dir, settings={"fsync": "off", "shared_buffers": "32MB"}) as server:
        migrate_up(server.dsn)
        yield server.dsn


@pytest.mark.parametrize("command", ["serve", "coordinate"])
def test_production_does_not_start_on_a_postgres_that_may_forget(
    command: str, forgetful: str, tmp_path: Path
) -> None:
    environment = {
        "DUCKMESH_PROFILE": "prod",
        "DUCKMESH_CATALOG_DSN": forgetful,
        "DUCKMESH_STORE_URL": (tmp_path / "objects").as_uri(),
        "DUCKMESH_FLIGHT_PORT": "0",
    }
    with Process(command, environment=environment) as process:
        assert process.wait() == EXIT_CODES[Invalid]
        assert process.rest() == []
    assert "error NOT_READY: the catalog's Postgres has fsync off" in process.errors
    assert "set fsync = on" in process.errors


@pytest.mark.parametrize(
    ("settings", "ok"),
    [
        ({"DUCKMESH_PROFILE": "dev"}, True),
        ({"DUCKMESH_PROFILE": "prod"}, False),
        ({"DUCKMESH_PROFILE": "prod", "DUCKMESH_CATALOG_ALLOW_FSYNC_OFF": "true"}, True),
    ],
)
def test_the_doctor_says_that_a_postgres_may_forget(
    run: Run, forgetful: str, tmp_path: Path, settings: dict[str, str], ok: bool
) -> None:
    result = run(
        "doctor",
        "--json",
        DUCKMESH_CATALOG_DSN=forgetful,
        DUCKMESH_STORE_URL=(tmp_path / "objects").as_uri(),
        DUCKMESH_FLIGHT_PORT="0",
        **settings,
    )
    checks = {each["name"]: each for each in json.loads(result.stdout)["checks"]}
    assert checks["postgres"]["ok"] is ok
    assert "fsync" in checks["postgres"]["detail"]
