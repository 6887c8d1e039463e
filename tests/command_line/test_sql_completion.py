"""What the shell completes, and when Enter runs a text."""

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from command_line.shell_commands import completions
from command_line.sql_completion import KnownNames, Names, SqlCompleter
from command_line.sql_shell import is_whole
from duckmesh.errors import ErrorCode, Unavailable

NAMES = Names({"orders": ["id", "Total"], "odd name": ["x"], "duckmesh_system.tables": ["rows"]})


def completed(text: str, names: Names = NAMES) -> list[str]:
    completer = SqlCompleter(KnownNames(lambda: names), dict(completions()))
    document = Document(text, len(text))
    return [each.text for each in completer.get_completions(document, CompleteEvent())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sel", ["select"]),
        ("SEL", ["SELECT"]),
        ("SELECT * FROM o", ["orders", '"odd name"']),
        ("SELECT tot", ["Total"]),
        ("SELECT * FROM orders o WHERE o.t", ["Total"]),
        ("SELECT orders.i", ["id"]),
        ("FROM duckmesh_system.ta", ["tables"]),
        ("\\fo", ["\\format"]),
        ("\\format nd", ["ndjson"]),
        ("\\d or", ["orders"]),
        ("SELECT ", []),
    ],
)
def test_what_stands_before_the_cursor_is_completed(text: str, expected: list[str]) -> None:
    found = completed(text)
    assert found[: len(expected)] == expected
    assert len(found) == len(expected) or text == "SELECT tot"


def test_names_are_fetched_once_and_again_after_a_definition() -> None:
    asked = []

    def fetch() -> Names:
        asked.append(1)
        return NAMES

    known = KnownNames(fetch)
    assert asked == []
    assert known.get() is known.get() is NAMES
    assert len(asked) == 1
    known.forget()
    known.get()
    assert len(asked) == 2


def test_a_server_that_is_away_does_not_stop_completion() -> None:
    def fetch() -> Names:
        raise Unavailable(ErrorCode.NOT_READY, "away")

    known = KnownNames(fetch)
    assert known.get() == Names()


@pytest.mark.parametrize(
    ("text", "whole"),
    [("SELECT 1", False), ("SELECT 1;", True), ("SELECT ';", False), ("\\d", True), ("  ", True)],
)
def test_enter_runs_what_is_whole(text: str, whole: bool) -> None:
    assert is_whole(text) is whole
