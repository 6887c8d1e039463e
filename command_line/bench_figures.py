"""What `duckmesh bench` measured, and how it is shown."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from command_line.output import print_json


@dataclass(frozen=True, slots=True)
class Measured:
    """One line: how many of `unit` in a second, and how long each answer took."""

    what: str
    unit: str
    per_second: float
    answers: int
    p50_ms: float
    p95_ms: float


def measured(
    what: str, unit: str, took: Sequence[float], *, seconds: float, amount: float | None = None
) -> Measured:
    """The figures of answers that took so many seconds each, in `seconds` altogether.

    `amount` is what they brought in `unit`; each brings one when it is not given.
    """
    brought = len(took) if amount is None else amount
    return Measured(
        what=what,
        unit=unit,
        per_second=round(brought / seconds, 1),
        answers=len(took),
        p50_ms=round(1000 * percentile(took, 50), 2),
        p95_ms=round(1000 * percentile(took, 95), 2),
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value at or below which `percent` % of the values lie (nearest rank)."""
    if not values:
        raise ValueError("nothing was measured: no answer came inside the window")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]


def print_table(lines: Iterable[Measured]) -> None:
    """A table on standard output."""
    table = Table("what", box=None, pad_edge=False)
    for heading in ("per second", "", "p50 ms", "p95 ms", "answers"):
        table.add_column(heading, justify="left" if not heading else "right")
    for each in lines:
        table.add_row(
            each.what,
            _number(each.per_second),
            each.unit,
            _number(each.p50_ms),
            _number(each.p95_ms),
            f"{each.answers:,}",
        )
    Console().print(table)


def print_document(lines: Iterable[Measured], **said: Any) -> None:
    """One JSON document on standard output."""
    print_json({**said, "figures": [asdict(each) for each in lines]})


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
