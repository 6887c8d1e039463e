"""A statement without its literals, for who may know what was asked and not of what."""

import hashlib
import re
from typing import Final

import duckdb

LITERAL: Final = "?"
"""What stands in for a literal."""

_LITERALS: Final = frozenset({duckdb.token_type.numeric_const, duckdb.token_type.string_const})
_PLAIN: Final = {
    # Names with odd characters, and whatever else DuckDB takes for a word, are not recognised: a
    # literal may hide behind a space that is none for the tokenizer, and is one for the parser.
    duckdb.token_type.identifier: re.compile(r'(?:[^\W\d][\w$]*|"(?:[^"]|"")*")\s*'),
    duckdb.token_type.keyword: re.compile(r"[^\W\d]\w*\s*"),
    duckdb.token_type.operator: re.compile(r"[^\w\s'\"]+\s*", re.ASCII),
}


def redacted(sql: str, *, is_cut: bool = False) -> str:
    """The statement with `?` in the place of each number and string, and without comments.

    Names stay, those in double quotes too; so do TRUE, FALSE and NULL. With `is_cut` the text is
    the beginning of a statement, and its last word is left out: it may be half a literal. A text
    that DuckDB's tokenizer does not cut into known words becomes its SHA-256, `sha256:...`.
    Never raises.
    """
    try:
        found = _redacted(sql, is_cut)
    except (duckdb.Error, TypeError, UnicodeError):
        found = None
    return _hash_of(sql) if found is None else found


def _redacted(sql: str, is_cut: bool) -> str | None:
    text = sql.encode()
    places = duckdb.tokenize(sql)
    starts = [start for start, _ in places]
    if text[: starts[0] if starts else None].strip():
        return None
    ends = [*starts[1:], len(text)][: len(starts)]
    lexemes = list(zip(places, ends, strict=True))[: -1 if is_cut else None]
    parts: list[str] = []
    touches_number = False
    for (start, kind), end in lexemes:
        word = text[start:end].decode()
        space = " " if word[-1:].isspace() else ""
        if kind in _LITERALS:
            parts.append(LITERAL + space)
        elif touches_number and kind in (
            duckdb.token_type.identifier,
            duckdb.token_type.keyword,
        ):
            # `0x1F` is cut into `0` and `x1F`: its rest is part of the number.
            parts.append(space)
        elif kind is duckdb.token_type.comment:
            parts.append(" ")
        elif (known := _PLAIN.get(kind)) is not None and known.fullmatch(word):
            parts.append(word.rstrip() + space)
        else:
            return None
        touches_number = kind is duckdb.token_type.numeric_const and not space
    return "".join(parts).strip()


def _hash_of(sql: str) -> str:
    return f"sha256:{hashlib.sha256(sql.encode(errors='surrogatepass')).hexdigest()}"
