"""The audit as tables of `duckmesh_system`: an ops_admin sees the tenant's, others their own."""

import json
from typing import Final

import pyarrow as pa

from catalog import acts, queries
from catalog.connection import Catalog
from gateway.identity import Identity, Role

ROWS_SHOWN: Final = 10_000
"""The newest; `duckmesh audit` shows older ones."""

_MOMENT: Final = pa.timestamp("us", tz="UTC")
QUERY_AUDIT: Final = pa.schema(
    [
        ("started_at", _MOMENT),
        ("principal", pa.string()),
        ("sql", pa.string()),
        ("outcome", pa.string()),
        ("snapshot_id", pa.int64()),
        ("min_visibility_token", pa.int64()),
        ("row_count", pa.int64()),
        ("byte_count", pa.int64()),
        ("scanned_files", pa.int32()),
        ("scanned_bytes", pa.int64()),
        ("pruned_files", pa.int32()),
        ("queue_seconds", pa.float64()),
        ("run_seconds", pa.float64()),
        ("trace_id", pa.string()),
        ("query_id", pa.string()),
    ]
)
ADMIN_AUDIT: Final = pa.schema(
    [
        ("at", _MOMENT),
        ("principal", pa.string()),
        ("act", pa.string()),
        ("target", pa.string()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("trace_id", pa.string()),
        ("act_id", pa.int64()),
    ]
)


def query_audit(catalog: Catalog, identity: Identity) -> list[tuple[object, ...]]:
    """The newest statements that the caller may know of, newest first."""
    with catalog.connect() as connection:
        shown = queries.recent(
            connection,
            tenant_id=identity.tenant_id,
            principal=_only_of(identity),
            limit=ROWS_SHOWN,
        )
    return [
        (
            each.query.started_at,
            each.query.principal,
            each.query.sql,
            each.query.outcome,
            each.query.snapshot_id,
            each.query.asked_token,
            each.query.row_count,
            each.query.byte_count,
            each.query.scanned_files,
            each.query.scanned_bytes,
            each.query.pruned_files,
            each.query.queue_seconds,
            each.query.run_seconds,
            each.query.trace_id,
            str(each.query.query_id),
        )
        for each in shown
    ]


def admin_audit(catalog: Catalog, identity: Identity) -> list[tuple[object, ...]]:
    """The newest administrative acts that the caller may know of, newest first."""
    with catalog.connect() as connection:
        shown = acts.recent(
            connection,
            tenant_id=identity.tenant_id,
            principal=_only_of(identity),
            limit=ROWS_SHOWN,
        )
    return [
        (
            each.at,
            each.principal,
            each.act,
            each.target,
            each.outcome,
            json.dumps(dict(each.detail)),
            each.trace_id,
            each.act_id,
        )
        for each in shown
    ]


def _only_of(identity: Identity) -> str | None:
    return None if Role.OPS_ADMIN in identity.roles else identity.audited_as
