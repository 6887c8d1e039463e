"""What dbt does with the GizmoSQL adapter: debug, seed, run, test, docs. In this order."""

import os
import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from adbc_driver_gizmosql import dbapi as gizmosql
from dbt.cli.main import dbtRunner

PROJECT = Path(__file__).parent.parent / "dbt"
PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "clients" / "dbt.md"


def version() -> str:
    return version_of("dbt-gizmosql")


def shown(language: str) -> str:
    """The block in this language of the page on dbt."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block)


def dbt(place: Any, *words: str) -> None:
    """Run a dbt command on a copy of the project; fail with what it said."""
    project = Path("project")
    if not project.exists():
        shutil.copytree(PROJECT, project)
        profile = shown("yaml").replace("31337", str(place.port))
        (project / "profiles.yml").write_text(profile, encoding="utf-8")
        os.environ["API_KEY"] = place.key
    folders = ["--project-dir", str(project), "--profiles-dir", str(project)]
    done = dbtRunner().invoke([*words, *folders])
    if not done.success:
        results = getattr(done.result, "results", None) or []
        said = [f"{each.node.name}: {each.status} {each.message}" for each in results]
        raise AssertionError(f"dbt {words[0]} failed: {said} {done.exception}")


def ask(place: Any, sql: str) -> list[Any]:
    address = f"grpc://{place.host}:{place.port}"
    with (
        gizmosql.connect(address, username="anyone", password=place.key) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
        return list(cursor.fetchall())


def case_debug(place: Any) -> None:
    dbt(place, "debug")


def case_seed(place: Any) -> None:
    dbt(place, "seed")
    assert ask(place, "SELECT count(*), sum(km) FROM matrix_trips") == [(3, 13.0)]


def case_run_models(place: Any) -> None:
    dbt(place, "run")
    got = ask(place, "SELECT kind, trips, km FROM matrix_by_kind ORDER BY kind")
    assert got == [("bike", 2, 4.75), ("car", 1, 8.25)]
    assert ask(place, "SELECT count(*) FROM matrix_bikes") == [(2,)]


def case_run_models_again(place: Any) -> None:
    """A second run replaces what the first made."""
    dbt(place, "run")
    assert ask(place, "SELECT count(*) FROM matrix_by_kind") == [(2,)]


def case_seed_again(place: Any) -> None:
    dbt(place, "seed", "--full-refresh")
    assert ask(place, "SELECT count(*) FROM matrix_trips") == [(3,)]


def case_data_tests(place: Any) -> None:
    dbt(place, "test")


def case_docs_catalog(place: Any) -> None:
    dbt(place, "docs", "generate")
    assert "matrix_by_kind" in Path("project/target/catalog.json").read_text(encoding="utf-8")
