"""Views: a query that names one becomes the query over tables that it stands for.

The views are put into the tree of the query, as subqueries, and the tree becomes text again. So
what a query reads is known from its text alone, through every view, before anything runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from query_engine.lexemes import LexemeReader, TableName
from query_engine.quoting import identifier
from query_engine.relations import CATALOG, MAIN_SCHEMA
from query_engine.scratch import Scratch
from query_engine.syntax import is_catalog_view
from query_engine.trees import Tree, Trees

_EXPANSIONS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class CreateView:
    """CREATE VIEW, taken apart."""

    target: TableName
    or_replace: bool
    if_not_exists: bool
    query: str


@dataclass(frozen=True, slots=True)
class DropView:
    """DROP VIEW, taken apart."""

    target: TableName
    if_exists: bool


def read_create_view(sql: str) -> CreateView:
    """CREATE VIEW, taken apart. Raises NotSupported for temporary and recursive views."""
    reader = LexemeReader(sql)
    reader.took("CREATE")
    or_replace = reader.took("OR", "REPLACE")
    if not reader.took("VIEW"):
        _refuse("temporary, recursive and materialized views", "CREATE VIEW")
    if_not_exists = reader.took("IF", "NOT", "EXISTS")
    target = TableName.of(reader.path())
    start = reader.position
    named = reader.skip_group()
    columns = [word.name or "" for word in reader.between(start)[1:-1:2]]
    if not reader.took("AS"):
        _refuse("options of views", "CREATE VIEW name AS query")
    query = reader.rest()
    if named:
        listed = ", ".join(map(identifier, columns))
        query = f"FROM ({query}) AS {identifier(target.name)}({listed})"
    return CreateView(target, or_replace, if_not_exists, query)


def read_drop_view(sql: str) -> DropView:
    """DROP VIEW, taken apart. Raises NotSupported for several at once."""
    reader = LexemeReader(sql)
    reader.took("DROP", "VIEW")
    if_exists = reader.took("IF", "EXISTS")
    target = TableName.of(reader.path())
    if not (reader.took("CASCADE") or reader.took("RESTRICT") or reader.at_end):
        _refuse("several views in one DROP", "one DROP VIEW for each")
    return DropView(target, if_exists)


def _refuse(what: str, instead: str) -> NoReturn:
    raise NotSupported(ErrorCode.NOT_SUPPORTED, f"{what} are not supported: write {instead}")


class ViewExpander:
    """Safe from any thread."""

    def __init__(self, scratch: Scratch) -> None:
        self._trees = Trees(scratch)

    def expand(self, sql: str, views: Mapping[str, str]) -> str:
        """The query with every view replaced by what it stands for.

        `views` are their queries by lower-case name. Raises Invalid (SQL_NOT_ALLOWED) for a view
        that reads itself, and for a query that becomes too large.
        """
        expansion = _Expansion(self._trees, views)
        tree = self._trees.parse(sql)
        try:
            expanded = expansion.visit(tree, frozenset(), ())
        except RecursionError:
            _too_large()
        return self._trees.text(expanded)


class _Expansion:
    """One query's expansion.

    A name in scope of a WITH stays what it is. Inside a view every other name means a table or
    view of the catalog, whatever the query around it calls its own WITH.
    """

    def __init__(self, trees: Trees, views: Mapping[str, str]) -> None:
        self._trees = trees
        self._views = views
        self._count = 0

    def visit(self, node: Any, scope: frozenset[str], trail: tuple[str, ...]) -> Any:
        """The node with its views expanded. `trail` are the views around it."""
        if isinstance(node, list):
            return [self.visit(each, scope, trail) for each in node]
        if not isinstance(node, dict):
            return node
        if node.get("type") == "BASE_TABLE":
            return self._table(node, scope, trail)
        if "cte_map" not in node:
            return {key: self.visit(value, scope, trail) for key, value in node.items()}
        entries = []
        for entry in node["cte_map"]["map"]:
            name = str(entry["key"]).lower()
            recursive = entry["value"]["query_node"]["type"] == "RECURSIVE_CTE_NODE"
            inside = scope | {name} if recursive else scope
            entries.append({**entry, "value": self.visit(entry["value"], inside, trail)})
            scope |= {name}
        rest = {k: self.visit(v, scope, trail) for k, v in node.items() if k != "cte_map"}
        return {**rest, "cte_map": {**node["cte_map"], "map": entries}}

    def _table(self, node: Tree, scope: frozenset[str], trail: tuple[str, ...]) -> Tree:
        name = str(node["table_name"])
        folded = name.lower()
        qualified = bool(node.get("schema_name") or node.get("catalog_name"))
        if not _is_ours(node) or (not qualified and folded in scope):
            return node
        query = self._views.get(folded)
        if query is not None:
            return self._subquery(node, query, (*trail, folded))
        if trail and not qualified and not is_catalog_view(folded):
            return {
                **node,
                "schema_name": MAIN_SCHEMA,
                "qualified_name": {"path": [MAIN_SCHEMA, name]},
            }
        return node

    def _subquery(self, node: Tree, query: str, trail: tuple[str, ...]) -> Tree:
        name = str(node["table_name"])
        if trail[-1] in trail[:-1]:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED, f"view {name!r} reads itself: replace it", view=name
            )
        if node.get("at_clause"):
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                f"{name!r} is a view, and AT is for tables: choose the snapshot with the request",
                view=name,
            )
        self._count += 1
        if self._count > _EXPANSIONS_MAX:
            _too_large()
        return {
            "type": "SUBQUERY",
            "alias": node.get("alias") or name,
            "sample": node.get("sample"),
            "query_location": node.get("query_location"),
            "query_location_length": node.get("query_location_length"),
            "subquery": self.visit(self._trees.parse(query), frozenset(), trail),
            "column_name_alias": node.get("column_name_alias") or [],
        }


def _is_ours(node: Tree) -> bool:
    """Whether a table reference is to the tenant's own tables and views."""
    schema = str(node.get("schema_name") or MAIN_SCHEMA).lower()
    catalog = str(node.get("catalog_name") or CATALOG).lower()
    pair_of_catalog = not node.get("catalog_name") and schema == CATALOG
    return catalog == CATALOG and (schema == MAIN_SCHEMA or pair_of_catalog)


def _too_large() -> NoReturn:
    raise Invalid(
        ErrorCode.SQL_NOT_ALLOWED,
        f"the query reads more than {_EXPANSIONS_MAX} views, or is nested too deeply: make a table "
        "of one of them by CREATE TABLE AS",
    )
