"""What the gateway hands to the bus: the rows of a write, gathered and named."""

import pyarrow as pa

from catalog.tables import Table
from data_files.parquet import event_times
from data_files.payload import encode_batches
from data_files.row_hash import hash_of
from duckmesh.identifiers import new_event_id
from gateway.identity import Identity
from gateway.staging import Gathered
from ingest_bus.envelope import Envelope, InlinePayload, Operation, WritingSession


def gathered_inline(
    rows: pa.RecordBatch, event_time: str | int | None, *, hashed: bool
) -> Gathered:
    """Rows that are few enough for the bus itself; `event_time` is the column that has it."""
    content = encode_batches([rows])
    return Gathered(
        InlinePayload(content),
        rows.num_rows,
        len(content),
        event_times(rows, event_time),
        hash_of(rows) if hashed else None,
    )


def envelope_of(
    identity: Identity,
    table: Table,
    gathered: Gathered,
    *,
    idempotency_key: str | None,
    trace_id: str | None,
    session: WritingSession | None = None,
    operation: Operation = Operation.INSERT,
) -> Envelope:
    """The envelope of a write of the table, as its definition is here."""
    return Envelope(
        event_id=new_event_id(),
        tenant_id=identity.tenant_id,
        table_id=table.table_id,
        schema_version=table.schema.version,
        payload=gathered.payload,
        row_count=gathered.row_count,
        byte_count=gathered.byte_count,
        operation=operation,
        idempotency_key=idempotency_key,
        payload_hash=gathered.payload_hash,
        raises_fence=operation is Operation.OVERWRITE,
        min_event_time=gathered.times.earliest,
        max_event_time=gathered.times.latest,
        trace_id=trace_id,
        session=session,
    )
