"""Dead letters in Postgres: listing them, and accepting them again.

Lock order of a replay: the dead letters in token order, their idempotency keys, then the tenant's
counter row, which is held until commit. A publish inserts keys and then takes the counter; it never
waits for anything while it holds the counter, so the two cannot deadlock.
"""

from collections.abc import Collection, Sequence
from typing import Any

import psycopg

from duckmesh.identifiers import TenantId, new_event_id
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken
from ingest_bus.dead_letters import fenced_off, not_dead
from ingest_bus.envelope import DeadLetter, Receipt, Replay
from ingest_bus.postgres_rows import dead_letter_of

_SQL = Statements("ingest_bus", "postgres_dead_letters.sql")

Connection = psycopg.Connection[tuple[Any, ...]]


def list_dead(
    connection: Connection,
    tenant_id: TenantId,
    *,
    above: VisibilityToken,
    limit: int,
    replayed: bool,
    named: Collection[VisibilityToken] | None,
) -> list[DeadLetter]:
    """As IngestBus.dead_letters."""
    values = {
        "tenant_id": tenant_id,
        "above": above,
        "limit": limit,
        "replayed": replayed,
        "named": None if named is None else list(named),
    }
    return [dead_letter_of(row) for row in connection.execute(_SQL["list_dead"], values)]


def replay_dead(
    connection: Connection, tenant_id: TenantId, tokens: Collection[VisibilityToken]
) -> list[Replay]:
    """As IngestBus.replay, in the caller's transaction. Died before its commit: nothing happened.

    Died after it: the dead letters name their replays, and the next call returns those.
    """
    values: dict[str, Any] = {"tenant_id": tenant_id, "tokens": list(tokens)}
    found = connection.execute(_SQL["lock_dead"], values).fetchall()
    _check_known(tokens, found)
    waiting = [row[0] for row in found if row[1] is None]
    if waiting:
        _accept_again(connection, tenant_id, waiting)
    values["tokens"] = [row[0] for row in found]
    rows = connection.execute(_SQL["replays"], values).fetchall()
    return [
        Replay(token, Receipt(event_id, new_token, row_count, token in waiting))
        for token, event_id, new_token, row_count in rows
    ]


def _accept_again(
    connection: Connection, tenant_id: TenantId, waiting: Sequence[VisibilityToken]
) -> None:
    values = {
        "tenant_id": tenant_id,
        "tokens": list(waiting),
        "event_ids": [new_event_id() for _ in waiting],
    }
    connection.execute(_SQL["point_keys"], values)
    row = connection.execute(
        _SQL["take_tokens"], {"tenant_id": tenant_id, "count": len(waiting)}
    ).fetchone()
    assert row is not None  # noqa: S101 - a tenant with events has its counter
    _check_fences(connection, values)
    connection.execute(_SQL["insert_replays"], values | {"before": row[0]})
    connection.execute(_SQL["mark_replayed"], values | {"before": row[0]})
    connection.execute(_SQL["tell_accepted"])


def _check_known(
    tokens: Collection[VisibilityToken], found: Sequence[tuple[VisibilityToken, Any]]
) -> None:
    unknown = sorted(set(tokens) - {row[0] for row in found})
    if unknown:
        raise not_dead(unknown[0])


def _check_fences(connection: Connection, values: dict[str, Any]) -> None:
    """Under the counter's lock: a fence is raised before this, or after the replays' tokens."""
    below = connection.execute(_SQL["below_fence"], values).fetchone()
    if below is not None:
        raise fenced_off(below[0], below[1])
