"""What a query asks of the rows of each table, as far as files can be judged by it.

From the tree of DuckDB's parser: the WHERE of a SELECT holds for a table in its FROM when that
table stands there alone, or in inner and cross joins with the column qualified. Comparisons of a
column with a constant or a parameter are understood, BETWEEN, IN, IS NULL, AND and OR. Everything
else asks for nothing: a predicate here is never stricter than the query.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_OPERATORS: Final = {
    "COMPARE_EQUAL": "=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_TURNED: Final = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_DEPTH_MAX: Final = 30
_PARTS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal as written, and the type that it is cast to, if it is."""

    kind: str
    text: str
    cast: str | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A parameter."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The column, an operator of SQL, and a value. The column's name is in lower case."""

    column: str
    operator: str
    operand: Constant | Bound


@dataclass(frozen=True, slots=True)
class IsNull:
    """The column has no value."""

    column: str


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds. Without parts: anything may match."""

    parts: tuple["Predicate", ...] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of the parts holds."""

    parts: tuple["Predicate", ...]


Predicate = Comparison | IsNull | AllOf | AnyOf
ANYTHING: Final = AllOf()


def predicates_of(tree: Any) -> Mapping[str, Predicate]:
    """For each table, by lower-case name, what the rows that the query needs of it fulfil.

    Tables of which the query may need any row are left out. Never recurses without a bound.
    """
    known: dict[str, list[Predicate]] = {}
    places: dict[str, int] = {}
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if node.get("type") == "BASE_TABLE":
                name = str(node.get("table_name", "")).lower()
                places[name] = places.get(name, 0) + 1
            elif node.get("type") == "SELECT_NODE":
                for name, predicate in _of_select(node):
                    known.setdefault(name, []).append(predicate)
            if "cte_map" in node:
                # A CTE of a table's name may stand where the table seems to.
                for entry in node["cte_map"].get("map", ()):
                    places[str(entry["key"]).lower()] = _PARTS_MAX
            stack.extend(each for each in node.values() if isinstance(each, (dict, list)))
    return {
        name: found[0] if len(found) == 1 else AnyOf(tuple(found))
        for name, found in known.items()
        if len(found) == places.get(name)
    }


def _of_select(node: dict[str, Any]) -> Iterator[tuple[str, Predicate]]:
    where = node.get("where_clause")
    if not where or node.get("sample"):
        return
    tables = _joined(node.get("from_table") or {})
    for table in tables:
        if table.get("sample") or table.get("column_name_alias") or table.get("at_clause"):
            continue
        name = str(table.get("table_name", "")).lower()
        alias = str(table.get("alias") or name).lower()
        predicate = _predicate(where, alias, alone=len(tables) == 1, depth=0)
        if predicate != ANYTHING:
            yield name, predicate


def _joined(source: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables in a FROM without outer joins; none when there is any other join."""
    tables: list[dict[str, Any]] = []
    others = 0
    stack = [source]
    while stack:
        each = stack.pop()
        if each.get("type") == "BASE_TABLE":
            tables.append(each)
        elif each.get("type") == "JOIN":
            inner = each.get("join_type") == "INNER"
            if not inner or each.get("ref_type") not in ("REGULAR", "CROSS"):
                return []
            stack += [each.get("left") or {}, each.get("right") or {}]
        else:
            others += 1
    # Beside another source a bare column may be that source's.
    return tables if not others or len(tables) > 1 else []


def _predicate(node: dict[str, Any], alias: str, *, alone: bool, depth: int) -> Predicate:
    if depth > _DEPTH_MAX:
        return ANYTHING
    kind = node.get("type")
    if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
        children = node.get("children") or []
        if len(children) > _PARTS_MAX:
            return ANYTHING
        parts = [_predicate(each, alias, alone=alone, depth=depth + 1) for each in children]
        return _all(parts) if kind == "CONJUNCTION_AND" else _any(parts)
    if kind == "COMPARE_BETWEEN":
        column = _column(node.get("input") or {}, alias, alone=alone)
        if column is None:
            return ANYTHING
        return _all(
            [
                _comparison(column, ">=", node.get("lower") or {}),
                _comparison(column, "<=", node.get("upper") or {}),
            ]
        )
    if kind in ("COMPARE_IN", "OPERATOR_IS_NULL"):
        return _of_operator(node, alias, alone=alone)
    operator = _OPERATORS.get(str(kind))
    if operator is None:
        return ANYTHING
    left, right = node.get("left") or {}, node.get("right") or {}
    column = _column(left, alias, alone=alone)
    if column is not None:
        return _comparison(column, operator, right)
    column = _column(right, alias, alone=alone)
    return ANYTHING if column is None else _comparison(column, _TURNED[operator], left)


def _of_operator(node: dict[str, Any], alias: str, *, alone: bool) -> Predicate:
    first, *others = node.get("children") or [{}]
    column = _column(first, alias, alone=alone)
    if column is None or len(others) > _PARTS_MAX:
        return ANYTHING
    if node["type"] == "OPERATOR_IS_NULL":
        return IsNull(column)
    return _any([_comparison(column, "=", each) for each in others])


def _all(parts: list[Predicate]) -> Predicate:
    asked = tuple(part for part in parts if part != ANYTHING)
    return asked[0] if len(asked) == 1 else AllOf(asked)


def _any(parts: list[Predicate]) -> Predicate:
    return ANYTHING if not parts or ANYTHING in parts else AnyOf(tuple(parts))


def _comparison(column: str, operator: str, value: dict[str, Any]) -> Predicate:
    operand = _operand(value)
    return ANYTHING if operand is None else Comparison(column, operator, operand)


def _column(node: dict[str, Any], alias: str, *, alone: bool) -> str | None:
    """The table's column that a node names, in lower case."""
    if node.get("type") != "COLUMN_REF":
        return None
    names = [str(name).lower() for name in node.get("column_names") or ()]
    if len(names) == 1 and alone:
        return names[0]
    return names[1] if len(names) == 2 and names[0] == alias else None


def _operand(node: dict[str, Any]) -> Constant | Bound | None:
    kind = node.get("type")
    if kind == "VALUE_PARAMETER":
        return Bound(str(node.get("identifier")))
    if kind == "VALUE_CONSTANT" and isinstance(node.get("literal"), dict):
        literal = node["literal"]
        return Constant(str(literal.get("kind")), str(literal.get("text")))
    if kind == "OPERATOR_CAST" and not node.get("try_cast"):
        inner = _operand(node.get("child") or {})
        cast = (node.get("type_expr") or {}).get("type_name")
        if isinstance(inner, Constant) and inner.cast is None and cast:
            return Constant(inner.kind, inner.text, str(cast).upper())
    return None
