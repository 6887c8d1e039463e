"""Segments within an instance: files in DuckDB's own format, read beside data files.

The view of a table with parts does not name them. It reads a list of views from a variable of the
cursor, one view for each part, in the order of the rows. So a table goes from one set of segments
to the next while queries of older sets go on: only the variable differs.

Everything of this lies in a schema and in catalogs that the gate lets no query name.
"""

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb
import pyarrow as pa

from duckmesh.arrow_types import deleted_field
from duckmesh.identifiers import FIELD_ID
from duckmesh.statements import Statements
from query_engine.empty_files import EmptyFiles
from query_engine.quoting import identifier, literal
from query_engine.relations import FilesPart, NativePart, Relation

FILE_NUMBER: Final = "file_number"
"""The column of a segment that says which data file a row is from."""

_SQL: Final = Statements("query_engine", "native.sql")


def parts_variable(name: str) -> str:
    """The variable that holds the views of a table's parts."""
    return f"duckmesh_parts_{_hex(name)}"


def files_part_variable(name: str, number: int) -> str:
    """The variable that holds the files of a table's part."""
    return f"duckmesh_files_{_hex(name)}_{number}"


def files_part_view(name: str, number: int) -> str:
    return f"duckmesh.duckmesh_native.files_{_hex(name)}_{number}"


def oldest_variable(name: str) -> str:
    """The variable that holds the views of a layered table's oldest rows."""
    return f"duckmesh_oldest_{_hex(name)}"


def newer_variable(name: str) -> str:
    """The variable that holds the files that supersede others, of a layered table."""
    return f"duckmesh_newer_{_hex(name)}"


def layers_variable(name: str) -> str:
    """The variable that holds the numbers of the layers of those files."""
    return f"duckmesh_layers_{_hex(name)}"


def layered_view(relation: Relation) -> str:
    """The view over all layers of a relation that has newer files."""
    kind = "layers" if relation.has_layers_of_newer else "two_layers"
    return f"duckmesh.duckmesh_native.{kind}_{_hex(relation.name)}"


def segment_column(field_id: int) -> str:
    """The name of a column in a segment, whatever its own is: a rename changes no segment."""
    return f"f{field_id}"


def part_views(relation: Relation) -> tuple[str, ...]:
    """The views of the relation's parts, in their order."""
    names, files = [], 0
    for part in relation.parts:
        if isinstance(part, FilesPart):
            names.append(files_part_view(relation.name, files))
            files += 1
        else:
            names.append(_segment_view(relation, part))
    return tuple(names)


def _hex(name: str) -> str:
    return name.lower().encode().hex()


def _segment_view(relation: Relation, part: NativePart) -> str:
    columns = sorted((each, name) for each, (name, _) in relation.stored_columns.items())
    cut = "" if part.whole else f"{part.first} {part.last} {part.missing}"
    digest = hashlib.sha256(f"{relation.name.lower()} {cut} {columns}".encode()).hexdigest()
    return f"duckmesh.duckmesh_native.segment_{part.key}_{digest[:16]}"


@dataclass(slots=True, eq=False)
class _View:
    """A view over a part. While it has users it stays."""

    name: str
    table: str
    segment: str
    users: int = 0


@dataclass(slots=True)
class _Segment:
    catalog: str
    views: set[str] = field(default_factory=set)


HeldViews = tuple[_View, ...]


