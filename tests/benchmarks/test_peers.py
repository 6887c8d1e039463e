"""The benchmarks beside other products run at a small size, and say what they do not run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers

ROOT = Path(__file__).parents[2]
RATIO_TO = {
    "tpch": "DuckDB in the client's process on the same files",
    "ducklake": "DuckLake",
    "quack": "single-row INSERTs into the same Postgres",
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a quick run of the three wrote."""
    file = tmp_path_factory.mktemp("peers") / "figures.json"
    names = [part for name in RATIO_TO for part in ("--only", name)]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *names, "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    written = json.loads(file.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = written["figures"]
    return found


@pytest.mark.load
@pytest.mark.timeout(900)
@pytest.mark.parametrize("benchmark", RATIO_TO)
def test_each_figure_stands_beside_its_peer(figures: list[dict[str, Any]], benchmark: str) -> None:
    ours = [figure for figure in figures if figure["benchmark"] == benchmark]
    assert ours
    if all(figure["not_run"] for figure in ours):
        pytest.skip(ours[0]["not_run"])
    names = [figure["what"] for figure in ours]
    assert len(set(names)) == len(names)
    beside = [figure for figure in ours if figure["limit"]]
    for figure in beside:
        assert figure["limit"].startswith(RATIO_TO[benchmark])
        assert min(figure["runs"]) > 0
        assert figure["ratio"] > 0
    # The streaming recipe has amounts as targets, too.
    assert len(beside) >= 3


def test_what_cannot_be_installed_is_a_row_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(peers.NotRun) as refused:
        peers.python()
    row = peers.not_run("tpch", "22 queries", "s", refused.value)
    assert row.not_run.startswith("pip ended with")
    assert row.as_json()["stands"] is None
    assert not list(tmp_path.glob("**/*.whole"))
