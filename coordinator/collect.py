"""How storage is given back: expire -> wait -> delete -> forget, and orphans.

expire   snapshots past retention go, and files that no snapshot reads are marked: one transaction
         under the lock of the tenant's head, so nothing is decided beside a pin or a restore
wait     the safety age: a query that was answered with such a snapshot may still read its files
delete   the objects; died here or later: they are deleted again, and deleting what is gone succeeds
forget   the rows of the files
An orphan is an object that no file, event or transaction names: a compactor or a client died, or an
overwrite came first. It is found by listing, and spared while it is young: its writer may live.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final
from uuid import UUID

import structlog

from catalog import files, retention, tenants, transactions
from catalog.connection import Catalog
from catalog.retention import Collected, DueFile, Retention
from catalog.tenants import Tenant
from duckmesh import metrics
from duckmesh.errors import DuckMeshError
from duckmesh.identifiers import new_batch_id
from ingest_bus.envelope import StagedPayload
from ingest_bus.port import IngestBus
from object_store import keys
from object_store.port import ObjectStore

_LOG = structlog.get_logger()
_AT_ONCE: Final = 500
_DELETES_AT_ONCE: Final = 8

Step = Callable[[str], None]
"""Told the name of each step before it is taken. Fault tests die there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """What is kept, and for how long."""

    retention: Retention = field(default_factory=Retention)
    safety_age: timedelta = timedelta(hours=2)
    """How long a file is spared that no snapshot reads: longer than any query and ticket."""
    orphan_grace: timedelta = timedelta(days=1)
    """How long an object is spared that nothing names: longer than any write."""
    history: timedelta = timedelta(days=30)
    """How long runs of maintenance are remembered."""


class Collector:
    """Gives storage back, tenant by tenant. Used by one thread."""

    def __init__(
        self,
        catalog: Catalog,
        bus: IngestBus,
        store: ObjectStore,
        *,
        options: CollectOptions,
        stop: threading.Event | None = None,
        step: Step = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._store = store
        self._options = options
        self._stop = stop or threading.Event()
        self._step = step

    def turn(self, *, orphans: bool = False) -> None:
        """Collect of every tenant; one that fails is left to the next turn."""
        for tenant in self._tenants():
            if self._stop.is_set():
                return
            try:
                self.collect(tenant, orphans=orphans)
            except DuckMeshError as failure:
                _LOG.warning(
                    "collection_failed",
                    tenant_id=tenant.tenant_id,
                    error_code=failure.code.value,
                )
        self._forget_runs()

    def collect(self, tenant: Tenant, *, orphans: bool = True, dry_run: bool = False) -> Collected:
        """Expire, delete and forget what is due of one tenant; return what was, or would be, done.

        Repeatable after a death between any two steps. A run that did something leaves a row.
        Raises Unavailable.
        """
        with self._catalog.connect() as connection:
            started_at = retention.now(connection)
        done = self._planned(tenant) if dry_run else self._expired(tenant) + self._deleted(tenant)
        if orphans:
            done += self._orphans(tenant, started_at, dry_run=dry_run)
        if dry_run or done != Collected():
            with self._catalog.connect() as connection:
                retention.record_run(
                    connection,
                    new_batch_id(),
                    tenant.tenant_id,
                    done,
                    started_at=started_at,
                    dry_run=dry_run,
                )
        return done

    def _forget_runs(self) -> None:
        """As many as there are: each tenant that was collected of leaves one a turn."""
        forgotten = _AT_ONCE
        while forgotten == _AT_ONCE and not self._stop.is_set():
            with self._catalog.connect() as connection:
                forgotten = retention.forget_runs(
                    connection, older_than=self._options.history, limit=_AT_ONCE
                )

    def _tenants(self) -> list[Tenant]:
        with self._catalog.connect() as connection:
            return tenants.list_tenants(connection)

    # -- snapshots and their files

    def _planned(self, tenant: Tenant) -> Collected:
        with self._catalog.connect() as connection:
            planned = retention.plan(connection, tenant.tenant_id, self._options.retention)
        return Collected(planned.snapshots, planned.files, planned.file_bytes)

    def _expired(self, tenant: Tenant) -> Collected:
        expired = 0
        while not self._stop.is_set():
            with self._catalog.connect() as connection:
                done = retention.expire(
                    connection, tenant.tenant_id, self._options.retention, limit=_AT_ONCE
                )
            self._step("expired")
            expired += done.snapshots
            if max(done.snapshots, done.files) < _AT_ONCE:
                break
        return Collected(snapshots=expired)

    def _deleted(self, tenant: Tenant) -> Collected:
        total = Collected()
        while not self._stop.is_set():
            with self._catalog.connect() as connection:
                due = retention.due_files(
                    connection,
                    tenant.tenant_id,
                    safety_age=self._options.safety_age,
                    limit=_AT_ONCE,
                )
            if due:
                total += self._give_back(due)
            if len(due) < _AT_ONCE:
                break
        return total

    def _give_back(self, due: Sequence[DueFile]) -> Collected:
        doomed = {file.path for file in due if file.with_object and file.path is not None}
        self._step("found")
        self._delete(doomed)
        self._step("deleted")
        with self._catalog.connect() as connection:
            retention.forget_files(connection, [file.file_id for file in due])
        self._step("forgotten")
        return Collected(files=len(due), file_bytes=sum(file.size_bytes for file in due))

    def _delete(self, doomed: Collection[str]) -> None:
        with ThreadPoolExecutor(_DELETES_AT_ONCE, "collect") as pool:
            list(pool.map(self._store.delete, doomed))
        metrics.GC_FILES_DELETED.inc(len(doomed))

    # -- orphans

    def _orphans(self, tenant: Tenant, now: datetime, *, dry_run: bool) -> Collected:
        listed = self._old_objects(tenant, now - self._options.orphan_grace)
        found = 0
        while not self._stop.is_set() and (chunk := list(islice(listed, _AT_ONCE))):
            orphans = self._unnamed(tenant, chunk)
            if orphans and not dry_run:
                self._step("orphans")
                self._delete(orphans)
                _LOG.info("orphans_deleted", tenant_id=tenant.tenant_id, count=len(orphans))
            found += len(orphans)
        return Collected(orphans=found)

    def _old_objects(self, tenant: Tenant, oldest_spared: datetime) -> Iterator[str]:
        for listed in self._store.list(keys.tenant_prefix(tenant.name)):
            made_at = _made_at(listed.key)
            if made_at is not None and made_at < oldest_spared:
                yield listed.key

    def _unnamed(self, tenant: Tenant, listed: Sequence[str]) -> set[str]:
        """Those that nothing names. Asked in the direction in which a write goes, so that one
        which moves on meanwhile is seen where it was or where it is."""
        with self._catalog.connect() as connection:
            held = transactions.staged_payloads(connection, tenant.tenant_id)
        payloads = [StagedPayload.from_bytes(each) for each in held]
        payloads += self._bus.staged_payloads(tenant.tenant_id)
        named = {file.key for payload in payloads for file in payload.files}
        left = [key for key in listed if key not in named]
        with self._catalog.connect() as connection:
            return set(left) - files.known_paths(connection, left)


def _made_at(key: str) -> datetime | None:
    """When the file id in the key was drawn (UUIDv7, RFC 9562); None for a key that is not ours."""
    name = key.rpartition("/")[2].removeprefix("part-").removesuffix(".parquet")
    try:
        drawn = UUID(name)
    except ValueError:
        return None
    return datetime.fromtimestamp((drawn.int >> 80) / 1000, UTC) if drawn.version == 7 else None
