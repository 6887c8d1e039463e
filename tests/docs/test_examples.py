"""The Python of README and docs/flight-sql.md does, on the real processes, what it shows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import service

ROOT = Path(__file__).parent.parent.parent
SHOWN_URI = "grpc://127.0.0.1:31337"


@pytest.fixture
def uri(database_dsn: str, tmp_path: Path) -> Iterator[str]:
    with service(database_dsn, tmp_path) as running:
        running.coordinate("docs")
        yield running.serve()[1]


def examples(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(example: str, uri: str) -> dict[str, Any]:
    assert SHOWN_URI in example
    names: dict[str, Any] = {}
    exec(compile(example.replace(SHOWN_URI, uri), "example", "exec"), names)  # noqa: S102 - ours
    return names


def test_the_examples_run(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = examples("README.md")
    run(first, uri)
    assert capsys.readouterr().out == "[(2, 11.6)]\n"
    with_adbc, with_pyarrow = examples("docs/flight-sql.md")
    names = run(with_adbc, uri)
    # The keyed rows are there once, and the token is that of their first acceptance.
    assert names["table"].column(0).to_pylist() == [3]
    assert names["token"] == 2
    assert not run(with_pyarrow, uri)["first"]["duplicate"]
    assert run(with_pyarrow, uri)["first"]["duplicate"]
