"""The product's rooms wired together in one process, on a real Postgres and a directory store."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog import tenants
from catalog.connection import Catalog, Connection
from catalog.retention import Collected, Retention
from coordinator.collect import CollectOptions, Collector
from coordinator.compact import CompactionOptions, Compactor
from coordinator.compaction_choice import CompactionSizes
from coordinator.maintenance import Maintenance, MaintenanceOptions
from coordinator.materialize import MaterializeOptions, Materializer, Step
from duckmesh.identifiers import ConsumerId, SnapshotId, TransactionId
from gateway.identity import EVERY_ROLE, Identity
from gateway.ingest_modes import IngestMode
from gateway.limits import IngestLimits
from gateway.manifests import LocalFiles
from gateway.reads import ReadLimits, ReadPoint, Reads
from gateway.replicas import ReplicaOptions, Replicas
from gateway.sql_steps import Executed
from gateway.sql_writes import SqlWrites
from gateway.staging import StagingLimits
from gateway.transactions import TransactionLimits, Transactions
from gateway.visibility import Visibility
from gateway.writes import Writes
from ingest_bus.envelope import Receipt
from ingest_bus.postgres import PostgresIngestBus
from object_store.directory import DirectoryStore
from object_store.file_cache import FileCache
from object_store.port import ObjectStore
from query_engine.engine import QueryEngine, WorkerSettings

WORKERS = WorkerSettings(workers=int(os.environ.get("DUCKMESH_TESTS_WORKERS", "0")))
"""Queries run in this process, unless this many workers are asked for."""


class ShiftedCatalog(Catalog):
    """A catalog whose clock of leases a test can move."""

    offset = timedelta(0)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with super().connect() as connection:
            offset = f"{self.offset.total_seconds()} seconds"
            connection.execute("SELECT set_config('duckmesh.clock_offset', %s, false)", (offset,))
            yield connection


class Rooms:
    """One tenant's use cases, as a serving process and a coordinator have them."""

    def __init__(
        self,
        dsn: str,
        folder: Path,
        *,
        replica: ReplicaOptions | None = None,
        store: ObjectStore | None = None,
        **limits: int,
    ) -> None:
        self.dsn = dsn
        self.folder = folder
        self.catalog = ShiftedCatalog(dsn, pool_max=12)
        self.bus = PostgresIngestBus(self.catalog)
        self.store: ObjectStore = store or DirectoryStore(folder / "objects")
        self.engine = QueryEngine(
            threads=2, memory_limit_bytes=2**30, temp_directory=None, workers=WORKERS
        )
        cache_root = folder / "cache"
        self.cache = FileCache(cache_root, capacity_bytes=2**30)
        self.replicas = replica and Replicas(
            LocalFiles(self.catalog, self.store, self.cache), cache_root, replica
        )
        self.visibility = Visibility(self.catalog, self.bus)
        self.writes = Writes(
            self.catalog,
            self.bus,
            self.store,
            limits=IngestLimits(),
            staging=StagingLimits(inline_max_bytes=limits.get("inline_max_bytes", 2**20)),
        )
        self.reads = Reads(
            self.catalog,
            self.bus,
            self.store,
            engine=self.engine,
            cache=self.cache,
            visibility=self.visibility,
            limits=ReadLimits(),
            replicas=self.replicas,
        )
        self.sql_writes = SqlWrites(self.reads, self.writes, engine=self.engine)
        self.transactions = Transactions(
            self.catalog,
            self.bus,
            self.store,
            limits=TransactionLimits(
                writes_max=limits.get("writes_max", 10_000),
                inline_max_bytes=limits.get("transaction_inline_max_bytes", 16 * 2**20),
            ),
        )
        self.acme = self.identity("acme")

    def identity(self, tenant: str) -> Identity:
        with self.catalog.connect() as connection:
            known = tenants.ensure_tenant(connection, tenant, created_by="test")
        return Identity(known.tenant_id, known.name, "test", None, EVERY_ROLE)

    def materializer(
        self,
        name: str = "c1",
        *,
        step: Step = lambda _: None,
        lease: timedelta = timedelta(seconds=30),
        inline_file_max_bytes: int = 2**20,
        claim_limit: int = 5_000,
    ) -> Materializer:
        options = MaterializeOptions(
            ConsumerId(name),
            claim_limit=claim_limit,
            lease=lease,
            inline_file_max_bytes=inline_file_max_bytes,
            retry_delay=timedelta(0),
        )
        return Materializer(self.catalog, self.bus, self.store, options=options, step=step)

    def compactor(
        self,
        name: str = "m1",
        *,
        step: Step = lambda _: None,
        stop: threading.Event | None = None,
        target_bytes: int = 2**20,
        **options: Any,
    ) -> Compactor:
        """A compactor with small files; what it may hold, and how fast it goes, are options."""
        sizes = CompactionSizes(target_bytes=target_bytes, min_files=2, flush_files=2)
        return Compactor(
            self.catalog,
            self.store,
            options=CompactionOptions(holder=name, sizes=sizes, **options),
            stop=stop,
            step=step,
        )

    def collector(
        self,
        *,
        step: Step = lambda _: None,
        kept_for: timedelta = timedelta(days=7),
        kept_at_least: int = 1,
        **options: Any,
    ) -> Collector:
        """A collector that keeps one snapshot at least; ages are options."""
        retention = Retention(kept_for=kept_for, kept_at_least=kept_at_least)
        return Collector(
            self.catalog,
            self.bus,
            self.store,
            options=CollectOptions(retention=retention, **options),
            step=step,
        )

    def collect(self, collector: Collector | None = None, **options: Any) -> Collected:
        """One run over this tenant."""
        with self.catalog.connect() as connection:
            tenant = tenants.find_tenant(connection, self.acme.tenant)
        return (collector or self.collector()).collect(tenant, **options)

    def maintenance(self) -> Maintenance:
        """What keeps the storage of this tenant and all others in order."""
        options = MaintenanceOptions(compaction=CompactionOptions(holder="test"))
        return Maintenance(self.catalog, self.bus, self.store, options=options)

    def publish_all(self) -> None:
        """Make everything accepted so far visible."""
        materializer = self.materializer()
        while materializer.publish_next() is not None:
            pass

    def write(
        self,
        table: str,
        rows: pa.Table,
        *,
        mode: IngestMode = IngestMode.CREATE_APPEND,
        key: str | None = None,
        identity: Identity | None = None,
        transaction: TransactionId | None = None,
    ) -> Receipt:
        who = identity or self.acme
        pending = self.writes.begin(
            who,
            table,
            rows.schema,
            mode=mode,
            idempotency_key=key,
            transaction=transaction and self.transactions.find(who, transaction),
        )
        try:
            for batch in rows.to_batches():
                pending.append(batch)
        except BaseException:
            pending.abort()
            raise
        return pending.commit()

    def execute(self, sql: str, *rows: tuple[object, ...], **options: Any) -> Executed:
        """Run a statement that is no query, with these bound rows if there are any."""
        identity = options.pop("identity", None) or self.acme
        if rows:
            columns = {str(at): list(values) for at, values in enumerate(zip(*rows, strict=True))}
            options["parameters"] = pa.table(columns)
        return self.sql_writes.execute(identity, sql, **options)

    def query(self, sql: str, *, identity: Identity | None = None, **point: object) -> pa.Table:
        who = identity or self.acme
        snapshot = self.reads.pin(who, sql, ReadPoint(**point))
        return self.query_at(sql, snapshot.snapshot_id, identity=who)

    def query_at(
        self, sql: str, snapshot_id: SnapshotId, *, identity: Identity | None = None
    ) -> pa.Table:
        with self.reads.run(identity or self.acme, sql, snapshot_id) as answer:
            return answer.reader.read_all()

    def advance(self, span: timedelta) -> None:
        """Move the clock of leases, delays and ages."""
        self.catalog.offset += span

    def close(self) -> None:
        if self.replicas is not None:
            self.replicas.close()
        self.bus.close()
        self.sql_writes.close()
        self.engine.close()
        self.cache.close()
        self.catalog.close()


@contextmanager
def open_rooms(
    dsn: str,
    folder: Path,
    *,
    replica: ReplicaOptions | None = None,
    store: ObjectStore | None = None,
    **limits: int,
) -> Iterator[Rooms]:
    rooms = Rooms(dsn, folder, replica=replica, store=store, **limits)
    try:
        yield rooms
    finally:
        rooms.close()


def rows(*values: int, **columns: list[object]) -> pa.Table:
    """A small table with a column `v`, and more if given."""
    return pa.table({"v": pa.array(values, pa.int64()), **columns})
