"""The rows of the matrix: which programs there are, how each is run, and what it said."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.clients import environments
from tests.clients.environments import CannotInstall

HERE: Final = Path(__file__).parent
PROGRAMS: Final = HERE / "programs"
RUN_LIMIT_SECONDS: Final = 240


class Place(NamedTuple):
    """Where the service answers: `port` wants `key`, `open_port` wants none, `tls_port` has TLS."""

    host: str
    port: int
    open_port: int
    tls_port: int
    certificate: str
    """The file of the authority that signed the TLS certificate, in PEM."""
    key: str


@dataclass(frozen=True)
class Client:
    """One row: a client, the file of its cases, and the command that runs them."""

    name: str
    source: Path
    command: Callable[[], list[str]]
    ours: bool = False
    """Whether the client is in our own lock, so that its row runs in every test run."""

    def cases(self) -> list[str]:
        """The names of its cases, in the order of the file."""
        text = self.source.read_text(encoding="utf-8")
        if self.source.suffix == ".py":
            return [name for name in _names_in(ast.parse(text)) if name.startswith("case_")]
        return re.findall(r"\b(?:function|void) (case\w+)\(", text)


def _names_in(program: ast.Module) -> Iterator[str]:
    """The functions that a program has: its own, and those it imports by name."""
    for node in program.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


@dataclass
class Run:
    """What a program said of its cases."""

    version: str = "?"
    failures: dict[str, str | None] = field(default_factory=dict)
    """Each case that ended, and why it failed if it did."""
    not_installed: str | None = None
    output: str = ""


def python_client(name: str, program: str, environment: str | None = None) -> Client:
    """A row whose cases are Python, in `environment` or in our own."""

    def command() -> list[str]:
        python = [sys.executable] if environment is None else _python(environment)
        return [*python, str(PROGRAMS / "run_cases.py"), str(PROGRAMS / program)]

    return Client(name, PROGRAMS / program, command, ours=environment is None)


def javascript_client(name: str, module: str) -> Client:
    """A row whose cases are a JavaScript module, run by node beside its `node_modules`."""

    def command() -> list[str]:
        folder = environments.node_environment()
        return ["node", str(folder / "run_cases.mjs"), str(folder / module)]

    return Client(name, HERE / "javascript" / module, command)


def _python(environment: str) -> list[str]:
    return environments.python_environment(environment)


CLIENTS: Final = (
    python_client("adbc", "adbc_cases.py"),
    python_client("adbc, writing by SQL", "adbc_sql_cases.py"),
    python_client("adbc 1.9", "adbc_old_cases.py", "adbc-1.9"),
    python_client("pandas", "pandas_cases.py"),
    python_client("polars", "polars_cases.py"),
    python_client("duckdb over adbc", "duckdb_cases.py"),
    python_client("grafana, replayed", "grafana_cases.py"),
    Client(
        "jdbc", HERE / "jdbc" / "JdbcCases.java", lambda: environments.java_program("JdbcCases")
    ),
    python_client("sqlalchemy, superset", "sqlalchemy_cases.py", "sqlalchemy"),
    python_client("flightsql-dbapi", "flightsql_dbapi_cases.py", "flightsql-dbapi"),
    python_client("dbt", "dbt_cases.py", "dbt"),
    python_client("ibis", "ibis_cases.py", "ibis"),
    javascript_client("javascript, lancedb", "lancedb_cases.mjs"),
    javascript_client("javascript, gizmosql", "gizmosql_cases.mjs"),
)


GAPS: Final[dict[tuple[str, str], str]] = {}
"""Cases that are known to fail, and why. One that passes fails the matrix: it is none any more."""


def run_client(client: Client, place: Place, folder: Path) -> Run:
    """Run all cases of a client; never raises for what the client does."""
    try:
        command = client.command()
    except CannotInstall as missing:
        return Run(not_installed=str(missing))
    results = folder / "results.jsonl"
    arguments = [str(each) for each in (results, *place)]
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            process.wait(RUN_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    run = Run(output=log.read_text(encoding="utf-8", errors="replace")[-4000:])
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
        said = json.loads(line)
        if "version" in said:
            run.version = said["version"]
        else:
            run.failures[said["case"]] = said["failure"]
    return run


def _environment() -> dict[str, str]:
    """The client's own environment: nothing of ours is importable there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DUCKMESH_", "PYTHON"))}
    return kept | {"PYTHONWARNINGS": "default", "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
