"""A DuckDB that holds a tenant's tables as empty tables, for queries that list or describe them.

The instances that read data know tables as views over files. A client that asks the information
schema, `SHOW` or `DESCRIBE` asks for tables, with their NOT NULL and primary keys: here it finds
them. No file is within reach here.
"""

from typing import Final

from duckmesh.statements import Statements
from query_engine.instance import Instance, InstanceSettings
from query_engine.quoting import identifier, sql_type
from query_engine.relations import MAIN_SCHEMA, Relation, RelationSet, TableRelation

_SQL: Final = Statements("query_engine", "engine.sql")


def listing_shape(whole: RelationSet) -> tuple[tuple[str, str, str], ...]:
    """What two relation sets have in common whose listings are the same."""
    tables = ((MAIN_SCHEMA, each.name, _columns(each)) for each in whole.relations)
    views = ((each.schema_name, each.name, _nulls(each)) for each in whole.tables)
    return (*sorted(tables), *sorted(views))


class ListingInstance(Instance):
    """One tenant's catalog at one shape. As safe as an Instance; its tables have no rows."""

    def __init__(self, whole: RelationSet, settings: InstanceSettings) -> None:
        super().__init__((), settings)
        self.shape = listing_shape(whole)
        try:
            for relation in whole.relations:
                self._execute("create_table", MAIN_SCHEMA, relation.name, _columns(relation))
            for table in whole.tables:
                self._execute("create_empty_view", table.schema_name, table.name, _nulls(table))
        except BaseException:
            self.close()
            raise

    def _execute(self, statement: str, schema: str, name: str, columns: str) -> None:
        places = {"schema": identifier(schema), "table": identifier(name), "columns": columns}
        self._root.execute(_SQL["create_schema"].format(schema=places["schema"]))
        self._root.execute(_SQL[statement].format(**places))


def _columns(relation: Relation) -> str:
    parts = [
        f"{identifier(each.name)} {sql_type(each.type)}" + ("" if each.nullable else " NOT NULL")
        for each in relation.schema
    ]
    if relation.primary_key:
        parts.append(f"PRIMARY KEY ({', '.join(map(identifier, relation.primary_key))})")
    return ", ".join(parts)


def _nulls(table: TableRelation) -> str:
    return ", ".join(
        f"CAST(NULL AS {sql_type(each.type)}) AS {identifier(each.name)}"
        for each in table.table.schema
    )
