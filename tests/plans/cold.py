"""Statements that are not held to the price of their answer, and why not.

A statement of the product is in here or among the hot ones: `test_every_statement_is_hot_or_cold`.
"""

from typing import Final

_BY_HAND = "an act of an administrator, made by hand"
_AT_START = "once a process, or once a database"
_NO_TABLE = "reads no table"
_OF_KEYED = (
    "a merge or fold of a keyed table: which files supersede which is known from all its live "
    "files alone, and compaction keeps them few"
)
_RESTORE = "a restore, made by hand: it reads what changed since"

COLD: Final[dict[str, dict[str, str]]] = {
    "catalog/compaction": dict.fromkeys(("layered_tables", "live_files"), _OF_KEYED),
    "catalog/connection": {"wait_for_the_disk": _NO_TABLE},
    "catalog/durability": {"fsync": _NO_TABLE},
    "catalog/embedded_postgres": {
        "database_exists": _AT_START,
        "create_database": _AT_START,
    },
    "catalog/files": {
        "newest_tokens_outside": _OF_KEYED,
        "kept_files": "`duckmesh integrity`, by hand: it reads every object as well",
    },
    "catalog/migrate": dict.fromkeys(
        ("lock", "create_migration_table", "applied", "record", "forget"), _AT_START
    ),
    "catalog/notifications": dict.fromkeys(("listen", "without_durability", "notify"), _NO_TABLE),
    "catalog/quotas": {"announce_quotas": _NO_TABLE},
    "catalog/restores": dict.fromkeys(
        (
            "end_later_files",
            "end_files_of",
            "end_tables",
            "make_anew",
            "copy_versions",
            "copy_watermark",
            "bring_back",
            "end_other_views",
            "bring_views_back",
        ),
        _RESTORE,
    ),
    "catalog/retention": {
        "plan": "a dry run, by hand: it counts everything that would go",
    },
    "catalog/sessions": {
        "list_of_tenant": "one page of the living sessions of a tenant, by their last use",
        "forget_old": "sessions live for one lifetime; an index of their last use would be written "
        "with every write of a session",
    },
    "catalog/snapshots": {
        "latest_token": "one row for each tenant, for a metric",
    },
    "catalog/tenants": {
        "announce_credentials": _NO_TABLE,
        "create_tenant": _BY_HAND,
        "first_snapshot": _BY_HAND,
        "disable_tenant": _BY_HAND,
        "enable_tenant": _BY_HAND,
        "list_tenants": "one row for each tenant",
        "create_key": _BY_HAND,
        "revoke_key": _BY_HAND,
        "propose_secret": _AT_START,
        "sealing_secret": _AT_START,
    },
    "ingest_bus/postgres": {"limit_time": _NO_TABLE},
    "ingest_bus/postgres_dead_letters": {"tell_accepted": _NO_TABLE},
    "ingest_bus/postgres_publish": {"tell_accepted": _NO_TABLE},
}
