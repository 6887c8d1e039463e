"""What ALTER TABLE may do to a table whose files stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from catalog.table_schema import as_written, check_key, normal_type, widens
from catalog.tables import Table
from data_files.partitions import check_type
from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.identifiers import FIELD_ID
from duckmesh.partitions import spec_invalid
from query_engine.definitions import AlteredColumn


@dataclass(frozen=True, slots=True)
class Alteration:
    """A table's columns after a change; new ones carry no field id."""

    fields: tuple[pa.Field, ...]
    primary_key: tuple[str, ...]


def check_alteration(table: Table, columns: Sequence[AlteredColumn]) -> Alteration | None:
    """The change, when old files can be read through it; None when it changes nothing.

    Raises Invalid (SCHEMA_INCOMPATIBLE) for a type that does not hold every old value, and
    NotSupported for SET NOT NULL and for changes of the primary key.
    """
    old = {int(field.metadata[FIELD_ID]): field for field in table.schema.arrow}
    fields = tuple(_field(column, old) for column in columns)
    if pa.schema(fields).equals(table.schema.arrow, check_metadata=True):
        return None
    _check_partitions(table, fields)
    key = _primary_key(table, columns, old)
    if table.schema.primary_key:
        check_key(pa.schema(fields), key)
    return Alteration(fields, key)


def _check_partitions(table: Table, fields: Sequence[pa.Field]) -> None:
    """Raise Invalid when the table could not be cut by its spec any more."""
    now = {int(f.metadata[FIELD_ID]): f for f in fields if FIELD_ID in (f.metadata or {})}
    old = {int(f.metadata[FIELD_ID]): f.name for f in table.schema.arrow}
    for each in table.partition_spec:
        if each.source_id in now:
            check_type(each.transform, now[each.source_id])
        elif each.source_id in old:
            raise spec_invalid(
                f"the table is partitioned by column {old[each.source_id]!r}: ALTER TABLE ... SET "
                "PARTITIONED BY others, and then drop it",
                column=old[each.source_id],
            )


def _field(column: AlteredColumn, old: dict[int, pa.Field]) -> pa.Field:
    made = column.field
    kind = normal_type(made.type, column=made.name)
    if column.field_id is None:
        return pa.field(made.name, kind, made.nullable)
    known = old[column.field_id]
    if known.nullable and not made.nullable:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            f"SET NOT NULL of {made.name!r} would have to read every row: CREATE TABLE with NOT "
            "NULL, and INSERT the rows",
            column=made.name,
        )
    if not kind.equals(known.type) and not widens(known.type, kind):
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            f"column {made.name!r} is {known.type}, and {kind} does not hold each of its values: "
            "widen it, or CREATE OR REPLACE TABLE ... AS with a cast",
            column=made.name,
        )
    return pa.field(made.name, kind, made.nullable, metadata=known.metadata)


def _primary_key(
    table: Table, columns: Sequence[AlteredColumn], old: dict[int, pa.Field]
) -> tuple[str, ...]:
    """The key's columns under their new names."""
    now = {old[c.field_id].name: c.field for c in columns if c.field_id is not None}
    key = as_written(table.primary_key, table.schema.arrow)
    for name in key:
        if name in table.schema.arrow.names and (name not in now or now[name].nullable):
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                f"column {name!r} is part of the primary key: it stays, and stays NOT NULL",
                column=name,
            )
    return tuple(now[name].name if name in now else name for name in key)
