"""docs/cli.md says what the commands are."""

import re
import subprocess
import sys
from pathlib import Path

from command_line.main import COMMANDS
from command_line.reference import command_page

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    advice = "run `python -m command_line.reference` in the root of the tree"
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == command_page(), advice


def test_every_command_has_a_section() -> None:
    sections = re.findall(r"^## `duckmesh ([\w-]+)`$", command_page(), re.MULTILINE)
    assert sections == list(COMMANDS)


def test_the_page_is_written_by_one_command(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    subprocess.run([sys.executable, "-m", "command_line.reference"], cwd=tmp_path, check=True)
    assert (tmp_path / "docs" / "cli.md").read_text(encoding="utf-8") == command_page()
