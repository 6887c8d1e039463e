"""The bus in Postgres: tokens from a counter row, events beside the catalog.

Lock order of a publish: see ingest_bus.postgres_publish. Lock order of a publication: the catalog's
head row, then the tenant's lease row. No transaction takes both a counter row and a head row except
DDL, counter first.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from operator import itemgetter
from typing import Any, Final, Protocol

import psycopg
import structlog

from duckmesh.errors import Fenced
from duckmesh.identifiers import ConsumerId, EventId, SchemaVersion, TableId, TenantId, new_batch_id
from duckmesh.statements import Statements
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import (
    Backlog,
    Claim,
    DeadLetter,
    Envelope,
    EventRecord,
    Lag,
    PendingTable,
    Receipt,
    Replay,
    StagedPayload,
    TenantLag,
)
from ingest_bus.group_commit import GroupCommit
from ingest_bus.port import ISOLATE_FROM_ATTEMPT, MAX_ATTEMPTS, NACK_BACKOFF_FIRST, Watch
from ingest_bus.postgres_dead_letters import list_dead, replay_dead
from ingest_bus.postgres_publish import Begun, Borrowed, Publisher
from ingest_bus.postgres_rows import event_of, record_of
from ingest_bus.prepared import INT8, INT8_ARRAY, PreparedStatement

_LOG = structlog.get_logger()
_SQL = Statements("ingest_bus", "postgres.sql")
_HAS_UNRESOLVED: Final = PreparedStatement(
    "duckmesh_unresolved",
    _SQL["has_unresolved"],
    {"tenant_id": INT8, "table_ids": INT8_ARRAY, "through": INT8},
)
_CLAIMS_KEPT: Final = timedelta(days=1)
"""How long what is known of an ended claim is kept at most: nobody but an operator asks for it."""

_LEASE_COLUMNS: Final = 5
"""So many columns of `claim_next` come before the event's, the first of which is its token."""

ACCEPTED_CHANNEL: Final = "duckmesh_accepted"
_ACCEPTED_PATIENCE: Final = timedelta(milliseconds=50)
"""Between two wake-ups of the coordinators that nobody waits for: they gather for longer."""

_QUIET_FOR: Final = timedelta(seconds=10)
"""A tenant that has had nothing to claim for so long is passed over until its next write."""
_RESTED_AT_ONCE: Final = 1_000

Connection = psycopg.Connection[tuple[Any, ...]]


class Database(Protocol):
    """What the bus needs of the database it lives in (catalog.connection.Catalog has it)."""

    def connect(self) -> AbstractContextManager[Connection]: ...
    def lend_at_once(self) -> Borrowed | None: ...
    def announce(self, channel: str, payload: str = "", *, patience: timedelta = ...) -> None: ...
    def subscribe(self, channel: str, subscriber: Callable[[str], None]) -> None: ...


