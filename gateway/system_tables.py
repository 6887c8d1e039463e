"""The schema `duckmesh_system`: what a tenant may know about itself, as small tables."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Final

import pyarrow as pa

from catalog import files, pins, snapshots
from catalog.connection import Catalog
from catalog.files import DataFile
from catalog.tables import TableAt
from data_files.partitions import partition_text, spec_texts
from duckmesh.quotas import NO_QUOTAS, Quotas
from duckmesh.tokens import BEFORE_ALL
from gateway import audit_tables
from gateway.identity import Identity, Role
from gateway.manifests import Manifest
from gateway.sessions import ClientSessions
from gateway.tenant_quotas import TenantQuotas
from ingest_bus.envelope import PendingTable
from ingest_bus.port import IngestBus
from query_engine.relations import SYSTEM_SCHEMA, TableRelation

RECEIPTS_SHOWN: Final = 100_000
SNAPSHOTS_SHOWN: Final = 10_000

_MOMENT: Final = pa.timestamp("us", tz="UTC")
_RECEIPTS: Final = pa.schema(
    [
        ("idempotency_key", pa.string()),
        ("visibility_token", pa.int64()),
        ("table_name", pa.string()),
        ("row_count", pa.int64()),
        ("state", pa.string()),
        ("accepted_at", _MOMENT),
        ("failure_reason", pa.string()),
    ]
)
_SNAPSHOTS: Final = pa.schema(
    [
        ("snapshot_id", pa.int64()),
        ("created_at", _MOMENT),
        ("max_visibility_token", pa.int64()),
        ("operation", pa.string()),
        ("created_by", pa.string()),
    ]
)
_TABLES: Final = pa.schema(
    [
        ("table_name", pa.string()),
        ("schema_version", pa.int32()),
        ("row_count", pa.int64()),
        ("file_count", pa.int64()),
        ("size_bytes", pa.int64()),
        ("max_visibility_token", pa.int64()),
        ("partition_spec", pa.string()),
    ]
)
_DATA_FILES: Final = pa.schema(
    [
        ("table_name", pa.string()),
        ("file_id", pa.string()),
        ("inline", pa.bool_()),
        ("row_count", pa.int64()),
        ("size_bytes", pa.int64()),
        ("min_event_time", _MOMENT),
        ("max_event_time", _MOMENT),
        ("min_visibility_token", pa.int64()),
        ("max_visibility_token", pa.int64()),
        ("begin_snapshot", pa.int64()),
        ("delete_count", pa.int64()),
        # `partition` is a word of SQL.
        ("file_partition", pa.string()),
    ]
)


_SESSIONS: Final = pa.schema(
    [
        ("session_id", pa.string()),
        ("principal", pa.string()),
        ("last_visibility_token", pa.int64()),
        ("options", pa.string()),
        ("transaction_id", pa.string()),
        ("opened_at", _MOMENT),
        ("last_seen", _MOMENT),
    ]
)
_LAG: Final = pa.schema(
    [
        ("table_name", pa.string()),
        ("last_visibility_token", pa.int64()),
        ("max_visibility_token", pa.int64()),
        ("token_lag", pa.int64()),
        ("pending_events", pa.int64()),
        ("pending_bytes", pa.int64()),
        ("oldest_pending_ms", pa.int64()),
        ("snapshot_id", pa.int64()),
    ]
)
_QUOTAS: Final = pa.schema(
    [
        ("quota", pa.string()),
        # `limit` is a word of SQL.
        ("quota_limit", pa.int64()),
        ("used", pa.int64()),
        ("is_own", pa.bool_()),
    ]
)
_PINS: Final = pa.schema(
    [
        ("snapshot_id", pa.int64()),
        ("tag", pa.string()),
        ("created_by", pa.string()),
        ("created_at", _MOMENT),
        ("expires_at", _MOMENT),
    ]
)
_DEAD_LETTERS: Final = pa.schema(
    [
        ("visibility_token", pa.int64()),
        ("table_name", pa.string()),
        ("operation", pa.string()),
        ("idempotency_key", pa.string()),
        ("row_count", pa.int64()),
        ("byte_count", pa.int64()),
        ("accepted_at", _MOMENT),
        ("attempts", pa.int64()),
        ("failure_reason", pa.string()),
        ("replay_token", pa.int64()),
    ]
)


_SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "receipts": _RECEIPTS,
    "snapshots": _SNAPSHOTS,
    "tables": _TABLES,
    "data_files": _DATA_FILES,
    "sessions": _SESSIONS,
    "lag": _LAG,
    "pins": _PINS,
    "dead_letters": _DEAD_LETTERS,
    "quotas": _QUOTAS,
    "query_audit": audit_tables.QUERY_AUDIT,
    "admin_audit": audit_tables.ADMIN_AUDIT,
}

EMPTY: Final = tuple(
    TableRelation(SYSTEM_SCHEMA, name, schema.empty_table()) for name, schema in _SCHEMAS.items()
)
"""The system tables without rows, for listings."""

_Rows = list[tuple[object, ...]]


def build(
    catalog: Catalog,
    bus: IngestBus,
    manifest: Manifest,
    identity: Identity,
    *,
    names: Collection[str],
    default_quotas: Quotas = NO_QUOTAS,
) -> tuple[TableRelation, ...]:
    """The system tables of one tenant at one snapshot, with the rows of those that are named.

    Receipts, snapshots and the audit are the newest.
    """
    rows: Mapping[str, Callable[[], _Rows]] = {
        "receipts": lambda: _receipts(bus, manifest),
        "snapshots": lambda: _snapshots(catalog, manifest),
        "tables": lambda: _tables(manifest),
        "data_files": lambda: _data_files(catalog, manifest),
        "sessions": lambda: _sessions(catalog, identity),
        "lag": lambda: _lag(catalog, bus, manifest),
        "pins": lambda: _pins(catalog, manifest),
        "dead_letters": lambda: _dead_letters(bus, manifest, identity),
        "quotas": lambda: _quotas(TenantQuotas(catalog, bus, default_quotas), identity),
        "query_audit": lambda: audit_tables.query_audit(catalog, identity),
        "admin_audit": lambda: audit_tables.admin_audit(catalog, identity),
    }
    return tuple(
        _relation(name, schema, rows[name]() if name in names else [])
        for name, schema in _SCHEMAS.items()
    )


def _relation(name: str, schema: pa.Schema, rows: _Rows) -> TableRelation:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, schema, strict=True)]
    return TableRelation(SYSTEM_SCHEMA, name, pa.Table.from_arrays(arrays, schema=schema))


def _receipts(bus: IngestBus, manifest: Manifest) -> list[tuple[object, ...]]:
    names = {table.table_id: table.name for table in manifest.tables.values()}
    return [
        (
            event.idempotency_key,
            event.visibility_token,
            names.get(event.table_id),
            event.row_count,
            event.state.value,
            event.ingested_at,
            event.failure_reason,
        )
        for event in bus.recent_events(manifest.tenant_id, limit=RECEIPTS_SHOWN)
    ]


def _pins(catalog: Catalog, manifest: Manifest) -> list[tuple[object, ...]]:
    with catalog.connect() as connection:
        found = pins.pins_of(connection, manifest.tenant_id, limit=SNAPSHOTS_SHOWN)
    return [(p.snapshot_id, p.tag, p.created_by, p.created_at, p.expires_at) for p in found]


def _dead_letters(
    bus: IngestBus, manifest: Manifest, identity: Identity
) -> list[tuple[object, ...]]:
    """What was given up, replayed or not; without a row for those who do not operate the tenant."""
    if Role.OPS_ADMIN not in identity.roles:
        return []
    names = {table.table_id: table.name for table in manifest.tables.values()}
    return [
        (
            dead.visibility_token,
            names.get(dead.table_id),
            dead.operation.value,
            dead.idempotency_key,
            dead.row_count,
            dead.byte_count,
            dead.ingested_at,
            dead.attempts,
            dead.failure_reason,
            dead.replay_token,
        )
        for dead in bus.dead_letters(manifest.tenant_id, limit=RECEIPTS_SHOWN, replayed=True)
    ]


def _sessions(catalog: Catalog, identity: Identity) -> list[tuple[object, ...]]:
    return [
        (
            record.session_id.hex,
            record.principal,
            record.last_token,
            json.dumps(dict(record.options)),
            None if record.transaction_id is None else record.transaction_id.hex,
            record.opened_at,
            record.last_seen,
        )
        for record in ClientSessions(catalog).visible_to(identity)
    ]


def _quotas(quotas: TenantQuotas, identity: Identity) -> list[tuple[object, ...]]:
    """What the tenant's operators may see, and nobody else."""
    if Role.OPS_ADMIN not in identity.roles:
        return []
    return [
        (each.quota.value, each.limit, each.used, each.is_own)
        for each in quotas.of_caller(identity)
    ]


