"""The hot statements of the bus: publishes, claims, the barrier, dead letters, what expires."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from duckmesh.identifiers import new_event_id
from tests.plans.hot import Grows, Hot, Place
from tests.plans.synthetic_catalog import GIANT, SMALL

_PUBLISH: Final = "ingest_bus/postgres_publish"
_BUS: Final = "ingest_bus/postgres"
_DEAD: Final = "ingest_bus/postgres_dead_letters"
_LAST_ACCEPT: Final = ("insert_keys", "take_tokens", "insert_events")
NOTHING_DUE: Final = {"older_than": timedelta(days=100), "limit": 500}
"""Most turns of a duty find nothing that is old enough."""


def _named(place: Place) -> dict[str, Any]:
    return {"tenant_id": GIANT, "key_id": "key-1", "table_id": 1, "table_ids": [1, 2]}


def _published(place: Place) -> dict[str, Any]:
    return place.published


def _one(place: Place) -> dict[str, Any]:
    return {
        **place.published,
        "event_id": new_event_id(),
        "table_id": 1,
        "schema_version": 1,
        "operation": "insert",
        "payload": b"one row",
        "row_count": 1,
        "byte_count": 7,
        "min_event_time": None,
        "max_event_time": None,
        "trace_id": None,
    }


def _repeated(place: Place) -> dict[str, Any]:
    return place.repeated


def _claim(place: Place) -> dict[str, Any]:
    return place.claim | {
        "consumer_id": "c",
        "lease": "30s",
        "delay": "1s",
        "backoff": None,
        "event_ids": [new_event_id() for _ in range(20)],
        "tokens": list(range(20)),
        "attempts": [1] * 20,
        "dead": False,
        "reason": "refused",
        "state": "acked",
        "attempt": 1,
        "attempts_max": 2,
        "gave_verdict": False,
        "skip": [SMALL],
        "only": None,
        "max_attempts": 5,
        "max_bytes": 2**20,
        "limit": 100,
    }


def _refusals(place: Place) -> dict[str, Any]:
    return _claim(place) | {"dead": [False] * 20}


def _dead(place: Place) -> dict[str, Any]:
    return {
        "tenant_id": GIANT,
        "above": 0,
        "replayed": False,
        "named": None,
        "limit": 20,
        "tokens": place.dead_tokens,
        "event_ids": [new_event_id() for _ in place.dead_tokens],
        "count": len(place.dead_tokens),
        "before": place.size.last_token,
    }


def _due(days: float) -> dict[str, Any]:
    return {"older_than": timedelta(days=days), "limit": 40}


def _few_due(place: Place) -> dict[str, Any]:
    """Only the first twenty events of the giant are old, and many more may be forgotten."""
    return {"older_than": datetime.now(UTC) - place.young_since, "limit": 10_000}


HOT: Final = [
    # a publish
    Hot(_PUBLISH, "accept", _published),
    Hot(_PUBLISH, "accept_plain", _published),
    Hot(_PUBLISH, "accept_one", _one),
    Hot(_PUBLISH, "fences_of", _named),
    Hot(_PUBLISH, "insert_keys", _published),
    Hot(_PUBLISH, "insert_keys", _repeated, "half were there"),
    Hot(_PUBLISH, "open_tenant", _named),
    Hot(_PUBLISH, "open_lease", _named),
    Hot(_PUBLISH, "take_tokens", _repeated, first=("insert_keys",)),
    Hot(_PUBLISH, "insert_events", _repeated, first=("insert_keys", "take_tokens")),
    Hot(_PUBLISH, "raise_fences", _repeated, first=_LAST_ACCEPT),
    Hot(_PUBLISH, "note_sessions", _repeated, first=_LAST_ACCEPT),
    Hot(_PUBLISH, "receipts", _repeated, first=_LAST_ACCEPT),
    Hot(_PUBLISH, "lock_counter", _named),
    Hot(_PUBLISH, "set_fence", lambda _: {"tenant_id": GIANT, "table_id": 1, "below": 2}),
    # a claim
    Hot(_BUS, "pick_tenant", lambda _: {"skip": [SMALL]}),
    Hot(_BUS, "claim_next", _claim),
    Hot(_BUS, "claim_next", lambda p: _claim(p) | {"only": GIANT}, "with care"),
    Hot(_BUS, "expire_claims_of_tenant", lambda _: (GIANT,)),
    Hot(_BUS, "skip_resolved", _claim),
    Hot(_BUS, "bury_head", _claim),
    Hot(_BUS, "forgive", _named),
    Hot(_BUS, "lock_live_claim", _claim),
    Hot(_BUS, "commit_events", _claim),
    Hot(_BUS, "refuse_events", _claim),
    Hot(_BUS, "note_refusals", _refusals, first=("claim_next",)),
    Hot(_BUS, "ack_whole", _claim),
    Hot(_BUS, "settle", _claim, blocks_free=150),
    Hot(_BUS, "end_claim", _claim),
    Hot(_BUS, "release_lease", _claim),
    Hot(_BUS, "extend_lease", _claim),
    Hot(_BUS, "requeue_expired", lambda _: None, grows_with=Grows.TENANTS),
    Hot(_BUS, "rest_quiet", lambda _: {"quiet_for": timedelta(seconds=10), "limit": 1000}),
    # the barrier, and what is told of the backlog
    Hot(_BUS, "last_token", lambda _: (GIANT,)),
    *(
        Hot(
            _BUS,
            "has_unresolved",
            lambda p, of=tables: {
                "tenant_id": GIANT,
                "table_ids": of,
                "through": p.size.last_token - 100,
            },
            case,
        )
        for tables, case in (([1, 2], "tables"), (None, "all tables"), ([999], "a quiet table"))
    ),
    Hot(_BUS, "find_by_key", lambda _: (GIANT, 5, "key-1004")),
    Hot(_BUS, "recent_events", lambda _: (GIANT, 20)),
    Hot(_BUS, "backlog", _named),
    Hot(_BUS, "pending_tables", _named),
    Hot(_BUS, "lag", lambda _: {"tenants_max": 10}),
    Hot(_BUS, "stuck", lambda _: None, grows_with=Grows.TENANTS),
    # dead letters
    Hot(_DEAD, "list_dead", _dead),
    Hot(_DEAD, "list_dead", lambda p: _dead(p) | {"named": p.dead_tokens}, "named"),
    Hot(_DEAD, "list_dead", lambda p: _dead(p) | {"tenant_id": SMALL}, "none"),
    Hot(_DEAD, "lock_dead", _dead),
    Hot(_DEAD, "point_keys", _dead),
    Hot(_DEAD, "take_tokens", _dead),
    Hot(_DEAD, "below_fence", _dead),
    Hot(_DEAD, "insert_replays", _dead),
    Hot(_DEAD, "mark_replayed", _dead),
    Hot(_DEAD, "replays", _dead),
    # upkeep
    Hot(_BUS, "staged_payloads", lambda _: (GIANT,)),
    Hot(_BUS, "expire_keys", lambda _: _due(7), "some are old"),
    Hot(_BUS, "expire_keys", lambda _: NOTHING_DUE, "none is old"),
    Hot(_BUS, "note_oldest", lambda _: _due(7), "some are old", first=("expire_keys",)),
    Hot(_BUS, "note_oldest", lambda _: NOTHING_DUE, "none is old"),
    Hot(_BUS, "expire_events", lambda _: _due(7), "some are old", first=("expire_keys",)),
    Hot(_BUS, "expire_events", _few_due, "few are old", first=("expire_keys",)),
    Hot(_BUS, "expire_events", lambda _: NOTHING_DUE, "none is old"),
    Hot(_BUS, "forget_claims", lambda _: _due(1), "some are old"),
    Hot(_BUS, "forget_claims", lambda _: NOTHING_DUE, "none is old"),
]
