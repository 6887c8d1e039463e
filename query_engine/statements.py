"""The statement gate: what a text of SQL is, what it names, and whether it may run.

DuckDB's own parser decides; text is looked at only where the parser has already said what it is.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import duckdb

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.statements import Statements
from query_engine.failures import clean
from query_engine.syntax import Names, walk
from query_engine.time_travel import (
    TableVersion,
    VersionedTable,
    table_versions,
    with_relations,
    with_versions,
)

_SQL: Final = Statements("query_engine", "engine.sql")
_SQL_MAX_CHARS: Final = 1_000_000
_CACHED_STATEMENTS: Final = 1024
_CACHED_SQL_MAX_CHARS: Final = 16_384

# Unambiguous, so that a hostile text costs one pass over it, no more: a comment ends in one place.
# Not possessive: before Python 3.11.5 such quantifiers match wrongly (CPython issue 106052).
_SPACE = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)"
_EXPLAIN = re.compile(rf"{_SPACE}*EXPLAIN{_SPACE}+(.*)", re.DOTALL | re.IGNORECASE)
_WITH_OPTIONS = re.compile(r"\(|ANALY[SZ]E\b", re.IGNORECASE)
_CREATE = re.compile(
    rf"{_SPACE}*CREATE{_SPACE}+(?:OR{_SPACE}+REPLACE{_SPACE}+)?"
    rf"(?:(?:TEMP|TEMPORARY){_SPACE}+)?(\w+)",
    re.DOTALL | re.IGNORECASE,
)
_DROP = re.compile(rf"{_SPACE}*DROP{_SPACE}+(\w+)", re.DOTALL | re.IGNORECASE)
_NAME = r'(?:"(?:[^"]|"")+"|[A-Za-z_\x80-\U0010ffff][\w$]*)'
_DROP_TABLE = re.compile(
    rf"{_SPACE}*DROP{_SPACE}+TABLE{_SPACE}+(IF{_SPACE}+EXISTS{_SPACE}+)?"
    rf"({_NAME}(?:{_SPACE}*\.{_SPACE}*{_NAME}){{0,2}}){_SPACE}*"
    rf"(?:(?:CASCADE|RESTRICT){_SPACE}*)?(?:;{_SPACE}*)?",
    re.DOTALL | re.IGNORECASE,
)


class StatementKind(StrEnum):
    """What a statement does, as far as the gateway must know to route it."""

    QUERY = "query"
    EXPLAIN = "explain"
    CREATE_TABLE = "create_table"
    DROP_TABLE = "drop_table"
    CREATE_VIEW = "create_view"
    DROP_VIEW = "drop_view"
    ALTER = "alter"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    MERGE = "merge"
    COPY = "copy"
    TRANSACTION = "transaction"
    SET = "set"
    OTHER = "other"


_KINDS: Final = {
    "SELECT": StatementKind.QUERY,
    "MULTI": StatementKind.QUERY,
    "EXPLAIN": StatementKind.EXPLAIN,
    "ALTER": StatementKind.ALTER,
    "INSERT": StatementKind.INSERT,
    "UPDATE": StatementKind.UPDATE,
    "DELETE": StatementKind.DELETE,
    "MERGE_INTO": StatementKind.MERGE,
    "COPY": StatementKind.COPY,
    "TRANSACTION": StatementKind.TRANSACTION,
    "SET": StatementKind.SET,
    "VARIABLE_SET": StatementKind.SET,
}

_CREATED: Final = {"TABLE": StatementKind.CREATE_TABLE, "VIEW": StatementKind.CREATE_VIEW}
_DROPPED: Final = {"TABLE": StatementKind.DROP_TABLE, "VIEW": StatementKind.DROP_VIEW}

_ALONE: Final = "send it as a statement of its own"
_OTHER_WAYS: Final = {
    StatementKind.CREATE_TABLE: _ALONE,
    StatementKind.DROP_TABLE: _ALONE,
    StatementKind.CREATE_VIEW: _ALONE,
    StatementKind.DROP_VIEW: _ALONE,
    StatementKind.ALTER: _ALONE,
    StatementKind.INSERT: _ALONE,
    StatementKind.UPDATE: _ALONE,
    StatementKind.DELETE: _ALONE,
    StatementKind.MERGE: "send INSERT, UPDATE or DELETE, each as a statement of its own",
    StatementKind.COPY: "run the query and write its result on the client, or ingest the rows",
    StatementKind.TRANSACTION: "every statement is its own transaction",
    StatementKind.SET: "settings are fixed; pass options with the request",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, parsed."""

    text: str
    kind: StatementKind
    names: Names | None
    """What it names; None when the parser cannot show it (it is then refused as a query)."""


