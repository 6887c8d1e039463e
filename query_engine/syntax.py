"""What a parsed query names: a walk over the tree that DuckDB's `json_serialize_sql` gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotSupported
from query_engine.permitted import (
    CATALOG_SCHEMAS,
    CATALOG_VIEWS,
    FORBIDDEN_FUNCTIONS,
    FORBIDDEN_VIEWS,
    QUERY_NODES,
    SHOWN,
    TABLE_FUNCTIONS,
)
from query_engine.predicates import Predicate, predicates_of
from query_engine.relations import CATALOG, MAIN_SCHEMA, SYSTEM_SCHEMA
from query_engine.time_travel import VersionedTable, versioned_table

_UNKNOWN_TABLE_REFS: Final = frozenset({"COLUMN_DATA", "CTE", "DELIM_GET", "BOUND_TABLE_REF"})

_OTHER_PARTS: Final = (
    "where_clause",
    "group_expressions",
    "group_sets",
    "having",
    "sample",
    "qualify",
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One place where a parameter stands: its identifier, and where in the UTF-8 text."""

    identifier: str
    at: int
    length: int


@dataclass(frozen=True, slots=True)
class Names:
    """Everything a query names, with names as written.

    `tables` are the tenant's own; a name that is also a CTE's stays in it, for the CTE may read
    the table of its name. `described` are tables that only DESCRIBE or SHOW names.
    `versioned` are the places that read a table as it was, in their order. `refusal` is why the
    query may not run, if it may not.
    """

    tables: frozenset[str]
    described: frozenset[str]
    ctes: frozenset[str]
    system_tables: frozenset[tuple[str, str]]
    functions: frozenset[str]
    parameters: tuple[Parameter, ...]
    versioned: tuple[VersionedTable, ...]
    lists_catalog: bool
    refusal: DuckMeshError | None
    only_literals: bool = False
    """Whether its one row is written out in its text: nothing is read, called or computed."""
    predicates: Mapping[str, Predicate] = field(default_factory=dict)
    """What is asked of the rows of tables, by lower-case name; see query_engine.predicates."""

    def check(self) -> None:
        """Raise the refusal, a new object each time, for exceptions carry their tracebacks."""
        if self.refusal is not None:
            known = self.refusal
            raise type(known)(known.code, known.message, **known.context)


def walk(tree: Any) -> Names:
    """The names in the trees of statements. Never recurses: depth is the client's to choose."""
    found = _Findings()
    stack: list[tuple[Any, bool]] = [(tree, False)]
    while stack:
        node, described = stack.pop()
        if isinstance(node, list):
            stack.extend((each, described) for each in node)
        elif isinstance(node, dict):
            described = described or _only_describes(node)
            found.look(node, described=described)
            stack.extend((each, described) for each in _children(node))
    return replace(
        found.names(), predicates=predicates_of(tree), only_literals=_only_literals(tree)
    )


def _only_literals(tree: Any) -> bool:
    """Whether it is a SELECT of literals and of nothing else, as pools ask to see who is there."""
    node = tree[0]["node"] if len(tree) == 1 else {}
    if node.get("type") != "SELECT_NODE" or node["from_table"]["type"] != "EMPTY":
        return False
    beside = (node["modifiers"], node["cte_map"]["map"], *(node[part] for part in _OTHER_PARTS))
    return not any(beside) and all(
        each.get("type") == "VALUE_CONSTANT" for each in node["select_list"]
    )


def _only_describes(node: dict[str, Any]) -> bool:
    """Whether what lies below is bound and never run."""
    return node.get("type") == "SHOW_REF" and node.get("show_type") in ("DESCRIBE", "SHOW")


def _children(node: dict[str, Any]) -> Iterator[Any]:
    for key, value in node.items():
        if key == "function" and node.get("type") == "TABLE_FUNCTION":
            # The function's name was judged as a table function; its arguments remain.
            yield {k: v for k, v in value.items() if k != "function_name"}
        elif isinstance(value, (dict, list)):
            yield value