class PostgresIngestBus:
    """IngestBus over the tables of migrations/0003_ingest_bus; ingest_bus.port has the promises."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._publisher = Publisher(database.connect, database.lend_at_once)
        self._groups = GroupCommit(self._commit_group, self._begin_group)
        self._work = threading.Event()
        self._listening = False

    # -- publishing

    def publish(
        self, envelopes: Sequence[Envelope], *, as_one: bool = False, within: Any | None = None
    ) -> list[Receipt]:
        if not envelopes:
            return []
        tenant_id = envelopes[0].tenant_id
        if within is not None:
            return self._publisher.accept_within(within, tenant_id, envelopes, as_one=as_one)
        if as_one:
            return self._commit_group(tenant_id, envelopes, as_one=True)
        return self._groups.publish(tenant_id, envelopes)

    def submit(
        self,
        envelopes: Sequence[Envelope],
        *,
        settled: Callable[[], None] | None = None,
        watch: Watch | None = None,
    ) -> Acceptance:
        if envelopes:
            return self._groups.submit(
                envelopes[0].tenant_id, envelopes, settled=settled, watch=watch
            )
        if settled is not None:
            settled()
        return Acceptance.of([])

    def _commit_group(
        self, tenant_id: TenantId, envelopes: Sequence[Envelope], *, as_one: bool = False
    ) -> list[Receipt]:
        receipts = self._publisher.commit_group(tenant_id, envelopes, as_one=as_one)
        self._tell_accepted()
        return receipts

    def _begin_group(self, tenant_id: TenantId, envelopes: Sequence[Envelope]) -> Begun | None:
        return self._publisher.begin_group(tenant_id, envelopes, accepted=self._tell_accepted)

    def _tell_accepted(self) -> None:
        # Behind the commit: raised from here, an error would have the group accepted once more. A
        # coordinator that is not told finds the writes when it polls.
        try:
            self._database.announce(ACCEPTED_CHANNEL, patience=_ACCEPTED_PATIENCE)
        except Exception:  # noqa: BLE001 - the writes stand, whatever it is
            _LOG.exception("acceptance_not_announced")

    def fence(
        self,
        tenant_id: TenantId,
        table_id: TableId,
        *,
        below: SchemaVersion,
        within: Any | None = None,
    ) -> SchemaVersion:
        return self._publisher.fence(tenant_id, table_id, below=below, within=within)

    # -- claiming

    def claim_batch(
        self,
        consumer_id: ConsumerId,
        *,
        limit: int,
        max_bytes: int,
        lease: timedelta,
        skip: Collection[TenantId] = (),
    ) -> Claim | None:
        wanted = _Wanted(consumer_id, limit, max_bytes, lease, list(skip))
        with self._database.connect() as connection:
            found = _claim(connection, wanted)
            if isinstance(found, Claim) or not found:
                return found or None
            # Of a tenant whose consumers died of late, or that has nothing but dead letters left.
            with connection.transaction():
                return _claim_with_care(connection, wanted)

    def ack(self, claim: Claim, events: Collection[EventId], *, within: Any | None = None) -> None:
        with self._transaction(within) as connection:
            if {event.envelope.event_id for event in claim.events} <= set(events):
                whole = connection.execute(_SQL["ack_whole"], _claim_values(claim))
                if whole.fetchone() is None:
                    raise _not_live(claim)
                return
            _lock_live(connection, claim)
            connection.execute(
                _SQL["commit_events"], _claim_values(claim) | {"event_ids": list(events)}
            )
            self._settle(connection, claim, state="acked")

    def nack(
        self,
        claim: Claim,
        events: Collection[EventId],
        reason: str,
        *,
        dead: bool = False,
        within: Any | None = None,
    ) -> set[EventId]:
        values = _claim_values(claim) | {
            "event_ids": list(events),
            "reason": reason,
            "dead": dead,
            "max_attempts": MAX_ATTEMPTS,
        }
        with self._transaction(within) as connection:
            _lock_live(connection, claim)
            rows = connection.execute(_SQL["refuse_events"], values).fetchall()
            ids, tokens, attempts, dead_flags = zip(*rows, strict=True) if rows else ([],) * 4
            connection.execute(
                _SQL["note_refusals"],
                values
                | {
                    "event_ids": list(ids),
                    "tokens": list(tokens),
                    "attempts": list(attempts),
                    "dead": list(dead_flags),
                },
            )
            backoff = NACK_BACKOFF_FIRST * 2 ** max(attempts, default=0)
            self._settle(
                connection, claim, state="released", backoff=None if all(dead_flags) else backoff
            )
        return {row[0] for row in rows if row[3]}

    def _settle(
        self,
        connection: Connection,
        claim: Claim,
        *,
        state: str,
        backoff: timedelta | None = None,
    ) -> None:
        row = connection.execute(
            _SQL["settle"], _claim_values(claim) | {"backoff": backoff}
        ).fetchone()
        if row is not None and row[0]:
            connection.execute(_SQL["end_claim"], {"batch_id": claim.batch_id, "state": state})

    def release(self, claim: Claim, *, delay: timedelta = timedelta(0)) -> None:
        with self._database.connect() as connection, connection.transaction():
            released = connection.execute(
                _SQL["release_lease"], _claim_values(claim) | {"delay": delay}
            )
            if released.rowcount:
                connection.execute(
                    _SQL["end_claim"], {"batch_id": claim.batch_id, "state": "released"}
                )

    def extend_lease(self, claim: Claim, lease: timedelta) -> None:
        with self._database.connect() as connection:
            extended = connection.execute(
                _SQL["extend_lease"], _claim_values(claim) | {"lease": lease}
            )
            if extended.rowcount == 0:
                raise _not_live(claim)

    def requeue_expired(self) -> int:
        with self._database.connect() as connection:
            requeued = connection.execute(_SQL["requeue_expired"]).rowcount
            # Here as well, for it is asked for as often as somebody looks for work.
            connection.execute(
                _SQL["rest_quiet"], {"quiet_for": _QUIET_FOR, "limit": _RESTED_AT_ONCE}
            )
        return requeued

    def joins(self, transaction: Any) -> bool:
        return isinstance(transaction, psycopg.Connection)

    @contextmanager
    def _transaction(self, within: Any | None) -> Iterator[Connection]:
        """The caller's transaction, or one of our own."""
        if within is not None:
            yield within
            return
        with self._database.connect() as connection, connection.transaction():
            yield connection

    # -- reading

    def last_token(self, tenant_id: TenantId) -> VisibilityToken:
        with self._database.connect() as connection:
            row = connection.execute(_SQL["last_token"], (tenant_id,)).fetchone()
        return VisibilityToken(row[0]) if row else BEFORE_ALL

    def has_unresolved(
        self,
        tenant_id: TenantId,
        table_ids: Collection[TableId] | None,
        *,
        through: VisibilityToken,
    ) -> bool:
        values = {
            "tenant_id": b"%d" % tenant_id,
            "table_ids": None
            if table_ids is None
            else b"{%b}" % b",".join(b"%d" % i for i in table_ids),
            "through": b"%d" % through,
        }
        with self._database.connect() as connection:
            return _HAS_UNRESOLVED.first_value(connection, values) == b"t"

    def find_by_key(self, tenant_id: TenantId, table_id: TableId, key: str) -> EventRecord | None:
        with self._database.connect() as connection:
            row = connection.execute(_SQL["find_by_key"], (tenant_id, table_id, key)).fetchone()
        return None if row is None else record_of(row)

    def recent_events(self, tenant_id: TenantId, *, limit: int) -> list[EventRecord]:
        with self._database.connect() as connection:
            rows = connection.execute(_SQL["recent_events"], (tenant_id, limit)).fetchall()
        return [record_of(row) for row in rows]

    def backlog(self, tenant_id: TenantId) -> Backlog:
        with self._database.connect() as connection:
            row = connection.execute(_SQL["backlog"], {"tenant_id": tenant_id}).fetchone()
        return Backlog(*row) if row else Backlog(0, 0, None)

    def pending_tables(self, tenant_id: TenantId) -> dict[TableId, PendingTable]:
        with self._database.connect() as connection:
            rows = connection.execute(_SQL["pending_tables"], {"tenant_id": tenant_id}).fetchall()
        return {table_id: PendingTable(*values) for table_id, *values in rows}

    def lag(self, *, tenants_max: int, patience: timedelta) -> Lag:
        milliseconds = str(max(1, int(patience.total_seconds() * 1000)))
        with self._database.connect() as connection, connection.transaction():
            connection.execute(_SQL["limit_time"], (milliseconds,))
            rows = connection.execute(_SQL["lag"], {"tenants_max": tenants_max}).fetchall()
            stuck = connection.execute(_SQL["stuck"]).fetchone()
        events, size_bytes = rows[0][3:] if rows else (0, 0)
        expired_leases, dead_letters = stuck or (0, 0)
        return Lag(
            events,
            size_bytes,
            expired_leases,
            dead_letters,
            tuple(TenantLag(row[0], row[1], max(0.0, row[2])) for row in rows),
        )

    # -- dead letters

    def dead_letters(
        self,
        tenant_id: TenantId,
        *,
        above: VisibilityToken = BEFORE_ALL,
        limit: int,
        replayed: bool = False,
        named: Collection[VisibilityToken] | None = None,
    ) -> list[DeadLetter]:
        with self._database.connect() as connection:
            return list_dead(
                connection, tenant_id, above=above, limit=limit, replayed=replayed, named=named
            )

    def replay(
        self,
        tenant_id: TenantId,
        tokens: Collection[VisibilityToken],
        *,
        within: Any | None = None,
    ) -> list[Replay]:
        with self._transaction(within) as connection:
            return replay_dead(connection, tenant_id, tokens)

    # -- upkeep

    def staged_payloads(self, tenant_id: TenantId) -> list[StagedPayload]:
        with self._database.connect() as connection:
            rows = connection.execute(_SQL["staged_payloads"], (tenant_id,), binary=True)
            return [StagedPayload.from_bytes(bytes(row[0])) for row in rows]

    def expire_keys(self, *, older_than: timedelta, limit: int) -> int:
        values = {"older_than": older_than, "limit": limit}
        claims = values | {"older_than": min(older_than, _CLAIMS_KEPT)}
        with self._database.connect() as connection:
            keys = connection.execute(_SQL["expire_keys"], values).rowcount
            connection.execute(_SQL["note_oldest"], values)
            events = connection.execute(_SQL["expire_events"], values).rowcount
            ended = connection.execute(_SQL["forget_claims"], claims).rowcount
        return max(keys, events, ended)

    def wait_for_work(self, timeout: timedelta) -> bool:
        if not self._listening:
            self._listening = True
            self._database.subscribe(ACCEPTED_CHANNEL, lambda _: self._work.set())
        woken = self._work.wait(timeout.total_seconds())
        self._work.clear()
        return woken

    def wake(self) -> None:
        self._work.set()

    def close(self) -> None:
        self._groups.close()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a consumer asks of its next claim."""

    consumer_id: ConsumerId
    limit: int
    max_bytes: int
    lease: timedelta
    skip: list[TenantId]


def _claim(
    connection: Connection,
    wanted: _Wanted,
    *,
    only: TenantId | None = None,
    attempts_max: int = ISOLATE_FROM_ATTEMPT - 1,
    gave_verdict: bool = False,
) -> Claim | bool:
    """Claim in one statement. No claim: whether a tenant is left that needs a closer look."""
    batch_id = new_batch_id()
    values = {
        "skip": wanted.skip,
        "only": only,
        "attempts_max": attempts_max,
        "batch_id": batch_id,
        "consumer_id": wanted.consumer_id,
        "lease": wanted.lease,
        "limit": wanted.limit,
        "max_bytes": wanted.max_bytes,
        "gave_verdict": gave_verdict,
    }
    rows = connection.execute(_SQL["claim_next"], values, binary=True).fetchall()
    if not rows:
        return False
    if rows[0][_LEASE_COLUMNS] is None:
        return True
    rows.sort(key=itemgetter(_LEASE_COLUMNS))
    tenant_id, acked_token, epoch, attempt, lease_until = rows[0][:_LEASE_COLUMNS]
    events = tuple(event_of(tenant_id, row[_LEASE_COLUMNS:]) for row in rows)
    return Claim(
        batch_id=batch_id,
        tenant_id=tenant_id,
        consumer_id=wanted.consumer_id,
        epoch=epoch,
        attempt=attempt,
        after_token=VisibilityToken(acked_token),
        last_token=events[-1].visibility_token,
        lease_until=lease_until,
        events=events,
    )


def _claim_with_care(connection: Connection, wanted: _Wanted) -> Claim | None:
    """Claim after what earlier claims say of a tenant's head, under the lock of its lease row."""
    while picked := connection.execute(_SQL["pick_tenant"], {"skip": wanted.skip}).fetchone():
        tenant_id, acked_token, attempt, last_token = picked
        connection.execute(_SQL["expire_claims_of_tenant"], (tenant_id,))
        buries = attempt >= MAX_ATTEMPTS
        if buries:
            _bury_head(connection, tenant_id, acked_token, attempt)
        alone = not buries and attempt + 1 >= ISOLATE_FROM_ATTEMPT
        found = _claim(
            connection,
            replace(wanted, limit=1) if alone else wanted,
            only=tenant_id,
            attempts_max=MAX_ATTEMPTS,
            gave_verdict=buries,
        )
        if isinstance(found, Claim):
            return found
        # Only dead-lettered tokens were left: step over them, and look at the others.
        passed = {"tenant_id": tenant_id, "last_token": last_token}
        if not connection.execute(_SQL["skip_resolved"], passed).rowcount:
            # Something waits there after all, and could not be had: the next turn finds it.
            return None
    return None


def _bury_head(connection: Connection, tenant_id: TenantId, acked_token: int, attempt: int) -> None:
    reason = f"each of {attempt} claims of this event ended with the death of its consumer"
    values = {"tenant_id": tenant_id, "acked_token": acked_token}
    connection.execute(_SQL["bury_head"], values | {"attempt": attempt, "reason": reason})
    # The deaths were the buried event's. Left standing, they would bury the next one at its
    # first death.
    connection.execute(_SQL["forgive"], values)


def _claim_values(claim: Claim) -> dict[str, Any]:
    return {
        "tenant_id": claim.tenant_id,
        "batch_id": claim.batch_id,
        "epoch": claim.epoch,
        "after_token": claim.after_token,
        "last_token": claim.last_token,
    }


def _lock_live(connection: Connection, claim: Claim) -> None:
    if connection.execute(_SQL["lock_live_claim"], _claim_values(claim)).fetchone() is None:
        raise _not_live(claim)


def _not_live(claim: Claim) -> Fenced:
    return Fenced("the claim is not live any more", batch_id=str(claim.batch_id))


__all__ = ["ACCEPTED_CHANNEL", "Database", "PostgresIngestBus"]
