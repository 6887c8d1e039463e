"""What is published: figures of several runs beside each other, counted, and drawn."""

from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.figures import Direction, Figure, Target
from benchmarks.plots import draw
from benchmarks.report import counts, document
from benchmarks.results import Row, Run, merge
from benchmarks.targets import TARGET_TABLE

MACHINE = {
    "cores": 2,
    "memory_gib": 8,
    "system": "Linux x86_64",
    "kernel": "6.1",
    "disk": "solid state disk with ext4",
    "python": "3.11.2",
    "postgres": "18.6",
    "pyarrow": "26.0.1",
    "duckdb": "2.0.0",
    "psycopg": "3.3.9",
    "adbc-driver-flightsql": "1.13.0",
}
MONDAY = Run("2026-11-16", "python -m benchmarks", MACHINE)
FRIDAY = Run("2026-11-20", "python -m benchmarks --only streams", MACHINE)
ORDER = ["writes", "streams", "queries"]


def row(benchmark: str, what: str, run: Run, *, speed: float = 5.0, load: float = 0.0) -> Row:
    figure = Figure(
        benchmark=benchmark,
        what=what,
        unit="rows/s",
        runs=[speed],
        limit="the limit",
        limit_runs=[10.0],
        target=Target(0.3, 0.8),
    )
    return Row(figure, run, load)


def names(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(each.figure.benchmark, each.figure.what, each.run.date) for each in rows]


def test_a_run_of_one_benchmark_replaces_its_own_rows_and_keeps_the_others() -> None:
    earlier = [row("streams", "old name", MONDAY), row("writes", "one client", MONDAY)]
    merged = merge(earlier, [row("streams", "one stream", FRIDAY)], order=ORDER)
    assert names(merged) == [
        ("writes", "one client", MONDAY.date),
        ("streams", "one stream", FRIDAY.date),
    ]


def test_a_benchmark_that_failed_keeps_the_figures_it_did_not_measure_again() -> None:
    earlier = [row("streams", "one stream", MONDAY), row("streams", "eight streams", MONDAY)]
    broken = Figure(benchmark="streams", what=results.WHOLE, unit="-", not_run="it failed")
    measured = [row("streams", "one stream", FRIDAY), Row(broken, FRIDAY, 0.0)]
    merged = merge(earlier, measured, failed=["streams"], order=ORDER)
    assert names(merged) == [
        ("streams", "eight streams", MONDAY.date),
        ("streams", "one stream", FRIDAY.date),
        ("streams", results.WHOLE, FRIDAY.date),
    ]
    mended = merge(merged, [row("streams", "one stream", FRIDAY)], order=ORDER)
    assert names(mended) == [("streams", "one stream", FRIDAY.date)]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert results.read(file) == []
    slow = Figure(
        benchmark="queries",
        what="small",
        unit="ms",
        runs=(1.0, 2.0),
        direction=Direction.LOWER,
        target=Target(3.0, None, of_ratio=False),
    )
    absent = Figure(benchmark="queries", what="peer", unit="s", not_run="it does not install")
    rows = [Row(slow, MONDAY, 1.5), Row(absent, FRIDAY, 0.1)]
    results.write(rows, file)
    assert results.read(file) == rows
    results.write(rows[:1], file)
    assert results.read(file) == rows[:1]


def test_a_figure_has_runs_or_a_reason() -> None:
    with pytest.raises(ValueError, match="not_run"):
        Figure(benchmark="queries", what="nothing", unit="ms")


def test_floors_and_goals_are_counted() -> None:
    figures = [
        row("writes", "goal", MONDAY, speed=9.0).figure,
        row("writes", "floor", MONDAY, speed=4.0).figure,
        row("writes", "below", MONDAY, speed=1.0).figure,
        Figure(benchmark="writes", what="peer", unit="s", not_run="no", target=Target(1.0, 2.0)),
    ]
    assert counts(figures) == (
        "2 of 3 floors are met, and 1 of 3 goals. 1 figures are not measured."
    )


def test_the_page_has_every_row_of_the_target_table_and_says_what_was_not_run() -> None:
    absent = Figure(benchmark="tpch", what="22 queries", unit="x", not_run="no data here")
    rows = [
        row("writes", "one client", MONDAY, load=0.2),
        row("streams", "one stream", FRIDAY, load=7.5),
        Row(absent, FRIDAY, 0.0),
    ]
    page = document(rows, how=["Postgres is private."], plots=["benchmarks/ratios.svg"])
    summary, _, parts = page.partition("## Writes")
    assert "| one client | 5.0 rows/s | 10.0 rows/s | 0.50x |" in summary
    assert "| 22 queries | not run: no data here | - |" in summary
    assert "![ratios](benchmarks/ratios.svg)" in summary
    measured = {"writes", "streams", "tpch"}
    for target in TARGET_TABLE:
        assert (f"| {target.what} | not run: no benchmark" in summary) == (
            target.benchmark not in measured
        )
    assert "Measured on 2026-11-16 with `python -m benchmarks`; load average 0.2 before." in parts
    assert "`python -m benchmarks --only streams`; load average 7.5 before." in parts
    assert "2026-11-16, 2026-11-20: 2 cores, 8 GiB, Linux x86_64 6.1, solid state disk" in parts


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    rows = results.read()
    page = (results.RESULTS.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for each in rows:
        assert f"| {each.figure.what} |" in page
        assert f"Measured on {each.run.date} with `{each.run.command}`;" in page
    assert counts([each.figure for each in rows]) in page


def test_pictures_of_the_same_figures_are_equal(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = [row("writes", "one client", MONDAY).figure, row("writes", "two", MONDAY).figure]
    (first,) = draw(figures, tmp_path / "a")
    (second,) = draw(figures, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert "one client" in first.read_text(encoding="utf-8")
    assert draw([], tmp_path) == []
