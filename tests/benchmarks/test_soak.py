"""The soak runs, remembers every row, and sees what grows."""

import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.soak.exactness import compare
from benchmarks.soak.load import Ledger
from benchmarks.soak.verdict import judge

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_some_seconds_of_load_leave_every_acknowledged_row_once(tmp_path: Path) -> None:
    options = ["--minutes", "0.2", "--writes", "40", "--bulk-rows", "20000"]
    options += ["--sample-seconds", "2", "--out", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # Whether anything grows is not to be seen in seconds.
    assert ran.returncode in (0, 1), ran.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["exactness"]["exact"], verdict
    assert verdict["exactness"]["acknowledged"] >= 40
    assert verdict["errors"] == {}, verdict["errors"]
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) >= 3
    assert samples[-1]["memory_serve_mb"] > 0
    assert samples[-1]["cores_stolen"] >= 0
    assert "took meanwhile" in ran.stdout
    assert samples[-1]["tables"]["ingest_event"]["mb"] > 0
    assert sum(sample["queries"] for sample in samples) > 0
    assert sum(len(sample["bulk_seconds"]) for sample in samples) > 0
    assert "acknowledged" in ran.stdout


def ledger(acknowledged: list[int], unanswered: list[int]) -> Ledger:
    return Ledger(array("q", acknowledged), array("q", unanswered))


def test_lost_doubled_and_unknown_rows_are_counted() -> None:
    found = np.array([1, 2, 2, 4, 9], dtype=np.int64)
    compared = compare(found, ledger([1, 2, 3], [4, 5]))
    assert (compared.lost, compared.doubled, compared.unknown) == (1, 1, 1)
    assert not compared.exact
    assert compare(np.array([1, 2, 4]), ledger([1, 2], [4, 5])).exact


def series(name: str, values: list[float], rows: int = 0) -> list[dict[str, Any]]:
    flat = {"store_mb": 0, "store_live_mb": 0}
    return [
        {**flat, name: each, "tables": {"ingest_event": {"rows": rows * (1 + place)}}}
        for place, each in enumerate(values)
    ]


def test_what_grows_between_the_second_and_the_last_quarter_is_seen() -> None:
    climbing = series("memory_serve_mb", [200.0 + 10 * step for step in range(16)])
    level = series("memory_serve_mb", [200.0, 400.0, 300.0, 310.0] * 4)
    # What fills in the first quarter is no growth.
    filling = series("catalog_mb", [10, 40, 80, 100] + [120.0] * 12)
    assert [(each.name, each.flat) for each in judge(climbing) if "memory" in each.name] == [
        ("memory_serve_mb", False)
    ]
    assert all(each.flat for each in judge(level))
    assert all(each.flat for each in judge(filling))
    tables = judge(series("catalog_mb", [1.0] * 16, rows=1000))
    assert [each.name for each in tables if not each.flat] == ["tables.ingest_event.rows"]
    assert judge(climbing[:3]) == []
