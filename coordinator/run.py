"""The coordinator's process: publish what is accepted, and keep the duties."""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from tenacity import Retrying, retry_if_exception, sleep_using_event, stop_when_event_set
from tenacity.wait import wait_exponential_jitter

from catalog.connection import Catalog
from catalog.notifications import WANTED_CHANNEL
from coordinator import duties
from coordinator.cadence import Cadence
from coordinator.maintenance import Maintenance
from coordinator.materialize import MaterializeOptions, Materializer, Published
from duckmesh.errors import Fenced
from duckmesh.identifiers import ConsumerId, TenantId
from ingest_bus.port import IngestBus
from object_store.port import ObjectStore

_LOG = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorOptions:
    """How one coordinator works."""

    consumer_id: str
    claim_limit: int = 5_000
    claim_max_bytes: int = 64 * 2**20
    lease: timedelta = timedelta(seconds=30)
    poll: timedelta = timedelta(seconds=1)
    flush_interval: timedelta = timedelta(milliseconds=150)
    inline_file_max_bytes: int = 2**20
    backoff: timedelta = timedelta(milliseconds=100)
    backoff_max: timedelta = timedelta(seconds=30)
    key_window: timedelta = timedelta(days=7)
    transaction_idle: timedelta = timedelta(minutes=15)
    session_kept: timedelta = timedelta(days=2)
    """How long a session's record outlives its last use: twice the lifetime of its token."""
    audited_queries_kept: timedelta = timedelta(days=30)
    acts_kept: timedelta = timedelta(days=400)
    scratch: Path | None = None


class Coordinator:
    """Publishes accepted writes of every tenant until it is stopped."""

    def __init__(
        self,
        catalog: Catalog,
        bus: IngestBus,
        store: ObjectStore,
        *,
        options: CoordinatorOptions,
        maintenance: Maintenance | None = None,
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._store = store
        self._options = options
        self._maintenance = maintenance
        self._cadence = Cadence(options.flush_interval)
        self._materializer = Materializer(
            catalog,
            bus,
            store,
            options=MaterializeOptions(
                consumer_id=ConsumerId(options.consumer_id),
                claim_limit=options.claim_limit,
                claim_max_bytes=options.claim_max_bytes,
                lease=options.lease,
                inline_file_max_bytes=options.inline_file_max_bytes,
                retry_delay=options.backoff,
                scratch=options.scratch,
            ),
        )

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the claim in hand is finished first.

        Failures of Postgres or the store are retried with backoff and jitter, without end.
        """
        self._catalog.subscribe(WANTED_CHANNEL, self._on_wanted)
        keeper = threading.Thread(target=self._keep_duties, args=(stop,), daemon=True)
        keeper.start()
        while not stop.is_set():
            retrying = Retrying(
                retry=retry_if_exception(lambda error: isinstance(error, Exception)),
                wait=wait_exponential_jitter(
                    multiplier=self._options.backoff.total_seconds(),
                    max=self._options.backoff_max.total_seconds(),
                    jitter=self._options.backoff.total_seconds(),
                ),
                stop=stop_when_event_set(stop),
                sleep=sleep_using_event(stop),
                retry_error_callback=lambda _: None,
            )
            retrying(self._round)
        keeper.join(timeout=5)

    def _on_wanted(self, _payload: str) -> None:
        self._cadence.want()
        self._bus.wake()

    def _round(self) -> None:
        """Publish once for each tenant that has something, then gather, or sleep when idle."""
        self._cadence.begin_round()
        served = False
        # Who has been served in this round gathers: what came meanwhile is the next round's.
        done_with: set[TenantId] = set()
        while (done := self._publish(done_with)) is not None:
            served = True
            if not done.full:
                done_with.add(done.snapshot.tenant_id)
        if served:
            self._cadence.gather()
        else:
            self._bus.wait_for_work(self._options.poll)

    def _publish(self, skip: Collection[TenantId]) -> Published | None:
        try:
            return self._materializer.publish_next(skip=skip)
        except Fenced as fenced:
            # Another coordinator took over while this one slept: nothing was published here.
            _LOG.warning("fenced", reason=fenced.message)
            return None

    def _keep_duties(self, stop: threading.Event) -> None:
        options = self._options
        kept = [
            duties.sweep(self._bus),
            duties.forget_keys(self._bus, options.key_window),
            duties.end_transactions(
                self._catalog,
                self._store,
                idle=options.transaction_idle,
                kept=max(options.session_kept, options.key_window),
            ),
            duties.forget_audit(
                self._catalog,
                queries_kept=options.audited_queries_kept,
                acts_kept=options.acts_kept,
            ),
        ]
        if self._maintenance is not None:
            kept += self._maintenance.duties(stop)
        duties.keep(kept, self._catalog, holder=self._options.consumer_id, stop=stop)
