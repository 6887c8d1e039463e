"""The use cases behind the door, small: tables of Parquet files, snapshots in memory.

What the door is proved against here is its own business: the protocol. Real parts where they
exist (query engine, schemas, conforming); no bus and no catalog, so that a test can hold a write
back, count the calls, and break off between them. test_whole_service.py proves the door
over the gateway.
"""

# ruff: noqa: ARG002, PLR0917 - the signatures are those of the gateway.

import contextlib
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.sessions import Found, SessionRecord
from catalog.snapshots import Snapshot
from catalog.table_schema import TableSchema
from catalog.transactions import TransactionRecord, TransactionState
from duckmesh.errors import Conflict, ErrorCode, Invalid, NotFound, NotYetVisible
from duckmesh.identifiers import new_event_id, new_transaction_id
from gateway.conform import Conformer
from gateway.ingest_modes import IngestMode
from gateway.open_answers import Answer, OpenAnswers
from gateway.reads import DescribedTable
from gateway.sql_steps import Executed
from gateway.transactions import ClientTransaction, Committed
from gateway.turns import TenantTurns, Turns
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt
from object_store.file_cache import PinnedFiles
from query_engine.engine import QueryEngine
from query_engine.relations import Relation, RelationSet
from query_engine.statements import StatementKind
from query_engine.stream import QueryLimits


@dataclass(frozen=True)
class SmallTable:
    schema: TableSchema
    files: tuple[Path, ...] = ()


class SmallSessions:
    """The records of sessions, in memory."""

    def __init__(self):
        self.records = {}

    def find(self, identity, session_id):
        return Found(self.records.get(session_id), None)

    def keep_alive(self, session_id):
        pass

    def change_options(self, identity, session_id, options):
        known = self.records.get(session_id)
        kept = {} if known is None else dict(known.options)
        kept |= {name: value for name, value in options.items() if value is not None}
        for name in [name for name, value in options.items() if value is None]:
            kept.pop(name, None)
        self.records[session_id] = SessionRecord(
            session_id,
            identity.tenant_id,
            identity.principal,
            0 if known is None else known.last_token,
            kept,
        )

    def close(self, identity, session_id):
        pass

    def note(self, write, token):
        if write.session is not None:
            session_id, tenant_id = write.session.session_id, write.identity.tenant_id
            known = self.records.get(session_id)
            self.records[session_id] = SessionRecord(
                session_id,
                tenant_id,
                write.session.principal,
                max(token, 0 if known is None else known.last_token),
            )


class SmallTransactions:
    """Transactions that hold nothing: what they are is proved over the gateway."""

    def begin(self, identity, session_id):
        return new_transaction_id()

    def find(self, identity, transaction_id):
        record = TransactionRecord(
            transaction_id,
            identity.tenant_id,
            identity.principal,
            None,
            TransactionState.OPEN,
            *(None, 0, 0, 0, None),
        )
        return ClientTransaction(self, identity, record)

    def pin(self, record, snapshot_id):
        return snapshot_id

    def commit(self, identity, transaction_id):
        return Committed(None, 0, 0)

    def roll_back(self, identity, transaction_id):
        pass


