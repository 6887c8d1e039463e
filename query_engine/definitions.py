"""CREATE TABLE, as DuckDB itself understands it: run over nothing, and read back.

A definition runs in a sealed scratch database that holds no rows, inside a transaction that is
rolled back. DuckDB decides what it means; what DuckMesh cannot keep is refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import duckdb
import pyarrow as pa

from duckmesh.errors import ErrorCode, NotSupported
from duckmesh.identifiers import FIELD_ID
from duckmesh.statements import Statements
from query_engine.lexemes import LexemeReader, TableName, cut
from query_engine.partition_clauses import take_terms
from query_engine.quoting import identifier, literal, sql_type
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
    partitioned_by: tuple[str, ...] = ()
    declaration: str = ""
    """The statement without its PARTITIONED BY, which DuckDB's own tables have not."""


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
    declaration = reader.so_far()
    terms = take_terms(reader)
    if not reader.took("AS"):
        if not reader.at_end:
            _refuse("SORTED BY and WITH", "leave the clause out")
        return CreateTable(
            target, or_replace, if_not_exists, None, True, (), terms or (), declaration
        )
    if terms is not None:
        _refuse(
            "PARTITIONED BY and AS in one statement",
            "CREATE TABLE with its columns and PARTITIONED BY, and then INSERT",
        )
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


@dataclass(frozen=True, slots=True)
class AlteredColumn:
    """A column after ALTER TABLE. `field_id` is None for a new one."""

    field_id: int | None
    field: pa.Field


@dataclass(frozen=True, slots=True)
class Rename:
    """ALTER TABLE or ALTER VIEW ... RENAME TO. ALTER TABLE may name a view as well."""

    target: TableName
    if_exists: bool
    of_view: bool
    new_name: str


def read_rename(sql: str) -> Rename | None:
    """The statement that gives a table or view another name; None for any other ALTER."""
    reader = LexemeReader(sql)
    reader.took("ALTER")
    of_view = reader.took("VIEW")
    if not of_view and not reader.took("TABLE"):
        return None
    if_exists = reader.took("IF", "EXISTS")
    path = reader.path()
    if not reader.took("RENAME", "TO"):
        return None
    (new_name,) = reader.path()
    return Rename(TableName.of(path), if_exists, of_view, new_name)


@dataclass(frozen=True, slots=True)
class AlterTable:
    """The head of ALTER TABLE."""

    target: TableName
    if_exists: bool


def read_alter_table(sql: str) -> AlterTable:
    """ALTER TABLE, taken apart as far as its name.

    Raises NotSupported for what changes no column, such as comments.
    """
    reader = LexemeReader(sql)
    if not reader.took("ALTER", "TABLE"):
        _refuse(
            "COMMENT, and ALTER of anything but a table or a view's name",
            "drop it, and create it anew",
        )
    if_exists = reader.took("IF", "EXISTS")
    target = TableName.of(reader.path())
    if reader.has("USING"):
        _refuse("USING expressions", "CREATE OR REPLACE TABLE ... AS, with the expression in it")
    return AlterTable(target, if_exists)


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
        _check_nothing_is_computed(sql)
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
        written = {field.name.lower(): field.name for field in fields}
        keys = [names for kind, names in constraints if kind == "PRIMARY KEY"]
        key = tuple(written[name.lower()] for name in keys[0]) if keys else ()
        return TableDefinition(pa.schema(fields), key)

    def altered(self, sql: str, name: str, schema: pa.Schema) -> list[AlteredColumn]:
        """The columns of a table after an ALTER TABLE.

        `schema` carries field ids. Raises Invalid for what DuckDB refuses, NotSupported for a
        type, default or constraint that a table cannot keep.
        """
        _check_nothing_is_computed(sql)
        with self._scratch.transaction() as cursor:
            _sketch(cursor, name, schema)
            before = {
                row[0]: row[1] for row in cursor.execute(_SQL["columns_of"], [name]).fetchall()
            }
            constraints_before = cursor.execute(_SQL["constraints_of"], [name]).fetchall()
            cursor.execute(sql)
            columns = cursor.execute(_SQL["columns_of"], [name]).fetchall()
            constraints = cursor.execute(_SQL["constraints_of"], [name]).fetchall()
            arrow = _arrow_schema(cursor, name)
        _check_defaults(columns)
        _check_constraints([each for each in constraints if each not in constraints_before])
        old = {int(field.metadata[FIELD_ID]): field for field in schema}
        changed = []
        altered = []
        for row, made in zip(columns, arrow, strict=True):
            field_id = None if row[4] is None else int(row[4])
            known = None if field_id is None else old[field_id]
            # An unchanged type stays as it was stored: DuckDB tells some only in its own form.
            same = known is not None and before[known.name] == row[1]
            field = known.with_name(row[0]) if known is not None and same else made
            changed += [] if same else [row]
            altered.append(AlteredColumn(field_id, field.with_nullable(bool(row[3]))))
        self._check_types(changed)
        return altered

    def _check_types(self, columns: Sequence[tuple[Any, ...]]) -> None:
        """Raise NotSupported for a type that would come back as another or not at all."""
        if not columns:
            return
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


def _sketch(cursor: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
    """An empty table of these columns, each with its field id as a comment: that outlives names."""
    columns = [
        _SQL["sketch_column"].format(
            name=identifier(field.name),
            type=sql_type(field.type),
            nulls="" if field.nullable else " NOT NULL",
        )
        for field in schema
    ]
    table = identifier(name)
    cursor.execute(_SQL["sketch_table"].format(table=table, columns=", ".join(columns)))
    for field in schema:
        cursor.execute(
            _SQL["note_field_id"].format(
                table=table,
                column=identifier(field.name),
                field_id=literal(field.metadata[FIELD_ID].decode()),
            )
        )


def _arrow_schema(cursor: duckdb.DuckDBPyConnection, name: str) -> pa.Schema:
    query = cursor.sql(_SQL["all_of"].format(table=identifier(name)))
    with query.limit(0).to_arrow_reader(1) as reader:
        return reader.schema


def _check_nothing_is_computed(sql: str) -> None:
    """Refuse expressions before DuckDB reads the definition, for it computes the constant ones.

    It does so here, in the serving process, where no time limit stops a large one. CHECK, AS and
    DEFAULT are reserved: unquoted, they are never names.
    """
    lexemes = cut(sql)
    words = [each.word for each in lexemes]
    for at, word in enumerate(words):
        if word == "CHECK":
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "CHECK constraints are not kept: leave it out, and check the rows before they "
                "are written",
            )
        behind = [each.word or each.text for each in lexemes[at + 1 : at + 3]]
        dropped = at > 0 and words[at - 1] == "DROP"
        if word == "AS" or (word == "DEFAULT" and not dropped and not _is_null(behind)):
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "a column has a DEFAULT or is GENERATED, which a table does not keep: "
                "leave it out, and write the value with each row",
            )


def _is_null(lexemes: Sequence[str]) -> bool:
    ends = {",", ")", "NOT", "NULL", "PRIMARY", "UNIQUE"}
    return lexemes[:1] == ["NULL"] and (len(lexemes) == 1 or lexemes[1] in ends)


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


def _refuse(what: str, instead: str) -> NoReturn:
    raise NotSupported(ErrorCode.NOT_SUPPORTED, f"{what} are not supported: {instead}")
