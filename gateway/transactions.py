"""Transactions: writes held durable in the catalog, accepted together by one publish at COMMIT.

begin    died after it: nothing is held; idleness ends it
hold     the write is durable, and nobody's but the transaction's
COMMIT   one transaction of the catalog: the group is published, the state becomes `committed`.
         Died before it: the transaction is open as before. Died after it, before the answer: a
         repeated COMMIT finds the state, and answers with the same receipt
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from catalog import tables, transactions
from catalog.connection import Catalog, Connection
from catalog.tables import Table
from catalog.transactions import HeldWrite, TransactionRecord, TransactionState
from duckmesh.errors import (
    Conflict,
    ErrorCode,
    Invalid,
    NotFound,
    NotSupported,
    Unavailable,
)
from duckmesh.identifiers import (
    EventId,
    SchemaVersion,
    SessionId,
    SnapshotId,
    TableId,
    TransactionId,
    new_transaction_id,
)
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from gateway.counts import WriteCount
from gateway.identity import Identity
from ingest_bus.envelope import (
    Envelope,
    InlinePayload,
    Operation,
    Receipt,
    StagedPayload,
    WritingSession,
)
from ingest_bus.port import IngestBus
from object_store.port import ObjectStore

_TOUCH_EVERY: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class TransactionLimits:
    """How much one transaction holds. Beyond `inline_max_bytes` its writes are staged."""

    writes_max: int = 10_000
    inline_max_bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Committed:
    """What a COMMIT accepted. The token is its last write's; None when it wrote nothing."""

    visibility_token: VisibilityToken | None
    write_count: int
    row_count: int


_NOTHING: Final = Committed(None, 0, 0)
_USUAL_LIMITS: Final = TransactionLimits()


