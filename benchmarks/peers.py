"""Other products that are measured beside this one, in a Python environment of their own.

The environment is made when it is first asked for, with pip and from the index that pip is set up
to use. It lies in the user's cache directory, and so does the data that is generated once.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure

DUCKDB_VERSION: Final = "1.5.5"
"""The newest DuckDB for which the index has extensions as wheels."""
_EXTENSIONS: Final = ("tpch", "ducklake", "postgres-scanner")
_PROGRAMS: Final = Path(__file__).parent / "peer_programs"
_INSTALL_SECONDS: Final = 300


class NotRun(Exception):
    """A peer cannot be measured here; the text says why."""


def not_run(benchmark: str, what: str, unit: str, reason: NotRun) -> Figure:
    """The row of a figure that could not be measured."""
    return Figure(benchmark=benchmark, what=what, unit=unit, not_run=str(reason))


def cache_directory() -> Path:
    """Where environments and generated data stay between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "duckmesh-benchmarks"


def python() -> Path:
    """The interpreter of an environment with DuckDB and its extensions. Raises NotRun.

    Made once: a file beside it says that it is whole, and without that it is made anew.
    """
    packages = [f"duckdb-extension-{name}=={DUCKDB_VERSION}" for name in _EXTENSIONS]
    version = f"py{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_directory() / f"duckdb-{DUCKDB_VERSION}-{version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    whole = folder.with_name(f"{folder.name}.whole")
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        flock(lock, LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, [f"duckdb=={DUCKDB_VERSION}", *packages])
            whole.touch()
    return folder / "bin" / "python"


def run(
    program: str,
    arguments: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `peer_programs/<program>.py` in the environment; what it prints. Raises NotRun.

    What is secret goes by `environment`: arguments are seen by every user of the machine.
    """
    command = [str(python()), str(_PROGRAMS / f"{program}.py"), *arguments]
    return _run(command, name=program, seconds=seconds, environment=environment)


def _install(folder: Path, packages: Sequence[str]) -> None:
    # Debian's Python has no pip for a new environment: the one at hand installs into it.
    base: str = getattr(sys, "_base_executable", None) or sys.executable
    _run([base, "-m", "venv", "--without-pip", str(folder)], name="venv", seconds=_INSTALL_SECONDS)
    target = str(folder / "bin" / "python")
    install = ["-m", "pip", "--python", target, "install", "--quiet", "--only-binary", ":all:"]
    owners = dict.fromkeys((sys.executable, base, shutil.which("python3") or base))
    for number, owner in enumerate(owners, start=1):
        try:
            _run([owner, *install, *packages], name="pip", seconds=_INSTALL_SECONDS)
        except NotRun:
            if number == len(owners):
                raise
        else:
            return


def _run(
    command: Sequence[str],
    *,
    name: str,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": "", **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise NotRun(f"{name} took longer than {seconds:g} s") from None
    if done.returncode != 0:
        # The row has the reason in short; what the program said is for who runs the benchmark.
        print(done.stderr, file=sys.stderr)
        raise NotRun(f"{name} ended with {done.returncode}")
    return done.stdout
