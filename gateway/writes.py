"""Accept a write: check it, make it durable, answer with a receipt.

A write is accepted whole or not at all. Its commit is one publish of the bus; what comes before it
(staged objects, a proposed schema version, an empty table that `create` made) means nothing alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pyarrow as pa

from catalog.connection import Catalog
from catalog.table_schema import TableSchema, as_written, not_null
from catalog.tables import Table, table_not_found
from data_files.batch_size import bytes_of
from data_files.keyed_rows import with_deletes
from data_files.partitions import Partitioner
from duckmesh import tracing
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Invalid
from duckmesh.identifiers import (
    SchemaVersion,
    TableId,
    check_idempotency_key,
    check_table_name,
)
from gateway.conform import Conformer, check_batch
from gateway.counts import WriteCount
from gateway.definitions import NO_VERSION, Definitions, table_exists
from gateway.envelopes import envelope_of, gathered_inline
from gateway.groups import EnvelopeGroup, KeyedRows
from gateway.identity import Identity, Role
from gateway.ingest_modes import ADDING, IngestMode
from gateway.key_conform import Conforming, KeyConformer
from gateway.known_quotas import KnownQuotas
from gateway.known_tables import KnownTables
from gateway.limits import Backpressure, IngestLimits
from gateway.pending_write import Pace, PendingWrite, same_columns, same_version
from gateway.quick_writes import QuickWrites
from gateway.rates import IngestRates
from gateway.staging import Gathered, Staging, StagingLimits
from gateway.transactions import ClientTransaction
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import (
    Operation,
    Receipt,
    WritingSession,
)
from ingest_bus.port import IngestBus
from object_store import keys
from object_store.port import ObjectStore
from query_engine.engine import Interruption

_NO_TABLE_YET: Final = TableId(0)


@dataclass(slots=True)
class StreamTarget:
    """An existing table that a long-lived stream appends to, and how its batches fit in.

    Used by one thread. Its first batch may find that the table is another one by now.
    """

    table: Table
    conformer: Conformer
    offered: pa.Schema
    begun: bool = False


class Writes:
    """The write side of a serving process. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        bus: IngestBus,
        store: ObjectStore,
        *,
        limits: IngestLimits,
        staging: StagingLimits,
        quotas: KnownQuotas | None = None,
    ) -> None:
        self._quotas = KnownQuotas(catalog) if quotas is None else quotas
        self._rates = IngestRates(self._quotas)
        self._bus = bus
        self._store = store
        self._limits = limits
        self._staging = staging
        self._backpressure = Backpressure(bus, limits, self._quotas)
        self._tables = KnownTables(catalog)
        self.quick = QuickWrites(
            bus,
            quotas=self._quotas,
            rates=self._rates,
            backpressure=self._backpressure,
            tables=self._tables,
            inline_max_bytes=min(staging.inline_max_bytes, limits.write_max_bytes),
            partitions_max=staging.partitions_max,
        )
        self.definitions = Definitions(catalog, bus, self._tables, self._quotas)

    # -- one write of any size

    def begin(
        self,
        identity: Identity,
        table_name: str,
        offered: pa.Schema,
        *,
        mode: IngestMode,
        idempotency_key: str | None = None,
        payload_hash: bytes | None = None,
        trace_id: str | None = None,
        session: WritingSession | None = None,
        transaction: ClientTransaction | None = None,
        deletes: bool = False,
        slows: bool = True,
        stop: Interruption | None = None,
    ) -> PendingWrite:
        """Begin a write whose rows follow. In a transaction it is held until that is committed.

        Rows that come faster than the caller's quota are waited with, until `stop` is pressed;
        without `slows`, for rows that nobody can hold back, the write is refused instead.

        With `deletes` the rows hold the columns of the table's primary key, and each deletes the
        row of its key; the mode is to append.

        A `payload_hash` stands for the rows where their sender knows better what makes a repeat of
        the write: a statement's rows come from what it reads, and that may have changed.
        Raises what can be known without them: Denied, TABLE_NOT_FOUND, TABLE_EXISTS,
        SCHEMA_INCOMPATIBLE, QUOTA_EXCEEDED, RATE_LIMITED, INVALID_OP. Changes nothing.
        """
        count = WriteCount(_span(identity, table_name))
        with count.refusals():
            if not slows:
                self._rates.check(identity)
            return self._begin(
                identity,
                table_name,
                offered,
                mode=mode,
                idempotency_key=idempotency_key,
                payload_hash=payload_hash,
                trace_id=count.span.carried(trace_id),
                session=session,
                transaction=transaction,
                deletes=deletes,
                count=count,
                pace=(
                    partial(self._rates.pace, identity, stop=stop)
                    if slows
                    else partial(self._rates.charge, identity)
                ),
            )

    def _begin(
        self,
        identity: Identity,
        table_name: str,
        offered: pa.Schema,
        *,
        mode: IngestMode,
        idempotency_key: str | None,
        payload_hash: bytes | None,
        trace_id: str | None,
        session: WritingSession | None,
        transaction: ClientTransaction | None,
        deletes: bool,
        count: WriteCount,
        pace: Pace,
    ) -> PendingWrite:
        identity.require(Role.INGEST_WRITER)
        check_table_name(table_name)
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        self._backpressure.check(identity, adds=mode is not IngestMode.REPLACE)
        table: Table | None
        conformer: Conforming | None
        if deletes:
            table = self.table(identity, table_name, transaction)
            conformer = KeyConformer.between(offered, table)
        else:
            table, conformer = self._target(identity, table_name, offered, mode, transaction)
        if table is None and mode is IngestMode.APPEND:
            raise table_not_found(table_name)
        if table is not None and mode is IngestMode.CREATE:
            _check_is_retry(table, idempotency_key)
        schema = _target_schema(table, offered, mode)
        table_id = _NO_TABLE_YET if table is None else table.table_id
        staging = Staging(
            with_deletes(schema.arrow) if deletes else schema.arrow,
            self._store,
            partial(keys.data_file_key, identity.tenant, table_name, table_id),
            limits=_staging_limits(self._staging, transaction),
            hashed=idempotency_key is not None and payload_hash is None,
            spec=() if table is None or deletes else table.partition_spec,
        )
        return PendingWrite(
            self,
            identity,
            table_name,
            table=table,
            schema=schema,
            mode=mode,
            operation=_operation(mode, deletes=deletes),
            idempotency_key=idempotency_key,
            payload_hash=payload_hash,
            trace_id=trace_id,
            session=session,
            transaction=transaction,
            conformer=conformer or Conformer.between(offered, schema.arrow),
            staging=staging,
            count=count,
            pace=pace,
        )

    def check_size(self, size_bytes: int) -> None:
        """Raise PAYLOAD_TOO_LARGE for a write beyond the limit."""
        if size_bytes > self._limits.write_max_bytes:
            raise Invalid(
                ErrorCode.PAYLOAD_TOO_LARGE,
                f"one write holds at most {self._limits.write_max_bytes} bytes of Arrow data: "
                "send it as several writes",
                limit_bytes=self._limits.write_max_bytes,
            )

    def publish(
        self,
        identity: Identity,
        table: Table,
        gathered: Gathered,
        *,
        operation: Operation,
        idempotency_key: str | None,
        trace_id: str | None,
        session: WritingSession | None = None,
        transaction: ClientTransaction | None = None,
    ) -> Receipt:
        """Make a gathered write durable: its commit point. Raises Conflict, Unavailable.

        A transaction holds it, and then Invalid says that it holds too much.
        """
        envelope = envelope_of(
            identity,
            table,
            gathered,
            idempotency_key=idempotency_key,
            trace_id=trace_id,
            session=session,
            operation=operation,
        )
        if transaction is not None:
            return transaction.hold(envelope)
        with tracing.span("commit", events=1):
            return self._bus.publish([envelope])[0]

    # -- a long-lived stream of small writes

    def open_stream(self, identity: Identity, table_name: str, offered: pa.Schema) -> StreamTarget:
        """The table that each batch of a stream is appended to, as a write of its own."""
        identity.require(Role.INGEST_WRITER)
        fitted = self._tables.fitted(identity.tenant_id, check_table_name(table_name), offered)
        if fitted is None:
            raise table_not_found(table_name)
        return StreamTarget(*fitted, offered)

    def check_may_write(
        self,
        identity: Identity,
        table_name: str,
        *,
        mode: IngestMode = IngestMode.APPEND,
        slows: bool = True,
    ) -> None:
        """Raise now what a write would raise before its first row, of its caller and its size."""
        identity.require(Role.INGEST_WRITER)
        check_table_name(table_name)
        self._backpressure.check(identity, adds=mode is not IngestMode.REPLACE)
        if not slows:
            self._rates.check(identity)

    def target(self, identity: Identity, table_name: str, *, now: bool = True) -> StreamTarget:
        """The table that rows are to be made for; they have its very columns.

        Without `now` it may be as it was a second ago: then what it is written for may be refused
        with SCHEMA_INCOMPATIBLE, and the caller makes the rows again for the table of now.
        """
        identity.require(Role.INGEST_WRITER)
        name = check_table_name(table_name)
        found = self._tables.as_it_is(identity.tenant_id, name, now=now)
        if found is None:
            raise table_not_found(name)
        table, conformer = found
        return StreamTarget(table, conformer, table.schema.arrow)

    def append_batch(
        self,
        identity: Identity,
        target: StreamTarget,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str | None,
        trace_id: str | None = None,
        session: WritingSession | None = None,
        at_once: bool = False,
        stop: Interruption | None = None,
    ) -> Acceptance:
        """Accept one batch as one write, without waiting for it; the outcome is one receipt.

        Blocks while batches come faster than the caller's quota, until `stop` is pressed.
        With `at_once` it is accepted on this thread, and the outcome is there: a lone small write
        waits for no other thread. Tokens follow the order of calls. Raises at once what the rows
        alone tell (Invalid, Overloaded); the outcome raises Conflict and Unavailable, and what a
        first batch finds that comes to a table changed since: NotFound, Invalid.
        """
        count = WriteCount(_span(identity, target.table.name))
        with count.refusals(), count.span.active():
            check_batch(batch)
            self._rates.pace(identity, batch.num_rows, bytes_of(batch), stop)
            count.complete()
            answer = self._append_batch(
                identity,
                target,
                batch,
                idempotency_key=idempotency_key,
                trace_id=count.span.carried(trace_id),
                session=session,
                at_once=at_once,
            )
        answer.add_done_callback(count.answered)
        return answer

    def _append_batch(
        self,
        identity: Identity,
        target: StreamTarget,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str | None,
        trace_id: str | None,
        session: WritingSession | None,
        at_once: bool,
    ) -> Acceptance:
        first, target.begun = not target.begun, True
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        self._backpressure.check(identity)
        self.check_size(bytes_of(batch))
        # What is stored has no names: nothing here asks for them.
        conformed = target.conformer.converted_up_to(batch, self._staging.inline_max_bytes)
        if conformed is None:
            return self._append_large(
                identity,
                target,
                batch,
                idempotency_key=idempotency_key,
                trace_id=trace_id,
                session=session,
            )
        if target.table.partition_spec:
            self._check_partitions(target.table, target.conformer.conform(batch))
        gathered = gathered_inline(
            conformed, target.conformer.event_time, hashed=idempotency_key is not None
        )
        envelope = envelope_of(
            identity,
            target.table,
            gathered,
            idempotency_key=idempotency_key,
            trace_id=trace_id,
            session=session,
        )
        if not at_once:
            return self._bus.submit([envelope])
        try:
            with tracing.span("commit", events=1):
                return Acceptance.of(self._bus.publish([envelope]))
        except Conflict as conflict:
            if first and conflict.code is ErrorCode.SCHEMA_INCOMPATIBLE:
                again = partial(
                    self._append_batch,
                    identity,
                    target,
                    batch,
                    idempotency_key=idempotency_key,
                    trace_id=trace_id,
                    session=session,
                    at_once=True,
                )
                return self._append_anew(identity, target, conflict, again)
            return Acceptance.failed(conflict)
        except DuckMeshError as error:
            return Acceptance.failed(error)

    def _append_anew(
        self,
        identity: Identity,
        target: StreamTarget,
        conflict: Conflict,
        again: Callable[[], Acceptance],
    ) -> Acceptance:
        """Sent back by a fence at the first batch: the table in memory was out of date."""
        stale = target.table
        try:
            self.adopt_fence(stale, conflict)
            renewed = self.open_stream(identity, stale.name, target.offered)
            target.table, target.conformer = renewed.table, renewed.conformer
            if same_version(stale, target.table):
                return Acceptance.failed(conflict)
            return again()
        except DuckMeshError as error:
            return Acceptance.failed(error)

    def append_group(
        self,
        identity: Identity,
        target: StreamTarget,
        parts: Sequence[KeyedRows],
        *,
        trace_id: str | None = None,
    ) -> list[Receipt]:
        """Accept several writes of one table in one transaction, all or none; a receipt for each.

        Tokens follow the order of `parts`. Of equal keys the first is the original. Raises as
        `append_batch` and its future do; after Unavailable the group may have been accepted.
        """
        count = WriteCount(_span(identity, target.table.name))
        with count.refusals(), count.span.active():
            carried = count.span.carried(trace_id)
            receipts = self._append_group(identity, target, parts, trace_id=carried)
        count.accepted(receipts)
        return receipts

    def _append_group(
        self,
        identity: Identity,
        target: StreamTarget,
        parts: Sequence[KeyedRows],
        *,
        trace_id: str | None,
    ) -> list[Receipt]:
        for part in parts:
            if part.idempotency_key is not None:
                check_idempotency_key(part.idempotency_key)
        self._backpressure.check(identity)
        size_bytes = sum(part.rows.nbytes for part in parts)
        self.check_size(size_bytes)
        # Together or not at all: rows that are here already can be held back no more.
        self._rates.check(identity)
        self._rates.charge(identity, sum(part.rows.num_rows for part in parts), size_bytes)
        group = EnvelopeGroup(
            identity,
            target.table,
            trace_id=trace_id,
            inline_max_bytes=self._staging.inline_max_bytes,
            new_staging=partial(self._new_staging, identity, target.table),
        )
        conformed = [replace(part, rows=conform(target, part)) for part in parts]
        if target.table.partition_spec:
            for part in conformed:
                if part.operation is Operation.INSERT:
                    self._check_partitions(target.table, part.rows)
        with group.envelopes(conformed) as envelopes:
            try:
                with tracing.span("commit", events=len(envelopes)):
                    return self._bus.publish(envelopes)
            except Conflict:
                raise
            except BaseException:
                # The commit may have happened: the staged objects must stay for it.
                group.keep()
                raise

    def _check_partitions(self, table: Table, rows: pa.RecordBatch) -> None:
        """Raise Invalid (TOO_MANY_PARTITIONS) for rows of more partitions than one write may."""
        limit = self._staging.partitions_max
        if rows.num_rows > limit:
            Partitioner(table.partition_spec, table.schema.arrow, limit=limit).numbers(rows)

    def _new_staging(
        self, identity: Identity, table: Table, hashed: bool, operation: Operation
    ) -> Staging:
        deletes = operation is Operation.DELETE
        return Staging(
            with_deletes(table.schema.arrow) if deletes else table.schema.arrow,
            self._store,
            partial(keys.data_file_key, identity.tenant, table.name, table.table_id),
            limits=self._staging,
            hashed=hashed,
            spec=() if deletes else table.partition_spec,
        )

    def _append_large(
        self,
        identity: Identity,
        target: StreamTarget,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str | None,
        trace_id: str | None,
        session: WritingSession | None,
    ) -> Acceptance:
        """A batch too large for the bus goes through the store, in its turn."""
        write = self._begin(
            identity,
            target.table.name,
            batch.schema,
            mode=IngestMode.APPEND,
            idempotency_key=idempotency_key,
            payload_hash=None,
            trace_id=trace_id,
            session=session,
            transaction=None,
            deletes=False,
            # Counted, and waited with, by the caller of `append_batch`.
            count=WriteCount.of_another(),
            pace=_at_once,
        )
        try:
            write.append(batch)
            return Acceptance.of([write.commit()])
        except DuckMeshError:
            write.abort()
            raise

    # -- tables

    def table(
        self, identity: Identity, name: str, transaction: ClientTransaction | None = None
    ) -> Table:
        """The table with the columns that writes are checked against. Raises TABLE_NOT_FOUND."""
        table = self._find(identity, check_table_name(name))
        if transaction is not None:
            table = transaction.table(table)
        if table is None:
            raise table_not_found(name)
        return table

    def _find(self, identity: Identity, name: str) -> Table | None:
        """The table as the catalog has it now."""
        return self._tables.look(identity.tenant_id, name)

    def _target(
        self,
        identity: Identity,
        name: str,
        offered: pa.Schema,
        mode: IngestMode,
        transaction: ClientTransaction | None,
    ) -> tuple[Table | None, Conformer | None]:
        """The table as a write begins, and how the rows fit in if they are only added to it."""
        if transaction is not None:
            # What is held is not tried again at COMMIT: it is checked against the newest columns.
            return transaction.table(self._tables.look(identity.tenant_id, name)), None
        if mode not in ADDING:
            return self._tables.look(identity.tenant_id, name), None
        return self._tables.fitted(identity.tenant_id, name, offered) or (None, None)

    def table_for(self, write: PendingWrite, *, now: bool) -> Table:
        """The table that a write goes to, created or given its new columns if need be.

        With `now` it is as the catalog has it; without, as it was within the last second.
        """
        now = now or write.mode not in ADDING or write.transaction is not None
        find = self._tables.look if now else self._tables.recall
        table = find(write.identity.tenant_id, write.table_name)
        if write.transaction is not None:
            table = write.transaction.table(table)
        if table is None:
            if write.mode is IngestMode.APPEND:
                raise table_not_found(write.table_name)
            table = self.definitions.create_table(
                write.identity,
                write.table_name,
                TableSchema(SchemaVersion(1), write.schema.arrow),
                creation_key=write.idempotency_key,
            )
            return table if table is not None else self.table_for(write, now=True)
        if write.mode is IngestMode.CREATE:
            _check_is_retry(table, write.idempotency_key)
        # Field ids count too: the staged files were written with those of `write.schema`.
        if write.mode is IngestMode.REPLACE and not same_columns(table.schema, write.schema):
            return self.definitions.propose_columns(write.identity, table, write.schema.arrow)
        return table

    def adopt(self, table: Table, version: SchemaVersion) -> None:
        """Check later writes against this version of the table's columns, or a newer one."""
        self.definitions.adopt(table, version)

    def adopt_fence(self, table: Table, conflict: Conflict) -> None:
        """Sent back by a fence: adopt its version, in case the replacement died before it could."""
        version = conflict.context.get("min_schema_version")
        if isinstance(version, int) and version != NO_VERSION:
            self.adopt(table, SchemaVersion(version))
        else:
            self._tables.forget(table.tenant_id, table.name)


