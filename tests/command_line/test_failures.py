"""Every failure is one line and an exit code that says what to do."""

import click
import pytest
from click.testing import CliRunner

from command_line.failures import CHECK_FAILED, EXIT_CODES, INTERRUPTED, MEANINGS
from command_line.invocation import DuckMeshGroup, Invocation
from command_line.main import COMMANDS, program
from duckmesh import errors
from duckmesh.errors import DuckMeshError, ErrorCode


def every_error() -> list[type[DuckMeshError]]:
    return [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, DuckMeshError) and each is not DuckMeshError
    ]


def raising(error: BaseException) -> click.Group:
    @click.group(cls=DuckMeshGroup)
    @click.option("-v", "verbose", is_flag=True)
    @click.pass_context
    def group(context: click.Context, verbose: bool) -> None:
        context.obj = Invocation(verbose=verbose)

    @group.command()
    def act() -> None:
        raise error

    return group


def test_every_error_has_an_exit_code_and_every_exit_code_a_meaning() -> None:
    assert set(EXIT_CODES) == set(every_error())
    assert set(MEANINGS) == {0, CHECK_FAILED, INTERRUPTED} | set(EXIT_CODES.values())


def test_an_error_is_one_line_with_its_code() -> None:
    error = errors.Conflict(ErrorCode.TABLE_EXISTS, "name another table")
    result = CliRunner().invoke(raising(error), ["act"])
    assert result.exit_code == 4
    assert result.stderr == "error TABLE_EXISTS: name another table\n"
    assert result.stdout == ""


def test_a_fault_of_ours_shows_where_it_arose_only_when_asked() -> None:
    group = raising(ZeroDivisionError("the inside"))
    result = CliRunner().invoke(group, ["act"])
    assert result.exit_code == 70
    assert result.stderr.startswith("error INTERNAL: an internal error (ZeroDivisionError)")
    assert "Traceback" not in result.stderr
    assert "the inside" not in result.stderr
    told = CliRunner().invoke(group, ["-v", "act"])
    assert told.exit_code == 70
    assert "Traceback" in told.stderr
    assert "the inside" in told.stderr


def test_an_interruption_is_130() -> None:
    result = CliRunner().invoke(raising(KeyboardInterrupt()), ["act"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_wrong_settings_name_every_problem_and_open_nothing(run) -> None:
    result = run("tables", DUCKMESH_FLIGHT_PORT="many", DUCKMESH_FLITE_HOST="x")
    assert result.exit_code == 2
    assert result.stderr.startswith("error SETTINGS_INVALID: 2 settings are wrong:")
    assert "did you mean DUCKMESH_FLIGHT_HOST?" in result.stderr


@pytest.mark.parametrize("arguments", [["nothing"], ["keys", "create"], ["serve", "--port", "-1"]])
def test_wrong_usage_is_2(run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_without_a_catalog_the_message_names_both_ways_to_one(run) -> None:
    result = run("lag")
    assert result.exit_code == 2
    assert "DUCKMESH_CATALOG_DSN" in result.stderr
    assert "duckmesh up" in result.stderr


def test_a_catalog_that_is_down_is_6_and_its_address_is_not_told(run) -> None:
    result = run(
        "tenants",
        "list",
        DUCKMESH_CATALOG_DSN="postgresql://someone:hidden@127.0.0.1:1/nowhere",
        DUCKMESH_CATALOG_CONNECT_TIMEOUT_SECONDS="0.2",
    )
    assert result.exit_code == 6
    assert result.stderr.startswith("error CATALOG_UNAVAILABLE: ")
    assert "hidden" not in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_itself(name: str) -> None:
    result = CliRunner().invoke(program, [name, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: duckmesh {name}") or f" {name} " in result.stdout
