"""`python -m benchmarks`: measure, and print the figures as Markdown."""

import argparse
import json
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import (
    catalog_scale,
    compaction,
    ducklake,
    http,
    ingest,
    keyed,
    latency,
    machine,
    neighbours,
    quack,
    queries,
    replicas,
    results,
    scans,
    streams,
    tpch,
    writes,
)
from benchmarks.figures import Figure
from benchmarks.plots import draw
from benchmarks.report import counts, document, machine_line, markdown
from benchmarks.results import Row, Run
from benchmarks.stage import FULL, QUICK, ROOT, Sizes, Stage, open_stage

BENCHMARKS: Final[dict[str, Callable[[Stage], Iterator[Figure]]]] = {
    "writes": writes.measure,
    "streams": streams.measure,
    "latency": latency.measure,
    "ingest": ingest.measure,
    "queries": queries.measure,
    "scans": scans.measure,
    "compaction": compaction.measure,
    "replicas": replicas.measure,
    "keyed": keyed.measure,
    "neighbours": neighbours.measure,
    "http": http.measure,
    "tpch": tpch.measure,
    "ducklake": ducklake.measure,
    "quack": quack.measure,
    "catalog_scale": catalog_scale.measure,
}
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
SOAK: Final = ROOT / "docs" / "soak.md"
PLOTS: Final = ROOT / "docs" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what `arguments` name; 0 whatever the figures are, 1 when a benchmark failed."""
    options = _options(arguments)
    sizes = QUICK if options.quick else FULL
    with open_stage(sizes) as stage:
        run = Run(
            datetime.now(UTC).date().isoformat(),
            _command(options),
            machine.describe(_postgres_version(stage)),
        )
        earlier = results.read()

        def keep(rows: Sequence[Row], failed: Sequence[str]) -> None:
            if options.write_docs:
                results.write(results.merge(earlier, rows, failed=failed, order=list(BENCHMARKS)))

        rows, failed = _measure(stage, options.only or list(BENCHMARKS), run, keep)
    figures = [row.figure for row in rows]
    print(f"{machine_line(run.machine)}\n\n{markdown(figures)}\n\n{counts(figures)}")
    if options.json:
        content = {"quick": options.quick, "failed": failed, **results.as_json(rows)}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.write_docs:
        _publish(results.read())
    return 1 if failed else 0


def _measure(
    stage: Stage,
    chosen: Sequence[str],
    run: Run,
    keep: Callable[[Sequence[Row], Sequence[str]], None],
) -> tuple[list[Row], list[str]]:
    """The figures, and the benchmarks that failed: one must not cost the others their run.

    `keep` is told of all so far after each benchmark: died in the next one, they stand.
    """
    rows: list[Row] = []
    failed: list[str] = []
    for name in chosen:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        load = machine.load_average()
        try:
            # One by one: what a benchmark measured before it failed stands.
            for figure in BENCHMARKS[name](stage):
                rows.append(Row(figure, run, load))  # noqa: PERF401
        except Exception as error:  # noqa: BLE001 - printed whole, and the command ends with 1
            traceback.print_exc()
            failed.append(name)
            reason = f"it failed with {type(error).__name__}"
            figure = Figure(benchmark=name, what=results.WHOLE, unit="-", not_run=reason)
            rows.append(Row(figure, run, load))
        keep(rows, failed)
    return rows, failed


def _publish(rows: Sequence[Row]) -> None:
    """Write the page and the pictures that show the figures."""
    drawn = draw([row.figure for row in rows], PLOTS)
    shown = [path.relative_to(DOCUMENT.parent).as_posix() for path in drawn]
    text = document(rows, how=_how(FULL), plots=shown, soak=SOAK.exists())
    DOCUMENT.write_text(text, encoding="utf-8")


def _command(options: argparse.Namespace) -> str:
    said = [part for name in options.only or () for part in ("--only", name)]
    return shlex.join(["python", "-m", "benchmarks", *said])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument(
        "--only", action="append", choices=list(BENCHMARKS), help="measure this one; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="keep the figures in benchmarks/results.json, beside those of other benchmarks, and "
        "write docs/benchmarks.md with its pictures (not with --quick)",
    )
    return parser


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick and options.write_docs:
        parser.error("--quick measures too little for docs/benchmarks.md: leave one out")
    return options


def _postgres_version(stage: Stage) -> str:
    with stage.postgres() as connection:
        row = connection.execute("SHOW server_version").fetchone()
    assert row is not None
    return str(row[0])


def _how(sizes: Sizes) -> list[str]:
    """How the figures came about, with the sizes that the run had."""
    writes = f"{sizes.repetitions} runs of {sizes.seconds:g} s on each side, in turns"
    bulk = f"{sizes.bulk_repetitions} runs of each mode, each followed by its limit"
    return [
        "Postgres is a private one, with fsync and synchronous_commit on. The store: a directory.",
        "`serve`, `coordinate` and the bare server are processes of their own, and log warnings.",
        "Clients run in up to four further processes, on the same cores.",
        f"Writes, streams and latency: {writes}. A row has ten mixed columns.",
        "A stream has up to 32 batches under way. An INSERT waits for its commit.",
        f"Bulk ingest: {bulk}. Rows are drawn with a fixed seed before the clock starts.",
        f"Scans: {sizes.scan_files} files of {sizes.rows_per_file:,} rows in the store, unmerged.",
        "Cold is a fresh serving process, and a fresh DuckDB; the system has the files in memory.",
        "HTTP: beside the Flight door of the same process; answers are read whole, and not parsed.",
        "Records go over bare sockets, the same bytes each time: no client library is measured.",
        "Neighbours: the crowd asks for as long as the one client is measured, and before.",
        f"TPC-H: scale factor {sizes.tpch_scale:g}, ingested, compacted; two threads on each side.",
        f"TPC-H: {sizes.repetitions} passes, each query on each side before the next one.",
        "The streaming recipe was published with DuckLake's data inlining.",
        f"DuckLake streams for {sizes.recipe_peer_seconds:g} s, all connections in one process.",
        "Quack: the published ratios are of 1, 2, 4 and 8 threads on another machine.",
        "Visible means that a query with the write's token has answered.",
        "Where nobody waits, the time is from the event's to its snapshot's, by the catalog.",
    ]


if __name__ == "__main__":
    sys.exit(main())
