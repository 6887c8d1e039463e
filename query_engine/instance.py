"""One locked in-memory DuckDB, for one tenant.

Its SQL reaches the tenant's own views and nothing else: no file outside the tenant's directories,
no extension, no setting, no Python variable.

A view does not name its files. It reads a list from a variable, and variables belong to one
cursor: so many snapshots are queried at once through one view, each cursor seeing its own, and
a new snapshot costs one SET VARIABLE per table that the query names. A view is created when it
is first named and never changed; a table whose columns changed is read through another instance.
"""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from duckmesh.statements import Statements
from query_engine.empty_files import EmptyFiles
from query_engine.native import (
    HeldViews,
    NativeTables,
    files_part_variable,
    layered_view,
    layers_variable,
    newer_variable,
    oldest_variable,
    part_views,
    parts_variable,
)
from query_engine.permitted import SESSION_FUNCTIONS
from query_engine.quoting import identifier, literal, literal_list
from query_engine.relations import (
    MAIN_SCHEMA,
    FilesPart,
    Relation,
    RelationSet,
    TableRelation,
)

_SQL: Final = Statements("query_engine", "engine.sql")
_IDLE_CURSORS_MAX: Final = 8
_SHAPES_MAX: Final = 128
_SHAPE_SQL_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """What every instance of an engine is given."""

    threads: int
    memory_limit_bytes: int
    temp_directory: Path | None
    temp_limit_bytes: int


def _files_variable(name: str) -> str:
    """The variable that holds a table's files: hex, for any character may be in a table's name."""
    return "duckmesh_files_" + name.lower().encode().hex()


def _session_variable(function: str) -> str:
    return "duckmesh_session_" + function


def _table_source(schema: str, name: str) -> str:
    return "duckmesh_table_" + f"{schema}.{name}".lower().encode().hex()


def _shape(table: TableRelation) -> str:
    schema = table.table.schema
    return str(schema.to_string(show_field_metadata=False, show_schema_metadata=False))


@dataclass(frozen=True, slots=True)
class Shape:
    """What a statement's rows looked like when it ran, and how many of them a batch may have."""

    schema: pa.Schema
    batch_rows: int
    bounded: bool
    """Whether that many are never too large for one message."""


class Session:
    """One cursor of an instance with the variables it holds. Used by one query at a time."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, empties: EmptyFiles) -> None:
        self.cursor = cursor
        self._empties = empties
        self._lists: dict[str, tuple[str, ...] | tuple[int, ...]] = {}
        self._values: dict[str, int] = {}
        self._registered: list[str] = []
        self.shapes: dict[str, Shape] = {}
        """Of the statements that have run here. Read it; `keep_shape` adds one."""
        self.held: HeldViews = ()
        """The views of segments that its query reads; the instance's to give back."""

    def point(self, relations: Iterable[Relation], absent: Iterable[str] = ()) -> None:
        """Make the relations' views read these files; forget the files of the `absent` names."""
        for relation in relations:
            if relation.parts:
                self._point_parts(relation)
            else:
                files = relation.file_texts or (self._empties.of(relation),)
                self._list(_files_variable(relation.name), files)
        for name in absent:
            for variable in (_files_variable(name), parts_variable(name)):
                if self._lists.pop(variable, None) is not None:
                    self.cursor.execute(
                        _SQL["reset_variable"].format(variable=identifier(variable))
                    )

    def _point_parts(self, relation: Relation) -> None:
        begin = 0
        among = (each for each in relation.parts if isinstance(each, FilesPart))
        for number, part in enumerate(among):
            files = relation.file_texts[begin : begin + part.count]
            variable = files_part_variable(relation.name, number)
            self._list(variable, files or (self._empties.of(relation),))
            begin += part.count
        views = part_views(relation)
        if relation.newer:
            self._list(oldest_variable(relation.name), views)
            self._list(newer_variable(relation.name), relation.newer_texts)
            self._list(layers_variable(relation.name), relation.newer_layers)
            views = (layered_view(relation),)
        self._list(parts_variable(relation.name), views)

    def keep_shape(self, sql: str, shape: Shape) -> None:
        """Remember it for the next run of the statement, unless that is long."""
        if len(sql) > _SHAPE_SQL_MAX:
            return
        if len(self.shapes) >= _SHAPES_MAX:
            self.shapes.clear()
        self.shapes[sql] = shape

    def _list(self, variable: str, values: tuple[str, ...] | tuple[int, ...]) -> None:
        if self._lists.get(variable) != values:
            self._set(variable, [*values])
            self._lists[variable] = values

    def remember(self, values: Mapping[str, int]) -> None:
        """Give the session functions their values; those not named answer NULL."""
        for function in SESSION_FUNCTIONS:
            value = values.get(function)
            if self._values.get(function) == value:
                continue
            self._set(_session_variable(function), value)
            if value is None:
                del self._values[function]
            else:
                self._values[function] = value

    def attach(self, tables: Iterable[TableRelation]) -> None:
        """Put tables in memory behind their views, until `detach`."""
        for table in tables:
            source = _table_source(table.schema_name, table.name)
            self.cursor.register(source, table.table)
            self._registered.append(source)

    def detach(self) -> None:
        while self._registered:
            self.cursor.unregister(self._registered.pop())

    def _set(self, variable: str, value: list[Any] | int | None) -> None:
        self.cursor.execute(_SQL["set_variable"].format(variable=identifier(variable)), [value])


