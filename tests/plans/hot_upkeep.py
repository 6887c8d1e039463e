"""The hot statements of upkeep: compaction, retention and the audit."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from tests.plans.hot import Grows, Hot, Place
from tests.plans.synthetic_catalog import GIANT, SMALL

_COMPACTION: Final = "catalog/compaction"
_RETENTION: Final = "catalog/retention"
_QUERIES: Final = "catalog/queries"
_ACTS: Final = "catalog/acts"


def _run(_: Place) -> dict[str, Any]:
    return {
        "run_id": uuid4(),
        "tenant_id": GIANT,
        "table_id": 1,
        "files_in": 1,
        "files_out": 1,
        "bytes_in": 1,
        "bytes_out": 1,
        "state": "published",
        "snapshot_id": 1,
        "failure": None,
        "limit": 10,
    }


def _collected(_: Place) -> dict[str, Any]:
    return {
        "run_id": uuid4(),
        "tenant_id": GIANT,
        "started_at": datetime.now(UTC),
        "state": "done",
        "dry_run": False,
        "snapshots": 1,
        "files": 1,
        "bytes": 1,
        "orphans": 0,
        "failure": None,
    }


def _expiry(place: Place) -> dict[str, Any]:
    """The horizon is at half of the giant's history: there is much to do, a part at a time."""
    return {
        "tenant_id": GIANT,
        "kept_for": timedelta(days=4),
        "kept_at_least": 100,
        "horizon": place.middle,
        "limit": 50,
        "safety_age": timedelta(hours=2),
        "through": place.size.oldest,
        "gone": place.oldest_snapshots(50),
    }


def _expired(place: Place) -> dict[str, Any]:
    """After `expire` took as many as it may: what it leaves is not looked at."""
    return _expiry(place) | {"horizon": place.size.oldest + 50}


def _first_expired(place: Place) -> dict[str, Any]:
    """After one snapshot has passed the horizon since the last turn."""
    return _expiry(place) | {"limit": 1, "gone": place.oldest_snapshots(1)}


def _settled(place: Place) -> dict[str, Any]:
    """Nothing has passed the horizon since the last turn."""
    return _expiry(place) | {"horizon": place.size.oldest, "safety_age": timedelta(days=1)}


def _due(days: float, limit: int = 40) -> dict[str, Any]:
    return {"older_than": timedelta(days=days), "limit": limit}


def _newest(tenant_id: int | None, principal: str | None = None) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "principal": principal, "since": None, "limit": 20}


def _queries(_: Place) -> dict[str, Any]:
    columns = {
        "tenant_id": GIANT,
        "principal": "key",
        "sql": "SELECT 1",
        "snapshot_id": 1,
        "asked_token": None,
        "trace_id": None,
        "started_at": datetime.now(UTC),
        "queue_seconds": 0.0,
        "run_seconds": 0.0,
        "row_count": 1,
        "byte_count": 1,
        "scanned_files": 1,
        "scanned_bytes": 1,
        "pruned_files": 1,
        "outcome": "OK",
    }
    return {name: [value] * 20 for name, value in columns.items()} | {
        "query_id": [uuid4() for _ in range(20)]
    }


def _act(_: Place) -> dict[str, Any]:
    return {
        "tenant_id": GIANT,
        "principal": "key",
        "act": "create_table",
        "subject": "t",
        "detail": "{}",
        "trace_id": None,
        "outcome": "OK",
    }


_READERS: Final = (
    ("recent", None, None),
    ("recent_of_tenant", SMALL, None),
    ("recent_of_principal", GIANT, "rare"),
)

HOT: Final = [
    # compaction
    Hot(
        _COMPACTION,
        "crowded_tables",
        lambda _: {"small_bytes": 2**26, "limit": 100},
        grows_with=Grows.TENANTS,
    ),
    Hot(
        _COMPACTION,
        "small_files",
        lambda _: {"table_id": 1, "small_bytes": 2**26, "limit": 1_000},
    ),
    Hot(_COMPACTION, "hold_files", lambda p: {"file_ids": p.live_files, "span": "30s"}),
    Hot(_COMPACTION, "arrangement", lambda _: (1,)),
    Hot(_COMPACTION, "begin_run", _run),
    Hot(_COMPACTION, "close_dead_runs", _run),
    Hot(_COMPACTION, "end_run", _run),
    Hot(_COMPACTION, "recent_runs", _run),
    # retention
    Hot(_RETENTION, "horizon", _expiry),
    Hot(_RETENTION, "note_replaced", _expiry),
    Hot(_RETENTION, "expire", _expiry, "much is old"),
    Hot(_RETENTION, "expire", _settled, "none is old"),
    Hot(_RETENTION, "note_expired", _expiry),
    *(
        Hot(_RETENTION, "forget_watermarks", of, case, first=("expire",))
        for of, case in ((_expired, "much is old"), (_first_expired, "one is old"))
    ),
    Hot(_RETENTION, "condemn_files", _expired, "much is old", first=("expire",)),
    Hot(_RETENTION, "condemn_files", _settled, "none is old"),
    Hot(_RETENTION, "due_files", _expiry, "some are due"),
    Hot(_RETENTION, "due_files", _settled, "none is due"),
    Hot(_RETENTION, "forget_changes", lambda p: {"file_ids": p.unreachable_files}),
    Hot(
        _RETENTION,
        "forget_files",
        lambda p: {"file_ids": p.unreachable_files},
        first=("forget_changes",),
    ),
    Hot(_RETENTION, "record_run", _collected),
    *(
        Hot(_RETENTION, name, lambda _, days=days: _due(days), case)
        for name in ("forget_gc_runs", "forget_compaction_runs")
        for days, case in ((30, "some are old"), (100, "none is old"))
    ),
    Hot(_RETENTION, "now", lambda _: None),
    # the audit
    Hot(_QUERIES, "write", _queries),
    *(
        Hot(file, name, lambda _, of=(tenant, principal): _newest(*of))
        for file in (_QUERIES, _ACTS)
        for name, tenant, principal in _READERS
    ),
    Hot(_QUERIES, "forget", lambda _: _due(30), "some are old"),
    Hot(_QUERIES, "forget", lambda _: _due(1000), "none is old"),
    Hot(_ACTS, "record", _act),
    Hot(_ACTS, "forget", lambda _: _due(365), "some are old"),
    Hot(_ACTS, "forget", lambda _: _due(1000), "none is old"),
]