@dataclass
class SmallHouse:
    """Writes, Reads, and the state of every tenant's tables at each snapshot."""

    directory: Path
    engine: QueryEngine
    visible: bool = True
    lock: threading.RLock = field(default_factory=threading.RLock)
    snapshots: list[dict[tuple[int, str], SmallTable]] = field(default_factory=lambda: [{}])
    keys: dict[tuple[str, str], tuple[int, Receipt]] = field(default_factory=dict)
    begun: list["SmallWrite"] = field(default_factory=list)
    points: list = field(default_factory=list)
    limits: QueryLimits = field(default_factory=QueryLimits)
    pins: list[str] = field(default_factory=list)
    all_turns: Turns = field(
        default_factory=lambda: Turns(running=4, waiting=8, patience=timedelta(seconds=5))
    )
    open_answers: OpenAnswers = field(default_factory=lambda: OpenAnswers(timedelta(seconds=60)))
    sessions: SmallSessions = field(default_factory=SmallSessions)
    transactions: SmallTransactions = field(default_factory=SmallTransactions)
    gate: threading.Event | None = None
    """When set, a batch of a stream is accepted only after it."""

    # ---- Writes

    @property
    def turns(self) -> TenantTurns:
        return self.all_turns.of("x")

    def begin(
        self,
        identity,
        table,
        offered,
        *,
        mode,
        idempotency_key=None,
        trace_id=None,
        session=None,
        transaction=None,
        deletes=False,
        stop=None,
    ):
        assert not deletes, "no table of this house has a primary key"
        with self.lock:
            known = self.snapshots[-1].get((identity.tenant_id, table))
            if known is None and mode is IngestMode.APPEND:
                raise _no_table(table)
            if known is not None and mode is IngestMode.CREATE:
                raise Conflict(ErrorCode.TABLE_EXISTS, f"table {table!r} exists", table=table)
            base = None if mode is IngestMode.REPLACE else known
            target = base.schema if base is not None else TableSchema.first(offered)
            conformer = Conformer.between(offered, target.arrow)
            write = SmallWrite(self, identity, table, target, conformer, base is None)
            write.key = idempotency_key
            write.session = session
            self.begun.append(write)
            return write

    @property
    def quick(self) -> "NothingAtHand":
        return NothingAtHand()

    def open_stream(self, identity, table, offered):
        self.begin(identity, table, offered, mode=IngestMode.APPEND)
        return (table, offered)

    def append_batch(
        self,
        identity,
        target,
        batch,
        *,
        idempotency_key,
        trace_id=None,
        session=None,
        at_once=False,
        stop=None,
    ):
        table, offered = target
        write = self.begin(
            identity,
            table,
            offered,
            mode=IngestMode.APPEND,
            idempotency_key=idempotency_key,
            session=session,
        )
        write.append(batch)
        acceptance = Acceptance()
        threading.Thread(target=self._settle, args=(write, acceptance), daemon=True).start()
        return acceptance

    def _settle(self, write, acceptance):
        if self.gate is not None and not self.gate.wait(20):
            acceptance.fail(TimeoutError())
            return
        try:
            acceptance.answer([write.commit()])
        except Exception as error:  # noqa: BLE001 - handed on
            acceptance.fail(error)

    def publish(self, write):
        with self.lock:
            if write.key is not None:
                seen = self.keys.get((write.table, write.key))
                if seen is not None and seen[0] != write.rows:
                    raise Conflict(ErrorCode.IDEMPOTENCY_CONFLICT, "the key has another payload")
                if seen is not None:
                    self.sessions.note(write, seen[1].visibility_token)
                    return replace(seen[1], inserted=False)
            place = (write.identity.tenant_id, write.table)
            before = self.snapshots[-1].get(place)
            token = len(self.snapshots)
            path = self.directory / f"{token}.parquet"
            batches = [batch.cast(write.target.arrow) for batch in write.batches]
            pq.write_table(pa.Table.from_batches(batches, write.target.arrow), path)
            files = () if before is None or write.anew else before.files
            self.snapshots.append(
                self.snapshots[-1] | {place: SmallTable(write.target, (*files, path))}
            )
            receipt = Receipt(new_event_id(), token, write.rows)
            self.sessions.note(write, token)
            if write.key is not None:
                self.keys[write.table, write.key] = (write.rows, receipt)
            return receipt

    # ---- Reads

    def is_query(self, identity, sql):
        kind = self.engine.classify(sql).kind
        return kind in (StatementKind.QUERY, StatementKind.EXPLAIN)

    def pin(self, identity, sql, point, *, stop=None, newest=None):
        self.points.append(point)
        newest = len(self.snapshots) - 1
        if point.snapshot_id is not None:
            if point.snapshot_id > newest:
                raise NotFound(ErrorCode.SNAPSHOT_NOT_FOUND, "there is no such snapshot")
            return self._snapshot(identity, point.snapshot_id)
        if point.min_token is not None and point.min_token > newest:
            raise Invalid(ErrorCode.VISIBILITY_TOKEN_INVALID, "it was never issued")
        return self._snapshot(identity, newest)

    def wait_until_visible(self, identity, token, *, timeout, stop=None):
        if not self.visible:
            raise NotYetVisible(
                ErrorCode.CONSISTENCY_TIMEOUT,
                "accepted, not visible yet",
                requested_token=token,
                latest_token=0,
            )
        return self._snapshot(identity, len(self.snapshots) - 1)

    def settled(self, identity, sql):
        return sql

    def describe(self, identity, sql, snapshot_id, *, stop=None):
        return self.engine.describe(sql, self._relations(identity, snapshot_id))

    def run(
        self, identity, sql, snapshot_id, *, parameters, last_token, asked_token=None, interruption
    ):
        with contextlib.ExitStack() as undo:
            self.turns.take(interruption)
            undo.callback(self.turns.give_back)
            running = self.engine.run(
                sql,
                self._relations(identity, snapshot_id),
                parameters=parameters,
                session_values={
                    "last_visibility_token": last_token,
                    "duckmesh_last_token": last_token,
                },
                limits=self.limits,
                interruption=interruption,
            )
            undo.pop_all()
        self.pins.append(sql)
        pinned = PinnedFiles((), self.pins.pop)
        return Answer(running, pinned, self.turns, stop=interruption, among=self.open_answers)

    def parameters(self, identity, sql, **options):
        return pa.schema([])

    def changes_rows(self, sql):
        return False

    def execute(self, identity, sql, **options):
        name = sql.split()[2]
        with self.lock:
            tables = dict(self.snapshots[-1])
            if tables.pop((identity.tenant_id, name), None) is None:
                raise _no_table(name)
            self.snapshots.append(tables)
            return Executed(None, len(self.snapshots) - 1)

    def tables(self, identity):
        return [
            DescribedTable(name, table.schema.arrow, None)
            for (tenant_id, name), table in self.snapshots[-1].items()
            if tenant_id == identity.tenant_id
        ]

    def _snapshot(self, identity, number):
        return Snapshot(number, identity.tenant_id, datetime.now(UTC), number)

    def _relations(self, identity, snapshot_id):
        relations = tuple(
            Relation(name, table.schema.arrow, table.files)
            for (tenant_id, name), table in self.snapshots[snapshot_id].items()
            if tenant_id == identity.tenant_id
        )
        return RelationSet(identity.tenant, snapshot_id, relations, (self.directory,))

    def rows_of(self, tenant_id, name):
        table = self.snapshots[-1].get((tenant_id, name))
        return None if table is None else sum(pq.read_metadata(f).num_rows for f in table.files)


class NothingAtHand:
    """Memory that knows no table: every stream goes to a thread."""

    def target_for(self, identity, table_name, offered):
        return None


class SmallWrite:
    def __init__(self, house, identity, table, target, conformer, anew):
        self.house, self.identity, self.table = house, identity, table
        self.target, self.conformer, self.anew = target, conformer, anew
        self.key = None
        self.session = None
        self.batches = []
        self.rows = 0
        self.ended = None

    def append(self, batch):
        self.batches.append(self.conformer.conform(batch))
        self.rows += batch.num_rows

    def commit(self):
        self.ended = "committed"
        return self.house.publish(self)

    def abort(self):
        self.ended = "aborted"


def _no_table(name):
    return NotFound(ErrorCode.TABLE_NOT_FOUND, f"there is no table {name!r}", table=name)
