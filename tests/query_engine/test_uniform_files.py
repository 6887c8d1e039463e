"""Files that have exactly their table's columns: DuckDB reads them as they are."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from query_engine.engine import QueryEngine
from query_engine.relations import FilesPart, Relation
from tests.query_engine.conftest import NUMBERS, Asking, Lake

ROWS = 5_000


def uniform(name: str, *files: Path, **more: Any) -> Relation:
    return Relation(name, NUMBERS, files, uniform=True, **more)


def filled(lake: Lake, rows: int = ROWS) -> Path:
    return lake.write(NUMBERS, {"a": list(range(rows)), "b": [str(n % 7) for n in range(rows)]})


def estimates(ask: Asking, lake: Lake, sql: str, *relations: Relation) -> list[int]:
    """How many rows DuckDB expects of each step, the last step first."""
    plan = ask.rows(f"EXPLAIN {sql}", lake.snapshot(*relations))
    said = re.findall(r"~([\d,]+) rows?", "".join(str(cell) for row in plan for cell in row))
    return [int(each.replace(",", "")) for each in said]


@pytest.mark.parametrize("parts", [(), (FilesPart(2),)], ids=["files", "parts"])
def test_duckdb_knows_how_many_rows_uniform_files_have(
    parts: tuple[FilesPart, ...], lake: Lake, ask: Asking
) -> None:
    # It orders joins by this: of a table that it takes for one row it builds no good plan.
    table = uniform("t", filled(lake), filled(lake), parts=parts)
    assert max(estimates(ask, lake, "FROM t", table)) == 2 * ROWS


def test_a_uniform_table_follows_its_files_from_none_to_some_and_back(
    lake: Lake, ask: Asking
) -> None:
    one, two = filled(lake, 3), filled(lake, 4)
    for files in ((), (one,), (one, two), (), (two,)):
        rows = ask.rows("SELECT a, b FROM t ORDER BY a", lake.snapshot(uniform("t", *files)))
        assert len(rows) == sum({one: 3, two: 4}[file] for file in files)
        assert all(b == str(a % 7) for a, b in rows)


def test_columns_of_any_name_are_read_by_it(lake: Lake, ask: Asking) -> None:
    names = ['q"uote', "filename", "file_row_number", "select", "Ü", "a b"]
    schema = lake.schema(**{name: (n, pa.int32()) for n, name in enumerate(names, start=1)})
    file = lake.write(schema, {name: [n] for n, name in enumerate(names)})
    relations = lake.snapshot(Relation("t", schema, (file,), uniform=True))
    assert ask.table("FROM t", relations).to_pylist() == [dict(zip(names, range(6), strict=True))]


def test_a_table_that_was_altered_is_read_by_field_ids_beside_its_uniform_past(
    engine: QueryEngine, lake: Lake
) -> None:
    ask = Asking(engine)
    old = lake.write(NUMBERS, {"a": [1], "b": ["x"]})
    renamed = lake.schema(first=(1, pa.int64()), b=(2, pa.string()), added=(3, pa.int32()))
    new = lake.write(renamed, {"first": [2], "b": ["y"], "added": [3]})
    before = lake.snapshot(uniform("t", old))
    between = lake.snapshot(Relation("t", renamed, (old, new)))
    after = lake.snapshot(Relation("t", renamed, (new,), uniform=True))
    for _ in range(2):
        assert ask.rows("FROM t", before) == [(1, "x")]
        assert ask.rows("FROM t ORDER BY 1", between) == [(1, "x", None), (2, "y", 3)]
        assert ask.rows("FROM t", after) == [(2, "y", 3)]
