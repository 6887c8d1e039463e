"""`python -m benchmarks.soak --minutes 60`: load everything for so long, and judge what grew.

Writes `samples.jsonl`, `verdict.json` and pictures as SVG. Ends with 1 when something grew, a row
is lost, doubled or unknown, or an answer was wrong. Ctrl-C ends the load early, and all is judged.
"""

import argparse
import json
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from adbc_driver_flightsql import dbapi

from benchmarks import machine
from benchmarks.data import bulk_rows
from benchmarks.soak import load, report
from benchmarks.soak.exactness import Exactness, check
from benchmarks.soak.load import Ledger, Observed, Plan
from benchmarks.soak.plots import draw
from benchmarks.soak.processes import Processes, running
from benchmarks.soak.samples import Sample, Sampler, together
from benchmarks.soak.verdict import Judged, judge
from benchmarks.stage import ROOT

_WINDOWS: Final = 8
"""What is kept for a while is kept for this part of the run: a steady state before its half."""
_BULK_LOADS: Final = 12
_JOIN_SECONDS: Final = 120.0
_DOCUMENT: Final = ROOT / "docs" / "soak.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, sample, judge; 0 when everything stayed as it was and every row is there once."""
    options = _options(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    began = datetime.now(UTC)
    window = timedelta(minutes=options.minutes) / _WINDOWS
    with running(window) as processes, _interrupts() as stop:
        load_before = machine.load_average()
        described = _described(processes)
        plan = _plan(processes, options)
        samples, ledger = _run(processes, plan, options, stop, out / "samples.jsonl")
        exactness = check(processes.uri, ledger)
    verdict = {
        "date": began.date().isoformat(),
        "minutes": round(samples[-1]["seconds"] / 60, 1),
        "window_seconds": window.total_seconds(),
        "load_average": load_before,
        "machine": described,
        "exactness": exactness.as_json(),
        "errors": _errors(samples),
        "series": [each.as_json() for each in judge(samples)],
    }
    (out / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
    judged = judge(samples)
    text = report.markdown(verdict, judged, samples)
    print(text)
    pictures = draw(samples, out)
    if options.write_docs:
        pictures = draw(samples, ROOT / "docs" / "benchmarks")
        shown = [f"benchmarks/{path.name}" for path in pictures]
        command = f"python -m benchmarks.soak --minutes {options.minutes:g}"
        page = report.document(verdict, judged, samples, command=command, plots=shown)
        _DOCUMENT.write_text(page, encoding="utf-8")
    return 0 if _right(judged, exactness, verdict["errors"]) else 1


def _right(judged: Sequence[Judged], exactness: Exactness, errors: dict[str, int]) -> bool:
    wrong = any("WRONG" in name for name in errors)
    return exactness.exact and not wrong and all(each.flat for each in judged)


def _run(
    processes: Processes,
    plan: Plan,
    options: argparse.Namespace,
    stop: threading.Event,
    file: Path,
) -> tuple[list[Sample], Ledger]:
    _create_tables(processes, plan)
    context = multiprocessing.get_context("spawn")
    ended, observed, ledgers = context.Event(), context.Queue(), context.Queue()
    worker = context.Process(target=load.run, args=(plan, ended, observed, ledgers), daemon=True)
    worker.start()
    sampler = Sampler(processes)
    samples: list[Sample] = []
    until = time.monotonic() + 60 * options.minutes
    try:
        with file.open("w", encoding="utf-8") as lines:
            while time.monotonic() < until and worker.is_alive() and not stop.is_set():
                stop.wait(min(options.sample_seconds, max(0.0, until - time.monotonic())))
                samples.append(sampler.sample(together(_drain(observed))))
                lines.write(json.dumps(samples[-1]) + "\n")
                lines.flush()
                _tell(samples, options)
    finally:
        sampler.close()
        ended.set()
    ledger: Ledger = ledgers.get(timeout=_JOIN_SECONDS)
    _drain(observed)
    worker.join(_JOIN_SECONDS)
    return samples, ledger


def _create_tables(processes: Processes, plan: Plan) -> None:
    """The tables, before the clock: the load finds both, and the large one full."""
    # The driver sends nothing at all for no batch: the first row of all stands in.
    tables = {load.EVENTS: load.event_row(0), load.LOADS: bulk_rows(plan.bulk_rows)}
    with dbapi.connect(processes.uri, autocommit=True) as connection:
        for name, rows in tables.items():
            with connection.cursor() as cursor:
                cursor.adbc_ingest(name, rows, mode="create")


def _drain(observed: Any) -> list[Observed]:
    taken = []
    while True:
        try:
            taken.append(observed.get_nowait())
        except queue.Empty:
            return taken


def _tell(samples: Sequence[Sample], options: argparse.Namespace) -> None:
    """A line each minute."""
    last = samples[-1]
    every = max(1, round(60 / options.sample_seconds))
    if len(samples) % every:
        return
    minute = samples[-every:]
    began = samples[-every - 1]["seconds"] if len(samples) > every else 0.0
    elapsed = max(1.0, last["seconds"] - began)
    errors = sum(_errors(minute).values())
    print(
        f"{last['seconds'] / 60:5.1f} min  "
        f"writes/s {sum(each['writes'] for each in minute) / elapsed:,.0f}  "
        f"p95 ack {last['ack_p95_ms']}  visible {last['visible_p95_ms']}  "
        f"point {last['point_p95_ms']} ms  "
        f"files {last['files_inline']}+{last['files_objects']}  "
        f"catalog {last['catalog_mb']:.0f} MB  store {last['store_mb']:.0f} MB  "
        f"serve {last['memory_serve_mb']:.0f} MB  coordinate {last['memory_coordinate_mb']:.0f} MB"
        f"  errors {errors}",
        file=sys.stderr,
        flush=True,
    )


def _errors(samples: Sequence[Sample]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for sample in samples:
        total.update(sample["errors"])
    return dict(total.most_common())


def _plan(processes: Processes, options: argparse.Namespace) -> Plan:
    bulk_every = 60 * options.minutes / _BULK_LOADS
    return Plan(
        uri=processes.uri,
        stream_writes_per_second=options.writes * 0.8,
        caller_writes_per_second=options.writes * 0.2,
        bulk_rows=options.bulk_rows,
        bulk_every_seconds=bulk_every,
    )


def _described(processes: Processes) -> dict[str, Any]:
    with processes.postgres() as connection:
        row = connection.execute(b"SHOW server_version").fetchone()
    assert row is not None
    return machine.describe(str(row[0]))


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the load, and not the judgement."""
    stop = threading.Event()

    def note(*_: object) -> None:
        stop.set()

    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--writes", type=float, default=200.0, help="small writes a second (200)")
    parser.add_argument("--bulk-rows", type=int, default=1_000_000, help="of each bulk load")
    parser.add_argument("--sample-seconds", type=float, default=10.0, help="between looks (10)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist" / "soak", help="where all is written (dist/soak)"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/soak.md and its pictures, too"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
