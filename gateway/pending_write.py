"""A write that is being sent: its rows follow, and `commit` accepts it."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from catalog.table_schema import TableSchema
from catalog.tables import Table
from data_files.batch_size import bytes_of
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Invalid, Unavailable
from gateway.conform import check_batch
from gateway.counts import WriteCount
from gateway.identity import Identity
from gateway.ingest_modes import ADDING, IngestMode
from gateway.key_conform import Conforming
from gateway.pump import Pump
from gateway.staging import Gathered, Staging
from gateway.transactions import ClientTransaction
from ingest_bus.envelope import (
    Operation,
    Receipt,
    StagedPayload,
    WritingSession,
)

if TYPE_CHECKING:
    from gateway.writes import Writes

Pace = Callable[[int, int], None]
"""Told the rows and bytes that come next; blocks, or raises, while they come too fast."""


class PendingWrite:
    """A write that is being sent. `commit` accepts it; anything else leaves nothing.

    Used by one thread. Appending blocks while the store is slower than the sender.
    """

    def __init__(
        self,
        writes: "Writes",
        identity: Identity,
        table_name: str,
        *,
        table: Table | None,
        schema: TableSchema,
        mode: IngestMode,
        operation: Operation,
        idempotency_key: str | None,
        payload_hash: bytes | None,
        trace_id: str | None,
        session: WritingSession | None,
        transaction: ClientTransaction | None,
        conformer: Conforming,
        staging: Staging,
        count: WriteCount,
        pace: Pace,
    ) -> None:
        self._pace = pace
        self.identity = identity
        self.table_name = table_name
        self.schema = schema
        self.mode = mode
        self._operation = operation
        self.idempotency_key = idempotency_key
        self.transaction = transaction
        self._writes = writes
        self._table = table
        self._payload_hash = payload_hash
        self._trace_id = trace_id
        self._session = session
        self._conformer = conformer
        self._staging = staging
        self._pump = Pump(staging.add)
        self._received_bytes = 0
        self._stored_bytes = 0
        self._count = count

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows. Blocks while they come faster than the caller's quota.

        Raises Invalid (INVALID_PAYLOAD, PAYLOAD_TOO_LARGE), Unavailable, Overloaded, Cancelled.
        """
        with self._count.refusals():
            check_batch(batch)
            size_bytes = bytes_of(batch)
            self._received_bytes += size_bytes
            self._writes.check_size(self._received_bytes)
            self._pace(batch.num_rows, size_bytes)
            for piece in self._conformer.pieces(batch):
                # Few bytes may have become many: what is stored of them is bounded, too.
                self._stored_bytes += bytes_of(piece)
                self._writes.check_size(self._stored_bytes)
                self._pump.put(piece)

    def commit(self) -> Receipt:
        """Accept the write: when this returns it is durable, and its receipt is final.

        In a transaction the receipt has no token yet: COMMIT accepts the write, and gives it one.

        Raises Conflict (TABLE_EXISTS, IDEMPOTENCY_CONFLICT, SCHEMA_INCOMPATIBLE), NotFound,
        Unavailable. After Unavailable the write may have been accepted: repeat it with its key.
        `abort` is safe after any of them: it removes only what no accepted write can name.
        """
        self._count.complete()
        with self._count.refusals(), self._count.span.active():
            receipt = self._commit()
        if self.transaction is None:
            self._count.accepted([receipt])
        else:
            self._count.held()
        return receipt

    def _commit(self) -> Receipt:
        self._pump.finish()
        gathered = self._staging.finish()
        if self._payload_hash is not None:
            gathered = replace(gathered, payload_hash=self._payload_hash)
        staged = isinstance(gathered.payload, StagedPayload)
        table = self._writes.table_for(self, now=staged)
        overwrite = self._operation is Operation.OVERWRITE
        if not overwrite and not self._fits(table.schema):
            raise _changed_meanwhile(table)
        try:
            receipt = self._publish(table, gathered)
        except Conflict:
            raise
        except Invalid:
            raise
        except BaseException:
            # The commit may have happened: the staged objects must stay for it.
            self._staging.keep()
            raise
        if receipt.inserted:
            # Whatever becomes of the answer: an accepted write names what was staged.
            self._staging.keep()
        else:
            self.abort()
        if overwrite and not receipt.is_held:
            self._adopt(table, receipt)
        return receipt

    def _adopt(self, table: Table, receipt: Receipt) -> None:
        """Tell the table of the columns that it was replaced by: of a repeat, the first one's.

        Died before, or failed: the publication tells it, and so does who changes the table or is
        sent back by the fence. The write stands, so its answer is its receipt in any case.
        """
        version = receipt.schema_version
        with contextlib.suppress(DuckMeshError):
            self._writes.adopt(table, table.schema.version if version is None else version)

    def _publish(self, table: Table, gathered: Gathered) -> Receipt:
        publish = partial(
            self._writes.publish,
            self.identity,
            gathered=gathered,
            operation=self._operation,
            idempotency_key=self.idempotency_key,
            trace_id=self._trace_id,
            session=self._session,
            transaction=self.transaction,
        )
        try:
            return publish(table)
        except Conflict as conflict:
            self._writes.adopt_fence(table, conflict)
            if conflict.code is not ErrorCode.SCHEMA_INCOMPATIBLE or self.mode not in ADDING:
                raise
            if isinstance(gathered.payload, StagedPayload):
                raise
            # The table in memory may be one that was dropped, and another has its name by now.
            now = self._writes.table_for(self, now=True)
            if same_version(table, now) or not self._fits(now.schema):
                raise
            return publish(now)

    def _fits(self, schema: TableSchema) -> bool:
        """Whether the rows are of these columns; those that delete, of this very key too."""
        if self._operation is Operation.DELETE and schema.primary_key != self.schema.primary_key:
            return False
        return same_columns(schema, self.schema)

    def abort(self) -> None:
        """Forget the write. What it staged is removed now, or collected later."""
        self._count.abandoned()
        self._pump.abandon()
        with contextlib.suppress(Unavailable):
            self._staging.abort()


def same_version(one: Table, other: Table) -> bool:
    return (one.table_id, one.schema.version) == (other.table_id, other.schema.version)


def same_columns(one: TableSchema, other: TableSchema) -> bool:
    """Field ids count too."""
    return one is other or bool(one.arrow.equals(other.arrow, check_metadata=True))


def _changed_meanwhile(table: Table) -> Conflict:
    return Conflict(
        ErrorCode.SCHEMA_INCOMPATIBLE,
        f"table {table.name!r} was given other columns while the rows were sent: send them again",
        table=table.name,
    )
