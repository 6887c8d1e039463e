"""docs/cli.md, written from the commands themselves.

`python -m command_line.reference` in the tree's root writes it; a test keeps it current.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from command_line.failures import MEANINGS
from command_line.main import PROGRAM, program

_INTRODUCTION: Final = f"""# The command line

This file is generated from the commands in the code: `python -m command_line.reference`.

The flags in front of the command hold for every command. Settings come from flags, environment
variables and `duckmesh.toml`: [configuration.md](configuration.md).
Results go to standard output, all else to standard error. A failure is one line,
`error CODE: what to change`; the codes are those that clients get.

Commands that read the catalog take it from `catalog.dsn`. Without it they use that of the
`{PROGRAM} up` that runs on `data_dir`.
"""


def command_page() -> str:
    """The text of docs/cli.md."""
    parts = [_INTRODUCTION, *_sections(_root_context()), _exit_codes()]
    return "\n".join(parts)


def _root_context() -> click.Context:
    return click.Context(program, info_name=PROGRAM, **program.context_settings)


def _sections(context: click.Context) -> Iterator[str]:
    command = context.command
    yield f"## `{context.command_path}`\n"
    yield f"{_prose(command)}\n"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```\n{usage}\n```\n"
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    if records:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{_cell(name)}` | {_cell(meaning)} |" for name, meaning in records)
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _sections(click.Context(inner, info_name=name, parent=context))


def _prose(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join(["## Exit codes\n", "| code | meaning |", "|---|---|", *rows, ""])


def main(root: Path) -> None:
    """Write the file below `root`."""
    (root / "docs" / "cli.md").write_text(command_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path.cwd())
