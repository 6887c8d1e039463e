"""CREATE TABLE, as DuckDB itself understands it: run over nothing, and read back.

A definition runs in a sealed scratch database that holds no rows, inside a transaction that is
rolled back. DuckDB decides what it means; what DuckMesh cannot keep is refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from duckmesh.errors import ErrorCode, NotSupported
from duckmesh.statements import Statements
from query_engine.lexemes import LexemeReader, TableName
from query_engine.quoting import identifier
from query_engine.scratch import Scratch
from query_engine.trees import Trees

_SQL: Final = Statements("query_engine", "writes.sql")

_KEPT_CONSTRAINTS: Final = frozenset({"NOT NULL", "PRIMARY KEY"})
_NOT_HELD: Final = {
    "BIGNUM": "DECIMAL(38,0)",
    "BIT": "VARCHAR",
    "BITSTRING": "VARCHAR",
    "GEOMETRY": "BLOB",
    "INTERVAL": "BIGINT, in microseconds",
    "TIMETZ": "TIME, or TIMESTAMPTZ",
    "TIME WITH TIME ZONE": "TIME, or TIMESTAMPTZ",
    "UNION": "one column for each member",
    "VARIANT": "VARCHAR",
    "VARINT": "DECIMAL(38,0)",
}
"""DuckDB's types that a table cannot hold, and what to declare instead."""


@dataclass(frozen=True, slots=True)
class CreateTable:
    """The head of CREATE TABLE. With a `source` it is CREATE TABLE AS."""

    target: TableName
    or_replace: bool
    if_not_exists: bool
    source: str | None
    with_data: bool
    column_names: tuple[str, ...]
    """New names for the source's columns; empty when the statement gives none."""


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """The columns that a statement declares. Columns of the primary key are NOT NULL."""

    schema: pa.Schema
    primary_key: tuple[str, ...]


def read_create_table(sql: str) -> CreateTable:
    """CREATE TABLE, taken apart as far as its columns or its source.

    Raises NotSupported for temporary tables and for clauses behind the columns.
    """
    reader = LexemeReader(sql)
    reader.took("CREATE")
    or_replace = reader.took("OR", "REPLACE")
    if reader.took("TEMP") or reader.took("TEMPORARY"):
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "temporary tables are not supported: create a table, and drop it when it is done with",
        )
    reader.took("TABLE")
    if_not_exists = reader.took("IF", "NOT", "EXISTS")
    target = TableName.of(reader.path())
    names = _renamed(reader)
    if not reader.took("AS"):
        if not reader.at_end:
            _refuse("PARTITIONED BY, SORTED BY and WITH", "leave the clause out")
        return CreateTable(target, or_replace, if_not_exists, None, True, ())
    empty = reader.drop_end("WITH", "NO", "DATA")
    if not empty:
        reader.drop_end("WITH", "DATA")
    return CreateTable(target, or_replace, if_not_exists, reader.rest(), not empty, names)


def _renamed(reader: LexemeReader) -> tuple[str, ...]:
    """The names in the parenthesis behind the table's name; those count before AS alone."""
    start = reader.position
    if not reader.skip_group():
        return ()
    words = reader.between(start)
    return tuple(word.name or "" for word in words[1:-1:2])


class DefinitionReader:
    """Finds what definitions declare. Safe from any thread."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._trees = Trees(scratch)

    def columns(self, sql: str) -> TableDefinition:
        """The columns of the table that a CREATE TABLE without a source makes.

        Raises Invalid for what DuckDB refuses, NotSupported for a type, default or constraint
        that a table cannot keep.
        """
        with self._scratch.transaction() as cursor:
            cursor.execute(sql)
            ((_, _, name),) = cursor.execute(_SQL["tables_made"]).fetchall()
            columns = cursor.execute(_SQL["columns_of"], [name]).fetchall()
            constraints = cursor.execute(_SQL["constraints_of"], [name]).fetchall()
            arrow = _arrow_schema(cursor, name)
        self._check_types(columns)
        _check_defaults(columns)
        _check_constraints(constraints)
        nullable = [bool(row[3]) for row in columns]
        fields = [f.with_nullable(n) for f, n in zip(arrow, nullable, strict=True)]
        keys = [tuple(names) for kind, names in constraints if kind == "PRIMARY KEY"]
        return TableDefinition(pa.schema(fields), keys[0] if keys else ())

    def _check_types(self, columns: Sequence[tuple[Any, ...]]) -> None:
        """Raise NotSupported for a type that would come back as another or not at all."""
        casts = [_SQL["cast"].format(value="NULL", type=row[1]) for row in columns]
        for row, tree in zip(columns, self._trees.selected(*casts), strict=True):
            stack = [tree["type_expr"]]
            while stack:
                node = stack.pop()
                kind = str(node.get("type_name", "")).upper()
                if kind in _NOT_HELD:
                    raise NotSupported(
                        ErrorCode.NOT_SUPPORTED,
                        f"column {row[0]!r} has type {kind}, which a table cannot hold: declare "
                        f"it {_NOT_HELD[kind]}",
                        column=row[0],
                        type=kind,
                    )
                stack += [each for each in node.get("children", ()) if isinstance(each, dict)]


def _arrow_schema(cursor: duckdb.DuckDBPyConnection, name: str) -> pa.Schema:
    query = cursor.sql(_SQL["all_of"].format(table=identifier(name)))
    with query.limit(0).to_arrow_reader(1) as reader:
        return reader.schema


def _check_defaults(columns: Sequence[tuple[Any, ...]]) -> None:
    for name, _, default, *_ in columns:
        if default is not None and default.upper() != "NULL":
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                f"column {name!r} has a DEFAULT or is GENERATED, which a table does not keep: "
                "leave it out, and write the value with each row",
                column=name,
            )


def _check_constraints(constraints: Sequence[tuple[Any, ...]]) -> None:
    for kind, names in constraints:
        if kind not in _KEPT_CONSTRAINTS:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                f"{kind} constraints are not kept: leave it out, and check the rows before they "
                "are written",
                columns=list(names),
            )


def _refuse(what: str, instead: str) -> None:
    raise NotSupported(ErrorCode.NOT_SUPPORTED, f"{what} are not supported: {instead}")
