"""A DuckDB that holds a tenant's tables as empty tables, for queries that list or describe them.

The instances that read data know tables as views over files. A client that asks the information
schema, `SHOW` or `DESCRIBE` asks for tables, with their NOT NULL and primary keys: here it finds
them. No file is within reach here.
"""

from typing import Final

import pyarrow as pa

from duckmesh.statements import Statements
from query_engine.instance import Instance, InstanceSettings
from query_engine.quoting import identifier, sql_type
from query_engine.relations import MAIN_SCHEMA, Relation, RelationSet

_SQL: Final = Statements("query_engine", "engine.sql")


def listing_shape(whole: RelationSet) -> tuple[tuple[str, str, str], ...]:
    """What two relation sets have in common whose listings are the same."""
    tables = ((MAIN_SCHEMA, each.name, "".join(_listed(each))) for each in whole.relations)
    views = ((each.schema_name, each.name, _nulls(each.table.schema)) for each in whole.tables)
    return (*sorted(tables), *sorted(views))


class ListingInstance(Instance):
    """One tenant's catalog at one shape. As safe as an Instance; its tables have no rows."""

    def __init__(self, whole: RelationSet, settings: InstanceSettings) -> None:
        super().__init__((), settings)
        self.shape = listing_shape(whole)
        try:
            for relation in whole.relations:
                made, columns = _listed(relation)
                self._execute(made, MAIN_SCHEMA, relation.name, columns)
            for table in whole.tables:
                self._execute(
                    _SQL["create_empty_view"],
                    table.schema_name,
                    table.name,
                    _nulls(table.table.schema),
                )
        except BaseException:
            self.close()
            raise

    def _execute(self, statement: str, schema: str, name: str, columns: str) -> None:
        places = {"schema": identifier(schema), "table": identifier(name), "columns": columns}
        self._root.execute(_SQL["create_schema"].format(schema=places["schema"]))
        self._root.execute(statement.format(**places))


def _listed(relation: Relation) -> tuple[str, str]:
    """The statement that makes a table or view of these columns, and the columns."""
    if relation.is_view:
        return _SQL["create_empty_view"], _nulls(relation.schema)
    return _SQL["create_table"], _columns(relation)


def _columns(relation: Relation) -> str:
    parts = [
        f"{identifier(each.name)} {sql_type(each.type)}" + ("" if each.nullable else " NOT NULL")
        for each in relation.schema
    ]
    if relation.primary_key:
        parts.append(f"PRIMARY KEY ({', '.join(map(identifier, relation.primary_key))})")
    return ", ".join(parts)


def _nulls(schema: pa.Schema) -> str:
    return ", ".join(
        f"CAST(NULL AS {sql_type(each.type)}) AS {identifier(each.name)}" for each in schema
    )
