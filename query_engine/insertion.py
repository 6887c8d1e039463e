"""INSERT, taken apart by DuckDB's own parser: what it writes to, and the query of its rows.

DuckDB serialises no INSERT, but a query whose CTE is one. The tree of the INSERT is taken from
there, and the query in it becomes text again. The conversions that DuckDB's INSERT would make are
written into that text, as casts: each value of VALUES, each column of a query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.statements import Statements
from query_engine.conversions import (
    aliases_of,
    column,
    conversion_failed,
    kinds_of,
    known_columns,
    put,
    query_over,
    templates_of,
)
from query_engine.lexemes import TableName, without_end
from query_engine.parameters import identifiers, parameter_columns
from query_engine.scratch import Scratch
from query_engine.submitted import whole
from query_engine.syntax import Parameter
from query_engine.trees import Tree, Trees, parameters_in

_SQL: Final = Statements("query_engine", "writes.sql")

_WRITTEN_OUT: Final = frozenset({"PARAMETER", "CONSTANT", "CAST", "DEFAULT"})
_CONSTRUCTORS: Final = frozenset({"list_value", "struct_pack", "map", "row"})
_BOUND: Final = "bound"
"""What the bound rows are called where they are read."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """One INSERT. `columns` is empty when the statement names none."""

    target: TableName
    columns: tuple[str, ...]
    by_name: bool
    source: Tree | None
    """The tree of the query that gives the rows; None for DEFAULT VALUES."""
    conflict: Tree | None = None
    """The tree of ON CONFLICT, OR REPLACE or OR IGNORE; see query_engine.conflicts."""

    @property
    def cells(self) -> list[list[Tree]] | None:
        """The rows of VALUES, written out; None when the rows come from another query."""
        if self.source is None:
            return [[]]
        node = self.source["node"]
        table = node.get("from_table") or {}
        plain = (
            node.get("type") == "SELECT_NODE"
            and table.get("type") == "EXPRESSION_LIST"
            and [each["type"] for each in node["select_list"]] == ["STAR"]
            and not node["modifiers"]
            and not node["cte_map"]["map"]
        )
        return table["values"] if plain else None

    @property
    def is_written_out(self) -> bool:
        """Whether its rows are constants and parameters alone: they cost what their text costs."""
        cells = self.cells
        if cells is None or (len(cells) > 1 and self.parameters):
            return False
        return all(_is_written_out(cell) for row in cells for cell in row)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The places of its parameters, in the order of the text."""
        return parameters_in(self.source)


class InsertionReader:
    """Reads INSERT statements and makes queries of them. Safe from any thread."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._trees = Trees(scratch)
        self._over: Tree | None = None

    def read(self, sql: str) -> Insertion:
        """The one INSERT in `sql`.

        Raises NotSupported for RETURNING, Invalid for a text that does not parse.
        """
        query = self._trees.parse(_SQL["insert_as_cte"].format(insert=without_end(sql)))
        node = query["node"]["cte_map"]["map"][0]["value"]["query_node"]
        if node["returning_list"]:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "INSERT ... RETURNING is not supported: leave RETURNING out, and query the rows",
            )
        source = node["select_statement"]
        if source is not None:
            source["node"]["cte_map"]["map"][:0] = node["cte_map"]["map"]
        return Insertion(
            TableName.of(node["qualified_name"]["path"]),
            tuple(node["columns"]),
            node["column_order"] == "INSERT_BY_NAME",
            source,
            node["on_conflict_info"],
        )

    def source_text(self, insertion: Insertion) -> str:
        """The query of its rows, as the statement has it."""
        return self._trees.text(_source_of(insertion))

    def query_of(self, insertion: Insertion, names: Sequence[str], schema: pa.Schema) -> str:
        """The query that gives the table's columns, in order and of their types.

        `names` are the columns that the source fills, as `filled_columns` tells them.
        """
        source = _source_of(insertion)
        if insertion.cells is not None:
            source = _with_cells(
                source, self._filled(insertion, kinds_of(names, schema), _SQL["cast"])
            )
        return query_over(self._trees.text(source), names, schema)

    def failing_columns_query(
        self, insertion: Insertion, names: Sequence[str], schema: pa.Schema
    ) -> str:
        """A query whose one row says of each filled column whether a value does not convert."""
        kinds, source, test = kinds_of(names, schema), _source_of(insertion), _SQL["any_fails"]
        if insertion.cells is not None:
            source = _with_cells(source, self._filled(insertion, kinds, _SQL["fails"]))
            test = _SQL["any_true"]
        aliases = aliases_of(names)
        tests = [
            test.format(value=alias, type=kind) for alias, kind in zip(aliases, kinds, strict=True)
        ]
        return _SQL["select_source"].format(
            columns=", ".join(tests), source=self._trees.text(source), aliases=", ".join(aliases)
        )

    def written_rows(
        self, insertion: Insertion, names: Sequence[str], schema: pa.Schema, bound: pa.Table | None
    ) -> pa.Table:
        """The rows of an INSERT that is written out; its one row once for each bound row.

        Bound rows stay in Arrow. Raises Invalid: INVALID_PAYLOAD naming the column of a value
        that does not convert, QUERY_EXECUTION_FAILED for a wrong count of parameters.
        """
        places = _bound_places(insertion, bound)
        rows = bound if bound is not None and places else _ONE_ROW
        query = self._written_query(insertion, names, schema, places)
        with self._scratch.transaction() as cursor:
            named = [f"p{at}" for at in range(rows.num_columns)]
            cursor.register(_BOUND, rows.rename_columns(named))
            try:
                return whole(cursor, query)
            except duckdb.ConversionException as error:
                message = str(error)
        raise conversion_failed(self._failing(insertion, names, schema, rows, places), message)

    def _written_query(
        self,
        insertion: Insertion,
        names: Sequence[str],
        schema: pa.Schema,
        places: Mapping[str, int],
    ) -> str:
        if insertion.source is None:
            columns = ", ".join(column(field, None) for field in schema)
            return _SQL["select_cells"].format(columns=columns, source=_BOUND)
        cells = self._filled(insertion, kinds_of(names, schema), _SQL["cast"])
        if len(cells) == 1:
            # Its casts are the columns: over another query of them it would take twice as long.
            filled = self._columns_of(dict(zip(names, cells[0], strict=True)), schema)
            return self._trees.text(self._over_bound(insertion, [filled], places))
        return query_over(
            self._trees.text(self._over_bound(insertion, cells, places)), names, schema
        )

    def _columns_of(self, filled: Mapping[str, Tree], schema: pa.Schema) -> list[Tree]:
        """The table's columns in its order, by name; NULL where nothing fills one."""
        nulls = templates_of(self._trees, _SQL["cast"], kinds_of(schema.names, schema))
        return [
            {**filled.get(name, null), "alias": name}
            for name, null in zip(schema.names, nulls, strict=True)
        ]

    def _failing(
        self,
        insertion: Insertion,
        names: Sequence[str],
        schema: pa.Schema,
        rows: pa.Table,
        places: Mapping[str, int],
    ) -> str | None:
        """The first column of which a value does not convert."""
        cells = self._filled(insertion, kinds_of(names, schema), _SQL["fails"])
        aliases = aliases_of(names)
        query = _SQL["select_source"].format(
            columns=", ".join(_SQL["any_true"].format(value=alias) for alias in aliases),
            source=self._trees.text(self._over_bound(insertion, cells, places)),
            aliases=", ".join(aliases),
        )
        with self._scratch.transaction() as cursor:
            cursor.register(_BOUND, rows.rename_columns([f"p{i}" for i in range(rows.num_columns)]))
            try:
                failed = cursor.sql(query).fetchall()[0]
            except duckdb.Error:
                return None
        return next((name for name, bad in zip(names, failed, strict=True) if bad), None)

    def _filled(
        self, insertion: Insertion, kinds: Sequence[str], template: str
    ) -> list[list[Tree]]:
        """Each cell inside the template of its column: a cast, or the question if it fails.

        INSERT converts each value of VALUES by itself; a query over VALUES would first find one
        type for all the values of a column.
        """
        templates = templates_of(self._trees, template, kinds)
        return [
            [put(cell, into) for into, cell in zip(templates, row, strict=True)]
            for row in insertion.cells or ()
        ]

    def _over_bound(
        self,
        insertion: Insertion,
        cells: list[list[Tree]],
        places: Mapping[str, int],
    ) -> Tree:
        """The written rows as a query over the bound rows, parameters being their columns."""
        if len(cells) != 1:
            return _with_cells(_source_of(insertion), cells)
        if self._over is None:
            self._over = self._trees.parse(
                _SQL["select_cells"].format(columns="NULL", source=_BOUND)
            )
        node = self._over["node"]
        return {**self._over, "node": {**node, "select_list": _with_columns(cells[0], places)}}