class Instance:
    """A locked DuckDB. Safe from any thread; `close` waits for nothing: close it when idle."""

    def __init__(self, directories: Iterable[Path], settings: InstanceSettings) -> None:
        self.directories = frozenset(directories)
        self.memory_limit_bytes = settings.memory_limit_bytes
        self.users = 0
        """Queries that hold this instance; counted by the pool, under its lock."""
        self.retired = False
        """Set when it may take no further query: the pool then closes it once idle."""
        self._home = Path(tempfile.mkdtemp(prefix="duckmesh-", dir=settings.temp_directory))
        self._empties = EmptyFiles(self._home / "empty")
        # Lock order: _creating, then _lock. _lock is never held while DuckDB works.
        self._creating = threading.Lock()
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._shapes: dict[tuple[str, str], str] = {}
        self._root = duckdb.connect(
            ":memory:",
            config={
                "threads": settings.threads,
                "memory_limit": f"{settings.memory_limit_bytes}B",
                "allow_unsigned_extensions": False,
            },
        )
        self._configure(settings)
        self._native = NativeTables(self._root, self._empties)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The directories that no message may tell."""
        return (str(self._home), *map(str, self.directories))

    def _configure(self, settings: InstanceSettings) -> None:
        self._root.execute(_SQL["open"])
        for function in SESSION_FUNCTIONS:
            variable = literal(_session_variable(function))
            self._root.execute(
                _SQL["session_function"].format(function=function, variable=variable)
            )
        spill = str(self._home / "spill") if settings.temp_directory is not None else ""
        self._root.execute(
            _SQL["lock"].format(
                temp_bytes=literal(f"{settings.temp_limit_bytes}B"),
                temp=literal(spill),
                directories=literal_list(
                    f"{each}/" for each in (*self.directories, self._empties.folder)
                ),
            )
        )

    def fits(self, relations: Iterable[Relation], whole: RelationSet | None) -> bool:
        """Whether the relations can be read here: each view is absent, or has their columns.

        `whole` is given when the query lists the catalog: then no other view may be here.
        """
        with self._lock:
            shapes = self._shapes
            if any(
                shapes.get((MAIN_SCHEMA, each.name.lower()), each.shape) != each.shape
                for each in relations
            ):
                return False
            if whole is None:
                return True
            return all(
                name in whole.by_name or schema != MAIN_SCHEMA for schema, name in self._shapes
            )

    def reads_otherwise(self, relations: Iterable[Relation]) -> bool:
        """Whether it reads one of the relations from files alone that now has parts."""
        with self._lock:
            return any(
                self._shapes.get((MAIN_SCHEMA, each.name.lower())) == each.shape_of_files
                for each in relations
                if each.parts
            )

    def fits_tables(self, tables: Iterable[TableRelation]) -> bool:
        """Whether the tables in memory can be read here, by the same rule."""
        with self._lock:
            return all(
                self._shapes.get((each.schema_name.lower(), each.name.lower()), shape) == shape
                for each in tables
                for shape in (_shape(each),)
            )

    def prepare(self, relations: Iterable[Relation], tables: Iterable[TableRelation]) -> bool:
        """Create the views that are not here yet. Queries of other views go on beside it.

        False when another query has meanwhile created one of them with other columns.
        """
        with self._creating:
            for relation in relations:
                key = (MAIN_SCHEMA, relation.name.lower())
                if key not in self._shapes:
                    self._create_view(relation)
                    self._keep(key, relation.shape)
                elif self._shapes[key] != relation.shape:
                    return False
            for table in tables:
                key = (table.schema_name.lower(), table.name.lower())
                if key not in self._shapes:
                    self._create_table_view(table)
                    self._keep(key, _shape(table))
                elif self._shapes[key] != _shape(table):
                    return False
        return True

    def _keep(self, key: tuple[str, str], shape: str) -> None:
        with self._lock:
            self._shapes[key] = shape

    def _create_view(self, relation: Relation) -> None:
        if relation.parts:
            self._native.create_view(relation)
            return
        # Bound over an empty file: to create a view opens none of the tenant's files.
        admin = Session(self._root, self._empties)
        admin.point([replace(relation, files=())])
        mapped = relation.plain_schema is None
        self._root.execute(
            _SQL["create_view" if mapped else "create_plain_view"].format(
                view=identifier(relation.name),
                variable=literal(_files_variable(relation.name)),
                columns=relation.column_map if mapped else relation.plain_columns,
                selection=relation.selection,
            )
        )

    def _create_table_view(self, table: TableRelation) -> None:
        source = _table_source(table.schema_name, table.name)
        self._root.register(source, table.table.schema.empty_table())
        try:
            schema = identifier(table.schema_name)
            self._root.execute(_SQL["create_schema"].format(schema=schema))
            self._root.execute(
                _SQL["create_table_view"].format(
                    schema=schema, view=identifier(table.name), source=identifier(source)
                )
            )
        finally:
            self._root.unregister(source)

    def hold_segments(self, session: Session, relations: Iterable[Relation]) -> None:
        """Make the segments of the relations readable until the session is given back."""
        with_parts = [each for each in relations if each.parts]
        if with_parts:
            session.held = self._native.hold(with_parts)

    def session(self) -> Session:
        """A cursor for one query: an idle one, whose variables are likely right, or a new one."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Session(self._root.cursor(), self._empties)

    def give_back(self, session: Session, *, clean: bool) -> None:
        """Keep a session for the next query, or close it: after an error, and when many idle."""
        if session.held:
            self._native.release(session.held)
            session.held = ()
        if clean:
            try:
                session.detach()
            except duckdb.Error:
                clean = False
        with self._lock:
            if clean and len(self._idle) < _IDLE_CURSORS_MAX and not self.retired:
                self._idle.append(session)
                return
        session.cursor.close()

    def close(self) -> None:
        """Release memory and files. Idempotent."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.cursor.close()
        self._native.close()
        self._root.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._home)
