"""The house: what the tree, the wheel and the tools around them promise."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
LOCKS = ["requirements.lock", "deploy/requirements.lock", "tests/swift-requirements.lock"]
TARGETS = [
    *("help", "setup", "demo", "up", "test", "check"),
    *("format", "lock", "bench", "soak", "clean"),
]


def files_of_the_tree() -> Iterator[Path]:
    """What git tracks, or would: all that is not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return (ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ ;\\]+)", (ROOT / lock).read_text(), re.MULTILINE))


# --- lock files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_versions_and_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host|\bfile:", text)
    for line in text.splitlines():
        assert re.match(r"[a-z0-9][\w.-]*==|    --hash=sha256:[0-9a-f]{64}|#|$", line), line
    assert text.count("--hash=sha256:") >= len(pins(lock)) > 10


def test_what_runs_in_production_is_what_was_tested() -> None:
    tested, deployed = pins("requirements.lock"), pins("deploy/requirements.lock")
    assert deployed.items() <= tested.items()
    assert "pytest" in tested
    assert "pytest" not in deployed


def test_every_dependency_is_locked() -> None:
    named = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        named += extra
    names = {re.split(r"[\[<>=]", each)[0].lower() for each in named} - {"duckmesh"}
    assert names <= set(pins("requirements.lock"))


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    place = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, place], cwd=ROOT, check=True)
    (path,) = place.glob("duckmesh-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_named_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == len(PACKAGES) + 1


def test_the_wheel_ships_the_migrations_and_every_file_beside_the_code(
    wheel: zipfile.ZipFile,
) -> None:
    shipped = set(wheel.namelist())
    migrations = [path.name for path in (ROOT / "migrations").glob("*.sql")]
    assert len(migrations) > 2
    assert {f"catalog/migrations/{name}" for name in migrations} <= shipped
    beside = {
        path.relative_to(ROOT).as_posix()
        for path in files_of_the_tree()
        if path.relative_to(ROOT).parts[0] in PACKAGES
    }
    assert beside <= shipped


def test_the_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    text = wheel.read(name).decode()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


# --- statements ----------------------------------------------------------------------------------


def declared_statements() -> dict[str, list[str]]:
    """The names in each `.sql` file of a package, with repetitions."""
    return {
        path.relative_to(ROOT).as_posix(): re.findall(
            r"^-- name: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.sql"))
    }


def used_statements() -> dict[str, set[str]]:
    """The names that the code takes from each `.sql` file."""
    used: dict[str, set[str]] = defaultdict(set)
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        loaded = dict(_loaded(tree))
        for file in loaded.values():
            used[file] |= set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Name)
                and node.value.id in loaded
            ):
                names = {
                    each.value
                    for each in ast.walk(node.slice)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert names, f"{where} must name its statement, so that a reader finds it"
                used[loaded[node.value.id]] |= names
    return used


def _loaded(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """`NAME = Statements("package", "file.sql")` as (NAME, package/file.sql)."""
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Call() as call)
            ):
                match call:
                    case ast.Call(
                        func=ast.Name(id="Statements"),
                        args=[ast.Constant(value=str(package)), ast.Constant(value=str(file))],
                    ):
                        yield name, f"{package.replace('.', '/')}/{file}"


def test_every_sql_statement_is_used_and_every_used_one_exists() -> None:
    declared, used = declared_statements(), used_statements()
    assert declared
    assert {file: set(names) for file, names in declared.items()} == used


def test_a_statement_s_name_is_its_own_within_the_file() -> None:
    for file, names in declared_statements().items():
        assert len(names) == len(set(names)), file


# --- the tree ------------------------------------------------------------------------------------


def test_no_file_mentions_a_place_on_somebody_s_machine() -> None:
    place = re.compile(r"(?<![\w.$}~-])/(?:root|work|Users|home)/[\w.-]+")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files_of_the_tree()
        if path != Path(__file__)
        for match in place.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


def test_compose_names_its_services_and_pins_their_images() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert set(services) == {
        *("postgres", "objects", "migrate"),
        *("serve", "coordinate", "maintain", "collector"),
    }
    for name in ("migrate", "serve", "coordinate", "maintain"):
        assert services[name]["build"] == "."
        assert services[name]["command"][0] == name
    for name in ("postgres", "objects", "collector"):
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.]*", services[name]["image"])
    for service in services.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_compose_gives_settings_that_duckmesh_accepts(tmp_path: Path) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    check = "from duckmesh.settings import load_settings; load_settings()"
    for name in ("migrate", "serve", "coordinate", "maintain"):
        given = compose["services"][name]["environment"]
        plain = {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for key, value in given.items()}
        environment = {**plain, "HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", check], env=environment, cwd=tmp_path, check=True)


def test_the_image_is_built_from_what_is_in_the_tree() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "--require-hashes" in text
    sources = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    assert sources
    assert all((ROOT / source).exists() for source in sources)


# --- the tools -----------------------------------------------------------------------------------


def test_make_alone_lists_every_target() -> None:
    answer = subprocess.run(["make", "-C", ROOT], check=True, capture_output=True, text=True)
    assert re.findall(r"^make (\w+) ", answer.stdout, re.MULTILINE) == TARGETS


@pytest.mark.parametrize("script", ["bootstrap", ".ci/run"])
def test_a_script_can_be_run_and_parsed(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", ROOT / script], check=True)


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """A tree with the bootstrap script and what it reads, and a PATH of its own in `bin`."""
    for name in ("bootstrap", "requirements.lock", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "rm"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / "bin" / name).symlink_to(program)
    return tmp_path


def bootstrap(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / "bootstrap"],
        env={"PATH": str(tree / "bin")},
        check=False,
        capture_output=True,
        text=True,
    )


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_bootstrap_without_a_recent_python_says_what_to_install(bare_tree: Path) -> None:
    script(bare_tree / "bin" / "python3", "exit 1")
    answer = bootstrap(bare_tree)
    assert answer.returncode == 1
    assert "Python 3.11 or later is needed" in answer.stderr
    assert not (bare_tree / ".venv").exists()


def test_bootstrap_without_an_installer_says_what_to_install(bare_tree: Path) -> None:
    script(bare_tree / "bin" / "python3", 'case "$2" in *version_info*) ;; *) exit 1 ;; esac')
    answer = bootstrap(bare_tree)
    assert answer.returncode == 1
    assert "neither pip 22.3 or later nor ensurepip" in answer.stderr


def test_bootstrap_does_nothing_twice_and_something_when_the_lock_changes(bare_tree: Path) -> None:
    # A uv that only notes how it was called: what is tested is when the script calls it.
    script(bare_tree / "bin" / "python3", "exit 0")
    (bare_tree / "bin" / "mkdir").symlink_to(str(shutil.which("mkdir")))
    script(
        bare_tree / "bin" / "uv",
        'echo "$@" >>calls\n[ "$1" = pip ] && exit 0\n'
        "mkdir -p .venv/bin && : >.venv/bin/python && chmod +x .venv/bin/python",
    )
    (bare_tree / "bin" / "chmod").symlink_to(str(shutil.which("chmod")))
    calls = bare_tree / "calls"
    assert bootstrap(bare_tree).returncode == 0
    first = calls.read_text(encoding="utf-8").splitlines()
    assert len(first) == 3
    assert "--require-hashes -r requirements.lock" in first[1]
    assert bootstrap(bare_tree).returncode == 0
    assert calls.read_text(encoding="utf-8").splitlines() == first
    with (bare_tree / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write("# changed\n")
    assert bootstrap(bare_tree).returncode == 0
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 5
