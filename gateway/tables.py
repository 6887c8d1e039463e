"""Tables as both doors administer them, beside SQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from catalog.table_schema import TableSchema, not_null
from catalog.tables import table_not_found
from data_files.partitions import bound_spec, spec_texts
from duckmesh.errors import Conflict, ErrorCode, Invalid
from duckmesh.identifiers import check_table_name
from duckmesh.partitions import parse_terms
from gateway.identity import Identity
from gateway.reads import DescribedTable, Reads
from gateway.sql_writes import SqlWrites
from gateway.writes import Writes
from query_engine.quoting import identifier, sql_type


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """One change of one column, as the clause of an ALTER TABLE."""

    clause: str

    @classmethod
    def add(cls, field: pa.Field) -> Self:
        """A new last column, null in the rows that are there."""
        required = "" if field.nullable else " NOT NULL"
        return cls(f"ADD COLUMN {identifier(field.name)} {sql_type(field.type)}{required}")

    @classmethod
    def rename(cls, column: str, new_name: str) -> Self:
        return cls(f"RENAME COLUMN {identifier(column)} TO {identifier(new_name)}")

    @classmethod
    def drop(cls, column: str) -> Self:
        return cls(f"DROP COLUMN {identifier(column)}")

    @classmethod
    def widen(cls, column: str, kind: pa.DataType) -> Self:
        return cls(f"ALTER COLUMN {identifier(column)} TYPE {sql_type(kind)}")

    @classmethod
    def allow_null(cls, column: str) -> Self:
        return cls(f"ALTER COLUMN {identifier(column)} DROP NOT NULL")


class TableAdministration:
    """Create, describe and drop tables. Thread-safe."""

    def __init__(self, reads: Reads, writes: Writes, sql_writes: SqlWrites) -> None:
        self._reads = reads
        self._writes = writes
        self._sql_writes = sql_writes

    def create(
        self,
        identity: Identity,
        name: str,
        columns: pa.Schema,
        *,
        primary_key: Sequence[str] = (),
        partition_spec: Sequence[str] = (),
    ) -> DescribedTable:
        """Create an empty table, in a snapshot of its own.

        The columns of its key become NOT NULL. Raises Conflict (TABLE_EXISTS), Invalid naming the
        column or the field of the partition spec that cannot be, Denied.
        """
        self._writes.definitions.require_admin(identity, "create_table", name)
        check_table_name(name)
        schema = TableSchema.first(with_key(columns, primary_key))
        spec = bound_spec(parse_terms(partition_spec), schema.arrow)
        made = self._writes.definitions.create_table(
            identity,
            name,
            schema,
            creation_key=None,
            primary_key=primary_key,
            partition_spec=spec,
        )
        if made is None:
            raise Conflict(
                ErrorCode.TABLE_EXISTS,
                f"table {name!r} exists: drop it first, or choose another name",
                table=name,
            )
        return DescribedTable(
            name,
            made.schema.arrow,
            None,
            tuple(primary_key),
            partition_spec=spec_texts(spec, made.schema.arrow),
        )

    def partition(
        self, identity: Identity, name: str, partition_spec: Sequence[str]
    ) -> DescribedTable:
        """Cut the table's new files by this spec; rows and older files stay as they are.

        Raises NotFound, Invalid (PARTITION_SPEC_INVALID), Denied.
        """
        self._writes.definitions.require_admin(identity, "alter_table", name)
        table = self._writes.table(identity, self.named(identity, name).name)
        spec = bound_spec(parse_terms(partition_spec), table.schema.arrow)
        self._writes.definitions.set_partition_spec(identity, table, spec)
        return self.named(identity, name)

    def all(self, identity: Identity) -> list[DescribedTable]:
        """The tables of the newest snapshot, by name. Raises Denied."""
        return self._reads.tables(identity)

    def named(self, identity: Identity, name: str) -> DescribedTable:
        """One of them, by its name as it is written. Raises NotFound (TABLE_NOT_FOUND)."""
        for table in self.all(identity):
            if table.name == name:
                return table
        raise table_not_found(name[:200])

    def change(self, identity: Identity, name: str, change: ColumnChange) -> DescribedTable:
        """Change a column, as ALTER TABLE does: in a new snapshot; old rows are read right after.

        Raises NotFound, Invalid (SCHEMA_INCOMPATIBLE) for what would lose values, Denied.
        """
        self._writes.definitions.require_admin(identity, "alter_table", name)
        before = self.named(identity, name)
        self._sql_writes.execute(identity, f"ALTER TABLE {identifier(before.name)} {change.clause}")
        return self.named(identity, name)

    def drop(self, identity: Identity, name: str) -> None:
        """End the table in a new snapshot; older ones keep it. Raises NotFound, Denied."""
        self._writes.definitions.drop_table(identity, name)


def with_key(columns: pa.Schema, key: Sequence[str]) -> pa.Schema:
    """The columns, those of the key NOT NULL. Raises Invalid for a key of other columns."""
    missing = [name for name in key if name not in columns.names]
    if missing or len(set(key)) < len(key):
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            "a primary key names columns of its table, each once",
            columns=[name[:200] for name in missing[:20]],
        )
    return not_null(columns, key)