def _lag(catalog: Catalog, bus: IngestBus, manifest: Manifest) -> list[tuple[object, ...]]:
    """One row of the tenant, without a name, and one for each table; as it is now.

    Of a table, the last token is that of its newest pending write, or what is visible of it.
    """
    pending = bus.pending_tables(manifest.tenant_id)
    last = bus.last_token(manifest.tenant_id)
    with catalog.connect() as connection:
        newest = snapshots.newest(connection, manifest.tenant_id)

    def row(
        name: str | None, last_token: int, visible: int, waiting: Sequence[PendingTable]
    ) -> tuple[object, ...]:
        return (
            name,
            last_token,
            visible,
            max(0, last_token - visible),
            sum(each.events for each in waiting),
            sum(each.bytes for each in waiting),
            max((_milliseconds(each.oldest_age) for each in waiting), default=None),
            newest.snapshot_id,
        )

    rows = [row(None, last, newest.max_visibility_token, list(pending.values()))]
    for table in manifest.tables.values():
        waiting = [pending[table.table_id]] if table.table_id in pending else []
        visible = table.watermark or BEFORE_ALL
        rows.append(
            row(table.name, max([visible, *(w.last_token for w in waiting)]), visible, waiting)
        )
    return rows


def _milliseconds(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


def _snapshots(catalog: Catalog, manifest: Manifest) -> list[tuple[object, ...]]:
    with catalog.connect() as connection:
        recent = snapshots.recent(
            connection, manifest.tenant_id, through=manifest.snapshot_id, limit=SNAPSHOTS_SHOWN
        )
    return [
        (s.snapshot_id, s.created_at, s.max_visibility_token, operation, author)
        for s, operation, author in recent
    ]


def _tables(manifest: Manifest) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for table in manifest.tables.values():
        files = manifest.files[table.table_id]
        rows.append(
            (
                table.name,
                table.schema.version,
                _row_count(table, files),
                len(files),
                sum(file.file_size_bytes for file in files),
                table.watermark,
                ", ".join(spec_texts(table.partition_spec, table.schema.arrow)) or None,
            )
        )
    return rows


def _row_count(table: TableAt, files: Sequence[DataFile]) -> int | None:
    """How many rows it has; None where only a query knows, as newer files supersede older ones."""
    layered = len({file.max_token for file in files}) > 1 or any(f.delete_count for f in files)
    if table.primary_key and layered:
        return None
    return sum(file.record_count for file in files)


def _data_files(catalog: Catalog, manifest: Manifest) -> list[tuple[object, ...]]:
    ids = [file.file_id for table in manifest.files.values() for file in table]
    with catalog.connect() as connection:
        partitions = files.partitions_of(connection, ids)
    return [
        (
            table.name,
            str(file.file_id),
            file.path is None,
            file.record_count,
            file.file_size_bytes,
            file.min_event_time,
            file.max_event_time,
            file.min_token,
            file.max_token,
            file.begin_snapshot,
            file.delete_count,
            partition_text(partitions.get(file.file_id, {}), table.schema.arrow),
        )
        for table in manifest.tables.values()
        for file in manifest.files[table.table_id]
    ]
