"""Periodic duties of a coordinator: each is done by one process at a time, under a lease."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from catalog import acts, leases, queries, sessions, transactions
from catalog.connection import Catalog
from coordinator.counts import count_turn
from duckmesh.errors import DuckMeshError
from ingest_bus.envelope import StagedPayload
from ingest_bus.port import IngestBus
from object_store.port import ObjectStore

_LOG = structlog.get_logger()
_KEYS_AT_ONCE = 10_000
_ROWS_AT_ONCE = 1_000
_AUDIT_ROWS_AT_ONCE = 20_000
"""With a turn every 30 s, more than 600 queries a second are forgotten as fast as they come."""


@dataclass(frozen=True, slots=True)
class Duty:
    """Something to be done every so often. `act` is short, and safe to repeat."""

    name: str
    every: timedelta
    act: Callable[[], None]


def sweep(bus: IngestBus) -> Duty:
    """End the claims of coordinators that died or stalled past their lease."""

    def act() -> None:
        if expired := bus.requeue_expired():
            _LOG.warning("claims_expired", count=expired)

    return Duty("sweep", timedelta(seconds=1), act)


def forget_keys(bus: IngestBus, window: timedelta) -> Duty:
    """Forget idempotency keys, and receipts, older than the window; a bounded number at a time."""

    def act() -> None:
        # As often as it takes: what is accepted in the meantime must not outrun it.
        while forgotten := bus.expire_keys(older_than=window, limit=_KEYS_AT_ONCE):
            _LOG.info("keys_forgotten", count=forgotten)
            if forgotten < _KEYS_AT_ONCE:
                return

    return Duty("forget-keys", timedelta(seconds=30), act)


def end_transactions(
    catalog: Catalog, store: ObjectStore, *, idle: timedelta, kept: timedelta
) -> Duty:
    """Roll back the transactions that nobody speaks in; forget what ended long ago.

    Died after the roll-back, before the objects are gone: orphans, collected later.
    """

    def act() -> None:
        with catalog.connect() as connection:
            expired, staged = transactions.expire_idle(connection, idle=idle, limit=_ROWS_AT_ONCE)
            transactions.forget_ended(connection, older_than=kept, limit=_ROWS_AT_ONCE)
            sessions.forget_old(connection, older_than=kept, limit=_ROWS_AT_ONCE)
        for payload in staged:
            for file in StagedPayload.from_bytes(payload).files:
                store.delete(file.key)
        if expired:
            _LOG.info("transactions_expired", count=expired)

    return Duty("end-transactions", min(idle / 4, timedelta(seconds=10)), act)


def forget_audit(catalog: Catalog, *, queries_kept: timedelta, acts_kept: timedelta) -> Duty:
    """Forget audited queries and administrative acts that are older; a bounded number a time."""

    def act() -> None:
        with catalog.connect() as connection:
            forgotten = queries.forget(
                connection, older_than=queries_kept, limit=_AUDIT_ROWS_AT_ONCE
            )
            forgotten += acts.forget(connection, older_than=acts_kept, limit=_AUDIT_ROWS_AT_ONCE)
        if forgotten:
            _LOG.info("audit_forgotten", count=forgotten)

    return Duty("forget-audit", timedelta(seconds=30), act)


def keep(duties: Sequence[Duty], catalog: Catalog, *, holder: str, stop: threading.Event) -> None:
    """Do each duty at its interval until `stop`. Blocks. A failed turn is tried again at the next.

    The lease spans the interval, so that of many coordinators one acts each time.
    """
    threads = [
        threading.Thread(
            target=_keep_one, args=(duty, catalog, holder, stop), name=duty.name, daemon=True
        )
        for duty in duties
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _keep_one(duty: Duty, catalog: Catalog, holder: str, stop: threading.Event) -> None:
    while not stop.wait(duty.every.total_seconds()):
        try:
            with catalog.connect() as connection:
                lease = leases.acquire(
                    connection, f"duty/{duty.name}", holder=holder, span=duty.every * 2
                )
            if lease is not None:
                with count_turn(duty.name):
                    duty.act()
        except DuckMeshError as failure:
            _LOG.warning("duty_failed", duty=duty.name, error_code=failure.code.value)
        except Exception:  # noqa: BLE001 - one bad turn must not end the duty for good
            _LOG.exception("duty_failed", duty=duty.name)
