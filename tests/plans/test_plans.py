"""Hot statements touch the rows they need: index scans alone over what grows without end."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from catalog import acts, compaction, files, queries, retention, snapshots, tables
from duckmesh.identifiers import TenantId, new_batch_id
from duckmesh.statements import Statements
from ingest_bus import postgres, postgres_publish
from ingest_bus.postgres_rows import envelope_values
from tests.bus_worlds import write
from tests.postgres_fixtures import _temporary_database, dsn_of

_SYNTHETIC = Statements("tests.plans", "synthetic_catalog.sql")

GROWING = {
    "snapshot",
    "snapshot_file",
    "snapshot_table_watermark",
    "data_file",
    "data_file_content",
    "ingest_event",
    "idempotency_key",
    "query_audit",
    "incident_audit",
}
"""Tables that grow with every write. No hot statement reads one from end to end."""

TENANT = TenantId(1)
PUBLISH, BUS = postgres_publish._SQL, postgres._SQL
SNAPSHOTS, FILES, TABLES = (m._SQL for m in (snapshots, files, tables))
QUERIES, ACTS = queries._SQL, acts._SQL
COMPACTION, RETENTION = compaction._SQL, retention._SQL
NEWEST = {"tenant_id": None, "principal": None, "since": None, "limit": 100}
OLD = {"older_than": "30 days", "limit": 1000}
MOMENT = datetime(2026, 1, 1, 4, tzinfo=UTC)
ENVELOPES = [
    *(write(TENANT, key=f"key-{n}") for n in range(4, 40, 4)),
    *(write(TENANT, key=f"new-{n}") for n in range(10)),
    *(write(TENANT) for _ in range(10)),
]
PUBLISHED = envelope_values(TENANT, ENVELOPES) | {"fence_epoch": 0}
CLAIM = {
    "tenant_id": TENANT,
    "batch_id": new_batch_id(),
    "epoch": 1,
    "after_token": 99_500,
    "last_token": 99_600,
    "backoff": None,
    "event_ids": [e.event_id for e in ENVELOPES],
    "reason": "refused",
    "dead": False,
    "max_attempts": 5,
    "attempt": 5,
    "acked_token": 99_500,
}


EXPIRY = {
    "tenant_id": TENANT,
    "kept_for": "7 days",
    "kept_at_least": 100,
    "horizon": 500,
    "limit": 100,
    "safety_age": "2 hours",
    "file_ids": CLAIM["event_ids"],
}


@dataclass(frozen=True)
class Hot:
    """A statement on the path of every write or read, and the indexes it is to use."""

    statements: Statements
    name: str
    values: Any
    indexes: set[str] = field(default_factory=set)

    @property
    def text(self) -> LiteralString:
        return self.statements[self.name]


HOT = [
    # a publish
    Hot(PUBLISH, "accept", PUBLISHED, {"token_counter_pkey"}),
    Hot(
        PUBLISH,
        "fences_of",
        {"tenant_id": TENANT, "table_ids": [1, 2]},
        {"token_counter_pkey"},
    ),
    Hot(PUBLISH, "insert_keys", PUBLISHED),
    Hot(PUBLISH, "take_tokens", PUBLISHED, {"token_counter_pkey", "idempotency_key_pkey"}),
    Hot(PUBLISH, "insert_events", PUBLISHED, {"idempotency_key_pkey"}),
    Hot(
        PUBLISH,
        "note_sessions",
        PUBLISHED,
        {"idempotency_key_pkey", "ingest_event_by_id"},
    ),
    Hot(PUBLISH, "receipts", PUBLISHED, {"idempotency_key_pkey", "ingest_event_by_id"}),
    # a claim
    Hot(BUS, "pick_tenant", None, {"token_counter_busy"}),
    Hot(BUS, "rest_quiet", {"quiet_for": timedelta(seconds=10), "limit": 1000}),
    Hot(
        BUS,
        "claimable_events",
        {"tenant_id": TENANT, "acked_token": 99_500, "limit": 500, "max_bytes": 2**20},
        {"ingest_event_pkey"},
    ),
    Hot(BUS, "expire_claims_of_tenant", (TENANT,)),
    Hot(BUS, "hold_lease", CLAIM | {"consumer_id": "c", "lease": "30s"}, {"ingest_lease_pkey"}),
    Hot(BUS, "lock_live_claim", CLAIM, {"ingest_lease_pkey"}),
    Hot(BUS, "commit_events", CLAIM),
    Hot(BUS, "refuse_events", CLAIM),
    Hot(BUS, "bury_head", CLAIM, {"ingest_event_pkey"}),
    Hot(BUS, "settle", CLAIM, {"ingest_event_pkey", "ingest_lease_pkey"}),
    # the barrier
    Hot(BUS, "last_token", (TENANT,), {"token_counter_pkey"}),
    Hot(
        BUS,
        "has_unresolved",
        {"tenant_id": TENANT, "table_ids": [1, 2], "through": 99_900},
        {"ingest_event_pkey", "ingest_lease_pkey"},
    ),
    Hot(
        BUS,
        "has_unresolved",
        {"tenant_id": TENANT, "table_ids": None, "through": 99_900},
        {"ingest_event_pkey", "ingest_lease_pkey"},
    ),
    Hot(BUS, "backlog", {"tenant_id": TENANT}, {"ingest_event_pkey", "ingest_lease_pkey"}),
    Hot(BUS, "find_by_key", (TENANT, 5, "key-4"), {"idempotency_key_pkey", "ingest_event_by_id"}),
    Hot(BUS, "recent_events", (TENANT, 20), {"ingest_event_pkey"}),
    # a publication
    Hot(SNAPSHOTS, "lock_head", (TENANT,), {"publication_head_pkey"}),
    Hot(SNAPSHOTS, "end_files", {"snapshot_id": 20_001, "table_ids": [1, 2]}, {"data_file_live"}),
    Hot(
        SNAPSHOTS,
        "end_named_files",
        {"snapshot_id": 20_001, "file_ids": CLAIM["event_ids"]},
        {"data_file_pkey"},
    ),
    # a query
    Hot(SNAPSHOTS, "head", (TENANT,), {"publication_head_pkey"}),
    Hot(SNAPSHOTS, "by_id", (TENANT, 12_345)),
    Hot(SNAPSHOTS, "by_time", (TENANT, MOMENT), {"snapshot_by_time"}),
    Hot(SNAPSHOTS, "recent", (TenantId(7), 20_000, 20), {"snapshot_latest"}),
    Hot(FILES, "manifest", {"table_ids": [1, 2], "snapshot_id": 19_999}),
    Hot(FILES, "manifest", {"table_ids": [1], "snapshot_id": 10_000}),
    Hot(FILES, "live_inline_files", {"table_ids": [1, 2], "limit": 100}, {"data_file_live"}),
    Hot(FILES, "known_paths", (["tenant-1/part-2", "tenant-1/part-x"],), {"data_file_by_path"}),
    Hot(
        TABLES,
        "tables_at",
        {"tenant_id": TENANT, "snapshot_id": 19_999},
        {"snapshot_table_watermark_pkey"},
    ),
    Hot(TABLES, "find_live_table", (TENANT, "table-1")),
    Hot(FILES, "stats_of", (CLAIM["event_ids"],), {"data_file_pkey"}),
    Hot(FILES, "is_kept", (12_345,), {"snapshot_pkey"}),
    # maintenance
    Hot(
        COMPACTION,
        "small_files",
        {"table_id": 1, "small_bytes": 2**26, "limit": 1_000},
        {"data_file_live"},
    ),
    Hot(
        COMPACTION,
        "hold_files",
        {"file_ids": CLAIM["event_ids"], "span": "30s"},
        {"data_file_pkey"},
    ),
    Hot(RETENTION, "horizon", EXPIRY, {"snapshot_by_time"}),
    Hot(RETENTION, "condemn_files", EXPIRY, {"data_file_ended"}),
    Hot(RETENTION, "due_files", EXPIRY, {"data_file_unreachable"}),
    Hot(RETENTION, "forget_files", EXPIRY),
    Hot(RETENTION, "forget_changes", EXPIRY, {"snapshot_file_of_file"}),
    Hot(BUS, "staged_payloads", (TENANT,), {"ingest_event_staged"}),
    Hot(BUS, "expire_events", {"older_than": "7 days", "limit": 10_000}, {"idempotency_key_pkey"}),
    # the audit
    Hot(QUERIES, "recent", NEWEST, {"query_audit_by_start"}),
    Hot(QUERIES, "recent", NEWEST | {"tenant_id": 2}, {"query_audit_of_tenant"}),
    Hot(QUERIES, "forget", OLD, {"query_audit_by_start"}),
    Hot(ACTS, "recent", NEWEST, {"incident_audit_by_time"}),
    Hot(ACTS, "recent", NEWEST | {"tenant_id": 2}, {"incident_audit_of_tenant"}),
    Hot(ACTS, "forget", OLD, {"incident_audit_by_time"}),
]


@pytest.fixture(scope="module")
def synthetic(postgres_server: str, template_database: str) -> Iterator[str]:
    """20,000 snapshots, 20,000 files, 100,000 events; analyzed."""
    with _temporary_database(postgres_server, template=template_database) as name:
        dsn = dsn_of(postgres_server, name)
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in _SYNTHETIC.values():
                connection.execute(statement)
            connection.execute("VACUUM ANALYZE")
        yield dsn


def plan_of(connection: psycopg.Connection[Any], hot: Hot) -> dict[str, Any]:
    explained = connection.execute("EXPLAIN (FORMAT JSON) " + hot.text, hot.values).fetchone()
    assert explained is not None
    root: dict[str, Any] = explained[0][0]["Plan"]
    return root


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize("hot", HOT, ids=lambda hot: hot.name)
def test_a_hot_statement_reads_no_growing_table_from_end_to_end(synthetic: str, hot: Hot) -> None:
    with psycopg.connect(synthetic, autocommit=True) as connection:
        found = list(nodes(plan_of(connection, hot)))
    scanned = {n["Relation Name"] for n in found if n["Node Type"] == "Seq Scan"}
    assert scanned & GROWING == set()
    assert hot.indexes <= {n["Index Name"] for n in found if "Index Name" in n}


@pytest.fixture(scope="module")
def scattered(synthetic: str) -> Iterator[psycopg.Connection[Any]]:
    """Events of one tenant that lie in no order, as they do when vacuum has made room often."""
    with psycopg.connect(synthetic) as connection:
        for statement in (
            "CREATE TEMP TABLE kept AS SELECT * FROM ingest_event",
            "CREATE TEMP SEQUENCE place",
            "UPDATE kept SET tenant_id = 1, visibility_token = nextval('place')",
            "UPDATE kept SET state = 'committed'",
            "DELETE FROM ingest_event",
            "INSERT INTO ingest_event SELECT * FROM kept ORDER BY random()",
            "ANALYZE ingest_event",
        ):
            connection.execute(statement.encode())
        yield connection
        connection.rollback()


def with_numbers(statement: str) -> str:
    """A statement with $1, $2: as the server has it once it is prepared."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] is None or found[1] not in names:
            names.append(found[1] or "")
        return f"${len(names) if found[1] is None else names.index(found[1]) + 1}"

    return re.sub(r"%\((\w+)\)s|%s", number, statement)


@pytest.mark.parametrize("name", ["backlog", "pending_tables", "lag", "expire_events"])
def test_events_that_wait_are_found_without_those_that_are_kept(
    scattered: psycopg.Connection[Any], name: str
) -> None:
    # Prepared once, planned without the values: a process asks them for days.
    explained = scattered.execute(
        "EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + with_numbers(BUS[name]), prepare=False
    ).fetchone()
    assert explained is not None
    found = list(nodes(explained[0][0]["Plan"]))
    scanned = {n["Relation Name"] for n in found if n["Node Type"] == "Seq Scan"}
    assert scanned & GROWING == set()


def test_the_walk_sees_a_sequential_scan(synthetic: str) -> None:
    with psycopg.connect(synthetic, autocommit=True) as connection:
        found = connection.execute(
            "EXPLAIN (FORMAT JSON) SELECT count(payload) FROM ingest_event WHERE row_count > 1"
        ).fetchone()
    assert found is not None
    kinds = [(n["Node Type"], n.get("Relation Name")) for n in nodes(found[0][0]["Plan"])]
    assert ("Seq Scan", "ingest_event") in kinds
