"""The IngestBus port. Its docstrings are the contract; tests/conformance/ proves each sentence."""

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any, Protocol

from duckmesh.identifiers import ConsumerId, EventId, SchemaVersion, TableId, TenantId
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
)

MAX_ATTEMPTS = 5
"""Nacks of one event, or claims of one head event that ended in their consumer's death, before
the event is dead-lettered."""

ISOLATE_FROM_ATTEMPT = 3
"""From this claim of the same head event on, it is claimed alone: it may be what kills."""

NACK_BACKOFF_FIRST = timedelta(milliseconds=100)
"""The tenant rests this long, times 2^attempts, before a refused event is claimed again."""


Watch = Callable[[int, Callable[[], None]], bool]
"""Calls the act, once, when the file descriptor has bytes to read; False when it is too late."""


class IngestBus(Protocol):
    """Accepted envelopes, durable, in one order per tenant.

    Tokens of a tenant are dense (1, 2, 3, …) and assigned in commit order: when a token can be
    read, every smaller one can. All methods may be called from any thread. A backend that cannot be
    reached raises Unavailable; then a publish may or may not have happened, and repeating it with
    its key is safe.
    """

    def publish(
        self, envelopes: Sequence[Envelope], *, as_one: bool = False, within: Any | None = None
    ) -> list[Receipt]:
        """Accept envelopes of one tenant, all or none, and return a receipt for each, in order.

        On return they are durable. A key that the (tenant, table) has seen with the same operation
        and an equal payload hash adds nothing and returns the original receipt with `inserted`
        False. With others the call raises Conflict (IDEMPOTENCY_CONFLICT). An envelope of a schema
        version below the table's fence raises Conflict (SCHEMA_INCOMPATIBLE), `min_schema_version`
        in its context. Concurrent publishes of one key accept one. Another caller's failure never
        fails this one. The record of a session that an envelope names knows the token when this
        returns; a bus that joins the catalog's transactions moves it in its own.

        `as_one` makes a group of them: no other token lies between theirs, no claim holds a part
        of them, and when the bus gives one up it gives up all. `within` is as for `ack`: they are
        accepted when that transaction commits. It may have locked nothing that a publish locks.
        """
        ...

    def submit(
        self,
        envelopes: Sequence[Envelope],
        *,
        settled: Callable[[], None] | None = None,
        watch: Watch | None = None,
    ) -> Acceptance:
        """`publish` without waiting. Tokens follow the order of one caller's submits.

        `settled` is called when the outcome is there; once for all that ended together and named
        the same. It must not block. With `watch` the caller waits for what the backend waits for,
        beside all else that it waits for, and no thread of the bus need do it.
        """
        ...

    def fence(
        self,
        tenant_id: TenantId,
        table_id: TableId,
        *,
        below: SchemaVersion,
        within: Any | None = None,
    ) -> SchemaVersion:
        """Send back every later envelope of the table whose schema version is below this one.

        Returns the fence as it stands, which is never lowered: a larger one is another's. Every
        token issued before is smaller than every token issued after. `within` is as for `ack`; then
        the fence stands when the transaction commits, and publishes wait for that.
        """
        ...

    def claim_batch(
        self,
        consumer_id: ConsumerId,
        *,
        limit: int,
        max_bytes: int,
        lease: timedelta,
        skip: Collection[TenantId] = (),
    ) -> Claim | None:
        """Hold the next events of one tenant in token order; None when nothing can be claimed.

        The tenant is the one that waited longest, of those not in `skip`. At most one claim of a
        tenant is live. At most `limit` events are returned, and no more than `max_bytes` of inline
        payload unless the first event alone is larger. A group comes whole, also beyond both
        limits. An event whose claims keep ending in their consumer's death comes
        alone, or with its group alone, and after MAX_ATTEMPTS is dead-lettered, as is its group.
        """
        ...

    def ack(self, claim: Claim, events: Collection[EventId], *, within: Any | None = None) -> None:
        """Resolve events as committed. Raises Fenced, changing nothing, when the claim is not live.

        `within` is a transaction of the catalog: a bus for which `joins` says so takes part in it,
        and the ack happens when it commits. A claim ends when each of its events is acked or
        nacked.
        """
        ...

    def nack(
        self,
        claim: Claim,
        events: Collection[EventId],
        reason: str,
        *,
        dead: bool = False,
        within: Any | None = None,
    ) -> set[EventId]:
        """Give events back with the reason; return those that are dead-lettered by it.

        An event is dead-lettered at its MAX_ATTEMPTS-th nack, or at once with `dead`. Its token
        then counts as resolved, and its payload is kept. The events of a group are given back
        together: their consumer names them all. Raises Fenced as `ack` does.
        """
        ...

    def release(self, claim: Claim, *, delay: timedelta = timedelta(0)) -> None:
        """End a claim without blame: its unresolved events may be claimed again after `delay`.

        A claim that is no longer live is left alone.
        """
        ...

    def extend_lease(self, claim: Claim, lease: timedelta) -> None:
        """Hold a live claim for `lease` from now on. Raises Fenced when it is not live."""
        ...

    def requeue_expired(self) -> int:
        """End the claims whose lease has run out, and return how many there were."""
        ...

    def joins(self, transaction: Any) -> bool:
        """Whether `ack` and `nack` can take part in this transaction of the catalog."""
        ...

    def last_token(self, tenant_id: TenantId) -> VisibilityToken:
        """The largest token issued to the tenant; zero before the first."""
        ...

    def has_unresolved(
        self,
        tenant_id: TenantId,
        table_ids: Collection[TableId] | None,
        *,
        through: VisibilityToken,
    ) -> bool:
        """Whether an event of these tables up to `through` is neither committed nor dead.

        None stands for all tables of the tenant.
        """
        ...

    def find_by_key(self, tenant_id: TenantId, table_id: TableId, key: str) -> EventRecord | None:
        """The event that a key was accepted with, or None."""
        ...

    def recent_events(self, tenant_id: TenantId, *, limit: int) -> list[EventRecord]:
        """The newest events of the tenant, newest first."""
        ...

    def backlog(self, tenant_id: TenantId) -> Backlog:
        """How much of the tenant waits to be resolved."""
        ...

    def pending_tables(self, tenant_id: TenantId) -> dict[TableId, PendingTable]:
        """The same by table, of those that have something waiting."""
        ...

    def lag(self, *, tenants_max: int, patience: timedelta) -> Lag:
        """How much of all tenants waits to be resolved, and of those that have waited longest.

        `tenants_max` is at least 1. Raises Unavailable when the answer takes longer than the
        patience.
        """
        ...

    def dead_letters(
        self,
        tenant_id: TenantId,
        *,
        above: VisibilityToken = BEFORE_ALL,
        limit: int,
        replayed: bool = False,
        named: Collection[VisibilityToken] | None = None,
    ) -> list[DeadLetter]:
        """The tenant's dead letters with tokens above one, in token order.

        Those that were replayed come only when `replayed` asks for them. With `named` these alone
        come, each with its whole group.
        """
        ...

    def replay(
        self,
        tenant_id: TenantId,
        tokens: Collection[VisibilityToken],
        *,
        within: Any | None = None,
    ) -> list[Replay]:
        """Accept dead letters again, all or none: new events, with new tokens and the old payloads.

        They follow each other in the order of their dead tokens. With one event of a group comes
        the whole group, and is a group again. A dead letter is replayed once: later calls return
        the receipt of the first, with `inserted` False. Its idempotency key, while it is known,
        stands for the new event from then on. Raises NotFound when a token is that of no dead
        letter, and Conflict (SCHEMA_INCOMPATIBLE) as `publish` does. `within` is as for `publish`.
        """
        ...

    def staged_payloads(self, tenant_id: TenantId) -> list[StagedPayload]:
        """The staged payloads of the tenant that are not published: of events that wait, and of
        dead letters. An event that is not among them is committed, or was accepted later.
        """
        ...

    def expire_keys(self, *, older_than: timedelta, limit: int) -> int:
        """Forget keys accepted longer ago than this, and receipts that no key names any more.

        Up to `limit` of each; returns the larger count, so that `limit` says there may be more.
        Most writes may have no key: their receipts are forgotten as fast as they come.
        """
        ...

    def wait_for_work(self, timeout: timedelta) -> bool:
        """Sleep until something was published, or `wake` was called, or the time is over.

        False after a timeout. A lost wake-up costs at most the timeout.
        """
        ...

    def wake(self) -> None:
        """End a `wait_for_work` of this process, or the next one."""
        ...

    def close(self) -> None:
        """Finish what was submitted, and give back every resource."""
        ...


__all__ = ["ISOLATE_FROM_ATTEMPT", "MAX_ATTEMPTS", "NACK_BACKOFF_FIRST", "IngestBus"]
