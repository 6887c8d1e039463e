"""Who holds whom in a serving process: the constructor calls, in one place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from catalog.connection import Catalog
from catalog.tenants import sealing_secret
from command_line.catalog_access import open_bus
from command_line.data_directory import DataDirectory
from command_line.descriptors import use_all_descriptors
from command_line.doors import AUDIT_PATIENCE, Doors, open_http_door
from command_line.identities import open_tenancy
from command_line.live_lag import LiveLag
from command_line.ports import check_port_is_free
from command_line.quota_defaults import quota_defaults
from command_line.serving_metrics import ServingMetrics
from command_line.stores import open_object_store
from duckmesh import metrics
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.settings import FlightSettings, Settings
from duckmesh.telemetry import get_logger
from flight_server.server import DoorOptions, FlightDoor
from flight_server.tickets import Seal
from gateway.audit_buffer import AuditBuffer
from gateway.known_quotas import KnownQuotas
from gateway.limits import IngestLimits
from gateway.manifests import LocalFiles
from gateway.query_audit import QueryAudit
from gateway.reads import ReadLimits, Reads
from gateway.replicas import ReplicaOptions, Replicas
from gateway.sessions import ClientSessions
from gateway.sql_writes import SqlWrites
from gateway.staging import StagingLimits
from gateway.tenancy import Tenancy
from gateway.transactions import TransactionLimits, Transactions
from gateway.visibility import Visibility
from gateway.writes import Writes
from grpc_transport.server import CONNECTIONS_MAX, Tls
from object_store.file_cache import FileCache
from query_engine.engine import QueryEngine, WorkerSettings
from query_engine.stream import QueryLimits

_SEAL_PURPOSE: Final = "flight"
_WORKER_PATIENCE: Final = timedelta(seconds=10)
"""How long a start waits for its first query worker. It serves without one: writes need none."""

_log = get_logger(__name__)


@contextmanager
def open_doors(settings: Settings, catalog: Catalog) -> Iterator[Doors]:
    """A serving process's rooms, with its doors open in front of them.

    The catalog must be reachable and migrated. On leaving, the rooms behind the doors are closed;
    the doors themselves are their caller's to drain and close. Blocks until a query worker waits
    ready, for a few seconds at most. Raises Conflict when a port is taken.
    """
    with ExitStack() as rooms:
        bus = open_bus(catalog)
        rooms.callback(bus.close)
        store = open_object_store(settings)
        cache_root = settings.cache.directory or DataDirectory(settings.data_dir).cache
        cache = FileCache(
            cache_root,
            capacity_bytes=settings.cache.capacity_bytes,
            capacity_files=settings.cache.files_max,
        )
        rooms.callback(cache.close)
        spill = _spill_root(cache_root)
        engine = rooms.enter_context(_engine(settings, spill))
        quotas = KnownQuotas(catalog, quota_defaults(settings))
        audit = AuditBuffer(
            catalog,
            rows_max=settings.audit.buffer_rows,
            flush_interval=settings.audit.flush_interval,
        )
        rooms.callback(audit.close, AUDIT_PATIENCE)
        writes = Writes(
            catalog,
            bus,
            store,
            limits=_ingest_limits(settings),
            staging=StagingLimits(
                inline_max_bytes=settings.ingest.inline_max_bytes,
                staged_file_target_bytes=settings.ingest.staged_file_target_bytes,
                partitions_max=settings.ingest.partitions_max,
                # Half of it: what is accepted is named a moment later, and clocks differ.
                write_max=settings.maintenance.orphan_grace / 2,
            ),
            quotas=quotas,
        )
        visibility = Visibility(catalog, bus)
        reads = Reads(
            catalog,
            bus,
            store,
            engine=engine,
            cache=cache,
            visibility=visibility,
            limits=_read_limits(settings),
            quotas=quotas,
            audit=_query_audit(settings, audit),
            replicas=_replicas(settings, LocalFiles(catalog, store, cache), cache_root, rooms),
        )
        sql_writes = rooms.enter_context(SqlWrites(reads, writes, engine=engine))
        tenancy = open_tenancy(settings, catalog)
        transactions = Transactions(catalog, bus, store, limits=_transaction_limits(settings))
        http = open_http_door(
            settings,
            catalog=catalog,
            bus=bus,
            store=store,
            visibility=visibility,
            reads=reads,
            writes=writes,
            sql_writes=sql_writes,
            authenticator=tenancy,
            spool=spill,
        )
        try:
            flight = _flight_door(
                settings,
                catalog,
                reads=reads,
                writes=writes,
                sql_writes=sql_writes,
                transactions=transactions,
                keys=tenancy,
            )
        except BaseException:
            if http is not None:
                http.close()
            raise
        lag = LiveLag(catalog, bus, tenants_max=0)
        rooms.enter_context(metrics.LIVE.asking(lag.metrics))
        rooms.enter_context(metrics.LIVE.asking(ServingMetrics(reads, cache, flight).metrics))
        if not engine.await_ready(_WORKER_PATIENCE):
            _log.warning("no_worker_ready", seconds=_WORKER_PATIENCE.total_seconds())
        yield Doors(flight, http, audit)


def _query_audit(settings: Settings, buffer: AuditBuffer) -> QueryAudit:
    group = settings.audit
    return QueryAudit(
        buffer if group.queries else None,
        redact_literals=group.redact_literals,
        sql_max_chars=group.sql_max_chars,
    )


def _flight_door(
    settings: Settings,
    catalog: Catalog,
    *,
    reads: Reads,
    writes: Writes,
    sql_writes: SqlWrites,
    transactions: Transactions,
    keys: Tenancy,
) -> FlightDoor:
    auth = settings.auth
    options = DoorOptions(
        host=settings.flight.host,
        port=settings.flight.port,
        tls=_tls(settings.flight),
        calls_max=settings.flight.calls_max,
        # The other half is for the files of the cache, the catalog, the workers and the HTTP door.
        connections_max=min(CONNECTIONS_MAX, use_all_descriptors() // 2),
        stream_window=settings.ingest.stream_window,
        session_lifetime=auth.session_lifetime,
        ticket_lifetime=auth.ticket_lifetime,
    )
    seal = Seal(_seal_secret(settings, catalog))
    check_port_is_free(settings.flight)
    return FlightDoor(
        options,
        reads=reads,
        writes=writes,
        sessions=ClientSessions(catalog),
        sql_writes=sql_writes,
        transactions=transactions,
        authenticator=keys,
        seal=seal,
    )


def _seal_secret(settings: Settings, catalog: Catalog) -> bytes:
    """The operator's secret, else the catalog's: each is equal in every serving process."""
    if settings.auth.sealing_secret is not None:
        return settings.auth.sealing_secret.get_secret_value().encode()
    with catalog.connect() as connection:
        return sealing_secret(connection, _SEAL_PURPOSE)


def _tls(group: FlightSettings) -> Tls | None:
    if group.tls_certificate is None or group.tls_key is None:
        return None
    return Tls(
        certificate=_pem(group.tls_certificate, "flight.tls_certificate"),
        key=_pem(group.tls_key, "flight.tls_key"),
        client_ca=None if group.client_ca is None else _pem(group.client_ca, "flight.client_ca"),
    )


def _pem(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            f"the file that {setting} names cannot be read: correct it, or its permissions",
        ) from error


def _engine(settings: Settings, spill: Path) -> QueryEngine:
    query = settings.query
    return QueryEngine(
        threads=query.threads,
        memory_limit_bytes=query.memory_bytes,
        temp_directory=spill,
        batch_rows=query.batch_rows,
        temp_limit_bytes=query.spill_max_bytes,
        workers=WorkerSettings(
            workers=query.workers, idle=query.worker_idle, kill_grace=query.kill_grace
        ),
    )


def _replicas(
    settings: Settings, files: LocalFiles, cache_root: Path, rooms: ExitStack
) -> Replicas | None:
    query = settings.query
    if not query.replica:
        return None
    options = ReplicaOptions(
        capacity_bytes=query.replica_capacity_bytes, hot_queries=query.replica_after_queries
    )
    return rooms.enter_context(Replicas(files, cache_root, options))


def _spill_root(cache_root: Path) -> Path:
    """An empty directory beside the cache, whose lock this process holds: so it is ours too."""
    spill = cache_root.with_name(f"{cache_root.name}-spill")
    shutil.rmtree(spill, ignore_errors=True)  # What a killed process left.
    try:
        spill.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "the directory beside the cache cannot be written: name another cache.directory",
        ) from error
    return spill


def _ingest_limits(settings: Settings) -> IngestLimits:
    group = settings.ingest
    return IngestLimits(
        write_max_bytes=group.write_max_bytes,
        max_pending_events=group.max_pending_events,
        max_pending_bytes=group.max_pending_bytes,
    )


def _transaction_limits(settings: Settings) -> TransactionLimits:
    group = settings.transaction
    return TransactionLimits(writes_max=group.max_writes, inline_max_bytes=group.inline_max_bytes)


def _read_limits(settings: Settings) -> ReadLimits:
    group = settings.query
    return ReadLimits(
        consistency_timeout=group.consistency_timeout,
        max_consistency_timeout=group.max_consistency_timeout,
        query=QueryLimits(wall_time=group.wall_time, row_bytes=group.row_max_bytes),
        max_concurrent=group.max_concurrent,
        max_concurrent_per_tenant=group.max_concurrent_per_tenant,
        abreast=max(1, len(os.sched_getaffinity(0)) // group.threads),
        max_queued=group.max_queued,
        fetch_timeout=group.fetch_timeout,
    )
