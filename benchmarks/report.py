"""The figures as a Markdown table."""

import shlex
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.figures import Direction, Figure

_HEAD: Final = (
    "| what | unit | product, median (range) | limit, median (range) | ratio "
    "| floor | goal | stands |\n|---|---|---|---|---|---|---|---|"
)
_PREFACE: Final = """\
# Benchmarks

Each figure stands beside its limit, measured in the same run and in turns with it.
Compare ratios. The amounts are those of one machine with its load.
A ratio is the product's figure divided by the limit's, the median over pairs of neighbouring runs.
A range is the smallest and the largest run. A floor or goal with `x` is of the ratio.
`stands` names the best target that is met.
The choice of group commit without a linger is not measured again here.
"""


def markdown(figures: Sequence[Figure]) -> str:
    """The table, one line per figure."""
    return "\n".join([_HEAD, *(_line(figure) for figure in figures)])


def document(
    figures: Sequence[Figure],
    machine: dict[str, Any],
    *,
    arguments: Sequence[str],
    date: str,
    limits: Sequence[str],
) -> str:
    """The whole of docs/benchmarks.md."""
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    limit_lines = "\n".join(f"- {line}" for line in limits)
    return (
        f"{_PREFACE}\nMeasured on {date} with `{command}`.\n{machine_line(machine)}\n\n"
        f"{markdown(figures)}\n\n## How\n\n{limit_lines}\n"
    )


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line. A load above 0 at the start is other work on the same cores."""
    return (
        f"Machine: {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"load average {machine['load_average']} before the run, so other work may share the "
        f"cores.\nVersions: Python {machine['python']}, Postgres {machine['postgres']}, "
        f"pyarrow {machine['pyarrow']}, DuckDB {machine['duckdb']}, psycopg {machine['psycopg']}, "
        f"ADBC driver {machine['adbc-driver-flightsql']}."
    )


def _line(figure: Figure) -> str:
    limit = f"{figure.limit}: {_amount(figure.limit_runs)}" if figure.limit_runs else "-"
    ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}x"
    cells = (
        figure.what,
        figure.unit,
        _amount(figure.runs),
        limit,
        ratio,
        _target(figure, figure.target.floor),
        _target(figure, figure.target.goal),
        figure.stands or "-",
    )
    return f"| {' | '.join(cells)} |"


def _amount(runs: Sequence[float]) -> str:
    ordered = sorted(runs)
    middle, odd = divmod(len(ordered), 2)
    median = ordered[middle] if odd else (ordered[middle - 1] + ordered[middle]) / 2
    return f"{_number(median)} ({_number(ordered[0])} to {_number(ordered[-1])})"


def _target(figure: Figure, wanted: float | None) -> str:
    if wanted is None:
        return "-"
    sign = ">=" if figure.direction is Direction.HIGHER else "<="
    return f"{sign} {wanted:g}x" if figure.target.of_ratio else f"{sign} {_number(wanted)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
