"""A statement's text as DuckDB's own tokenizer cuts it, for what its parser cannot show as a tree.

DuckDB serialises queries and nothing else. The head of a definition (CREATE TABLE name AS ...) is
therefore read from its words. A text comes here only after DuckDB has parsed it as one statement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Self

import duckdb

from duckmesh.errors import ErrorCode, Invalid
from query_engine.relations import CATALOG, MAIN_SCHEMA

_OPENING: Final = frozenset("([{")
_CLOSING: Final = frozenset(")]}")


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One word, sign or literal: its text, and where it lies in the UTF-8 of the statement."""

    text: str
    kind: duckdb.token_type
    start: int
    end: int

    @property
    def word(self) -> str:
        """The text for comparing with keywords; empty for a quoted name or a literal."""
        return self.text.upper() if self.text[:1].isalpha() or self.text[:1] == "_" else ""

    @property
    def name(self) -> str | None:
        """The name that this is, unquoted; None when it is no name."""
        if self.text.startswith('"'):
            return self.text[1:-1].replace('""', '"')
        is_word = self.kind in (duckdb.token_type.identifier, duckdb.token_type.keyword)
        return self.text if is_word and self.word else None


def cut(sql: str) -> list[Lexeme]:
    """The lexemes of one statement, without comments and without the `;` that ends it."""
    text = sql.encode()
    places = duckdb.tokenize(sql)
    found = []
    for at, (start, kind) in enumerate(places):
        end = places[at + 1][0] if at + 1 < len(places) else len(text)
        word = text[start:end].decode(errors="replace").rstrip()
        if kind is not duckdb.token_type.comment and word:
            found.append(Lexeme(word, kind, start, start + len(word.encode())))
    while found and found[-1].text == ";":
        found.pop()
    return found


def without_end(sql: str) -> str:
    """The statement without the `;` and the comments behind it."""
    lexemes = cut(sql)
    return sql.encode()[: lexemes[-1].end].decode() if lexemes else ""


def first_word(sql: str) -> str:
    """The keyword that a statement begins with, in capitals; empty when it begins with none."""
    lexemes = cut(sql)
    return lexemes[0].word if lexemes else ""


@dataclass(frozen=True, slots=True)
class TableName:
    """A table's name as a statement writes it; the parts that it leaves out are None."""

    name: str
    schema: str | None = None
    catalog: str | None = None

    @classmethod
    def of(cls, path: Sequence[str]) -> Self:
        """From `[name]`, `[schema, name]` or `[catalog, schema, name]`.

        Raises Invalid (TABLE_REQUIRED) for a place where no table lies.
        """
        named = cls(
            path[-1],
            path[-2] if len(path) > 1 and path[-2] else None,
            path[-3] if len(path) > 2 and path[-3] else None,
        )
        named.check()
        return named

    def check(self) -> None:
        """Raise Invalid (TABLE_REQUIRED) when the name is of another catalog or schema."""
        # `duckmesh.t` names the catalog, as DuckDB reads a pair that could be either.
        schema = (self.schema or MAIN_SCHEMA).lower()
        catalog = (self.catalog or CATALOG).lower()
        pair_of_catalog = self.catalog is None and schema == CATALOG
        if catalog != CATALOG or (schema != MAIN_SCHEMA and not pair_of_catalog):
            raise Invalid(
                ErrorCode.TABLE_REQUIRED,
                f"tables lie in catalog {CATALOG!r} and schema {MAIN_SCHEMA!r}: leave both out",
            )


class LexemeReader:
    """Reads lexemes one after the other."""

    def __init__(self, sql: str) -> None:
        self.text = sql.encode()
        self._lexemes = cut(sql)
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._lexemes)

    @property
    def position(self) -> int:
        """How many lexemes are taken."""
        return self._at

    def between(self, start: int) -> list[Lexeme]:
        """The lexemes taken since `position` was `start`."""
        return self._lexemes[start : self._at]

    def peek(self, ahead: int = 0) -> Lexeme | None:
        at = self._at + ahead
        return self._lexemes[at] if at < len(self._lexemes) else None

    def take(self) -> Lexeme:
        """The next lexeme. Raises Invalid at the end."""
        lexeme = self.peek()
        if lexeme is None:
            _unread()
        self._at += 1
        return lexeme

    def took(self, *words: str) -> bool:
        """Take these keywords when exactly they come next."""
        for ahead, word in enumerate(words):
            lexeme = self.peek(ahead)
            if lexeme is None or lexeme.word != word:
                return False
        self._at += len(words)
        return True

    def path(self) -> list[str]:
        """A name of up to three parts, as `TableName.of` takes it. Raises Invalid for none."""
        parts = [self._name()]
        while (dot := self.peek()) is not None and dot.text == ".":
            self._at += 1
            parts.append(self._name())
        return parts

    def _name(self) -> str:
        name = self.take().name
        if name is None:
            _unread()
        return name

    def skip_group(self) -> bool:
        """Pass over one parenthesis with all in it, if one comes next."""
        lexeme = self.peek()
        if lexeme is None or lexeme.text != "(":
            return False
        depth = 0
        while True:
            text = self.take().text
            depth += (text in _OPENING) - (text in _CLOSING)
            if depth == 0:
                return True

    def has(self, word: str) -> bool:
        """Whether this keyword comes later, in parentheses or not."""
        return any(each.word == word for each in self._lexemes[self._at :])

    def so_far(self) -> str:
        """The text up to the last lexeme taken."""
        return self.text[: self._lexemes[self._at - 1].end].decode() if self._at else ""

    def rest(self) -> str:
        """The text from the next lexeme to the statement's end."""
        lexeme = self.peek()
        if lexeme is None:
            _unread()
        return self.text[lexeme.start : self._lexemes[-1].end].decode()

    def drop_end(self, *words: str) -> bool:
        """Leave these keywords off the statement's end, when exactly they stand there."""
        if tuple(each.word for each in self._lexemes[-len(words) :]) != words:
            return False
        del self._lexemes[-len(words) :]
        return True


def _unread() -> NoReturn:
    raise Invalid(
        ErrorCode.SQL_NOT_ALLOWED,
        "the statement's name is not read: write it bare, or in double quotes",
    )