_ONE_ROW: Final = pa.table({"none": pa.nulls(1, pa.int32())})


def filled_columns(
    insertion: Insertion, schema: pa.Schema, given: Sequence[str] | int
) -> list[str]:
    """The columns of the table that the source's columns fill, in the source's order.

    `given` is how many columns the source has, or their names. Raises Invalid
    (SCHEMA_INCOMPATIBLE) for an unknown or repeated column, and for a wrong count.
    """
    if insertion.by_name and not isinstance(given, int):
        names = list(given)
    else:
        names = list(insertion.columns) or list(schema.names)
        count = given if isinstance(given, int) else len(given)
        if insertion.source is None:
            return []
        if count != len(names):
            raise Invalid(
                ErrorCode.SCHEMA_INCOMPATIBLE,
                f"{len(names)} columns are to be filled and {count} values are given: name the "
                "columns, or give a value for each",
                columns=len(names),
                values=count,
            )
    return known_columns(names, schema)


def _is_written_out(cell: Tree) -> bool:
    stack = [cell]
    while stack:
        node = stack.pop()
        kind = node["class"]
        if kind == "FUNCTION" and node["function_name"] in _CONSTRUCTORS:
            stack += [each["expression"] for each in node["arguments"]]
        elif kind not in _WRITTEN_OUT:
            return False
        elif kind == "CAST":
            stack.append(node["child"])
    return True


def _bound_places(insertion: Insertion, bound: pa.Table | None) -> dict[str, int]:
    """Which column of the bound rows each parameter is."""
    wanted = identifiers(insertion.parameters)
    names = [] if bound is None else bound.schema.names
    return parameter_columns(wanted, names, len(names))


def _source_of(insertion: Insertion) -> Tree:
    if insertion.source is None:
        raise TypeError("DEFAULT VALUES has no query")
    return insertion.source


def _with_cells(source: Tree, cells: list[list[Tree]]) -> Tree:
    node = source["node"]
    return {**source, "node": {**node, "from_table": {**node["from_table"], "values": cells}}}


def _with_columns(tree: Any, places: Mapping[str, int]) -> Any:
    """The tree with each parameter as a column of the bound rows."""
    if isinstance(tree, list):
        return [_with_columns(each, places) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get("class") == "PARAMETER":
        column = f"p{places[str(tree['identifier'])]}"
        return {
            "class": "COLUMN_REF",
            "type": "COLUMN_REF",
            "alias": "",
            "column_names": [_BOUND, column],
        }
    return {key: _with_columns(value, places) for key, value in tree.items()}
