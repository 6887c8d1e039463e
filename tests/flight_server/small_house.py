"""The use cases behind the door, small: tables of Parquet files, snapshots in memory.

What the door is proved against here is its own business: the protocol. Real parts where they
exist (query engine, schemas, conforming); no bus and no catalog.
"""

# ruff: noqa: ARG002, PLR0917 - the signatures are those of the use cases.

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.table_schema import TableSchema
from duckmesh.errors import Conflict, ErrorCode, Invalid, NotFound, NotYetVisible
from flight_server.commands import IfTableExists, IfTableMissing
from flight_server.metadata import TableDescriptor
from flight_server.use_cases import Executed, Pinned, WriteReceipt
from gateway.conform import Conformer
from query_engine.engine import QueryEngine
from query_engine.relations import Relation, RelationSet
from query_engine.statements import StatementKind


@dataclass(frozen=True)
class SmallTable:
    schema: TableSchema
    files: tuple[Path, ...] = ()


@dataclass
class SmallHouse:
    """Writes, Reads, and the state of every tenant's tables at each snapshot."""

    directory: Path
    engine: QueryEngine
    visible: bool = True
    lock: threading.RLock = field(default_factory=threading.RLock)
    snapshots: list[dict[tuple[int, str], SmallTable]] = field(default_factory=lambda: [{}])
    keys: dict[tuple[str, str], tuple[int, WriteReceipt]] = field(default_factory=dict)
    begun: list["SmallWrite"] = field(default_factory=list)
    points: list = field(default_factory=list)
    gate: threading.Event | None = None
    """When set, a write is accepted only after it."""

    # ---- Writes

    def begin(self, identity, table, schema, *, if_missing, if_exists, idempotency_key):
        with self.lock:
            known = self.snapshots[-1].get((identity.tenant_id, table))
            if known is None and if_missing is IfTableMissing.FAIL:
                raise _no_table(table)
            if known is not None and if_exists is IfTableExists.FAIL:
                raise Conflict(ErrorCode.TABLE_EXISTS, f"table {table!r} exists", table=table)
            replacing = if_exists is IfTableExists.REPLACE
            base = None if known is None or replacing else known
            target = base.schema if base is not None else TableSchema.first(schema)
            conformer = Conformer.between(schema, target.arrow)
            write = SmallWrite(self, identity, table, target, conformer, base is None)
            write.key = idempotency_key
            self.begun.append(write)
            return write

    def stream(self, identity, table, schema):
        return SmallStream(self, identity, table, schema)

    def wait_until_visible(self, identity, token, *, timeout):
        if not self.visible:
            raise NotYetVisible(
                ErrorCode.CONSISTENCY_TIMEOUT,
                "accepted, not visible yet",
                requested_token=token,
                latest_token=0,
            )
        return len(self.snapshots) - 1

    def publish(self, write):
        with self.lock:
            if write.key is not None:
                seen = self.keys.get((write.table, write.key))
                if seen is not None and seen[0] != write.rows:
                    raise Conflict(ErrorCode.IDEMPOTENCY_CONFLICT, "the key has another payload")
                if seen is not None:
                    return replace(seen[1], duplicate=True)
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
            receipt = WriteReceipt(token, write.rows)
            if write.key is not None:
                self.keys[write.table, write.key] = (write.rows, receipt)
            return receipt

    # ---- Reads

    def is_query(self, sql):
        kind = self.engine.classify(sql).kind
        return kind in (StatementKind.QUERY, StatementKind.EXPLAIN)

    def pin(self, identity, sql, point):
        self.points.append(point)
        newest = len(self.snapshots) - 1
        if point.snapshot_id is not None:
            if point.snapshot_id > newest:
                raise NotFound(ErrorCode.SNAPSHOT_NOT_FOUND, "there is no such snapshot")
            return Pinned(point.snapshot_id, point.snapshot_id)
        if point.min_token is not None and point.min_token > newest:
            raise Invalid(ErrorCode.VISIBILITY_TOKEN_INVALID, "it was never issued")
        return Pinned(newest, newest)

    def describe(self, identity, sql, pinned):
        return self.engine.describe(sql, self._relations(identity, pinned.snapshot_id))

    def run(self, identity, sql, snapshot_id, *, parameters, last_token, interruption):
        return self.engine.run(
            sql,
            self._relations(identity, snapshot_id),
            parameters=parameters,
            session_values={"last_visibility_token": last_token, "duckmesh_last_token": last_token},
            interruption=interruption,
        )

    def execute(self, identity, sql, *, idempotency_key):
        name = sql.split()[2]
        with self.lock:
            tables = dict(self.snapshots[-1])
            if tables.pop((identity.tenant_id, name), None) is None:
                raise _no_table(name)
            self.snapshots.append(tables)
            return Executed(None, len(self.snapshots) - 1)

    def tables(self, identity):
        return [
            TableDescriptor(name, table.schema.arrow)
            for (tenant_id, name), table in self.snapshots[-1].items()
            if tenant_id == identity.tenant_id
        ]

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


class SmallWrite:
    def __init__(self, house, identity, table, target, conformer, anew):
        self.house, self.identity, self.table = house, identity, table
        self.target, self.conformer, self.anew = target, conformer, anew
        self.key = None
        self.batches = []
        self.rows = 0
        self.ended = None

    def add(self, batch):
        self.batches.append(self.conformer.conform(batch))
        self.rows += batch.num_rows

    def accept(self):
        self.ended = "accepted"
        return self.house.publish(self)

    def abort(self):
        self.ended = "aborted"


class SmallStream:
    def __init__(self, house, identity, table, schema):
        self._arguments = (house, identity, table, schema)
        self._begin()

    def _begin(self, key=None):
        house, identity, table, schema = self._arguments
        return house.begin(
            identity,
            table,
            schema,
            if_missing=IfTableMissing.FAIL,
            if_exists=IfTableExists.APPEND,
            idempotency_key=key,
        )

    def submit(self, batch, *, idempotency_key):
        write = self._begin(idempotency_key)
        write.add(batch)
        future = Future()
        threading.Thread(target=self._settle, args=(write, future), daemon=True).start()
        return future

    def _settle(self, write, future):
        gate = write.house.gate
        if gate is not None and not gate.wait(20):
            future.set_exception(TimeoutError())
            return
        try:
            future.set_result(write.accept())
        except Exception as error:  # noqa: BLE001 - handed on
            future.set_exception(error)


def _no_table(name):
    return NotFound(ErrorCode.TABLE_NOT_FOUND, f"there is no table {name!r}", table=name)
