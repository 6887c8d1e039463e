"""Check the keys of rows that are to be deleted, before anything is accepted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import pyarrow as pa

from catalog.tables import Table
from data_files.keyed_rows import as_deletes
from duckmesh.errors import ErrorCode, Invalid
from gateway.conform import Conformer


class Conforming(Protocol):
    """How batches of one offered schema become batches that a table stores."""

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch as it is stored. Raises Invalid (INVALID_PAYLOAD, PAYLOAD_TOO_LARGE)."""
        ...

    def pieces(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The same in pieces, made one by one where values are made anew."""
        ...


@dataclass(frozen=True, slots=True)
class KeyConformer:
    """How batches of keys become rows that delete them."""

    keys: Conformer
    schema: pa.Schema

    @classmethod
    def between(cls, offered: pa.Schema, table: Table) -> Self:
        """Plan the conversion. Raises Invalid: INVALID_OP for a table without a primary key,
        SCHEMA_INCOMPATIBLE naming every fault of the columns.
        """
        return cls(Conformer.between(offered, key_of(table)), table.schema.arrow)

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows that delete the keys of the batch. Raises as `Conformer.conform` does."""
        return as_deletes(self.keys.conform(batch), self.schema)

    def pieces(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The same in pieces, as `Conformer.pieces` makes them."""
        for piece in self.keys.pieces(batch):
            yield as_deletes(piece, self.schema)


def key_of(table: Table) -> pa.Schema:
    """The columns of its primary key. Raises Invalid (INVALID_OP) for a table without one."""
    if not table.schema.primary_key:
        raise Invalid(
            ErrorCode.INVALID_OP,
            f"table {table.name!r} has no primary key to delete rows by: create it with one, or "
            "write it anew with the rows that stay (CREATE OR REPLACE TABLE ... AS)",
            table=table.name,
        )
    return table.schema.key
