"""The figures that stand in the documents, each with the run that measured it.

They lie in `benchmarks/results.json`. A run replaces the figures of its own benchmarks and leaves
those of the others as they are.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure

RESULTS: Final = Path(__file__).with_name("results.json")
WHOLE: Final = "the whole benchmark"
"""What a figure is called that stands for a benchmark which failed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command: when, with what words, and on what machine."""

    date: str
    command: str
    machine: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"date": self.date, "command": self.command, "machine": dict(self.machine)}


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, the run that measured it, and the load average when its benchmark began."""

    figure: Figure
    run: Run
    load_average: float


def merge(
    earlier: Sequence[Row],
    measured: Sequence[Row],
    *,
    failed: Collection[str] = (),
    order: Sequence[str] = (),
) -> list[Row]:
    """The rows of both, by benchmark in the given order.

    A benchmark that was measured whole keeps none of its earlier rows: its sizes or names may
    have changed. One that failed keeps those that it did not measure again.
    """
    again = {row.figure.benchmark for row in measured}
    names = {(row.figure.benchmark, row.figure.what) for row in measured}
    kept = [
        row
        for row in earlier
        if row.figure.benchmark not in again
        or (row.figure.benchmark in failed and (row.figure.benchmark, row.figure.what) not in names)
    ]
    places = {name: number for number, name in enumerate(order)}
    return sorted([*kept, *measured], key=lambda row: places.get(row.figure.benchmark, len(places)))


def read(path: Path = RESULTS) -> list[Row]:
    """The rows of a file that `write` wrote; none when there is no such file."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    runs = [Run(each["date"], each["command"], each["machine"]) for each in said["runs"]]
    return [
        Row(Figure.from_json(each), runs[each["run"]], each["load_average"])
        for each in said["figures"]
    ]


def write(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Replace the file, whole or not at all."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(as_json(rows), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)  # noqa: PTH105 - its name says what it does


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows with their runs; each run is there once, and named by its place."""
    runs: list[Run] = []
    figures = []
    for row in rows:
        if row.run not in runs:
            runs.append(row.run)
        place = {"run": runs.index(row.run), "load_average": row.load_average}
        figures.append({**row.figure.as_json(), **place})
    return {"runs": [run.as_json() for run in runs], "figures": figures}
