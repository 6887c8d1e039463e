"""INSERT where its key is there already: what asks to replace the whole row, and the rest."""

from collections.abc import Iterator

import pytest

from duckmesh.errors import NotSupported
from query_engine.conflicts import check_conflict
from query_engine.insertion import InsertionReader
from query_engine.scratch import Scratch

COLUMNS = ["id", "a", "b"]


@pytest.fixture(scope="module")
def reader() -> Iterator[InsertionReader]:
    scratch = Scratch()
    yield InsertionReader(scratch)
    scratch.close()


def check(reader: InsertionReader, sql: str, key: tuple[str, ...] = ("id",)) -> None:
    insertion = reader.read(sql)
    filled = list(insertion.columns) or COLUMNS
    check_conflict(insertion.conflict, filled=filled, columns=COLUMNS, key=key)


ROW = "INSERT INTO t VALUES (1, 2, 3)"
BOTH = "DO UPDATE SET a = excluded.a, b = excluded.b"


@pytest.mark.parametrize(
    "sql",
    [
        ROW,
        "INSERT INTO t (id) VALUES (1)",
        "INSERT OR REPLACE INTO t VALUES (1, 2, 3)",
        "INSERT OR REPLACE INTO t (B, ID, a) SELECT 1, 2, 3",
        f"{ROW} ON CONFLICT {BOTH}",
        f"{ROW} ON CONFLICT (ID) DO UPDATE SET B = EXCLUDED.b, A = excluded.A, id = excluded.id",
        f"INSERT INTO t (id, a) VALUES (1, 2) ON CONFLICT (id) {BOTH}",
    ],
)
def test_what_replaces_the_whole_row_is_an_insert(reader: InsertionReader, sql: str) -> None:
    check(reader, sql)


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("INSERT OR REPLACE INTO t (id, a) VALUES (1, 2)", "'b' is not given"),
        ("INSERT OR IGNORE INTO t VALUES (1, 2, 3)", "OR IGNORE"),
        (f"{ROW} ON CONFLICT DO NOTHING", "DO NOTHING"),
        (f"{ROW} ON CONFLICT DO UPDATE SET a = excluded.a", "'b' is not given"),
        (f"{ROW} ON CONFLICT (a) {BOTH}", r"the primary key, \(id\)"),
        (f"{ROW} ON CONFLICT DO UPDATE SET a = excluded.b, b = excluded.b", "SET a = excluded.a"),
        (f"{ROW} ON CONFLICT DO UPDATE SET a = a + 1, b = excluded.b", "for other values use"),
        (f"{ROW} ON CONFLICT {BOTH} WHERE t.a > 1", "takes no WHERE"),
        (f"{ROW} ON CONFLICT (id) WHERE a > 1 {BOTH}", "takes no WHERE"),
    ],
)
def test_what_keeps_something_of_the_row_is_refused(
    reader: InsertionReader, sql: str, word: str
) -> None:
    with pytest.raises(NotSupported, match=word):
        check(reader, sql)


@pytest.mark.parametrize(
    "sql",
    ["INSERT OR REPLACE INTO t VALUES (1, 2, 3)", "INSERT INTO t SELECT 1 ON CONFLICT DO NOTHING"],
)
def test_a_table_without_a_key_has_no_conflicts(reader: InsertionReader, sql: str) -> None:
    with pytest.raises(NotSupported, match="primary key"):
        check(reader, sql, key=())


def test_returning_is_refused(reader: InsertionReader) -> None:
    with pytest.raises(NotSupported, match="leave RETURNING out"):
        reader.read("INSERT INTO t VALUES (1) RETURNING id")