class Transactions:
    """Begins, finds and ends transactions, in any serving process. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        bus: IngestBus,
        store: ObjectStore,
        *,
        limits: TransactionLimits = _USUAL_LIMITS,
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._store = store
        self.limits = limits

    def begin(self, identity: Identity, session_id: SessionId | None) -> TransactionId:
        """Open a transaction; in a session it is the one that its statements are part of."""
        transaction_id = new_transaction_id()
        with self._catalog.connect() as connection:
            transactions.begin(
                connection,
                transaction_id,
                tenant_id=identity.tenant_id,
                principal=identity.principal,
                session_id=session_id,
            )
        return transaction_id

    def find(self, identity: Identity, transaction_id: TransactionId) -> "ClientTransaction | None":
        """One of the caller's own transactions, in whatever state; None for anything else."""
        with self._catalog.connect() as connection:
            record = transactions.find(connection, transaction_id)
            if record is None or not _is_of(identity, record):
                return None
            if record.is_open:
                transactions.touch(connection, transaction_id, every=_TOUCH_EVERY)
        return ClientTransaction(self, identity, record)

    def commit(self, identity: Identity, transaction_id: TransactionId) -> Committed:
        """Accept everything that the transaction holds, as one: all is visible, or nothing.

        Exactly once: repeated, also after an answer that was lost, it returns the same. Of a
        transaction that was rolled back on demand it does nothing. Raises Conflict when a held
        write cannot stand any more (SCHEMA_INCOMPATIBLE, IDEMPOTENCY_CONFLICT): then the
        transaction is rolled back. From then on, and after a roll-back for idleness, it raises
        TRANSACTION_ENDED until the client rolls back. Raises NotFound, Unavailable.
        """
        unused: list[bytes] = []
        receipts: list[Receipt] = []
        count = WriteCount()
        try:
            with self._catalog.connect() as connection, connection.transaction():
                record = transactions.lock(connection, transaction_id)
                if record is None or not _is_of(identity, record):
                    raise no_such_transaction()
                if record.state is TransactionState.COMMITTED:
                    return Committed(record.last_token, record.write_count, record.row_count)
                if record.state is TransactionState.ROLLED_BACK:
                    return _NOTHING
                if record.state is TransactionState.OPEN:
                    done, receipts, unused = self._accept(connection, identity, record)
        except Conflict as conflict:
            count.refused(conflict)
            # Like a COMMIT that breaks a constraint: nothing of it stands.
            self._end_unasked(transaction_id)
            raise
        if record.is_open:
            if receipts:
                count.accepted(receipts)
            self._remove(unused)
            return done
        # Each time, until a ROLLBACK says that the client knows: some drivers go on without a
        # transaction after a COMMIT that failed, and what they send must not be accepted alone.
        raise transaction_ended()

    def _accept(
        self, connection: Connection, identity: Identity, record: TransactionRecord
    ) -> tuple[Committed, list[Receipt], list[bytes]]:
        """THE COMMIT POINT, when the caller's transaction commits.

        The staged payloads of writes that were duplicates come with it: nothing names them.
        """
        held = transactions.writes(connection, record.transaction_id)
        receipts: list[Receipt] = []
        if held:
            if not self._bus.joins(connection):
                raise NotSupported(
                    ErrorCode.NOT_SUPPORTED,
                    "this bus takes part in no transaction: connect with autocommit on",
                )
            session = _session_of(record)
            envelopes = [_envelope_of(identity, write, session) for write in held]
            receipts = self._bus.publish(envelopes, as_one=True, within=connection)
            _adopt(connection, identity, list(zip(held, receipts, strict=True)))
        last = max((receipt.visibility_token for receipt in receipts), default=None)
        transactions.commit(connection, record, last)
        unused = [
            write.payload
            for write, receipt in zip(held, receipts, strict=True)
            if not receipt.inserted and write.payload_kind == "staged"
        ]
        return Committed(last, record.write_count, record.row_count), receipts, unused

    def _end_unasked(self, transaction_id: TransactionId) -> None:
        """Roll back what the client would have kept; its next statements are told so."""
        with self._catalog.connect() as connection, connection.transaction():
            record = transactions.lock(connection, transaction_id)
            if record is None or not record.is_open:
                return
            staged = transactions.roll_back(connection, record, expired=True)
        self._remove(staged)

    def roll_back(self, identity: Identity, transaction_id: TransactionId) -> None:
        """Drop what the transaction holds. Of one that has ended, or that is unknown: nothing."""
        with self._catalog.connect() as connection, connection.transaction():
            record = transactions.lock(connection, transaction_id)
            if record is None or not _is_of(identity, record):
                return
            if record.state not in (TransactionState.OPEN, TransactionState.EXPIRED):
                return
            staged = transactions.roll_back(connection, record)
        # Died before: orphans, which are collected later.
        self._remove(staged)

    def pin(self, record: TransactionRecord, snapshot_id: SnapshotId) -> SnapshotId:
        """The snapshot that the transaction's queries read: this one, if it has none yet."""
        with self._catalog.connect() as connection:
            pinned = transactions.pin(connection, record.transaction_id, snapshot_id)
        if pinned is None:
            raise transaction_ended()
        return pinned

    def hold(self, record: TransactionRecord, envelope: Envelope) -> Receipt:
        """Keep a write for COMMIT; durable on return. Its token comes then: the receipt has none.

        An overwrite drops the writes held for its table. Raises Conflict (TRANSACTION_ENDED),
        Invalid (PAYLOAD_TOO_LARGE) when the transaction holds as many writes as it may.
        """
        write = _held(envelope)
        staged: list[bytes] = []
        with self._catalog.connect() as connection, connection.transaction():
            if envelope.operation is Operation.OVERWRITE:
                transactions.lock(connection, record.transaction_id)
                staged = transactions.supersede(
                    connection, record.transaction_id, envelope.table_id
                )
            held = transactions.hold(
                connection, record.transaction_id, write, writes_max=self.limits.writes_max
            )
            if not held:
                raise self._not_held(transactions.lock(connection, record.transaction_id))
        self._remove(staged)
        return Receipt(envelope.event_id, BEFORE_ALL, envelope.row_count)

    def _not_held(self, record: TransactionRecord | None) -> Conflict | Invalid:
        if record is None or not record.is_open:
            return transaction_ended()
        return Invalid(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"one transaction holds at most {self.limits.writes_max} writes: commit, or send more "
            "rows in each",
            limit_writes=self.limits.writes_max,
        )

    def table_in(self, record: TransactionRecord, table: Table) -> Table:
        """The table with the columns that the transaction has given it."""
        with self._catalog.connect() as connection:
            version = transactions.replaced_version(
                connection, record.transaction_id, table.table_id
            )
            if version is None or version <= table.schema.version:
                return table
            known = tables.schema_versions(connection, table.table_id, [SchemaVersion(version)])
        return replace(table, schema=known[SchemaVersion(version)])

    def held_operations(self, record: TransactionRecord, table: Table) -> frozenset[Operation]:
        """What the transaction's writes to the table do. No query sees them before COMMIT."""
        with self._catalog.connect() as connection:
            held = transactions.held_operations(connection, record.transaction_id, table.table_id)
        return frozenset(map(Operation, held))

    def _remove(self, staged: Iterable[bytes]) -> None:
        for payload in staged:
            for file in StagedPayload.from_bytes(payload).files:
                with contextlib.suppress(Unavailable):
                    self._store.delete(file.key)


