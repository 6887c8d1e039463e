"""Completion in the shell: keywords, and the names that the server knows."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from duckmesh.errors import DuckMeshError

_KEYWORDS_TEXT: Final = """
    ADD ALL ALTER AND ANY AS ASC ASOF AT BETWEEN BIGINT BLOB BOOLEAN BY CASE CAST COLUMN COUNT
    CREATE CROSS DATE DECIMAL DEFAULT DELETE DESC DESCRIBE DISTINCT DOUBLE DROP ELSE END EXCEPT
    EXCLUDE EXISTS EXPLAIN FALSE FILTER FIRST FROM FULL GROUP HAVING IF ILIKE IN INNER INSERT
    INTEGER INTERSECT INTERVAL INTO IS JOIN KEY LAST LATERAL LEFT LIKE LIMIT NAME NATURAL NOT NULL
    NULLS OFFSET ON OR ORDER OUTER OVER PARTITION PIVOT PRIMARY QUALIFY REAL RENAME REPLACE RIGHT
    ROWS SELECT SEMI SET SHOW SUMMARIZE TABLE TABLES THEN TIME TIMESTAMP TIMESTAMPTZ TO TRUE
    TRUNCATE TYPE UNION UNNEST USING UUID VALUES VARCHAR VERSION VIEW WHEN WHERE WINDOW WITH
"""
KEYWORDS: Final = tuple(_KEYWORDS_TEXT.split())
_BEFORE_TABLES: Final = frozenset(
    {"FROM", "JOIN", "INTO", "TABLE", "DESCRIBE", "SUMMARIZE", "VIEW"}
)
_WORD: Final = re.compile(r'[\w".]*\Z')
_LAST_WORD: Final = re.compile(r"(\w+)\s*\Z")
_ALIASED: Final = re.compile(r"\b(?:FROM|JOIN)\s+(\w+)\s+(?:AS\s+)?(\w+)", re.IGNORECASE)
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Names:
    """What a tenant has: the columns of each table and view, by its name."""

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


class KnownNames:
    """The server's names, fetched when first asked for, and again after `forget`."""

    def __init__(self, fetch: Callable[[], Names]) -> None:
        self._fetch = fetch
        self._known: Names | None = None

    def forget(self) -> None:
        """A definition may have changed them."""
        self._known = None

    def get(self) -> Names:
        """The names; none when the server does not tell: completion never fails."""
        if self._known is None:
            try:
                self._known = self._fetch()
            except DuckMeshError:
                return Names()
        return self._known


class SqlCompleter(Completer):
    """Completes what stands before the cursor."""

    def __init__(self, names: KnownNames, commands: Mapping[str, Sequence[str]]) -> None:
        """`commands` has the shell's own commands, with the words that may follow each."""
        self._names = names
        self._commands = commands

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        before = document.text_before_cursor
        if before.startswith("\\"):
            yield from self._of_command(before)
            return
        word = _word(before)
        asked = complete_event.completion_requested
        if not word and not asked:
            return
        table, dot, part = word.rpartition(".")
        found = self._columns_of(table, document.text) if dot else self._words(before, part)
        typed = part.strip('"').lower()
        for name, kind in found:
            if name.lower().startswith(typed):
                yield Completion(
                    _spelled(name, kind, part), start_position=-len(part), display_meta=kind
                )

    def _of_command(self, before: str) -> Iterator[Completion]:
        command, blank, rest = before.partition(" ")
        if not blank:
            choices: Iterable[str] = (each for each in self._commands if each.startswith(command))
            rest = command
        else:
            words = self._commands.get(command, ())
            known = self._names.get().columns if words == ("TABLE",) else words
            choices = (each for each in known if each.lower().startswith(rest.lower()))
        for each in choices:
            yield Completion(each, start_position=-len(rest))

    def _words(self, before: str, part: str) -> Iterator[tuple[str, str]]:
        columns = self._names.get().columns
        previous = _LAST_WORD.search(before[: len(before) - len(part)])
        if previous is not None and previous[1].upper() in _BEFORE_TABLES:
            yield from ((name, "table") for name in columns)
            return
        used = {each for each in columns if re.search(rf"\b{re.escape(each)}\b", before)}
        # Those of a system table are offered once it is named.
        offered = used or {each for each in columns if "." not in each}
        seen = dict.fromkeys(name for each in sorted(offered) for name in columns[each])
        yield from ((name, "column") for name in seen)
        yield from ((name, "table") for name in columns)
        yield from ((name, "") for name in KEYWORDS)

    def _columns_of(self, table: str, text: str) -> Iterator[tuple[str, str]]:
        aliases = {alias.lower(): name for name, alias in _ALIASED.findall(text)}
        wanted = table.strip('"').lower()
        wanted = aliases.get(wanted, wanted).lower()
        for name, columns in self._names.get().columns.items():
            if name.lower() in (wanted, f"{wanted}.{name}".lower()):
                yield from ((column, "column") for column in columns)
            elif name.lower().startswith(f"{wanted}."):
                yield name.partition(".")[2], "table"


def _word(before: str) -> str:
    found = _WORD.search(before)
    return found[0] if found is not None else ""


def _spelled(name: str, kind: str, typed: str) -> str:
    """A keyword in the case that was begun with; a name, quoted where it needs that."""
    if not kind:
        return name.lower() if typed.islower() else name
    if not typed.startswith('"') and all(_PLAIN_NAME.match(part) for part in name.split(".")):
        return name
    return quoted_name(name)


def quoted_name(name: str) -> str:
    """A name as SQL takes it whatever it holds."""
    return '"' + name.replace('"', '""') + '"'
