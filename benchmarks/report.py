"""The figures as Markdown: the table of a run, and the whole of docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from benchmarks.figures import Direction, Figure
from benchmarks.results import Row, Run
from benchmarks.targets import aimed, not_measured

_HEAD: Final = (
    "| what | unit | product, median (range) | limit, median (range) | ratio "
    "| floor | goal | stands |\n|---|---|---|---|---|---|---|---|"
)
_SHORT_HEAD: Final = (
    "| what | product | limit | ratio | floor | goal | stands |\n|---|---|---|---|---|---|---|"
)
_PREFACE: Final = """\
# Benchmarks

Each figure stands beside its limit, measured in the same run and in turns with it.
Compare ratios. The amounts are those of one machine with its load.
A ratio is the product's figure divided by the limit's, the median over pairs of neighbouring runs.
A range is the smallest and the largest run. A floor or goal with `x` is of the ratio.
`stands` names the best target that is met. A floor is what users would call broken below.
The choice of group commit without a linger is not measured again here.
This page is written by `make bench` from `benchmarks/results.json`.
`duckmesh bench` measures a running server ([the command line](cli.md)).
"""
_SOAK: Final = "[The soak](soak.md) is a load of an hour, and what grew in it.\n"


def markdown(figures: Sequence[Figure]) -> str:
    """The table, one line per figure."""
    return "\n".join([_HEAD, *(_line(figure) for figure in figures)])


def document(
    rows: Sequence[Row], *, how: Sequence[str], plots: Sequence[str] = (), soak: bool = False
) -> str:
    """The whole of docs/benchmarks.md; `plots` are paths of pictures, relative to docs/.

    With `soak` it names the page of the soak, which lies beside it.
    """
    figures = [row.figure for row in rows]
    pictures = [f"![{_caption(path)}]({path})" for path in plots]
    parts = [
        f"{_PREFACE}{_SOAK if soak else ''}",
        _summary(figures),
        "\n\n".join(pictures),
        *(_part(name, list(group)) for name, group in groupby(rows, _benchmark)),
        _machines([row.run for row in rows]),
        "## How\n\n" + "\n".join(f"- {line}" for line in how),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def counts(figures: Sequence[Figure]) -> str:
    """How many floors and goals are met, in one line."""
    floors = [met for figure in figures if (met := figure.meets_floor) is not None]
    goals = [met for figure in figures if (met := figure.meets_goal) is not None]
    absent = sum(bool(figure.not_run) for figure in figures)
    said = f"{sum(floors)} of {len(floors)} floors are met, and {sum(goals)} of {len(goals)} goals."
    return f"{said} {absent} figures are not measured." if absent else said


def _summary(figures: Sequence[Figure]) -> str:
    """Every row of the target table, and every further figure that has a target."""
    lines = [_short_line(figure) for figure in aimed(figures)]
    lines += [
        f"| {row.what} | not run: no benchmark `{row.benchmark}` has a figure of it "
        "| - | - | - | - | - |"
        for row in not_measured(figures)
    ]
    return "\n".join(["## Targets\n", counts(figures), "", _SHORT_HEAD, *lines])


def _part(name: str, rows: Sequence[Row]) -> str:
    """One benchmark: its runs, then its figures run by run."""
    said = [f"## {name.capitalize()}"]
    for (run, load), group in groupby(rows, lambda row: (row.run, row.load_average)):
        said.append(f"Measured on {run.date} with `{run.command}`; load average {load:g} before.")
        said.append(markdown([row.figure for row in group]))
    return "\n\n".join(said)


def _benchmark(row: Row) -> str:
    return row.figure.benchmark


def _machines(runs: Sequence[Run]) -> str:
    """Each machine once, with the dates on which it measured."""
    dates: dict[str, set[str]] = {}
    for run in runs:
        dates.setdefault(machine_line(run.machine), set()).add(run.date)
    lines = [f"{', '.join(sorted(when))}: {line}" for line, when in dates.items()]
    return "\n".join(["## Machine", "", *lines])


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine, and the versions on it."""
    system = " ".join(filter(None, [machine["system"], machine.get("kernel")]))
    disk = f", {machine['disk']}" if machine.get("disk") else ""
    return (
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {system}{disk}.\n"
        f"Python {machine['python']}, Postgres {machine['postgres']}, "
        f"pyarrow {machine['pyarrow']}, DuckDB {machine['duckdb']}, psycopg {machine['psycopg']}, "
        f"ADBC driver {machine['adbc-driver-flightsql']}."
    )


def _caption(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".svg").replace("-", " ")


def _line(figure: Figure) -> str:
    limit = f"{figure.limit}: {_amount(figure.limit_runs)}" if figure.limit_runs else "-"
    cells = (
        figure.what,
        figure.unit,
        _amount(figure.runs) if figure.runs else f"not run: {figure.not_run}",
        limit,
        *_verdict(figure),
    )
    return f"| {' | '.join(cells)} |"


def _short_line(figure: Figure) -> str:
    said = f"not run: {figure.not_run}"
    if figure.median is not None:
        said = f"{_number(figure.median)} {figure.unit}"
    limit = "-" if figure.limit_median is None else f"{_number(figure.limit_median)} {figure.unit}"
    return f"| {' | '.join((figure.what, said, limit, *_verdict(figure)))} |"


def _verdict(figure: Figure) -> tuple[str, str, str, str]:
    return (
        "-" if figure.ratio is None else f"{figure.ratio:.2f}x",
        _target(figure, figure.target.floor),
        _target(figure, figure.target.goal),
        figure.stands or "-",
    )


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
