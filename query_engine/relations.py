"""What a query may see: the tables of one snapshot, as files, and small tables in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import pyarrow as pa

from duckmesh.errors import Corrupt
from query_engine.quoting import FIELD_ID, file_type, identifier, literal, value_of

CATALOG: Final = "duckmesh"
"""The catalog name that SQL sees."""

MAIN_SCHEMA: Final = "main"
"""The schema of the tenant's own tables."""

SYSTEM_SCHEMA: Final = "duckmesh_system"
"""The schema of the small tables that describe the tenant itself."""


@dataclass(frozen=True)
class Relation:
    """One table at one snapshot.

    `schema` carries a `PARQUET:field_id` in the metadata of each field: files are read by field
    id, so that a file older than a rename, an added column or a widened type still answers.
    Nested fields are matched by name. `files` may be empty. `primary_key` is for listings only.
    """

    name: str
    schema: pa.Schema
    files: tuple[Path, ...]
    primary_key: tuple[str, ...] = ()
    is_view: bool = False
    """A view is here to be listed: a query that reads one is expanded first."""

    @cached_property
    def file_texts(self) -> tuple[str, ...]:
        return tuple(map(str, self.files))

    @cached_property
    def column_map(self) -> str:
        """The columns as DuckDB's `schema` option spells them: field id -> name, type, default.

        Raises Corrupt when a field has no id.
        """
        return "MAP {" + ", ".join(map(self._column, self.schema)) + "}"

    @cached_property
    def selection(self) -> str:
        """What a query selects from the files: all columns, some made of what their file holds."""
        made = {each.name: value_of(each.name, each.type) for each in self.schema}
        listed = ", ".join(
            f"{value} AS {identifier(name)}" for name, value in made.items() if value
        )
        return f"* REPLACE ({listed})" if listed else "*"

    @property
    def shape(self) -> str:
        """What the relation's view is made of: two of one name and one shape differ in files."""
        return f"{self.selection} {self.column_map}"

    def _column(self, field: pa.Field) -> str:
        field_id = (field.metadata or {}).get(FIELD_ID)
        if field_id is None:
            raise Corrupt("a column has no field id", table=self.name, column=field.name)
        name, kind = literal(field.name), literal(file_type(field.type))
        return f"{int(field_id)}: {{name: {name}, type: {kind}, default_value: NULL}}"


@dataclass(frozen=True)
class TableRelation:
    """A small table held in memory, given with the query that reads it."""

    schema_name: str
    name: str
    table: pa.Table


@dataclass(frozen=True)
class RelationSet:
    """Everything one query may read: a tenant's tables at one snapshot.

    `directories` are the only directories its files lie in; nothing else can be opened.
    Table names are compared without case, as SQL does.
    """

    tenant: str
    snapshot_id: int
    relations: tuple[Relation, ...]
    directories: tuple[Path, ...]
    tables: tuple[TableRelation, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Relation]:
        return {relation.name.lower(): relation for relation in self.relations}

    @cached_property
    def tables_by_name(self) -> Mapping[tuple[str, str], TableRelation]:
        return {(each.schema_name.lower(), each.name.lower()): each for each in self.tables}
