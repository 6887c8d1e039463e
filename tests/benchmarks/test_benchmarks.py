"""The benchmarks run, and say what they promise to say. No figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Direction, Figure, Target, percentile

ROOT = Path(__file__).parents[2]
FIELDS = {
    "benchmark",
    "what",
    "unit",
    "median",
    "runs",
    "limit",
    "limit_median",
    "limit_runs",
    "ratio",
    "better",
    "floor",
    "goal",
    "target_of",
    "stands",
    "not_run",
    "run",
    "load_average",
}


@pytest.mark.timeout(180)
def test_a_quick_run_writes_each_figure_beside_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--quick", "--only", "writes", "--json", str(file)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["quick"] is True
    assert written["runs"][0]["machine"]["cores"] >= 1
    assert [figure["floor"] for figure in written["figures"]] == [0.3, 0.5, 0.6]
    for figure in written["figures"]:
        assert set(figure) == FIELDS
        assert figure["benchmark"] == "writes"
        assert len(figure["runs"]) == len(figure["limit_runs"]) == 2
        assert min(figure["runs"]) > 0
        assert min(figure["limit_runs"]) > 0
        assert figure["what"] in ran.stdout


def test_figures_of_a_quick_run_are_not_published() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--write-docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "leave one out" in ran.stderr


def figure_of(runs: list[float], direction: Direction, target: Target) -> Figure:
    return Figure(
        benchmark="b",
        what="w",
        unit="u",
        runs=runs,
        limit="l",
        limit_runs=[10.0] * len(runs),
        direction=direction,
        target=target,
    )


@pytest.mark.parametrize(
    ("direction", "runs", "stands"),
    [
        (Direction.HIGHER, [7.0, 8.0, 9.0], "goal"),
        (Direction.HIGHER, [4.0, 5.0, 6.0], "floor"),
        (Direction.HIGHER, [1.0, 2.0, 9.0], "below floor"),
        (Direction.LOWER, [4.0, 5.0, 9.0], "goal"),
    ],
)
def test_a_figure_stands_where_its_median_ratio_stands(
    direction: Direction, runs: list[float], stands: str
) -> None:
    target = Target(0.5, 0.8) if direction is Direction.HIGHER else Target(0.9, 0.5)
    assert figure_of(runs, direction, target).stands == stands


def test_a_ratio_is_of_neighbouring_runs() -> None:
    # A load from elsewhere slowed the second pair down on both sides.
    figure = Figure(benchmark="b", what="w", unit="u", runs=[10, 1], limit="l", limit_runs=[20, 2])
    assert figure.ratio == 0.5


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(number) for number in range(1, 21)]
    assert percentile(values, 50) == 10
    assert percentile(values, 95) == 19
    assert percentile([3.0], 95) == 3
