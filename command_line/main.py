"""The `duckmesh` command. Each family of commands has a file; this one puts them together."""

from importlib import import_module
from pathlib import Path
from typing import Final

import click

from command_line.failures import MEANINGS
from command_line.invocation import DuckMeshGroup, Invocation
from duckmesh.settings import Profile

PROGRAM: Final = "duckmesh"
COMMANDS: Final = (
    "up",
    "demo",
    "serve",
    "coordinate",
    "maintain",
    "migrate",
    "doctor",
    "sql",
    "ingest",
    "bench",
    "tenants",
    "keys",
    "tables",
    "snapshots",
    "dead-letters",
    "lag",
    "compact",
    "audit",
    "retention",
    "integrity",
    "completion",
)
"""Each is the one command of the module of its name."""


class _Program(DuckMeshGroup):
    """The command without a name. It loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        found: click.Command = getattr(import_module(f"command_line.{name}"), name)
        return found

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])


@click.group(cls=_Program, name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The settings file; duckmesh.toml in the working directory when not given.",
)
@click.option(
    "--profile",
    type=click.Choice([profile.value for profile in Profile]),
    help="Where DuckMesh runs.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more, and show where an error arose.")
@click.version_option(package_name="duckmesh", prog_name=PROGRAM)
@click.pass_context
def program(
    context: click.Context, config: Path | None, profile: str | None, verbose: bool
) -> None:
    """DuckMesh: many writers, one fresh and consistent lake, over Arrow Flight SQL."""
    context.obj = Invocation(config, profile, verbose)


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    program(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