class _Findings:
    def __init__(self) -> None:
        self._tables: set[str] = set()
        self._described: set[str] = set()
        self._ctes: set[str] = set()
        self._system: set[tuple[str, str]] = set()
        self._functions: set[str] = set()
        self._parameters: list[Parameter] = []
        self._versioned: list[VersionedTable] = []
        self._lists_catalog = False
        self._refusal: DuckMeshError | None = None

    def names(self) -> Names:
        return Names(
            frozenset(self._tables),
            frozenset(self._described),
            frozenset(self._ctes),
            frozenset(self._system),
            frozenset(self._functions),
            tuple(sorted(self._parameters, key=lambda each: each.at)),
            tuple(sorted(self._versioned, key=lambda each: each.at)),
            self._lists_catalog,
            self._refusal,
        )

    def look(self, node: dict[str, Any], *, described: bool) -> None:
        kind = node.get("type")
        if "cte_map" in node:
            self._ctes.update(entry["key"].lower() for entry in node["cte_map"].get("map", ()))
        if "function_name" in node and isinstance(node["function_name"], str):
            self._function(node["function_name"].lower())
        if not isinstance(kind, str):
            return
        if kind.endswith("_NODE") and kind not in QUERY_NODES:
            self._refuse(_writes())
        elif kind in _UNKNOWN_TABLE_REFS:
            self._refuse(_unknown_source())
        elif kind == "BASE_TABLE":
            self._base_table(node, described=described)
        elif kind == "TABLE_FUNCTION":
            self._table_function(node)
        elif kind == "SHOW_REF":
            self._show(node)
        elif kind == "VALUE_PARAMETER":
            place = int(node.get("query_location") or 0)
            length = int(node.get("query_location_length") or 0)
            self._parameters.append(Parameter(str(node["identifier"]), place, length))

    def _refuse(self, error: DuckMeshError) -> None:
        self._refusal = self._refusal or error

    def _function(self, name: str) -> None:
        self._functions.add(name)
        if name in FORBIDDEN_FUNCTIONS:
            self._refuse(
                Invalid(
                    ErrorCode.SQL_NOT_ALLOWED,
                    f"the function {name} is not available in queries",
                    function=name,
                )
            )

    def _table_function(self, node: dict[str, Any]) -> None:
        name = str(node["function"].get("function_name", "")).lower()
        if name.startswith("duckdb_"):
            self._lists_catalog = True
        if name not in TABLE_FUNCTIONS:
            self._refuse(
                Invalid(
                    ErrorCode.SQL_NOT_ALLOWED,
                    f"the table function {name} is not available; "
                    "queries read tables: ingest the data first, then name its table",
                    function=name,
                )
            )

    def _show(self, node: dict[str, Any]) -> None:
        if node.get("query"):
            return
        name = str(node.get("table_name", ""))
        match node.get("show_type"):
            case "SHOW" if name:
                # SHOW of a name that is no table would tell the setting of that name: so it is
                # looked for among the tables, like any other.
                self._described.add(name)
            case "SHOW_FROM":
                self._lists_catalog = True
            case "SHOW_SPECIAL" if name.strip('"').lower() in SHOWN:
                self._lists_catalog = True
            case "SHOW_SPECIAL":
                self._refuse(
                    Invalid(
                        ErrorCode.SQL_NOT_ALLOWED,
                        "SHOW lists tables, schemas or databases, or describes one table",
                    )
                )
            case _:
                self._refuse(_unknown_source())

    def _base_table(self, node: dict[str, Any], *, described: bool) -> None:
        catalog = str(node.get("catalog_name") or "").lower()
        schema = str(node.get("schema_name") or "").lower()
        name = str(node.get("table_name") or "")
        if node.get("at_clause"):
            self._versioned_table(catalog, schema, node)
        elif not self._named(catalog, schema, name, described=described):
            dotted = ".".join(part for part in (catalog, schema, name) if part)
            self._refuse(_no_such_place(dotted))

    def _versioned_table(self, catalog: str, schema: str, node: dict[str, Any]) -> None:
        if catalog not in ("", CATALOG) or schema not in ("", MAIN_SCHEMA, CATALOG):
            self._refuse(
                NotSupported(
                    ErrorCode.NOT_SUPPORTED,
                    "only the tables of schema main have versions: leave AT out for others",
                )
            )
            return
        try:
            self._versioned.append(versioned_table(node))
        except DuckMeshError as refusal:
            self._refuse(refusal)

    def _named(self, catalog: str, schema: str, name: str, *, described: bool) -> bool:
        """Take note of a table; False when it lies where no query may look."""
        folded = name.lower()
        if folded in FORBIDDEN_VIEWS:
            return False
        if catalog in ("", CATALOG, "system") and schema in CATALOG_SCHEMAS:
            self._lists_catalog = True
            return True
        if catalog not in ("", CATALOG):
            return False
        if schema == SYSTEM_SCHEMA:
            self._system.add((schema, folded))
            return True
        if schema not in ("", MAIN_SCHEMA, CATALOG):
            return False
        (self._described if described else self._tables).add(name)
        self._lists_catalog = self._lists_catalog or is_catalog_view(folded)
        return True


def is_catalog_view(folded: str) -> bool:
    """Whether a bare name is a view of DuckDB's own catalog that queries may read."""
    if folded in FORBIDDEN_VIEWS:
        return False
    return folded in CATALOG_VIEWS or folded.startswith("pg_")


def _writes() -> Invalid:
    return Invalid(
        ErrorCode.SQL_NOT_ALLOWED,
        "a query may not write inside WITH; send the write as its own statement",
    )


def _unknown_source() -> NotSupported:
    return NotSupported(
        ErrorCode.NOT_SUPPORTED, "this source of rows is not supported; name a table instead"
    )


def _no_such_place(dotted: str) -> Invalid:
    return Invalid(
        ErrorCode.SQL_NOT_ALLOWED,
        f"{dotted} is not available; tables are named table, main.table, duckmesh.main.table "
        "or duckmesh_system.table",
        table=dotted,
    )