@dataclass(frozen=True, slots=True)
class DropTable:
    """DROP TABLE, taken apart. `catalog` and `schema` are None where the text leaves them out."""

    name: str
    schema: str | None
    catalog: str | None
    if_exists: bool


class StatementGate:
    """Parses, classifies and admits. Safe from any thread; answers are remembered by text.

    Nothing is run or bound here, and no tenant's data is within reach of the parser.
    """

    def __init__(self) -> None:
        self._parser = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "256MB"})
        self._parser.execute(_SQL["use_utc"])
        self._parser.execute(_SQL["seal_parser"])
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Statement] = OrderedDict()

    def close(self) -> None:
        self._parser.close()

    def classify(self, sql: str) -> Statement:
        """The one statement in `sql`, whatever it does.

        Raises Invalid: SQL_REQUIRED for no statement, SQL_NOT_ALLOWED for several,
        QUERY_EXECUTION_FAILED for a text that does not parse.
        """
        with self._lock:
            known = self._known.get(sql)
            if known is not None:
                self._known.move_to_end(sql)
                return known
        statement = self._parse(sql)
        if len(sql) <= _CACHED_SQL_MAX_CHARS:
            with self._lock:
                self._known[sql] = statement
                if len(self._known) > _CACHED_STATEMENTS:
                    self._known.popitem(last=False)
        return statement

    def admit(self, sql: str) -> Statement:
        """The statement, when it is a query that reads nothing but what it may; its names are set.

        Raises what `classify` raises, and Invalid or NotSupported (SQL_NOT_ALLOWED,
        NOT_SUPPORTED) for everything else, naming the way that works.
        """
        statement = self.classify(sql)
        if statement.kind not in (StatementKind.QUERY, StatementKind.EXPLAIN):
            raise _not_a_query(statement.kind)
        if statement.names is None:
            raise _unreadable(statement.kind)
        statement.names.check()
        if statement.names.versioned:
            raise _versions_unread()
        return statement

    def table_versions(self, sql: str) -> tuple[TableVersion, ...]:
        """The tables that a query reads AT a version, in the order of its text.

        `now()` is the time of the call. Raises what `classify` raises, and Invalid for a value
        that is neither a snapshot's number nor a time.
        """
        versioned = self._versioned(sql)
        if not versioned:
            return ()
        with self._parser.cursor() as cursor:
            return table_versions(cursor, versioned)

    def with_relations(self, sql: str, relations: Sequence[str]) -> str:
        """The query reading the relations of these names, one for each of `table_versions`.

        Raises NotSupported for a query that lists the catalog as well: it would list these names.
        """
        names = self.classify(sql).names
        if names is not None and names.lists_catalog:
            raise _listed_with_versions()
        return self._unversioned(with_relations(sql, self._versioned(sql), relations))

    def with_versions(self, sql: str, versions: Sequence[int]) -> str:
        """The query naming these snapshots, one for each of `table_versions`."""
        return with_versions(sql, self._versioned(sql), versions)

    def _versioned(self, sql: str) -> tuple[VersionedTable, ...]:
        names = self.classify(sql).names
        if names is None:
            return ()
        names.check()
        return names.versioned

    def _unversioned(self, sql: str) -> str:
        names = self.classify(sql).names
        if names is None or names.versioned:
            raise _versions_unread()
        return sql

    def _parse(self, sql: str) -> Statement:
        if len(sql) > _SQL_MAX_CHARS:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED,
                f"a statement has at most {_SQL_MAX_CHARS} characters; send the data another way",
            )
        kind = self._kind(sql)
        text = sql
        if kind is StatementKind.EXPLAIN:
            text = self._explained(sql)
        names = self._names(text) if kind in (StatementKind.QUERY, StatementKind.EXPLAIN) else None
        return Statement(sql, kind, names)

    def _kind(self, sql: str) -> StatementKind:
        with self._parser.cursor() as cursor:
            try:
                found = cursor.extract_statements(sql)
            except duckdb.Error as error:
                raise Invalid(ErrorCode.QUERY_EXECUTION_FAILED, clean(str(error), ())) from None
        if not found:
            raise Invalid(ErrorCode.SQL_REQUIRED, "send one SQL statement")
        if len(found) > 1:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED,
                f"send one statement at a time, not {len(found)}",
                statements=len(found),
            )
        try:
            name = found[0].type.name
        except ValueError:
            # A kind that DuckDB's bindings do not know themselves, such as UPDATE EXTENSIONS.
            return StatementKind.OTHER
        if name == "CREATE":
            return _CREATED.get(_thing(_CREATE, sql), StatementKind.OTHER)
        if name == "DROP":
            return _DROPPED.get(_thing(_DROP, sql), StatementKind.OTHER)
        return _KINDS.get(name, StatementKind.OTHER)

    def _explained(self, sql: str) -> str:
        """The statement inside EXPLAIN, itself a query: its type alone tells nothing.

        EXPLAIN ANALYZE is refused, for it runs the query and prints the files that it read.
        """
        inside = _EXPLAIN.fullmatch(sql)
        if inside is None or _WITH_OPTIONS.match(inside.group(1)):
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "EXPLAIN takes no ANALYZE and no options here; write EXPLAIN and the query",
            )
        text = inside.group(1)
        if (kind := self._kind(text)) is not StatementKind.QUERY:
            raise _not_a_query(kind)
        return text

    def _names(self, sql: str) -> Names | None:
        with self._parser.cursor() as cursor:
            try:
                rows = cursor.execute(_SQL["parse"], [sql]).fetchall()
            except duckdb.Error as error:
                raise Invalid(ErrorCode.QUERY_EXECUTION_FAILED, clean(str(error), ())) from None
        try:
            tree: dict[str, Any] = json.loads(rows[0][0])
        except RecursionError:
            tree = {}
        if not tree:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED,
                "the statement is nested too deeply: send it in simpler parts",
            )
        return None if tree["error"] else walk(tree["statements"])


