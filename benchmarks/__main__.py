"""`python -m benchmarks`: measure, and print the figures as Markdown."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import (
    compaction,
    http,
    ingest,
    latency,
    machine,
    neighbours,
    queries,
    replicas,
    scans,
    streams,
    writes,
)
from benchmarks.figures import Figure
from benchmarks.report import document, machine_line, markdown
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
    "neighbours": neighbours.measure,
    "http": http.measure,
}
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what `arguments` name; 0 whatever the figures are, 1 when a benchmark failed."""
    options = _options(arguments)
    sizes = QUICK if options.quick else FULL
    chosen = options.only or list(BENCHMARKS)
    with open_stage(sizes) as stage:
        described = machine.describe(_postgres_version(stage))
        figures, failed = _measure(stage, chosen)
    print(f"{machine_line(described)}\n\n{markdown(figures)}")
    date = datetime.now(UTC).date().isoformat()
    if options.json:
        content = {
            "date": date,
            "quick": options.quick,
            "machine": described,
            "failed": failed,
            "figures": [figure.as_json() for figure in figures],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.write_docs and not failed:
        said = [part for name in options.only or () for part in ("--only", name)]
        text = document(figures, described, arguments=said, date=date, limits=_how(sizes))
        DOCUMENT.write_text(text, encoding="utf-8")
    return 1 if failed else 0


def _measure(stage: Stage, chosen: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The figures, and the benchmarks that failed: one must not cost the others their run."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name in chosen:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            figures += BENCHMARKS[name](stage)
        except Exception:  # noqa: BLE001 - printed whole, and the command ends with 1
            traceback.print_exc()
            failed.append(name)
    return figures, failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument(
        "--only", action="append", choices=list(BENCHMARKS), help="measure this one; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/benchmarks.md (not with --quick)"
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
        "Neighbours: the crowd asks for as long as the one client is measured, and before.",
        "Visible means that a query with the write's token has answered.",
        "Where nobody waits, the time is from the event's to its snapshot's, by the catalog.",
    ]


if __name__ == "__main__":
    sys.exit(main())