def conform(target: StreamTarget, part: KeyedRows) -> pa.RecordBatch:
    """The rows of a part as its table stores them. Raises Invalid."""
    if part.operation is Operation.DELETE:
        return KeyConformer.between(part.rows.schema, target.table).conform(part.rows)
    return target.conformer.conform(part.rows)


def _operation(mode: IngestMode, *, deletes: bool) -> Operation:
    if mode is IngestMode.REPLACE:
        return Operation.OVERWRITE
    return Operation.DELETE if deletes else Operation.INSERT


def _span(identity: Identity, table_name: str) -> tracing.Span:
    return tracing.begin("ingest", tenant_id=identity.tenant_id, table=table_name)


def _at_once(_rows: int, _size_bytes: int) -> None:
    """The pace of rows that were waited with already."""


def _staging_limits(usual: StagingLimits, transaction: ClientTransaction | None) -> StagingLimits:
    """What a transaction holds in the catalog is bounded: beyond that its writes are staged."""
    if transaction is None:
        return usual
    left = min(usual.inline_max_bytes, transaction.inline_bytes_left)
    return replace(usual, inline_max_bytes=left)


def _target_schema(table: Table | None, offered: pa.Schema, mode: IngestMode) -> TableSchema:
    """The columns that the rows are checked against."""
    if table is None:
        return TableSchema.first(offered)
    key = as_written(table.primary_key, offered)
    if mode is IngestMode.REPLACE and set(key) <= set(offered.names):
        offered = not_null(offered, key)
    if mode is IngestMode.REPLACE and not table.schema.has_same_columns(offered):
        return table.schema.replaced_by(offered)
    return table.schema


def _check_is_retry(table: Table, idempotency_key: str | None) -> None:
    """`create` finds the table there: fine for the retry of the write that created it."""
    if idempotency_key is None or table.creation_key != idempotency_key:
        raise table_exists(table.name)