class NativeTables:
    """What an instance has attached. Safe from any thread; the lock is held while DuckDB attaches.

    A segment that no view needs any more is detached, so that its space on disk comes free.
    """

    def __init__(self, root: duckdb.DuckDBPyConnection, empties: EmptyFiles) -> None:
        self._cursor = root.cursor()
        self._empties = empties
        self._lock = threading.Lock()
        self._views: dict[str, _View] = {}
        self._segments: dict[str, _Segment] = {}
        self._files_views: set[str] = set()

    def close(self) -> None:
        self._cursor.close()

    def create_view(self, relation: Relation) -> None:
        """The view of a table with parts, over no rows as yet."""
        with self._lock:
            self._cursor.execute(_SQL["create_native_schema"])
            first = self._files_view(relation, 0)
            self._set(parts_variable(relation.name), [first])
            self._cursor.execute(
                _SQL["create_parts_view"].format(
                    view=identifier(relation.name),
                    selection=relation.selection,
                    variable=literal(parts_variable(relation.name)),
                )
            )

    def hold(self, relations: Iterable[Relation]) -> HeldViews:
        """Make the parts of the relations readable until `release`. Raises duckdb.Error."""
        held: list[_View] = []
        with self._lock:
            try:
                for relation in relations:
                    held += self._hold(relation)
            except BaseException:
                self._release(held)
                raise
        return tuple(held)

    def release(self, held: Sequence[_View]) -> None:
        with self._lock:
            self._release(held)

    def _release(self, held: Sequence[_View]) -> None:
        for view in held:
            view.users -= 1

    def _hold(self, relation: Relation) -> list[_View]:
        held: list[_View] = []
        names = part_views(relation)
        files = sum(isinstance(part, FilesPart) for part in relation.parts)
        try:
            for number in range(files):
                self._files_view(relation, number)
            if relation.newer:
                self._layered_view(relation)
            for part, name in zip(relation.parts, names, strict=True):
                if isinstance(part, NativePart):
                    view = self._views.get(name) or self._create_segment_view(relation, part, name)
                    view.users += 1
                    held.append(view)
            self._drop_others(relation.name.lower(), names)
        except BaseException:
            self._release(held)
            raise
        return held

    def _files_view(self, relation: Relation, number: int) -> str:
        name = files_part_view(relation.name, number)
        if name not in self._files_views:
            variable = files_part_variable(relation.name, number)
            # Bound over an empty file: to create a view opens none of the tenant's files.
            self._set(variable, [self._empties.of(relation)])
            mapped = relation.plain_schema is None
            self._cursor.execute(
                _SQL["create_files_view" if mapped else "create_plain_files_view"].format(
                    view=name,
                    variable=literal(variable),
                    columns=relation.column_map if mapped else relation.plain_columns,
                )
            )
            self._files_views.add(name)
        return name

    def _layered_view(self, relation: Relation) -> None:
        name = layered_view(relation)
        if name in self._files_views:
            return
        self._set(oldest_variable(relation.name), [self._files_view(relation, 0)])
        self._set(newer_variable(relation.name), [self._empties.of(relation)])
        self._set(layers_variable(relation.name), [0])
        deleted = deleted_field(relation.schema)
        key = [relation.schema.field(each) for each in relation.primary_key]
        several = relation.has_layers_of_newer
        self._cursor.execute(
            _SQL["create_layered_view" if several else "create_two_layers_view"].format(
                view=name,
                columns=", ".join(map(identifier, relation.schema.names)),
                renamed=_renamed(relation),
                key=", ".join(_stored(each).name for each in key),
                oldest_key=" AND ".join(
                    f"held.{identifier(each.name)} = newer.{_stored(each).name}" for each in key
                ),
                same_key=" AND ".join(
                    f"held.{n} = later.{n}" for n in (_stored(f).name for f in key)
                ),
                key_map=relation.column_map_of(map(_stored, key)),
                all_map=relation.column_map_of(map(_stored, [*relation.schema, deleted])),
                deleted=_stored(deleted).name,
                oldest=literal(oldest_variable(relation.name)),
                newer=literal(newer_variable(relation.name)),
                layers=literal(layers_variable(relation.name)),
            )
        )
        self._files_views.add(name)

    def _create_segment_view(self, relation: Relation, part: NativePart, name: str) -> _View:
        segment = self._segments.get(part.key) or self._attach(part)
        self._cursor.execute(
            _SQL["create_segment_view"].format(
                view=name,
                columns=_renamed(relation),
                segment=segment.catalog,
                condition=_condition(part),
            )
        )
        view = self._views[name] = _View(name, relation.name.lower(), part.key)
        segment.views.add(name)
        return view

    def _attach(self, part: NativePart) -> _Segment:
        catalog = f"duckmesh_segment_{part.key}"
        self._cursor.execute(_SQL["attach"].format(path=literal(str(part.path)), catalog=catalog))
        segment = self._segments[part.key] = _Segment(catalog)
        return segment

    def _drop_others(self, table: str, names: Sequence[str]) -> None:
        """Drop the table's other views that nobody reads: mostly those of the set before."""
        unread = [
            view
            for view in self._views.values()
            if view.table == table and not view.users and view.name not in names
        ]
        for view in unread:
            self._cursor.execute(_SQL["drop_view"].format(view=view.name))
            del self._views[view.name]
            segment = self._segments[view.segment]
            segment.views.discard(view.name)
            if not segment.views:
                self._cursor.execute(_SQL["detach"].format(catalog=segment.catalog))
                del self._segments[view.segment]

    def _set(self, variable: str, values: list[str] | list[int]) -> None:
        self._cursor.execute(_SQL["set_list"].format(variable=identifier(variable)), [values])


def _renamed(relation: Relation) -> str:
    """The columns under their own names, of what has them by `segment_column`."""
    return ", ".join(
        f"{segment_column(field_id)} AS {identifier(name)}"
        for field_id, (name, _) in relation.stored_columns.items()
    )


def _stored(field: pa.Field) -> pa.Field:
    """The column by a name that hides none of DuckDB's own, such as `file_index`."""
    return field.with_name(segment_column(int(field.metadata[FIELD_ID])))


def _condition(part: NativePart) -> str:
    """Which rows of the segment are the part's. All its blocks know the numbers they hold."""
    if part.whole:
        return "true"
    within = f"{FILE_NUMBER} BETWEEN {int(part.first)} AND {int(part.last)}"
    if not part.missing:
        return within
    return f"{within} AND {FILE_NUMBER} NOT IN ({', '.join(map(str, map(int, part.missing)))})"
