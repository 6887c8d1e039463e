"""The bound rows of a statement as one relation, so that one query plans it for all of them.

Each parameter's column travels as one list, and is unnested where the query reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import pyarrow as pa

from duckmesh.statements import Statements
from query_engine.parameters import identifiers, parameter_columns
from query_engine.quoting import identifier
from query_engine.syntax import Parameter
from query_engine.trees import Tree

_SQL: Final = Statements("query_engine", "writes.sql")


@dataclass(frozen=True, slots=True)
class BoundRows:
    """The relation of the bound rows: `lists` are the parameters of a query that reads it."""

    name: str
    columns: Mapping[str, str]
    """The column that holds a parameter, by its identifier."""
    lists: pa.RecordBatch

    @classmethod
    def of(cls, rows: pa.Table, parameters: tuple[Parameter, ...], *, sql: str) -> Self:
        """The rows for the parameters of a statement; its text says which names are taken.

        Raises Invalid for a wrong count or a missing name.
        """
        places = parameter_columns(identifiers(parameters), rows.schema.names, rows.num_columns)
        name = "bound"
        while name in sql.lower():
            name += "_"
        lists = [_list_of(rows.column(at)) for at in places.values()]
        return cls(
            name,
            {each: f"{name}{n}" for n, each in enumerate(places)},
            pa.RecordBatch.from_arrays(lists, [str(n) for n in range(len(lists))]),
        )

    @property
    def number(self) -> str:
        """The column that numbers the bound rows."""
        return f"{self.name}_number"

    @property
    def source(self) -> str:
        """The query of the relation."""
        cells = [
            _SQL["unnested"].format(place=n, name=identifier(column))
            for n, column in enumerate(self.columns.values(), 1)
        ]
        cells.append(_SQL["numbered"].format(name=identifier(self.number)))
        return _SQL["bound_rows"].format(columns=", ".join(cells), name=identifier(self.name))

    def put_into(self, tree: Any) -> Any:
        """The tree with each parameter as a column of the relation."""
        if isinstance(tree, list):
            return [self.put_into(each) for each in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get("class") == "PARAMETER":
            return self.column(self.columns[str(tree["identifier"])])
        return {key: self.put_into(value) for key, value in tree.items()}

    def column(self, name: str) -> Tree:
        """A column of the relation, for a query that reads it."""
        return {
            "class": "COLUMN_REF",
            "type": "COLUMN_REF",
            "alias": "",
            "column_names": [self.name, name],
        }


def _list_of(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.chunks else pa.array([], values.type)
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
