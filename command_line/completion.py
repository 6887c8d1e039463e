"""`duckmesh completion`: the script that completes commands and flags in a shell."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    bash and zsh: `eval "$(duckmesh completion bash)"` in .bashrc or .zshrc; fish:
    `duckmesh completion fish > ~/.config/fish/completions/duckmesh.fish`.
    """
    root = context.find_root()
    name = root.info_name or root.command.name or ""
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has each of SHELLS
    variable = f"_{name.replace('-', '_')}_COMPLETE".upper()
    click.echo(found(root.command, {}, name, variable).source())