@dataclass(frozen=True, slots=True)
class ClientTransaction:
    """One transaction as a call found it."""

    owner: Transactions
    identity: Identity
    record: TransactionRecord

    @property
    def is_open(self) -> bool:
        return self.record.is_open

    @property
    def has_expired(self) -> bool:
        return self.record.state is TransactionState.EXPIRED

    @property
    def inline_bytes_left(self) -> int:
        """How many more bytes may lie in the catalog; later writes are staged."""
        return max(0, self.owner.limits.inline_max_bytes - self.record.inline_bytes)

    def pin(self, snapshot_id: SnapshotId) -> SnapshotId:
        return self.owner.pin(self.record, snapshot_id)

    def hold(self, envelope: Envelope) -> Receipt:
        return self.owner.hold(self.record, envelope)

    def held_operations(self, table: Table) -> frozenset[Operation]:
        return self.owner.held_operations(self.record, table)

    def follow(self, connection: Connection, table: Table, version: SchemaVersion) -> None:
        """Let what is held for the table stand at this version, which has the same columns.

        Joins the caller's transaction. A held replacement by other columns is left behind: COMMIT
        refuses it.
        """
        transactions.restamp(
            connection,
            self.record.transaction_id,
            table.table_id,
            former=table.schema.version,
            version=version,
        )

    def table(self, table: Table | None) -> Table | None:
        """The table with the columns that the transaction gives it."""
        return None if table is None else self.owner.table_in(self.record, table)


def _adopt(
    connection: Connection, identity: Identity, accepted: Sequence[tuple[HeldWrite, Receipt]]
) -> None:
    """Check later writes against the columns that the transaction's replacements bring.

    Raises Conflict (SCHEMA_INCOMPATIBLE) when a replacement is the repeat of one that was accepted
    before, and other writes are of the columns that it would have brought: no query has those.
    """
    newest: dict[TableId, SchemaVersion] = {}
    for write, receipt in accepted:
        if write.raises_fence:
            version = receipt.schema_version or SchemaVersion(write.schema_version)
            now = tables.adopt_schema_version(
                connection, identity.tenant_id, write.table_id, version
            )
            newest[write.table_id] = version if now is None else now
    for write, receipt in accepted:
        known = newest.get(write.table_id)
        if receipt.inserted and known is not None and write.schema_version > known:
            raise Conflict(
                ErrorCode.SCHEMA_INCOMPATIBLE,
                "a replacement of the transaction was accepted before, by its idempotency key, and "
                "other rows are of the columns that it was to bring again: leave it out",
            )


def transaction_ended() -> Conflict:
    return Conflict(
        ErrorCode.TRANSACTION_ENDED,
        "the transaction was rolled back, for its COMMIT was refused or nothing was said in it for "
        "too long: send ROLLBACK and begin anew, or connect again",
    )


def no_such_transaction() -> NotFound:
    return NotFound(
        ErrorCode.NOT_FOUND, "there is no such transaction of yours: begin one, or leave it out"
    )


def _is_of(identity: Identity, record: TransactionRecord) -> bool:
    return (record.tenant_id, record.principal) == (identity.tenant_id, identity.principal)


def _session_of(record: TransactionRecord) -> WritingSession | None:
    if record.session_id is None:
        return None
    return WritingSession(record.session_id, record.principal)


def _held(envelope: Envelope) -> HeldWrite:
    payload = envelope.payload
    inline = isinstance(payload, InlinePayload)
    return HeldWrite(
        event_id=envelope.event_id,
        table_id=envelope.table_id,
        schema_version=envelope.schema_version,
        operation=envelope.operation.value,
        idempotency_key=envelope.idempotency_key,
        payload_hash=envelope.payload_hash,
        payload_kind="inline" if inline else "staged",
        payload=payload.content if isinstance(payload, InlinePayload) else payload.to_bytes(),
        row_count=envelope.row_count,
        byte_count=envelope.byte_count,
        raises_fence=envelope.raises_fence,
        min_event_time=envelope.min_event_time,
        max_event_time=envelope.max_event_time,
        trace_id=envelope.trace_id,
    )


def _envelope_of(identity: Identity, write: HeldWrite, session: WritingSession | None) -> Envelope:
    content = bytes(write.payload)
    return Envelope(
        event_id=EventId(write.event_id),
        tenant_id=identity.tenant_id,
        table_id=write.table_id,
        schema_version=SchemaVersion(write.schema_version),
        payload=(
            InlinePayload(content)
            if write.payload_kind == "inline"
            else StagedPayload.from_bytes(content)
        ),
        row_count=write.row_count,
        byte_count=write.byte_count,
        operation=Operation(write.operation),
        idempotency_key=write.idempotency_key,
        payload_hash=None if write.payload_hash is None else bytes(write.payload_hash),
        raises_fence=write.raises_fence,
        min_event_time=write.min_event_time,
        max_event_time=write.max_event_time,
        trace_id=write.trace_id,
        session=session,
    )
