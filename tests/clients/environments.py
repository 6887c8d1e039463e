"""The environments that clients run in: a venv, a node project, a Java class path.

Each is made once from a file that is checked in and names every package with its hash. It lies in
`.cache/clients` and is named by that file's content, so that a changed lock makes a new one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "clients"
INSTALL_LIMIT_SECONDS = 600


class CannotInstall(Exception):
    """An environment cannot be made here; the text says why."""


@cache
def python_environment(name: str) -> list[str]:
    """The command of an interpreter with the packages of `locks/<name>.lock`.

    Raises CannotInstall.
    """
    lock = HERE / "locks" / f"{name}.lock"

    def build(folder: Path) -> None:
        base = getattr(sys, "_base_executable", None) or sys.executable
        _run([base, "-m", "venv", "--without-pip", str(folder)])
        python = str(folder / "bin" / "python")
        wanted = ["--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
        _run_first([[*installer, *wanted] for installer in _installers(base, python)])

    tag = f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    return [str(_made(tag, [lock], build) / "bin" / "python")]


@cache
def node_environment() -> Path:
    """The folder of a node project whose `node_modules` are those of the lock.

    Raises CannotInstall.
    """
    _need("node", "node 20 or later")
    _need("npm", "npm")
    sources = [HERE / "javascript" / name for name in ("package.json", "package-lock.json")]

    def build(folder: Path) -> None:
        folder.mkdir()
        for source in sources:
            shutil.copy(source, folder)
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)

    folder = _made("javascript", sources, build)
    # node resolves a module's imports from where the module lies.
    for module in (HERE / "javascript").glob("*.mjs"):
        shutil.copy(module, folder)
    return folder


@cache
def java_class_path() -> Path:
    """The JDBC driver's jar. Raises CannotInstall."""
    for word in ("java", "javac", "mvn"):
        _need(word, f"{word} (JDK 17 and Maven)")
    sources = [HERE / "jdbc" / name for name in ("pom.xml", "driver.sha256")]
    wanted, jar = sources[1].read_text(encoding="ascii").split()

    def build(folder: Path) -> None:
        goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
        _run(["mvn", "-q", "-B", "-C", "-f", str(sources[0]), goal, f"-DoutputDirectory={folder}"])
        got = hashlib.sha256((folder / jar).read_bytes()).hexdigest()
        if got != wanted:
            raise CannotInstall(f"{jar} is not the file that driver.sha256 names")

    return _made("jdbc", sources, build) / jar


@cache
def java_program(name: str) -> list[str]:
    """The command that runs the Java program `jdbc/<name>.java`, compiled. Raises CannotInstall."""
    jar = java_class_path()
    source = HERE / "jdbc" / f"{name}.java"

    def build(folder: Path) -> None:
        _run(["javac", "-Xlint:all", "-Werror", "-cp", str(jar), "-d", str(folder), str(source)])

    classes = _made(f"classes-{name}", [source], build)
    return [*java_command(jar, classes), name]


def java_command(*class_path: Path) -> list[str]:
    """java with what the Arrow driver asks of a JVM, and a small heap."""
    opens = "--add-opens=java.base/java.nio=ALL-UNNAMED"
    return ["java", opens, "-Xmx512m", "-cp", ":".join(map(str, class_path))]


def _made(name: str, sources: list[Path], build: Callable[[Path], None]) -> Path:
    """The folder that `build` makes from `sources`, made once.

    A file beside it says that it is whole: die before it is written, and the folder is made anew.
    """
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        whole = folder.with_name(f"{folder.name}.whole")
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            whole.touch()
    return folder


def _installers(base: str, python: str) -> Iterator[list[str]]:
    """Ways to install into a venv that has no pip: uv, our own pip, the base interpreter's."""
    if uv := shutil.which("uv"):
        yield [uv, "pip", "install", "--quiet", "--python", python]
    for owner in dict.fromkeys((sys.executable, base, shutil.which("python3") or base)):
        yield [owner, "-m", "pip", "--python", python, "install", "--quiet"]


def _need(word: str, what: str) -> None:
    if shutil.which(word) is None:
        raise CannotInstall(f"{what} is not on this machine")


def _run_first(commands: list[list[str]]) -> None:
    """Run the first of these commands that succeeds; else raise what the last one did."""
    *others, last = commands
    for command in others:
        try:
            _run(command)
        except CannotInstall:
            continue
        return
    _run(last)


def _run(command: list[str], *, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{Path(command[0]).name} took too long to install") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotInstall(f"{Path(command[0]).name}: {' '.join(said[-2:])[:500]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock: one makes, the others wait and find it made."""
    with path.open("a") as file:
        flock(file, LOCK_EX)
        yield