def parse_drop_table(sql: str) -> DropTable:
    """DROP TABLE [IF EXISTS] name, taken apart.

    Raises Invalid (SQL_NOT_ALLOWED) for any other text, and for several tables at once.
    """
    match = _DROP_TABLE.fullmatch(sql)
    if match is None:
        raise Invalid(ErrorCode.SQL_NOT_ALLOWED, "write DROP TABLE [IF EXISTS] and one table name")
    parts = [_unquoted(part) for part in re.findall(_NAME, match.group(2))]
    schema = parts[-2] if len(parts) > 1 else None
    catalog = parts[-3] if len(parts) > 2 else None
    return DropTable(parts[-1], schema, catalog, if_exists=match.group(1) is not None)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _thing(pattern: re.Pattern[str], sql: str) -> str:
    """What a CREATE or DROP is of."""
    match = pattern.match(sql)
    return "" if match is None else match.group(1).upper()


def _not_a_query(kind: StatementKind) -> Invalid | NotSupported:
    if kind is StatementKind.OTHER:
        return Invalid(
            ErrorCode.SQL_NOT_ALLOWED,
            "only queries run here: SELECT, WITH, VALUES, FROM, SHOW, DESCRIBE, SUMMARIZE, PIVOT",
        )
    words = kind.value.replace("_", " ").upper()
    return Invalid(
        ErrorCode.SQL_NOT_ALLOWED,
        f"{words} does not run as a query; {_OTHER_WAYS[kind]}",
        statement=kind.value,
    )


def _unreadable(kind: StatementKind) -> NotSupported:
    return NotSupported(
        ErrorCode.NOT_SUPPORTED,
        "PIVOT needs the values of its columns: write PIVOT ... ON column IN (value, ...)",
        statement=kind.value,
    )


def _listed_with_versions() -> NotSupported:
    return NotSupported(
        ErrorCode.NOT_SUPPORTED,
        "a query that lists the catalog reads no table AT a version: ask in two queries",
    )


def _versions_unread() -> NotSupported:
    return NotSupported(
        ErrorCode.NOT_SUPPORTED,
        "AT is not read in this place: put the table with its AT into a subquery",
    )
