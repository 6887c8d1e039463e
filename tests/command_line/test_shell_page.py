"""The commands of docs/shell.md run, in their order, on a running service."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from command_line.invocation import Invocation
from command_line.main import program
from command_line.server_address import find_server
from command_line.shell_commands import COMMANDS
from tests.command_line.client_house import running_service

PAGE = (Path(__file__).parents[2] / "docs/shell.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def uri(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(module_database_dsn, tmp_path_factory.mktemp("page")) as found:
        yield found


def commands_of_the_page() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page_run(uri: str, own_place: Path) -> None:
    (own_place / "orders.csv").write_text("id,name\n1,ann\n2,bo\n")
    for day in (1, 2):
        (own_place / f"day-{day}.ndjson").write_text(f'{{"id": {day + 10}, "name": "d{day}"}}\n')
    (own_place / "report.sql").write_text("SELECT 'reported' AS said;")
    said = []
    commands = commands_of_the_page()
    assert len(commands) > 6
    for name, *arguments in commands:
        assert name == "duckmesh"
        result = CliRunner(env={"DUCKMESH_URI": uri}).invoke(program, arguments)
        assert result.exit_code == 0, (arguments, result.output)
        said.append(result.output)
    assert '"duplicate": true' in said[2]
    assert '{"id":11,"name":"d1"}' in said[4]
    assert "1,ann\r\n2,bo\r\n" in said[5].replace("\r\n", "\n").replace("\n", "\r\n")
    assert "reported" in said[6]


def test_the_page_has_every_command_of_the_shell() -> None:
    assert {name for name in COMMANDS if f"`{name}" not in PAGE} == set()


def test_the_profile_of_the_page_is_one(own_place: Path) -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    folder = own_place / "duckmesh"
    folder.mkdir()
    (folder / "clients.toml").write_text(toml)
    (folder / "production.key").write_text("dm_key\n")
    (folder / "authority.pem").write_text("pem")
    environment = {"XDG_CONFIG_HOME": str(own_place)}
    server = find_server(Invocation(), to="production", environment=environment)
    assert (server.key, server.tls_root) == ("dm_key", "pem")
