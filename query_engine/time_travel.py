"""`FROM t AT (VERSION => n)` and `AT (TIMESTAMP => ts)`: whose version, and the text without it.

DuckDB parses the clause and refuses it when it binds. So it is cut out before: each such table
becomes another relation, with the alias under which the statement knew it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import duckdb

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.statements import Statements
from query_engine.quoting import identifier

_SQL: Final = Statements("query_engine", "engine.sql")
_VERSIONED_TABLES_MAX: Final = 64
_SNAPSHOT_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_FUNCTIONS: Final = frozenset(
    {
        "+",
        "-",
        "current_date",
        "date_trunc",
        "get_current_timestamp",
        "make_timestamp",
        "now",
        "to_days",
        "to_hours",
        "to_milliseconds",
        "to_minutes",
        "to_months",
        "to_seconds",
        "to_timestamp",
        "to_weeks",
        "to_years",
        "today",
        "transaction_timestamp",
        "trunc",
    }
)
"""What a time may be computed with: nothing here takes long or grows."""

_MOMENTS: Final = frozenset({"current_date", "current_timestamp", "now", "today"})


@dataclass(frozen=True, slots=True)
class VersionedTable:
    """One place where a statement reads a table as it was.

    `at` and `length` are its place in the UTF-8 text, alias and clause included.
    """

    name: str
    alias: str
    column_aliases: tuple[str, ...]
    version: int | None
    moment: str | None
    """A serialised expression, when the version is given as a time."""
    at: int
    length: int


@dataclass(frozen=True, slots=True)
class TableVersion:
    """A table, and which of its states: a snapshot's number, or a moment."""

    table: str
    version: int | datetime


def versioned_table(node: dict[str, Any]) -> VersionedTable:
    """What a table reference with an AT clause says. Raises NotSupported and Invalid."""
    if node.get("sample") is not None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "a table with AT takes no TABLESAMPLE: sample a subquery, "
            "FROM (FROM table AT (...)) TABLESAMPLE ...",
        )
    name = str(node["table_name"])
    unit, expression = str(node["at_clause"]["unit"]).upper(), node["at_clause"]["expr"]
    version = moment = None
    if unit == "VERSION":
        version = _number(name, expression)
    elif unit == "TIMESTAMP" and _is_constant(expression):
        moment = json.dumps(expression)
    else:
        raise _not_a_version(name)
    return VersionedTable(
        name,
        str(node.get("alias") or ""),
        tuple(map(str, node.get("column_name_alias") or ())),
        version,
        moment,
        int(node["query_location"]),
        int(node["query_location_length"]),
    )


def _number(table: str, expression: dict[str, Any]) -> int:
    text = str((expression.get("literal") or {}).get("text", ""))
    if expression["class"] == "CONSTANT" and _SNAPSHOT_NUMBER.fullmatch(text):
        return int(text)
    raise _not_a_version(table)


def _not_a_version(table: str) -> Invalid:
    return Invalid(
        ErrorCode.SQL_NOT_ALLOWED,
        f"table {table!r}: write AT (VERSION => n) with a snapshot's number, or AT (TIMESTAMP => t)"
        " with a time such as TIMESTAMPTZ '2026-01-31 12:00:00+00' or now() - INTERVAL 1 HOUR",
        table=table,
    )


def _is_constant(expression: Any) -> bool:
    """Whether an expression is made of constants and the few functions above."""
    stack = [expression]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if "class" in node and not _is_plain(node):
                return False
            stack.extend(node.values())
    return True


def _is_plain(node: dict[str, Any]) -> bool:
    match node["class"]:
        case "CONSTANT" | "CAST" | "TYPE":
            return True
        case "FUNCTION":
            return str(node.get("function_name", "")).lower() in _FUNCTIONS
        case "COLUMN_REF":
            names = list(node.get("column_names") or [])
            return len(names) == 1 and str(names[0]).lower() in _MOMENTS
    return False


def table_versions(
    cursor: duckdb.DuckDBPyConnection, tables: Sequence[VersionedTable]
) -> tuple[TableVersion, ...]:
    """The versions that a statement names, in the order of its text; `now()` is the call's time.

    A time without a zone is UTC. Raises Invalid for what is no time, and for too many tables.
    """
    if len(tables) > _VERSIONED_TABLES_MAX:
        raise Invalid(
            ErrorCode.SQL_NOT_ALLOWED,
            f"a statement reads at most {_VERSIONED_TABLES_MAX} tables with AT, not {len(tables)}",
        )
    return tuple(
        TableVersion(each.name, _moment(cursor, each) if each.version is None else each.version)
        for each in tables
    )


def _moment(cursor: duckdb.DuckDBPyConnection, table: VersionedTable) -> datetime:
    try:
        tree = json.loads(_only_value(cursor, _SQL["parse"], [_SQL["moment"]]))
        # The template's one cast is over NULL: the expression takes its place.
        value = tree["statements"][0]["node"]["select_list"][0]["arguments"][0]["expression"]
        value["child"] = json.loads(table.moment or "null")
        text = _only_value(cursor, _SQL["deserialize"], [json.dumps(tree)])
        microseconds = _only_value(cursor, text, [])
        return _EPOCH + timedelta(microseconds=microseconds)
    except (duckdb.Error, OverflowError, TypeError):
        raise _not_a_version(table.name) from None


def _only_value(cursor: duckdb.DuckDBPyConnection, sql: str, values: list[str]) -> Any:
    rows: list[Any] = cursor.execute(sql, values).fetchall()
    return rows[0][0]


def with_relations(sql: str, tables: Sequence[VersionedTable], names: Sequence[str]) -> str:
    """The statement reading the relations of these names instead of its versioned tables."""
    pairs = list(zip(tables, names, strict=True))
    return _cut(sql, tables, [f"{identifier(name)} {_alias(table)}" for table, name in pairs])


def with_versions(sql: str, tables: Sequence[VersionedTable], versions: Sequence[int]) -> str:
    """The statement with every time replaced by the number of the snapshot it stands for."""
    pairs = zip(tables, versions, strict=True)
    texts = [
        f"main.{identifier(table.name)} {_alias(table)} AT (VERSION => {version})"
        for table, version in pairs
    ]
    return _cut(sql, tables, texts)


def _alias(table: VersionedTable) -> str:
    columns = ", ".join(map(identifier, table.column_aliases))
    listed = f" ({columns})" if columns else ""
    return f"AS {identifier(table.alias or table.name)}{listed}"


def _cut(sql: str, tables: Sequence[VersionedTable], texts: Sequence[str]) -> str:
    content = sql.encode()
    places = sorted(zip(tables, texts, strict=True), key=lambda each: each[0].at, reverse=True)
    for table, text in places:
        content = content[: table.at] + text.encode() + content[table.at + table.length :]
    return content.decode()
