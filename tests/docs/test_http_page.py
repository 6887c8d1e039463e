"""docs/http.md, run from top to bottom as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.processes import service, until

PAGE = Path(__file__).parent.parent.parent / "docs/http.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:31338"


def test_the_page_runs(database_dsn: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    with service(database_dsn, tmp_path) as running:
        _, uri = running.serve()
        coordinator = running.coordinate("c1")
        until(lambda: coordinator.said("ready"))
        script = tmp_path / "page.sh"
        script.write_text("".join(map(_as_shell, blocks)).replace(ADDRESS, running.http_of(uri)))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr + done.stdout
    assert '"accepted_count":2' in done.stdout
    assert '"rows":[[2,null],[3,"three"],[4,null],[5,"five"],[6,"six"]]' in done.stdout
    # By its tag, and after the restore.
    assert done.stdout.count('"rows":[[6]]') == 2
    assert '"dead_letters":[]' in done.stdout


def _as_shell(block: tuple[str, str]) -> str:
    language, text = block
    if language == "sh":
        return f"{text}\n"
    return f"export BASE; {sys.executable} - <<'END'\n{text}END\n"
