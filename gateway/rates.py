"""Ingest rates: a token bucket for each tenant, and for each key, that has a rate.

A bucket holds what one second allows. Who comes while it is not empty takes all that he brings, and
may leave it in debt; who comes while it is empty waits, or is refused, until the debt is paid. So a
batch of any size passes in the end, and the rate holds over every longer span.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Final

from duckmesh.errors import Cancelled, ErrorCode, Overloaded
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.quotas import Quota
from gateway.identity import Identity
from gateway.known_quotas import Allowance, KnownQuotas
from query_engine.engine import Interruption

WAITING_MAX: Final = 64
"""Streams of one tenant that this process slows down at once; more are refused."""

_LOOK_SECONDS: Final = 0.25
"""How often a slowed stream looks whether its quota was changed, or its caller has gone."""
_LIMIT: Final = 10_000
_UNITS: Final = {
    Quota.INGEST_ROWS_PER_SECOND: "rows",
    Quota.INGEST_BYTES_PER_SECOND: "bytes",
}

_Name = tuple[TenantId | KeyId, Quota]


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float

    def refill(self, rate: int, now: float) -> None:
        self.level = min(rate, self.level + (now - self.at) * rate)
        self.at = now


@dataclass(frozen=True, slots=True)
class _Spent:
    """The bucket that a caller must wait for longest."""

    quota: Quota
    whose: str
    limit: int
    used: int
    seconds: float


class IngestRates:
    """What tenants and keys have taken in of late, in this process. Thread-safe."""

    def __init__(
        self,
        quotas: KnownQuotas,
        *,
        waiting_max: int = WAITING_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas = quotas
        self._waiting_max = waiting_max
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._buckets: dict[_Name, _Bucket] = {}
        self._waiting: dict[TenantId, int] = {}

    def check(self, identity: Identity) -> None:
        """Raise Overloaded (RATE_LIMITED) while a bucket of the caller is empty."""
        self.check_by(self._quotas.of(identity), identity)

    def check_by(self, allowance: Allowance, identity: Identity) -> None:
        """The same, by an allowance that is at hand. Never blocks."""
        if allowance.limits_ingest_rate and (spent := self._spent(identity, allowance)):
            raise _refusal(spent)

    def charge(self, identity: Identity, rows: int, size_bytes: int) -> None:
        """Take this out of the caller's buckets, whatever they hold."""
        self.charge_by(self._quotas.of(identity), identity, rows, size_bytes)

    def charge_by(
        self, allowance: Allowance, identity: Identity, rows: int, size_bytes: int
    ) -> None:
        """The same, by an allowance that is at hand. Never blocks."""
        if not allowance.limits_ingest_rate:
            return
        amounts = {
            Quota.INGEST_ROWS_PER_SECOND: rows,
            Quota.INGEST_BYTES_PER_SECOND: size_bytes,
        }
        with self._lock:
            for bucket, _, (_, quota), _ in self._of(identity, allowance):
                bucket.level -= amounts[quota]

    def pace(
        self, identity: Identity, rows: int, size_bytes: int, stop: Interruption | None = None
    ) -> None:
        """Wait until the caller's buckets are not empty, then take this out of them.

        Raises Overloaded (RATE_LIMITED) when too many streams of the tenant wait already, and
        Cancelled when `stop` is pressed.
        """
        allowance = self._quotas.of(identity)
        if not allowance.limits_ingest_rate:
            return
        if (spent := self._spent(identity, allowance)) is not None:
            with self._one_more_waits(identity, spent):
                self._wait(identity, spent, stop)
        self.charge(identity, rows, size_bytes)

    def _wait(self, identity: Identity, spent: _Spent, stop: Interruption | None) -> None:
        gone = threading.Event()
        former = stop.connect(gone.set) if stop is not None else None
        left: _Spent | None = spent
        try:
            while left is not None:
                gone.wait(min(left.seconds, _LOOK_SECONDS))
                if stop is not None and stop.requested:
                    raise Cancelled(
                        ErrorCode.INGEST_CANCELLED,
                        "the sender left while its rows waited for the quota: nothing of the open "
                        "write was accepted",
                    )
                # Asked for anew: the quota may have been raised, or taken away, meanwhile.
                left = self._spent(identity, self._quotas.of(identity))
        finally:
            if stop is not None:
                stop.connect(former)

    @contextmanager
    def _one_more_waits(self, identity: Identity, spent: _Spent) -> Iterator[None]:
        tenant_id = identity.tenant_id
        with self._lock:
            waiting = self._waiting.get(tenant_id, 0)
            if waiting >= self._waiting_max:
                raise _refusal(spent)
            self._waiting[tenant_id] = waiting + 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[tenant_id] -= 1
                if not self._waiting[tenant_id]:
                    del self._waiting[tenant_id]

    def _spent(self, identity: Identity, allowance: Allowance) -> _Spent | None:
        with self._lock:
            empty = [
                _Spent(quota, whose, rate, ceil(rate - bucket.level), -bucket.level / rate)
                for bucket, rate, (_, quota), whose in self._of(identity, allowance)
                if bucket.level <= 0
            ]
        return max(empty, key=lambda each: each.seconds, default=None)

    def _of(
        self, identity: Identity, allowance: Allowance
    ) -> Iterator[tuple[_Bucket, int, _Name, str]]:
        """The caller's buckets as they are now, each with its rate. Under the lock."""
        now = self._monotonic()
        holders: list[tuple[TenantId | KeyId, str, object]] = [
            (identity.tenant_id, "tenant", allowance.tenant)
        ]
        if identity.key_id is not None:
            holders.append((identity.key_id, "API key", allowance.key))
        for holder, whose, of_holder in holders:
            for quota in _UNITS:
                rate = getattr(of_holder, quota.value)
                if rate is not None:
                    bucket = self._bucket((holder, quota), rate, now)
                    yield bucket, rate, (holder, quota), whose

    def _bucket(self, name: _Name, rate: int, now: float) -> _Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= _LIMIT:
                # A full bucket is as one that was never used.
                idle = [each for each, of in self._buckets.items() if now - of.at > 1 <= of.level]
                for each in idle or list(self._buckets):
                    del self._buckets[each]
            bucket = self._buckets[name] = _Bucket(rate, now)
        bucket.refill(rate, now)
        return bucket


def _refusal(spent: _Spent) -> Overloaded:
    # A millisecond at least: an empty bucket that is in no debt is free at once.
    milliseconds = max(1, ceil(spent.seconds * 1000))
    unit = _UNITS[spent.quota]
    return Overloaded(
        ErrorCode.RATE_LIMITED,
        f"the {spent.whose} may send {spent.limit} {unit} a second and has sent {spent.used}: "
        f"retry in {milliseconds} ms, or send less",
        quota=spent.quota.value,
        used=spent.used,
        limit=spent.limit,
        retry_after_ms=milliseconds,
        retry_after_seconds=ceil(milliseconds / 1000),
    )
