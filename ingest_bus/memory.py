"""The bus in memory: the same promises as any other, for the life of one object. For tests.

One lock stands for the database: whatever a method changes, it changes under it, or not at all.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Fenced, NotSupported
from duckmesh.identifiers import (
    BatchId,
    ConsumerId,
    Epoch,
    EventId,
    SchemaVersion,
    TableId,
    TenantId,
    new_batch_id,
    new_event_id,
)
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from ingest_bus.acceptance import Acceptance
from ingest_bus.conflicts import key_conflict
from ingest_bus.dead_letters import fenced_off, not_dead
from ingest_bus.envelope import (
    AcceptedEvent,
    Backlog,
    Claim,
    DeadLetter,
    Envelope,
    EventRecord,
    EventState,
    InlinePayload,
    Lag,
    PendingTable,
    Receipt,
    Replay,
    StagedPayload,
    TenantLag,
)
from ingest_bus.port import ISOLATE_FROM_ATTEMPT, MAX_ATTEMPTS, NACK_BACKOFF_FIRST, Watch


@dataclass(slots=True)
class _Event:
    """An accepted envelope and how far it has come."""

    visibility_token: VisibilityToken
    envelope: Envelope
    ingested_at: datetime
    state: EventState = EventState.ACCEPTED
    attempts: int = 0
    failure_reason: str | None = None
    group_last_token: VisibilityToken | None = None
    replayed_as: "_Event | None" = None

    @property
    def last_of_group(self) -> VisibilityToken:
        return self.group_last_token or self.visibility_token

    @property
    def open(self) -> bool:
        return self.state is EventState.ACCEPTED

    def refuse(self, reason: str, *, attempts: int, dead: bool) -> None:
        self.attempts = attempts
        self.failure_reason = reason
        if dead:
            self.state = EventState.FAILED

    def as_accepted(self) -> AcceptedEvent:
        return AcceptedEvent(
            self.visibility_token,
            self.envelope,
            self.ingested_at,
            self.attempts,
            self.group_last_token,
        )

    def as_record(self) -> EventRecord:
        return EventRecord(
            self.envelope.event_id,
            self.visibility_token,
            self.envelope.table_id,
            self.envelope.idempotency_key,
            self.envelope.row_count,
            self.state,
            self.ingested_at,
            self.failure_reason,
        )

    def as_dead_letter(self) -> DeadLetter:
        e = self.envelope
        return DeadLetter(
            e.event_id,
            self.visibility_token,
            e.table_id,
            e.schema_version,
            e.operation,
            e.idempotency_key,
            e.row_count,
            e.byte_count,
            self.ingested_at,
            self.attempts,
            self.failure_reason or "",
            e.trace_id,
            self.group_last_token,
            None if self.replayed_as is None else self.replayed_as.visibility_token,
        )


@dataclass(frozen=True, slots=True)
class _Key:
    """What an idempotency key was accepted with."""

    payload_hash: bytes | None
    event: _Event
    created_at: datetime


_Keys = dict[tuple[TableId, str], _Key]


@dataclass(slots=True)
class _Lease:
    """Who holds the tenant's next events. `attempt` counts claims that ended without a word."""

    epoch: int = 0
    batch_id: BatchId | None = None
    lease_until: datetime | None = None
    claimed_at: datetime | None = None
    not_before: datetime | None = None
    attempt: int = 0
    given_back: set[EventId] = field(default_factory=set)

    def end(self) -> None:
        self.batch_id = self.lease_until = None


@dataclass(slots=True)
class _Tenant:
    """One tenant's order: the event of token T stands at index T - 1."""

    events: list[_Event] = field(default_factory=list)
    keys: _Keys = field(default_factory=dict)
    fences: dict[TableId, SchemaVersion] = field(default_factory=dict)
    acked_token: int = 0
    lease: _Lease = field(default_factory=_Lease)

    def open_events(self, *, after: int, through: int | None = None) -> Iterator[_Event]:
        return (event for event in self.events[after:through] if event.open)


