"""DELETE and UPDATE, taken apart by DuckDB's own parser: what they change, and the query of it.

DuckDB serialises no DELETE and no UPDATE, but a query whose CTE is one. The tree is taken from
there. A DELETE becomes the query of the keys of the rows that match; an UPDATE becomes the query of
these rows as they are to be, with the conversions that DuckDB's UPDATE makes written in as casts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.statements import Statements
from query_engine.bound_rows import BoundRows
from query_engine.conversions import (
    aliases_of,
    kinds_of,
    known_columns,
    put,
    query_over,
    templates_of,
)
from query_engine.lexemes import TableName, without_end
from query_engine.scratch import Scratch
from query_engine.syntax import Parameter
from query_engine.trees import Tree, Trees, nodes_in, parameters_in

_SQL: Final = Statements("query_engine", "writes.sql")

_DELETE: Final = "DELETE_QUERY_NODE"
_UPDATE: Final = "UPDATE_QUERY_NODE"
_NUMBER: Final = "bound_number"
_MULTIPLYING: Final = frozenset({"unnest", "unlist", "generate_subscripts"})


@dataclass(frozen=True, slots=True)
class Change:
    """One DELETE or UPDATE. `columns` are those that it assigns, as written; none for DELETE."""

    target: TableName
    columns: tuple[str, ...]
    values: tuple[Tree, ...]
    condition: Tree | None
    sources: tuple[Tree, ...]
    """What USING or FROM names beside the target: a row may then match several times."""
    node: Tree

    @property
    def is_delete(self) -> bool:
        return bool(self.node["type"] == _DELETE)

    @property
    def verb(self) -> str:
        return "DELETE" if self.is_delete else "UPDATE"

    @property
    def takes_bound_rows(self) -> bool:
        """Whether its parameters may be columns: all stand where the target's columns may stand."""
        places = (*self.values, *_given(self.condition))
        plain = sum(
            node.get("class") == "PARAMETER"
            for place in places
            for node in nodes_in(place, subqueries=False)
        )
        return bool(plain == len(self.parameters) > 0)

    @property
    def rereads(self) -> bool:
        """Whether it reads tables beside the row that it changes: perhaps other rows of its own."""
        return _tables_in(self.node) > 1

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The places of its parameters, in the order of the text."""
        return parameters_in(self.node)


class ChangeReader:
    """Reads DELETE and UPDATE statements and makes queries of them. Safe from any thread."""

    def __init__(self, scratch: Scratch) -> None:
        self._trees = Trees(scratch)

    def read(self, sql: str) -> Change:
        """The one DELETE or UPDATE in `sql`.

        Raises NotSupported for RETURNING, Invalid for a text that does not parse, and for what
        DuckDB takes in a query but not in this place.
        """
        query = self._trees.parse(_SQL["change_as_cte"].format(change=without_end(sql)))
        node, *others = (each["value"]["query_node"] for each in query["node"]["cte_map"]["map"])
        if others or node["type"] not in (_DELETE, _UPDATE):
            raise Invalid(ErrorCode.SQL_NOT_ALLOWED, "write one DELETE FROM, or one UPDATE")
        change = _change_of(node)
        if node["returning_list"]:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                f"{change.verb} ... RETURNING is not supported: leave RETURNING out, and query "
                "the rows",
            )
        _check_names(change)
        for expression in (*change.values, *_given(change.condition)):
            _check_expression(expression, change.verb)
        return change

    def query_of(
        self,
        change: Change,
        schema: pa.Schema,
        key: Sequence[str],
        bound: BoundRows | None = None,
    ) -> str:
        """The query of what the change writes, one row for each key.

        For DELETE the columns of the key, in its order; for UPDATE all columns of `schema`. Of
        several matches of a row, UPDATE takes the least of the rows that they make. With `bound`
        it is asked for all bound rows at once; then UPDATE gives a row for each that changes it.
        Raises what `changed_columns` raises.
        """
        assigned = changed_columns(change, schema, key)
        if change.is_delete:
            return self._deleted(change, schema, key, bound)
        # In the order of the text, for clients that cannot name their parameters.
        names = [*assigned, *(name for name in schema.names if name not in assigned)]
        columns = self._filled(change, assigned, schema, _SQL["cast"])
        columns += [_own(change, name) for name in names[len(assigned) :]]
        if not change.sources:
            return query_over(self._matching(change, columns, bound), names, schema)
        aliases = aliases_of(names)
        once = [aliases[names.index(name)] for name in key]
        numbers = [] if bound is None else [_NUMBER]
        source = _SQL["least_of_each"].format(
            key=", ".join([*once, *numbers]),
            columns=", ".join(aliases),
            aliases=", ".join([*aliases, *numbers]),
            source=self._matching(
                change, columns + [bound.column(bound.number) for _ in numbers if bound], bound
            ),
        )
        return query_over(source, names, schema)

    def _deleted(
        self, change: Change, schema: pa.Schema, key: Sequence[str], bound: BoundRows | None
    ) -> str:
        source = self._matching(change, [_own(change, name) for name in key], bound)
        if change.sources or bound is not None:
            aliases = ", ".join(aliases_of(key))
            source = _SQL["distinct"].format(columns=aliases, aliases=aliases, source=source)
        return query_over(source, key, pa.schema([schema.field(name) for name in key]))

    def failing_columns_query(
        self, change: Change, schema: pa.Schema, assigned: Sequence[str]
    ) -> str:
        """A query whose one row says of each assigned column whether a value does not convert."""
        aliases = aliases_of(assigned)
        return _SQL["select_source"].format(
            columns=", ".join(_SQL["any_true"].format(value=alias) for alias in aliases),
            source=self._matching(change, self._filled(change, assigned, schema, _SQL["fails"])),
            aliases=", ".join(aliases),
        )

    def _filled(
        self, change: Change, assigned: Sequence[str], schema: pa.Schema, template: str
    ) -> list[Tree]:
        """Each assigned value inside the template of its column. DEFAULT is NULL."""
        templates = templates_of(self._trees, template, kinds_of(assigned, schema))
        return [put(value, into) for value, into in zip(change.values, templates, strict=True)]

    def _matching(self, change: Change, columns: list[Tree], bound: BoundRows | None = None) -> str:
        """The query of these columns over the rows that the statement matches."""
        query = self._trees.parse(_SQL["matching"])
        node = query["node"]
        table, condition = change.node["table"], change.condition
        if bound is not None:
            read = self._trees.parse(_SQL["matching_bound"].format(bound=bound.source))
            table = {**read["node"]["from_table"], "left": table}
            columns, condition = bound.put_into(columns), bound.put_into(condition)
        for source in change.sources:
            table = {**node["from_table"], "left": table, "right": source}
        # Columns have no names here: one could be taken for a column of the table.
        return self._trees.text(
            {
                **query,
                "node": {
                    **node,
                    "cte_map": change.node["cte_map"],
                    "select_list": columns,
                    "from_table": table,
                    "where_clause": condition,
                },
            }
        )


def changed_columns(change: Change, schema: pa.Schema, key: Sequence[str]) -> list[str]:
    """The columns that the statement assigns, as the table spells them.

    Raises NotSupported (NOT_SUPPORTED) for a table without a primary key and for a column of the
    key, Invalid (SCHEMA_INCOMPATIBLE) for an unknown or repeated column.
    """
    if not key:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            f"{change.verb} needs a table with a primary key, and {change.target.name!r} has none: "
            + (
                "keep the rows that stay by CREATE OR REPLACE TABLE ... AS"
                if change.is_delete
                else "make it anew with the changed rows by CREATE OR REPLACE TABLE ... AS"
            ),
            table=change.target.name,
        )
    assigned = known_columns(change.columns, schema)
    fixed = next((name for name in assigned if name in key), None)
    if fixed is not None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            f"column {fixed!r} is of the primary key, and stays as it is: delete the row and "
            "insert the new one",
            column=fixed,
        )
    return assigned


def _change_of(node: Tree) -> Change:
    assignments = node.get("set_info") or {}
    deletes = node["type"] == _DELETE
    return Change(
        target=TableName.of(node["table"]["qualified_name"]["path"]),
        columns=tuple(assignments.get("columns", ())),
        values=tuple(assignments.get("expressions", ())),
        condition=(node if deletes else assignments)["condition"],
        sources=tuple(node["using_clauses"] if deletes else _given(node["from_table"])),
        node=node,
    )


def _check_names(change: Change) -> None:
    """Raise Invalid for a target that is a name of WITH: no table is meant."""
    named = {entry["key"].lower() for entry in change.node["cte_map"]["map"]}
    path = change.node["table"]["qualified_name"]["path"]
    if len(path) == 1 and change.target.name.lower() in named:
        raise Invalid(
            ErrorCode.SQL_NOT_ALLOWED,
            f"{change.target.name!r} is a query of WITH here: {change.verb} changes a table, so "
            "give the query another name",
        )


def _check_expression(tree: Tree, verb: str) -> None:
    """Raise NotSupported for what would make several rows of one, or look at several."""
    for node in nodes_in(tree, subqueries=False):
        refused = {"WINDOW": "window functions", "STAR": "COLUMNS and *"}.get(node.get("class", ""))
        if str(node.get("function_name", "")).lower() in _MULTIPLYING:
            refused = "unnest"
        if refused is not None:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                f"{refused} may not stand in {verb} itself: put it into a subquery",
            )


def _tables_in(tree: Tree) -> int:
    return sum(node.get("type") == "BASE_TABLE" for node in nodes_in(tree))


def _own(change: Change, name: str) -> Tree:
    """A column of the target itself, whatever else has a column of its name."""
    table = change.node["table"]
    return {
        "class": "COLUMN_REF",
        "type": "COLUMN_REF",
        "alias": "",
        "column_names": [table["alias"] or change.target.name, name],
    }


def _given(value: Tree | None) -> Iterable[Tree]:
    return () if value is None else (value,)
