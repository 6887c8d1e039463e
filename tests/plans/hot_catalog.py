"""The hot statements of the catalog: a publication, a query, sessions, and definitions."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from duckmesh.identifiers import new_file_id, new_session_id, new_transaction_id
from tests.plans.hot import Grows, Hot, Place
from tests.plans.synthetic_catalog import GIANT, SMALL

_SNAPSHOTS: Final = "catalog/snapshots"
_FILES: Final = "catalog/files"
_TABLES: Final = "catalog/tables"
_VIEWS: Final = "catalog/views"
_TENANTS: Final = "catalog/tenants"
_QUOTAS: Final = "catalog/quotas"
_SESSIONS: Final = "catalog/sessions"
_TRANSACTIONS: Final = "catalog/transactions"
_PINS: Final = "catalog/pins"
_LEASES: Final = "catalog/leases"


def _born(place: Place) -> dict[str, Any]:
    """A publication of two files in the next snapshot, which ends twenty."""
    return {
        "tenant_id": GIANT,
        "snapshot_id": place.size.newest + 1,
        "parent": place.size.newest - 1,
        "parent_created_at": datetime.now(UTC),
        "created_at": datetime.now(UTC),
        "created_by": "c",
        "operation": "publish",
        "watermark": place.size.last_token,
        "epoch": 1,
        "table_ids": [1, 2],
        "versions": [1, 1],
        "files": "[]",
        "contents": b"",
        "table_watermarks": "{}",
    }


def _ends_named(place: Place) -> dict[str, Any]:
    return _born(place) | {"file_ids": place.live_files}


def _adds(place: Place) -> dict[str, Any]:
    file = {
        "table_id": 1,
        "schema_version": 1,
        "record_count": 1,
        "file_size_bytes": 100,
        "stats": "{}",
        "partition": "{}",
        "min_token": 1,
        "max_token": 1,
        "delete_count": 0,
    }
    inline = {"content_start": 1, "content_bytes": 100, "file_id": str(new_file_id())}
    stored = {"path": "tenant/table/part-new", "file_id": str(new_file_id()), "table_id": 2}
    return _born(place) | {
        "files": json.dumps([file | inline, file | stored]),
        "contents": bytes(100),
        "table_watermarks": json.dumps({1: place.size.last_token, 2: place.size.last_token}),
    }


def _of_table(place: Place) -> dict[str, Any]:
    return {
        "tenant_id": GIANT,
        "table_id": 1,
        "name": "table-1",
        "new_name": "other",
        "version": 1,
        "primary_key": [],
        "snapshot_id": place.size.newest + 1,
        "partition_spec": "[]",
    }


def _in_transaction(place: Place) -> dict[str, Any]:
    return {
        "tenant_id": GIANT,
        "transaction_id": place.transaction,
        "session_id": place.session,
        "principal": "key",
        "table_id": 1,
        "snapshot_id": place.middle,
        "unless_within": timedelta(seconds=1),
        "version": 2,
        "former": 1,
        "state": "committed",
        "was": "open",
        "last_token": 1,
        "idle": timedelta(minutes=5),
        "limit": 100,
    }


def _held_write(place: Place) -> dict[str, Any]:
    return _in_transaction(place) | {
        "writes_max": 100,
        "event_id": new_file_id(),
        "schema_version": 1,
        "operation": "insert",
        "idempotency_key": None,
        "payload_hash": None,
        "payload_kind": "inline",
        "payload": b"rows",
        "row_count": 1,
        "byte_count": 4,
        "raises_fence": False,
        "min_event_time": None,
        "max_event_time": None,
        "trace_id": None,
    }


def _pin(place: Place) -> dict[str, Any]:
    return {
        "tenant_id": GIANT,
        "snapshot_id": place.middle,
        "tag": "a-tag",
        "created_by": "c",
        "lasting": None,
    }


def _at(snapshot_id: int) -> dict[str, Any]:
    return {"tenant_id": GIANT, "snapshot_id": snapshot_id, "table_ids": [1, 2]}


def _giant(_: Place) -> tuple[int]:
    return (GIANT,)


def _quotas(_: Place) -> dict[str, Any]:
    return {"tenant_id": GIANT, "key_id": "key-1", "quotas": ["queries_concurrent"], "values": [1]}


def _new_transaction(place: Place) -> dict[str, Any]:
    return _in_transaction(place) | {
        "transaction_id": new_transaction_id(),
        "session_id": new_session_id(),
    }


def _of_newest_and_old(file: str, name: str) -> tuple[Hot, Hot]:
    """Most definitions ended before an old snapshot, or came after it."""
    return (
        Hot(file, name, lambda p: _at(p.size.newest), "newest"),
        Hot(file, name, lambda p: _at(p.middle), "old"),
    )


_PUBLICATION: Final = [
    Hot(_SNAPSHOTS, "lock_head", _giant),
    Hot(_SNAPSHOTS, "publish", _adds),
    Hot(_SNAPSHOTS, "publish", _born, "a definition"),
    Hot(_SNAPSHOTS, "end_files", _born),
    Hot(_SNAPSHOTS, "end_named_files", _ends_named),
    Hot(_SNAPSHOTS, "begin_schema_versions", _born),
    Hot(_FILES, "live_inline_files", lambda _: {"table_ids": [1, 2], "limit": 100}),
    Hot(_FILES, "known_paths", lambda _: (["tenant/table/part-3", "tenant/table/part-x"],)),
    Hot(_FILES, "content", lambda p: (p.live_files[0],)),
    Hot(_FILES, "contents", lambda p: (p.live_files,)),
    Hot(_LEASES, "acquire", lambda _: {"name": "duty/1", "holder": "me", "span": "30s"}),
    Hot(_LEASES, "release", lambda _: ("duty/1", "nobody", 1)),
]

_QUERY: Final = [
    Hot(_SNAPSHOTS, "head", _giant),
    Hot(_SNAPSHOTS, "by_id", lambda p: (GIANT, p.middle)),
    Hot(_SNAPSHOTS, "expired_through", _giant),
    Hot(
        _SNAPSHOTS,
        "by_time",
        lambda _: (GIANT, datetime.now(UTC) - timedelta(days=4)),
    ),
    Hot(_SNAPSHOTS, "recent", lambda p: (GIANT, p.size.newest, 20), "the giant"),
    Hot(_SNAPSHOTS, "recent", lambda p: (7, p.size.newest, 20), "a small tenant"),
    Hot(_FILES, "manifest", lambda p: _at(p.size.newest), "newest"),
    Hot(_FILES, "manifest", lambda p: _at(p.size.newest - 100), "a little older"),
    Hot(_FILES, "manifest", lambda p: _at(p.middle), "old", grows_with=Grows.ENDED_FILES),
    Hot(_FILES, "is_kept", lambda p: (p.middle,)),
    Hot(_FILES, "still_kept", lambda p: (p.live_files,)),
    Hot(_FILES, "stats_of", lambda p: (p.live_files,)),
    Hot(_FILES, "partitions_of", lambda p: (p.live_files,)),
    *_of_newest_and_old(_TABLES, "tables_at"),
    Hot(_TABLES, "find_live_table", lambda _: (GIANT, "table-1")),
    Hot(_TABLES, "find_live_name", _of_table),
    Hot(_TABLES, "count_tables", _giant),
    Hot(_TABLES, "schema_versions", lambda _: (1, [1])),
    Hot(_TABLES, "places", lambda _: (GIANT, [1, 2])),
    *_of_newest_and_old(_VIEWS, "views_at"),
    Hot(_TENANTS, "find_tenant", lambda _: ("tenant-7",)),
    Hot(_TENANTS, "find_holder", lambda _: ("key-7",)),
    Hot(_TENANTS, "note_use", lambda _: ("key-7",)),
    Hot(_TENANTS, "list_keys", lambda _: (SMALL, 100)),
    Hot(_QUOTAS, "quotas_in_force", _quotas),
    Hot(_QUOTAS, "set_quotas", _quotas),
    Hot(_QUOTAS, "reset_quotas", _quotas),
    Hot(_QUOTAS, "set_key_quotas", _quotas),
    Hot(_QUOTAS, "copy_key_quotas", lambda _: {"from": "key-1", "to": "key-2"}),
    Hot(_QUOTAS, "key_quotas", _giant),
    Hot(_QUOTAS, "usages", lambda _: ([GIANT, SMALL],)),
    Hot(_PINS, "insert_pin", _pin),
    Hot(_PINS, "unpin", _pin),
    Hot(_PINS, "by_tag", lambda _: (GIANT, "pin-1")),
    Hot(_PINS, "pins_of", lambda _: (GIANT, 100)),
    Hot(_PINS, "held", _giant),
    Hot(_PINS, "tags_of", lambda p: (GIANT, [p.middle, p.size.newest])),
    Hot(_PINS, "forget_expired", _giant),
]

_SESSION: Final = [
    Hot(_SESSIONS, "find", lambda p: {"session_id": p.session, "tenant_id": GIANT}),
    Hot(
        _SESSIONS,
        "change_options",
        lambda p: {
            "session_id": p.session,
            "tenant_id": GIANT,
            "principal": "key",
            "options": '{"a": 1}',
        },
    ),
    Hot(_SESSIONS, "touch", lambda p: (p.session,)),
    Hot(_SESSIONS, "close", lambda p: (p.session, GIANT)),
    Hot(_TRANSACTIONS, "begin", _new_transaction),
    Hot(_TRANSACTIONS, "enter", _new_transaction),
    Hot(_TRANSACTIONS, "find", lambda p: (p.transaction,)),
    Hot(_TRANSACTIONS, "lock", lambda p: (p.transaction,)),
    Hot(_TRANSACTIONS, "pin", _in_transaction),
    Hot(_TRANSACTIONS, "touch", _in_transaction),
    Hot(_TRANSACTIONS, "hold", _held_write),
    Hot(_TRANSACTIONS, "supersede", _in_transaction),
    Hot(_TRANSACTIONS, "replaced_version", lambda p: (p.transaction, 1)),
    Hot(_TRANSACTIONS, "held_operations", lambda p: (p.transaction, 1)),
    Hot(_TRANSACTIONS, "restamp", _in_transaction),
    Hot(_TRANSACTIONS, "writes", lambda p: (p.transaction,)),
    Hot(_TRANSACTIONS, "end", _in_transaction),
    Hot(_TRANSACTIONS, "drop_writes", lambda p: (p.transaction,)),
    Hot(_TRANSACTIONS, "drop_writes_returning_staged", lambda p: (p.transaction,)),
    Hot(_TRANSACTIONS, "is_idle", _in_transaction),
    Hot(_TRANSACTIONS, "idle", _in_transaction),
    Hot(_TRANSACTIONS, "staged_payloads", _giant),
    Hot(
        _TRANSACTIONS,
        "forget_ended",
        lambda _: {"older_than": timedelta(days=1), "limit": 40},
        "some are old",
    ),
    Hot(
        _TRANSACTIONS,
        "forget_ended",
        lambda _: {"older_than": timedelta(days=100), "limit": 40},
        "none is old",
    ),
]

_DEFINITION: Final = [
    Hot(_TABLES, "insert_table", lambda p: (GIANT, "new", None, p.size.newest + 1, [], "[]")),
    Hot(_TABLES, "insert_schema_version", lambda p: (1, 2, b"-", "[]", p.size.newest + 1, ["id"])),
    Hot(_TABLES, "lock_live_table", _of_table),
    Hot(_TABLES, "next_schema_version", _of_table),
    Hot(_TABLES, "adopt_schema_version", _of_table),
    Hot(_TABLES, "is_view", lambda _: (GIANT, "table-1")),
    Hot(_TABLES, "end_table", _of_table),
    Hot(_TABLES, "is_published", _of_table),
    Hot(_TABLES, "set_definition", _of_table),
    Hot(_TABLES, "set_partition_spec", _of_table),
    Hot(_TABLES, "keep_former_name", _of_table),
    Hot(_TABLES, "set_name", _of_table),
    Hot(_VIEWS, "insert_view", lambda p: (GIANT, "new", "SELECT 1", b"-", p.size.newest + 1)),
    Hot(_VIEWS, "find_live_view", lambda _: (GIANT, "view-1")),
    Hot(_VIEWS, "end_view", _of_table),
    Hot(_VIEWS, "end_view_returning", _of_table),
]

HOT: Final = [*_PUBLICATION, *_QUERY, *_SESSION, *_DEFINITION]