class MemoryIngestBus:
    """IngestBus in one process's memory; ingest_bus.port has the promises.

    `now` is the clock of leases, delays and ages. It takes part in no transaction.
    """

    def __init__(self, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._tenants: dict[TenantId, _Tenant] = {}
        self._lock = threading.Lock()
        self._work = threading.Event()

    # -- publishing

    def publish(
        self, envelopes: Sequence[Envelope], *, as_one: bool = False, within: Any | None = None
    ) -> list[Receipt]:
        _refuse_transaction(within)
        if not envelopes:
            return []
        with self._lock:
            tenant = self._tenants.setdefault(envelopes[0].tenant_id, _Tenant())
            receipts = self._accept(tenant, envelopes, as_one=as_one)
        self._work.set()
        return receipts

    def submit(
        self,
        envelopes: Sequence[Envelope],
        *,
        settled: Callable[[], None] | None = None,
        watch: Watch | None = None,  # noqa: ARG002 - nothing here waits
    ) -> Acceptance:
        try:
            answer = Acceptance.of(self.publish(envelopes))
        except DuckMeshError as error:
            answer = Acceptance.failed(error)
        if settled is not None:
            settled()
        return answer

    def _accept(
        self, tenant: _Tenant, envelopes: Sequence[Envelope], *, as_one: bool
    ) -> list[Receipt]:
        """Work everything out beside the tenant, then add it in one go: all or none."""
        now = self._now()
        fences, keys = dict(tenant.fences), dict(tenant.keys)
        events: list[_Event] = []
        receipts = []
        for e in envelopes:
            place = (e.table_id, e.idempotency_key) if e.idempotency_key is not None else None
            if place is not None and place in keys:
                receipts.append(_duplicate_receipt(e, keys[place]))
                continue
            token = VisibilityToken(len(tenant.events) + len(events) + 1)
            kept = replace(e, payload_hash=None, raises_fence=False, session=None)
            event = _Event(token, kept, now)
            events.append(event)
            receipts.append(
                Receipt(e.event_id, token, e.row_count, schema_version=e.schema_version)
            )
            if place is not None:
                keys[place] = _Key(e.payload_hash, event, now)
            if e.raises_fence:
                _raise_fence(fences, e.table_id, e.schema_version)
        for event in events:
            _check_fence(event.envelope, fences.get(event.envelope.table_id))
            event.group_last_token = events[-1].visibility_token if as_one else None
        tenant.events += events
        tenant.keys, tenant.fences = keys, fences
        return receipts

    def fence(
        self,
        tenant_id: TenantId,
        table_id: TableId,
        *,
        below: SchemaVersion,
        within: Any | None = None,
    ) -> SchemaVersion:
        _refuse_transaction(within)
        with self._lock:
            tenant = self._tenants.setdefault(tenant_id, _Tenant())
            _raise_fence(tenant.fences, table_id, below)
            return tenant.fences[table_id]

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
        with self._lock:
            now = self._now()
            while (tenant_id := self._next_tenant(now, skip)) is not None:
                tenant = self._tenants[tenant_id]
                if events := _next_events(tenant, limit, max_bytes):
                    return _hold(
                        tenant_id, tenant, events, consumer_id=consumer_id, now=now, lease=lease
                    )
                # Only dead-lettered tokens were left: step over them, and look at the others.
                tenant.acked_token = len(tenant.events)
                tenant.lease.attempt = 0
            return None

    def _next_tenant(self, now: datetime, skip: Collection[TenantId]) -> TenantId | None:
        """The tenant that waited longest, of those with work and without a live claim."""
        claimable = [
            (tenant.lease.claimed_at is not None, tenant.lease.claimed_at or now, tenant_id)
            for tenant_id, tenant in self._tenants.items()
            if tenant_id not in skip
            and len(tenant.events) > tenant.acked_token
            and (tenant.lease.lease_until is None or tenant.lease.lease_until <= now)
            and (tenant.lease.not_before is None or tenant.lease.not_before <= now)
        ]
        return min(claimable)[2] if claimable else None

    def ack(self, claim: Claim, events: Collection[EventId], *, within: Any | None = None) -> None:
        _refuse_transaction(within)
        with self._lock:
            tenant = self._live(claim)
            for event in _named(tenant, claim, events):
                event.state = EventState.COMMITTED
            _settle(tenant, claim)

    def nack(
        self,
        claim: Claim,
        events: Collection[EventId],
        reason: str,
        *,
        dead: bool = False,
        within: Any | None = None,
    ) -> set[EventId]:
        _refuse_transaction(within)
        with self._lock:
            tenant = self._live(claim)
            refused = _named(tenant, claim, events)
            for event in refused:
                attempts = event.attempts + 1
                event.refuse(reason, attempts=attempts, dead=dead or attempts >= MAX_ATTEMPTS)
            tenant.lease.given_back |= {e.envelope.event_id for e in refused}
            _settle(tenant, claim)
            if any(event.open for event in refused):
                wait = NACK_BACKOFF_FIRST * 2 ** max(event.attempts for event in refused)
                tenant.lease.not_before = self._now() + wait
            return {e.envelope.event_id for e in refused if not e.open}

    def release(self, claim: Claim, *, delay: timedelta = timedelta(0)) -> None:
        with self._lock:
            try:
                lease = self._live(claim).lease
            except Fenced:
                return
            lease.end()
            lease.attempt = max(lease.attempt - 1, 0)
            lease.not_before = self._now() + delay

    def extend_lease(self, claim: Claim, lease: timedelta) -> None:
        with self._lock:
            self._live(claim).lease.lease_until = self._now() + lease

    def requeue_expired(self) -> int:
        with self._lock:
            now = self._now()
            expired = [
                tenant.lease
                for tenant in self._tenants.values()
                if tenant.lease.lease_until is not None and tenant.lease.lease_until <= now
            ]
            for lease in expired:
                lease.end()
                lease.epoch += 1
            return len(expired)

    def joins(self, transaction: Any) -> bool:  # noqa: ARG002 - it takes part in none
        return False

    def _live(self, claim: Claim) -> _Tenant:
        """The claim's tenant. Raises Fenced when the claim is not live."""
        tenant = self._tenants.get(claim.tenant_id, _Tenant())
        lease = tenant.lease
        if (
            lease.batch_id != claim.batch_id
            or lease.epoch != claim.epoch
            or lease.lease_until is None
            or lease.lease_until <= self._now()
        ):
            raise Fenced("the claim is not live any more", batch_id=str(claim.batch_id))
        return tenant

    # -- reading

    def last_token(self, tenant_id: TenantId) -> VisibilityToken:
        with self._lock:
            tenant = self._tenants.get(tenant_id)
            return VisibilityToken(len(tenant.events)) if tenant else BEFORE_ALL

    def has_unresolved(
        self,
        tenant_id: TenantId,
        table_ids: Collection[TableId] | None,
        *,
        through: VisibilityToken,
    ) -> bool:
        with self._lock:
            tenant = self._tenants.get(tenant_id, _Tenant())
            waiting = tenant.open_events(after=tenant.acked_token, through=through)
            return any(table_ids is None or e.envelope.table_id in table_ids for e in waiting)

    def find_by_key(self, tenant_id: TenantId, table_id: TableId, key: str) -> EventRecord | None:
        with self._lock:
            known = self._tenants.get(tenant_id, _Tenant()).keys.get((table_id, key))
            return known.event.as_record() if known else None

    def recent_events(self, tenant_id: TenantId, *, limit: int) -> list[EventRecord]:
        with self._lock:
            events = self._tenants.get(tenant_id, _Tenant()).events
            return [event.as_record() for event in events[: -limit - 1 : -1]]

    def backlog(self, tenant_id: TenantId) -> Backlog:
        with self._lock:
            tenant = self._tenants.get(tenant_id, _Tenant())
            waiting = list(tenant.open_events(after=tenant.acked_token))
            return Backlog(
                len(waiting),
                sum(event.envelope.byte_count for event in waiting),
                min((event.ingested_at for event in waiting), default=None),
            )

    def pending_tables(self, tenant_id: TenantId) -> dict[TableId, PendingTable]:
        with self._lock:
            tenant = self._tenants.get(tenant_id, _Tenant())
            waiting: dict[TableId, list[_Event]] = {}
            for event in tenant.open_events(after=tenant.acked_token):
                waiting.setdefault(event.envelope.table_id, []).append(event)
            return {
                table_id: PendingTable(
                    len(events),
                    sum(event.envelope.byte_count for event in events),
                    self._now() - events[0].ingested_at,
                    events[-1].visibility_token,
                )
                for table_id, events in waiting.items()
            }

    def lag(self, *, tenants_max: int, patience: timedelta) -> Lag:  # noqa: ARG002 - it is at once
        with self._lock:
            now = self._now()
            found = [
                (tenant_id, tenant.lease, list(tenant.open_events(after=tenant.acked_token)))
                for tenant_id, tenant in self._tenants.items()
            ]
            lags = [
                TenantLag(
                    tenant_id,
                    len(waiting),
                    (now - min(event.ingested_at for event in waiting)).total_seconds(),
                )
                for tenant_id, _, waiting in found
                if waiting
            ]
            return Lag(
                sum(each.events for each in lags),
                sum(e.envelope.byte_count for _, _, waiting in found for e in waiting),
                sum(
                    1
                    for _, each, _ in found
                    if each.lease_until is not None and each.lease_until <= now
                ),
                sum(
                    event.state is EventState.FAILED and event.replayed_as is None
                    for tenant in self._tenants.values()
                    for event in tenant.events
                ),
                tuple(sorted(lags, key=lambda each: -each.oldest_seconds)[:tenants_max]),
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
        with self._lock:
            dead = _dead(self._tenants.get(tenant_id, _Tenant()))
            groups = {dead[token].last_of_group for token in named or () if token in dead}
            found = [
                event.as_dead_letter()
                for event in dead.values()
                if event.visibility_token > above
                and (replayed or event.replayed_as is None)
                and (named is None or event.last_of_group in groups)
            ]
            return found[:limit]

    def replay(
        self,
        tenant_id: TenantId,
        tokens: Collection[VisibilityToken],
        *,
        within: Any | None = None,
    ) -> list[Replay]:
        _refuse_transaction(within)
        with self._lock:
            tenant = self._tenants.get(tenant_id, _Tenant())
            dead = _dead(tenant)
            for token in sorted(set(tokens) - dead.keys()):
                raise not_dead(token)
            groups = {dead[token].last_of_group for token in tokens}
            named = [event for event in dead.values() if event.last_of_group in groups]
            waiting = [event for event in named if event.replayed_as is None]
            self._accept_again(tenant, waiting)
        self._work.set()
        return [_replay_of(event, inserted=event in waiting) for event in named]

    def _accept_again(self, tenant: _Tenant, waiting: Sequence[_Event]) -> None:
        for event in waiting:
            fence = tenant.fences.get(event.envelope.table_id)
            if fence is not None and event.envelope.schema_version < fence:
                raise fenced_off(event.visibility_token, fence)
        last_of: dict[VisibilityToken, VisibilityToken] = {}
        for event in waiting:
            token = VisibilityToken(len(tenant.events) + 1)
            envelope = replace(event.envelope, event_id=new_event_id())
            event.replayed_as = _Event(token, envelope, self._now())
            tenant.events.append(event.replayed_as)
            last_of[event.last_of_group] = token
            place = (envelope.table_id, envelope.idempotency_key or "")
            if (known := tenant.keys.get(place)) is not None and known.event is event:
                tenant.keys[place] = replace(known, event=event.replayed_as)
        for event in waiting:
            if event.replayed_as is not None and event.group_last_token is not None:
                event.replayed_as.group_last_token = last_of[event.last_of_group]

    # -- upkeep

    def staged_payloads(self, tenant_id: TenantId) -> list[StagedPayload]:
        with self._lock:
            return [
                event.envelope.payload
                for event in self._tenants.get(tenant_id, _Tenant()).events
                if event.state is not EventState.COMMITTED
                and isinstance(event.envelope.payload, StagedPayload)
            ]

    def expire_keys(self, *, older_than: timedelta, limit: int) -> int:
        with self._lock:
            oldest_kept = self._now() - older_than
            expired = [
                (tenant.keys, place)
                for tenant in self._tenants.values()
                for place, key in tenant.keys.items()
                if key.created_at < oldest_kept
            ][:limit]
            for keys, place in expired:
                del keys[place]
            return len(expired)

    def wait_for_work(self, timeout: timedelta) -> bool:
        woken = self._work.wait(timeout.total_seconds())
        self._work.clear()
        return woken

    def wake(self) -> None:
        self._work.set()

    def close(self) -> None:
        """Nothing is under way: every call ends what it began."""


def _duplicate_receipt(envelope: Envelope, known: _Key) -> Receipt:
    event = known.event
    asked = envelope.operation, envelope.payload_hash
    if asked != (event.envelope.operation, known.payload_hash):
        raise key_conflict(envelope, event.visibility_token)
    original = event.envelope
    return Receipt(
        original.event_id,
        event.visibility_token,
        original.row_count,
        inserted=False,
        schema_version=original.schema_version,
    )


def _dead(tenant: _Tenant) -> dict[VisibilityToken, _Event]:
    """The dead letters in token order, replayed ones too."""
    return {e.visibility_token: e for e in tenant.events if e.state is EventState.FAILED}


def _replay_of(event: _Event, *, inserted: bool) -> Replay:
    new = event.replayed_as
    assert new is not None  # noqa: S101 - its caller has just accepted it again
    receipt = Receipt(new.envelope.event_id, new.visibility_token, new.envelope.row_count, inserted)
    return Replay(event.visibility_token, receipt)


def _raise_fence(
    fences: dict[TableId, SchemaVersion], table_id: TableId, version: SchemaVersion
) -> None:
    fences[table_id] = max(fences.get(table_id, version), version)


def _check_fence(envelope: Envelope, min_schema_version: SchemaVersion | None) -> None:
    if min_schema_version is not None and envelope.schema_version < min_schema_version:
        raise Conflict(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            "the table was given other columns meanwhile: check the rows against them again",
            min_schema_version=min_schema_version,
        )


def _refuse_transaction(within: Any | None) -> None:
    if within is not None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "this bus joins no transaction: acknowledge after the transaction has committed",
        )


def _next_events(tenant: _Tenant, limit: int, max_bytes: int) -> list[_Event]:
    """The events of the tenant's next claim, after what its earlier claims say of their head."""
    if tenant.lease.attempt >= MAX_ATTEMPTS:
        _bury_head(tenant)
    elif tenant.lease.attempt + 1 >= ISOLATE_FROM_ATTEMPT:
        limit = 1
    return _within_limits(tenant, limit, max_bytes)


def _bury_head(tenant: _Tenant) -> None:
    """Dead-letter the event whose claims killed, and its group; its successor starts anew."""
    attempt, tenant.lease.attempt = tenant.lease.attempt, 0
    reason = f"each of {attempt} claims of this event ended with the death of its consumer"
    for head in tenant.open_events(after=tenant.acked_token):
        for event in tenant.open_events(after=tenant.acked_token, through=head.last_of_group):
            event.refuse(reason, attempts=attempt, dead=True)
        return


def _within_limits(tenant: _Tenant, limit: int, max_bytes: int) -> list[_Event]:
    """The next open events, as many as fit; the first alone may be larger than `max_bytes`.

    The rest of a group whose beginning fits comes with it.
    """
    fitting: list[_Event] = []
    size_bytes = 0
    through = BEFORE_ALL
    for event in tenant.open_events(after=tenant.acked_token):
        if isinstance(event.envelope.payload, InlinePayload):
            size_bytes += event.envelope.byte_count
        full = len(fitting) >= limit or (fitting and size_bytes > max_bytes)
        if full and event.visibility_token > through:
            break
        through = event.last_of_group
        fitting.append(event)
    return fitting


def _hold(
    tenant_id: TenantId,
    tenant: _Tenant,
    events: Sequence[_Event],
    *,
    consumer_id: ConsumerId,
    now: datetime,
    lease: timedelta,
) -> Claim:
    claim = Claim(
        batch_id=new_batch_id(),
        tenant_id=tenant_id,
        consumer_id=consumer_id,
        epoch=Epoch(tenant.lease.epoch + 1),
        attempt=tenant.lease.attempt + 1,
        after_token=VisibilityToken(tenant.acked_token),
        last_token=events[-1].visibility_token,
        lease_until=now + lease,
        events=tuple(event.as_accepted() for event in events),
    )
    tenant.lease = _Lease(
        epoch=claim.epoch,
        batch_id=claim.batch_id,
        lease_until=claim.lease_until,
        claimed_at=now,
        attempt=claim.attempt,
    )
    return claim


def _named(tenant: _Tenant, claim: Claim, events: Collection[EventId]) -> list[_Event]:
    """The named events that are in the claim's range, and open."""
    in_range = tenant.open_events(after=claim.after_token, through=claim.last_token)
    return [event for event in in_range if event.envelope.event_id in events]


def _settle(tenant: _Tenant, claim: Claim) -> None:
    """Move the acked token over the resolved prefix, never over a hole; end a claim that is done.

    A claim that its consumer ended itself did not end in death: its attempt does not count.
    """
    waiting = list(tenant.open_events(after=claim.after_token, through=claim.last_token))
    prefix = waiting[0].visibility_token - 1 if waiting else claim.last_token
    lease = tenant.lease
    if all(event.envelope.event_id in lease.given_back for event in waiting):
        lease.end()
        lease.attempt = max(lease.attempt - 1, 0)
    if prefix > tenant.acked_token:
        tenant.acked_token = prefix
        lease.attempt = 0


__all__ = ["MemoryIngestBus"]
