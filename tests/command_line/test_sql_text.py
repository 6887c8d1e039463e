"""Where a statement ends."""

import pytest

from command_line.sql_text import is_blank, split_statements, statements_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';'; SELECT 'it''s;'", ["SELECT ';'", "SELECT 'it''s;'"]),
        ('SELECT 1 AS ";"";";', ['SELECT 1 AS ";"";"']),
        ("SELECT 1 -- no; end\n+ 1;", ["SELECT 1 -- no; end\n+ 1"]),
        ("SELECT /* a; /* b; */ c; */ 1;", ["SELECT /* a; /* b; */ c; */ 1"]),
        ("SELECT $$a;b$$; SELECT $q$;$$;$q$;", ["SELECT $$a;b$$", "SELECT $q$;$$;$q$"]),
        (r"SELECT E'\';'; SELECT 2;", [r"SELECT E'\';'", "SELECT 2"]),
        ("SELECT $1; SELECT $2", ["SELECT $1", "SELECT $2"]),
        ("SELECT '\\'; SELECT 2", ["SELECT '\\'", "SELECT 2"]),
        (";;  ; -- nothing\n; /* none */ ;", []),
        ("", []),
    ],
)
def test_a_statement_ends_where_duckdb_ends_it(text: str, expected: list[str]) -> None:
    assert statements_of(text) == expected


@pytest.mark.parametrize(
    "open_text", ["SELECT 'a;", 'SELECT "a;', "SELECT $$a;", "SELECT /* a; /* */", "SELECT 1"]
)
def test_what_is_open_is_not_ended(open_text: str) -> None:
    assert split_statements(f"SELECT 0; {open_text}") == (["SELECT 0"], f" {open_text}")


def test_blanks_and_closed_comments_are_nothing() -> None:
    assert is_blank(" \n-- a comment\n/* and another */ ")
    assert not is_blank("''")
