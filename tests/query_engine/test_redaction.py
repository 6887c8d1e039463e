"""No literal of a statement is in its redacted text."""

import string

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query_engine.redaction import redacted

SECRET = "Zq7Kx"

FORMS = {
    "plain": f"'{SECRET}'",
    "doubled quote": f"'it''s {SECRET}'",
    "escaped": f"E'a\\'{SECRET}'",
    "dollars": f"$${SECRET}$$",
    "tagged dollars": f"$tag$ {SECRET} $tag$",
    "dollars with a quote": f"$$it's {SECRET}$$",
    "two parts": f"'a'\n'{SECRET}'",
    "blob": f"'\\x41{SECRET}'::BLOB",
    "unicode": f"U&'{SECRET}'",
    "typed": f"VARCHAR '{SECRET}'",
    "struct": f"{{'{SECRET}': '{SECRET}'}}",
    "list": f"['{SECRET}', '{SECRET}']",
    "json": f'\'{{"k": "{SECRET}"}}\'::JSON',
    "comment": f"1 -- {SECRET}\n",
    "block comment": f"1 /* {SECRET} */",
    "nested comment": f"1 /* /* x */ '{SECRET}' */",
    "odd space": f"\u00a0'{SECRET}'",
    "unterminated": f"'{SECRET}",
    "unterminated dollars": f"$${SECRET}",
    "unterminated comment": f"1 /* {SECRET}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_text_of_any_form_is_gone(form: str) -> None:
    assert SECRET not in redacted(f"SELECT * FROM t WHERE v = {FORMS[form]}")


NUMBERS = ["7319", "7319.5", ".7319", "7319e7", "0x7319", "0x1F7319", "7_319", "-7319", "0b7319"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("around", ["v = {}", "v IN (1,{})", "v > {}::INT AND w", "a[{}:{}] = 1"])
def test_a_number_is_gone(number: str, around: str) -> None:
    found = redacted(f"SELECT v FROM t WHERE {around.format(number, number)}")
    assert "319" not in found
    assert not set(found) & set(string.digits)


def test_names_and_the_shape_stay() -> None:
    sql = """SELECT "Last Name", count(*) FILTER (WHERE x ->> '$.a' = 'b')
             FROM t1 JOIN tablé USING (id) WHERE ok IS NOT NULL LIMIT 10"""
    assert redacted(sql) == (
        'SELECT "Last Name", count(*) FILTER (WHERE x ->> ? = ?) '
        "FROM t1 JOIN tablé USING (id) WHERE ok IS NOT NULL LIMIT ?"
    )


@pytest.mark.parametrize(
    "sql", ["SELECT '\ud800 Zq7Kx'", "SELECT \x00Zq7Kx", "SELECT \u00a0Zq7Kx1"]
)
def test_what_is_not_cut_into_words_is_a_hash(sql: str) -> None:
    found = redacted(sql)
    assert found.startswith("sha256:")
    assert len(found) == len("sha256:") + 64
    assert found != redacted(sql + " ")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


TEXTS = st.text(min_size=6, max_size=30)
LITERALS = st.one_of(
    TEXTS.map(lambda text: (quoted(text), text)),
    st.integers(10**6, 10**30).map(lambda n: (str(n), str(n))),
    st.decimals(10**6, 10**12, places=4).map(lambda d: (str(d), str(d))),
    st.binary(min_size=4, max_size=20).map(lambda b: (f"'{b.hex()}'::BLOB", b.hex())),
    st.datetimes().map(lambda at: (f"TIMESTAMP '{at}'", str(at))),
    TEXTS.filter(lambda text: "$" not in text).map(lambda text: (f"$q${text}$q$", text)),
)
SHAPES = [
    "SELECT * FROM t WHERE v = {0}",
    "SELECT {0} AS a, {1} || {2} FROM t",
    "INSERT INTO t VALUES ({0}, {1}), ({2}, NULL)",
    "SELECT v FROM t WHERE v IN ({0},{1},{2}) ORDER BY v",
    "CREATE TABLE t AS SELECT {0} AS a /* {1} */ -- {2}\n",
    "WITH c AS (SELECT [{0}, {1}] AS l) SELECT list_contains(l, {2}) FROM c",
]


@given(st.sampled_from(SHAPES), st.lists(LITERALS, min_size=3, max_size=3))
def test_no_literal_of_the_statement_appears(shape: str, literals: list[tuple[str, str]]) -> None:
    found = redacted(shape.format(*(written for written, _ in literals)))
    for _, value in literals:
        assert value not in found


WORDS = st.text("QZXJ7", min_size=8, max_size=20).map(lambda word: f"'{word}'")


@given(st.sampled_from(SHAPES), st.lists(WORDS, min_size=3, max_size=3), st.integers(1, 120))
def test_no_part_of_a_literal_appears_when_the_statement_is_cut(
    shape: str, literals: list[str], at: int
) -> None:
    found = redacted(shape.format(*literals)[:at], is_cut=True)
    assert not set(found) & set("QZXJ7") or found.startswith("sha256:")


@given(st.text(max_size=60))
def test_any_text_at_all_gives_an_answer(text: str) -> None:
    assert isinstance(redacted(text), str)


def test_a_redacted_query_still_parses() -> None:
    found = redacted("SELECT v, 'x' FROM t WHERE v > 10 AND w BETWEEN 1.5 AND 0x1F")
    assert len(duckdb.extract_statements(found)) == 1
