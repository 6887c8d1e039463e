"""What a query may see: the tables of one snapshot, as files, and small tables in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import pyarrow as pa

from duckmesh.errors import Corrupt
from duckmesh.identifiers import FIELD_ID
from query_engine.quoting import (
    file_type,
    identifier,
    literal,
    same_in_files,
    value_of,
)

CATALOG: Final = "duckmesh"
"""The catalog name that SQL sees."""

MAIN_SCHEMA: Final = "main"
"""The schema of the tenant's own tables."""

SYSTEM_SCHEMA: Final = "duckmesh_system"
"""The schema of the small tables that describe the tenant itself."""


@dataclass(frozen=True, slots=True)
class FilesPart:
    """The next so many of a relation's files."""

    count: int


@dataclass(frozen=True, slots=True)
class NativePart:
    """Rows of one segment: a file in DuckDB's own format that holds the rows of data files.

    The rows of a data file carry its number. These are the rows of the numbers from `first` to
    `last`, without those `missing`; of all its rows when `whole`.
    """

    key: str
    """Names the segment, in lower-case letters and digits, and never another content."""
    path: Path
    first: int
    last: int
    missing: tuple[int, ...] = ()
    whole: bool = False


Part = FilesPart | NativePart


@dataclass(frozen=True)
class Relation:
    """One table at one snapshot.

    `schema` carries a `PARQUET:field_id` in the metadata of each field: files are read by field
    id, so that a file older than a rename, an added column or a widened type still answers.
    Nested fields are matched by name. `files` may be empty.

    Of a table with a primary key the rows of `newer` files supersede, by their keys, those of
    `files` and segments, and those of newer files of smaller layers. It always has parts.
    """

    name: str
    schema: pa.Schema
    files: tuple[Path, ...]
    primary_key: tuple[str, ...] = ()
    is_view: bool = False
    """A view is here to be listed: a query that reads one is expanded first."""
    parts: tuple[Part, ...] = ()
    """Where its rows lie, in their order, when some lie in segments; without any, in `files`."""
    segment_files: int = 0
    """How many data files the parts stand for that are not among `files`."""
    newer: tuple[Path, ...] = ()
    newer_layers: tuple[int, ...] = ()
    """Of each of the newer files the number of its layer; no layer has a key twice."""
    uniform: bool = False
    """Whether every file was written with exactly this schema. Then DuckDB may read it as it is."""

    @cached_property
    def file_texts(self) -> tuple[str, ...]:
        return tuple(map(str, self.files))

    @property
    def scanned_files(self) -> int:
        """How many data files its rows are from, read from them or from segments."""
        return len(self.files) + len(self.newer) + self.segment_files

    @property
    def has_layers_of_newer(self) -> bool:
        """Whether some of its newer files supersede others of them."""
        return len(set(self.newer_layers)) > 1

    @cached_property
    def newer_texts(self) -> tuple[str, ...]:
        return tuple(map(str, self.newer))

    @cached_property
    def column_map(self) -> str:
        """The columns as DuckDB's `schema` option spells them: field id -> name, type, default.

        Raises Corrupt when a field has no id.
        """
        return self.column_map_of(self.schema)

    @cached_property
    def selection(self) -> str:
        """What a query selects from the files: all columns, some made of what their file holds."""
        made = {each.name: value_of(each.name, each.type) for each in self.schema}
        listed = ", ".join(
            f"{value} AS {identifier(name)}" for name, value in made.items() if value
        )
        return f"* REPLACE ({listed})" if listed else "*"

    @cached_property
    def plain_schema(self) -> pa.Schema | None:
        """The columns, when the files are read as they are; None when field ids find them.

        DuckDB knows how many rows a file has that it reads as it is, and orders joins by that. A
        file that it maps to other columns counts as one row.
        """
        if not self.uniform or not all(map(same_in_files, self.schema.types)):
            return None
        return pa.schema([(field.name, field.type) for field in self.schema])

    @property
    def plain_columns(self) -> str:
        """What a query selects of files that are read as they are: no type is left to DuckDB."""
        return ", ".join(
            f"CAST({identifier(each.name)} AS {file_type(each.type)}) AS {identifier(each.name)}"
            for each in self.schema
        )

    @property
    def shape(self) -> str:
        """What the relation's view is made of: two of one name and one shape differ in files."""
        key = ", ".join(map(identifier, self.primary_key))
        return f"parts of {key} {self.shape_of_files}" if self.parts else self.shape_of_files

    @property
    def shape_of_files(self) -> str:
        """The shape that it has without parts."""
        read = "as mapped" if self.plain_schema is None else "as they are"
        return f"{read} {self.selection} {self.column_map}"

    @cached_property
    def stored_columns(self) -> Mapping[int, tuple[str, str]]:
        """Its columns as they lie in files: field id -> name, DuckDB type. Raises Corrupt."""
        return {self._field_id(field): (field.name, file_type(field.type)) for field in self.schema}

    def column_map_of(self, fields: Iterable[pa.Field]) -> str:
        """The same for some of the columns, or for others beside them."""
        return "MAP {" + ", ".join(map(self._column, fields)) + "}"

    def _column(self, field: pa.Field) -> str:
        name, kind = literal(field.name), literal(file_type(field.type))
        return f"{self._field_id(field)}: {{name: {name}, type: {kind}, default_value: NULL}}"

    def _field_id(self, field: pa.Field) -> int:
        field_id = (field.metadata or {}).get(FIELD_ID)
        if field_id is None:
            raise Corrupt("a column has no field id", table=self.name, column=field.name)
        return int(field_id)


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
