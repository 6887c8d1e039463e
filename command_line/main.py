"""The `duckmesh` command. Each family of commands has a file; this one puts them together."""

from pathlib import Path

import click

from command_line.coordinate import coordinate
from command_line.demo import demo
from command_line.doctor import doctor
from command_line.failures import MEANINGS
from command_line.invocation import DuckMeshGroup, Invocation
from command_line.keys import keys
from command_line.lag import lag
from command_line.migrate import migrate
from command_line.serve import serve
from command_line.tables import tables
from command_line.tenants import tenants
from command_line.up import up
from duckmesh.settings import Profile

PROGRAM = "duckmesh"


class _Program(DuckMeshGroup):
    """The command without a name: its help ends with the exit codes."""

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


for _command in (
    up,
    demo,
    serve,
    coordinate,
    migrate,
    doctor,
    tenants,
    keys,
    tables,
    lag,
):
    program.add_command(_command)


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    program(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
