"""SQL text cut into statements, as DuckDB's scanner sees quotes and comments."""

import re
from collections.abc import Iterator
from typing import Final

# What may hide a `;`: texts, names, dollar quotes, comments. An open one reaches the end.
_HIDING: Final = re.compile(
    r"""
      (?<![A-Za-z0-9_])[eE]'(?:[^'\\]|\\.|'')*(?P<open_escaped>'|\Z)
    | '(?:[^']|'')*(?P<open_text>'|\Z)
    | "(?:[^"]|"")*(?P<open_name>"|\Z)
    | (?<![A-Za-z0-9_$])\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?(?P<open_dollar>\$(?P=tag)\$|\Z)
    | --[^\n]*
    | (?P<comment>/\*)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK: Final = re.compile(r"/\*|\*/")


def split_statements(text: str) -> tuple[list[str], str]:
    """The statements that a `;` ends, and what is left behind the last one.

    A rest of blanks and comments alone is empty.
    """
    whole: list[str] = []
    start = 0
    for end in _ends(text):
        if not is_blank(statement := text[start:end]):
            whole.append(statement.strip())
        start = end + 1
    rest = text[start:]
    return whole, "" if is_blank(rest) else rest


def statements_of(text: str) -> list[str]:
    """All statements of a text; the last one needs no `;`."""
    whole, rest = split_statements(text)
    return [*whole, rest.strip()] if rest else whole


def is_blank(text: str) -> bool:
    """Whether there is nothing but blanks and closed comments."""
    kept = []
    start = 0
    for found in _hiding(text):
        if found[2] != "comment":
            continue
        kept.append(text[start : found[0]])
        start = found[1]
    kept.append(text[start:])
    return not "".join(kept).strip()


def _ends(text: str) -> Iterator[int]:
    return (start for start, _, kind in _hiding(text) if kind == "end")


def _hiding(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind (`end`, `comment` or `quote`) of what the pattern finds."""
    at = 0
    while (found := _HIDING.search(text, at)) is not None:
        at = found.end()
        if found["end"]:
            yield found.start(), at, "end"
        elif found["comment"]:
            at = _comment_end(text, at)
            yield found.start(), at, "comment"
        elif found[0].startswith("--"):
            yield found.start(), at, "comment"
        else:
            yield found.start(), at, "quote"


def _comment_end(text: str, at: int) -> int:
    """Comments nest."""
    depth = 1
    while depth and (mark := _COMMENT_MARK.search(text, at)) is not None:
        depth += 1 if mark[0] == "/*" else -1
        at = mark.end()
    return len(text) if depth else at
