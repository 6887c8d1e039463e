"""The code of docs/clients does, in each client's own environment, what its page shows.

A block that names API_KEY runs where a key is asked for; another one runs in open mode.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import CannotInstall
from tests.clients.results import CLIENTS, Place

PAGES = Path(__file__).parent.parent.parent / "docs" / "clients"
SHOWN_PORT = "31337"
RUN_LIMIT_SECONDS = 120

Start = Callable[[Path], list[str]]
"""The command that runs the block in a file."""


def ours(block: Path) -> list[str]:
    return [sys.executable, str(block)]


def python(environment: str) -> Start:
    return lambda block: [*environments.python_environment(environment), str(block)]


def java(block: Path) -> list[str]:
    return [*environments.java_command(environments.java_class_path()), str(block)]


def node(block: Path) -> list[str]:
    """Beside the node_modules, from where the imports of a module are looked up."""
    place = environments.node_environment() / f"{os.getpid()}-{block.name}"
    place.write_text(block.read_text(encoding="utf-8"), encoding="utf-8")
    return ["node", str(place)]


RUNNERS: dict[str, tuple[str, str, Start]] = {
    "adbc-python": ("python", "example.py", ours),
    "pandas": ("python", "example.py", ours),
    "polars": ("python", "example.py", ours),
    "duckdb-adbc": ("python", "example.py", ours),
    "jdbc-dbeaver": ("java", "Example.java", java),
    "sqlalchemy": ("python", "example.py", python("sqlalchemy")),
    "ibis": ("python", "example.py", python("ibis")),
    "javascript": ("js", "example.mjs", node),
}
"""Of each page with code: its language, the file that a block becomes, and how that is run."""


def blocks_of(page: str, language: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


EACH_BLOCK = [
    pytest.param(
        page, number, id=f"{page}-{number}", marks=() if start is ours else pytest.mark.clients
    )
    for page, (language, _, start) in RUNNERS.items()
    for number, _ in enumerate(blocks_of(page, language))
]


@pytest.mark.parametrize(("page", "number"), EACH_BLOCK)
def test_the_code_of_a_page_runs(page: str, number: int, place: Place, tmp_path: Path) -> None:
    language, name, start = RUNNERS[page]
    block = blocks_of(page, language)[number]
    port = place.port if "API_KEY" in block else place.open_port
    assert SHOWN_PORT in block
    file = tmp_path / name
    file.write_text(block.replace(SHOWN_PORT, str(port)), encoding="utf-8")
    try:
        command = start(file)
    except CannotInstall as missing:
        if os.environ.get("DUCKMESH_TEST_CLIENTS_MAY_BE_MISSING") == "1":
            pytest.skip(str(missing))
        pytest.fail(f"the client of {page} cannot be installed: {missing}", pytrace=False)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DUCKMESH_", "PYTHON"))}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**kept, "API_KEY": place.key},
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]


def test_every_client_has_a_page() -> None:
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert [client.name for client in CLIENTS if f"`{client.name}`" not in index] == []
    pages = {page.name for page in PAGES.glob("*.md")} - {"index.md"}
    assert {name for name in pages if f"({name})" not in index} == set()
    assert {f"{page}.md" for page in RUNNERS} <= pages
