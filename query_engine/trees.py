"""Statements as the trees that DuckDB's `json_serialize_sql` gives, and back to text."""

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.statements import Statements
from query_engine.failures import clean
from query_engine.lexemes import without_end
from query_engine.scratch import Scratch
from query_engine.syntax import Parameter

_SQL: Final = Statements("query_engine", "writes.sql")

Tree = dict[str, Any]
_SELECTED_MAX: Final = 256


class Trees:
    """DuckDB's parser in both directions. Safe from any thread."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._selected: dict[tuple[str, ...], tuple[Tree, ...]] = {}

    def parse(self, sql: str) -> Tree:
        """The tree of one query. Raises Invalid for a text that does not parse as one."""
        with self._scratch.transaction() as cursor:
            ((content,),) = cursor.execute(_SQL["parse"], [sql]).fetchall()
        try:
            tree = json.loads(content)
        except RecursionError:
            _too_deep()
        if tree["error"]:
            message = clean(str(tree.get("error_message")), ())
            raise Invalid(ErrorCode.QUERY_EXECUTION_FAILED, message)
        parsed: Tree = tree["statements"][0]
        return parsed

    def text(self, statement: Tree) -> str:
        """The statement of a tree, without a `;`."""
        try:
            tree = json.dumps({"error": False, "statements": [statement]})
        except RecursionError:
            _too_deep()
        with self._scratch.transaction() as cursor:
            ((text,),) = cursor.execute(_SQL["unparse"], [tree]).fetchall()
        return without_end(str(text))

    def selected(self, *expressions: str) -> tuple[Tree, ...]:
        """The trees of expressions of ours. They are remembered: do not change them."""
        known = self._selected.get(expressions)
        if known is None:
            query = self.parse(_SQL["select"].format(columns=", ".join(expressions)))
            known = tuple(query["node"]["select_list"])
            if len(self._selected) >= _SELECTED_MAX:
                self._selected.clear()
            self._selected[expressions] = known
        return known


def parameters_in(tree: Any) -> tuple[Parameter, ...]:
    """The places of the parameters in a tree, in the order of the text."""
    found = [
        Parameter(str(node["identifier"]), int(node.get("query_location") or 0), 0)
        for node in nodes_in(tree)
        if node.get("class") == "PARAMETER"
    ]
    return tuple(sorted(found, key=lambda each: each.at))


def nodes_in(tree: Any, *, subqueries: bool = True) -> Iterator[Tree]:
    """Every node of a tree, in no order; without `subqueries` none that stands in one."""
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            yield node
            stack.extend(each for name, each in node.items() if subqueries or name != "subquery")


def _too_deep() -> NoReturn:
    raise Invalid(
        ErrorCode.SQL_NOT_ALLOWED, "the statement is nested too deeply: send it in simpler parts"
    )
