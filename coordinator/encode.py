"""From claimed events to what one publication adds. Pure: no I/O, no clock, no database.

Events of a table are taken in token order. An overwrite forgets what came before it, in this claim
and in the snapshots so far. Inline rows of one schema version become one Parquet file; staged files
are published by pointer, byte for byte as the door wrote them.

Of a table with a primary key each file supersedes, by its keys, those of smaller tokens. So what
comes between two staged writes is a file of its own, with one row for each key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from catalog.snapshots import NewFile
from catalog.table_schema import TableSchema
from data_files.keyed_rows import (
    as_rows,
    delete_count,
    newest_of_each_key,
    with_deletes,
    without_deletes,
)
from data_files.parquet import EncodedFile, encode_parquet
from data_files.partitions import Partitioner
from data_files.payload import decode_batches
from duckmesh.errors import Corrupt
from duckmesh.identifiers import EventId, SchemaVersion, TableId, new_file_id
from duckmesh.partitions import MANY, Partition, PartitionSpec, is_many
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import AcceptedEvent, Envelope, InlinePayload, Operation, StagedPayload

SchemaOf = Callable[[TableId, SchemaVersion], TableSchema]


@dataclass(frozen=True, slots=True)
class Poison:
    """An event that can never be published, and why."""

    event_id: EventId
    reason: str


@dataclass(slots=True)
class TableRows:
    """What one publication does to one table; or a part of it, of a table with a primary key.

    The rows of such a part are of one schema version, `with_deletes`, or they are staged.
    """

    table_id: TableId
    key: tuple[str, ...] = ()
    emptied: bool = False
    new_schema: SchemaVersion | None = None
    batches: dict[SchemaVersion, list[pa.RecordBatch]] = field(default_factory=dict)
    staged: list[NewFile] = field(default_factory=list)
    first_token: VisibilityToken | None = None
    last_token: VisibilityToken | None = None


def gather(
    events: Sequence[AcceptedEvent], schema_of: SchemaOf
) -> tuple[list[TableRows], list[Poison]]:
    """Gather events by table. An event that does not decode is set apart; the rest proceeds.

    What is set apart takes its group with it: of a group everything becomes visible, or nothing.
    """
    decoded, poison = _decoded(events, schema_of)
    by_table: dict[TableId, list[TableRows]] = {}
    for event, batches in decoded:
        envelope = event.envelope
        parts = by_table.setdefault(envelope.table_id, [])
        if envelope.operation is Operation.OVERWRITE:
            parts[:] = [
                TableRows(envelope.table_id, emptied=True, new_schema=envelope.schema_version)
            ]
        key = schema_of(envelope.table_id, envelope.schema_version).primary_key
        if not parts or (key and not _continues(parts[-1], envelope)):
            parts.append(TableRows(envelope.table_id))
        table = parts[-1]
        table.key = key
        table.first_token = table.first_token or event.visibility_token
        table.last_token = event.visibility_token
        if batches:
            table.batches.setdefault(envelope.schema_version, []).extend(batches)
        if isinstance(envelope.payload, StagedPayload):
            table.staged.extend(_by_pointer(event, envelope.payload))
    return [part for parts in by_table.values() for part in parts], poison


def _continues(part: TableRows, envelope: Envelope) -> bool:
    """Whether rows of a table with a primary key can be in one file with those before them."""
    if not part.batches and not part.staged:
        return True
    return isinstance(envelope.payload, InlinePayload) and envelope.schema_version in part.batches


_Decoded = tuple[AcceptedEvent, list[pa.RecordBatch]]


def _decoded(
    events: Sequence[AcceptedEvent], schema_of: SchemaOf
) -> tuple[list[_Decoded], list[Poison]]:
    """The inline rows of the events that decode, and the verdict on the others."""
    decoded: list[_Decoded] = []
    faults: dict[EventId, str] = {}
    broken_groups: set[VisibilityToken] = set()
    for event in events:
        try:
            decoded.append((event, _rows_of(event, schema_of)))
        except Corrupt as fault:
            faults[event.envelope.event_id] = fault.message
            if event.group_last_token is not None:
                broken_groups.add(event.group_last_token)
    for event, _ in decoded:
        if event.group_last_token in broken_groups:
            faults[event.envelope.event_id] = "another write of its transaction cannot be published"
    poison = [Poison(event_id, reason) for event_id, reason in faults.items()]
    return [each for each in decoded if each[0].envelope.event_id not in faults], poison


def _rows_of(event: AcceptedEvent, schema_of: SchemaOf) -> list[pa.RecordBatch]:
    """The inline rows of an event. Raises Corrupt when they are not of its schema version."""
    envelope = event.envelope
    schema = schema_of(envelope.table_id, envelope.schema_version)
    if not isinstance(envelope.payload, InlinePayload):
        return []
    deletes = envelope.operation is Operation.DELETE
    arrow = with_deletes(schema.arrow) if deletes else schema.arrow
    batches = list(decode_batches(envelope.payload.content, arrow))
    for batch in batches:
        try:
            batch.validate()
        except pa.ArrowInvalid as cause:
            raise Corrupt("an inline payload does not fit its schema") from cause
    found = [batch for batch in batches if batch.num_rows]
    if deletes or not schema.primary_key:
        return found
    return [as_rows(batch, schema.arrow) for batch in found]


def _by_pointer(event: AcceptedEvent, payload: StagedPayload) -> list[NewFile]:
    deletes = event.envelope.operation is Operation.DELETE
    return [
        NewFile(
            file_id=file.file_id,
            table_id=event.envelope.table_id,
            schema_version=event.envelope.schema_version,
            record_count=file.row_count,
            file_size_bytes=file.size_bytes,
            min_token=event.visibility_token,
            max_token=event.visibility_token,
            path=file.key,
            min_event_time=file.min_event_time,
            max_event_time=file.max_event_time,
            stats=file.stats,
            partition=file.partition,
            delete_count=file.row_count if deletes else 0,
        )
        for file in payload.files
    ]


def encode_rows(
    table: TableRows, schema_of: SchemaOf, spec: PartitionSpec = ()
) -> list[tuple[NewFile, bytes]]:
    """The table's inline rows as Parquet files, one for each schema version, with their bytes.

    A file of rows of one partition is known as such. Rows of several stay together: the hot tail is
    cut by compaction, and not into more files than there are writes.
    """
    files = []
    for version, batches in table.batches.items():
        schema = schema_of(table.table_id, version).arrow
        if table.key:
            files.append(_encode_keyed(table, version, schema, spec))
            continue
        encoded = encode_parquet(batches, schema)
        partition = _partition_of(batches, schema, spec) if spec else {}
        files.append((_new_file(table, version, encoded, partition), encoded.content))
    return files


def _encode_keyed(
    table: TableRows, version: SchemaVersion, schema: pa.Schema, spec: PartitionSpec
) -> tuple[NewFile, bytes]:
    """One row for each key, the newest; a column that says which are deleted if any is."""
    given = pa.Table.from_batches(table.batches[version], with_deletes(schema))
    rows = newest_of_each_key(given, table.key)
    deletes = delete_count(rows)
    if not deletes:
        rows = without_deletes(rows, schema)
    batches = rows.to_batches()
    encoded = encode_parquet(batches, rows.schema)
    partition = _partition_of(batches, schema, spec) if spec and not deletes else {}
    file = _new_file(table, version, encoded, partition)
    return replace(file, delete_count=deletes), encoded.content


def _partition_of(
    batches: Sequence[pa.RecordBatch], schema: pa.Schema, spec: PartitionSpec
) -> Partition:
    partitioner = Partitioner(spec, schema, keep=1)
    for batch in batches:
        if is_many(found := partitioner.partition_of(batch)):
            return found
    return MANY if len(partitioner.partitions) > 1 else partitioner.partitions[0]


def _new_file(
    table: TableRows, version: SchemaVersion, encoded: EncodedFile, partition: Partition
) -> NewFile:
    if table.first_token is None or table.last_token is None:
        raise Corrupt("rows without a token", table_id=table.table_id)
    return NewFile(
        file_id=new_file_id(),
        table_id=table.table_id,
        schema_version=version,
        record_count=encoded.row_count,
        file_size_bytes=len(encoded.content),
        min_token=table.first_token,
        max_token=table.last_token,
        min_event_time=encoded.event_times.earliest,
        max_event_time=encoded.event_times.latest,
        partition=partition,
    )
