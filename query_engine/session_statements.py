"""Statements that speak of the session and run in no database: SET, RESET, USE, BEGIN, COMMIT.

DuckDB's parser takes no name with a dot after SET, and knows nothing of our sessions. So these few
are read here, before the statement gate; whatever does not have one of their forms goes on to it.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# As in query_engine.statements: unambiguous, so that a hostile text costs one pass over it.
_SPACE: Final = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)"
_END: Final = rf"{_SPACE}*(?:;{_SPACE}*)?"
_FIRST_WORD: Final = re.compile(rf"{_SPACE}*([A-Za-z]+)")
_WORDS: Final = frozenset(
    {"begin", "start", "commit", "end", "rollback", "abort", "set", "reset", "use"}
)
_MODE: Final = rf"(?:{_SPACE}+READ{_SPACE}+(?:ONLY|WRITE))?"
_TRANSACTION: Final = re.compile(
    rf"{_SPACE}*(?:(?P<begin>BEGIN(?:{_SPACE}+(?:TRANSACTION|WORK))?{_MODE}"
    rf"|START{_SPACE}+TRANSACTION{_MODE})"
    rf"|(?P<commit>(?:COMMIT|END)(?:{_SPACE}+(?:TRANSACTION|WORK))?)"
    rf"|(?P<rollback>(?:ROLLBACK|ABORT)(?:{_SPACE}+(?:TRANSACTION|WORK))?)){_END}",
    re.IGNORECASE,
)
_WORD: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_PART: Final = rf'(?:{_WORD}|"[^"]*")'
_NAME: Final = rf"{_PART}(?:\.{_PART})*"
_VALUE: Final = r"'(?:[^']|'')*'|[+-]?[0-9.]+|[A-Za-z_][A-Za-z0-9_]*"
_SET: Final = re.compile(
    rf"{_SPACE}*SET{_SPACE}+(?:SESSION{_SPACE}+)?(?P<name>{_NAME})"
    rf"(?:{_SPACE}*={_SPACE}*|{_SPACE}+TO{_SPACE}+)(?P<value>{_VALUE}){_END}",
    re.IGNORECASE,
)
_TIME_ZONE: Final = re.compile(
    rf"{_SPACE}*SET{_SPACE}+TIME{_SPACE}+ZONE{_SPACE}+(?P<value>{_VALUE}){_END}", re.IGNORECASE
)
_RESET: Final = re.compile(rf"{_SPACE}*RESET{_SPACE}+(?P<name>{_NAME}){_END}", re.IGNORECASE)
_USE: Final = re.compile(rf"{_SPACE}*USE{_SPACE}+(?P<name>{_NAME}){_END}", re.IGNORECASE)


class TransactionVerb(StrEnum):
    """What a statement does to the session's transaction."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class SetOption:
    """SET name = value; RESET has no value."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class UseSchema:
    """USE name, in its parts."""

    parts: tuple[str, ...]


SessionStatement = TransactionVerb | SetOption | UseSchema


def read_session_statement(sql: str) -> SessionStatement | None:
    """What the statement asks of the session; None when it is none of these."""
    first = _FIRST_WORD.match(sql)
    if first is None or first.group(1).lower() not in _WORDS:
        return None
    if (match := _TRANSACTION.fullmatch(sql)) is not None:
        verb = next(name for name, text in match.groupdict().items() if text is not None)
        return TransactionVerb(verb)
    if (match := _TIME_ZONE.fullmatch(sql)) is not None:
        return SetOption("timezone", _unquoted(match["value"]))
    if (match := _SET.fullmatch(sql)) is not None:
        return SetOption(_folded(match["name"]), _unquoted(match["value"]))
    if (match := _RESET.fullmatch(sql)) is not None:
        return SetOption(_folded(match["name"]), None)
    if (match := _USE.fullmatch(sql)) is not None:
        return UseSchema(tuple(_folded(match["name"]).split(".")))
    return None


def _unquoted(value: str) -> str:
    return value[1:-1].replace("''", "'") if value.startswith("'") else value


def _folded(name: str) -> str:
    return name.replace('"', "").lower()
