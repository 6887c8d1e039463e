"""How results are printed: a table for people, one JSON document for programs."""

import json
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_json(document: Any) -> None:
    """Print one JSON document to standard output."""
    click.echo(json.dumps(document, default=_plain, indent=2, ensure_ascii=False))


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows in columns; `empty` when there are none. Numbers stand to the right."""
    if not rows:
        click.echo(empty)
        return
    cells = [list(headings), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    right = [all(isinstance(row[n], int | float) for row in rows) for n in range(len(headings))]
    for row in cells:
        parts = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    return str(value)
