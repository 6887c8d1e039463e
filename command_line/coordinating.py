"""Who holds whom in a coordinating process. It loads no door, and so it is up quickly."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from catalog.connection import Catalog
from command_line.live_lag import LiveLag
from command_line.metrics_port import metrics_port
from command_line.stores import open_object_store
from coordinator.maintenance import Maintenance
from coordinator.run import Coordinator, CoordinatorOptions
from duckmesh import metrics
from duckmesh.settings import Settings
from duckmesh.telemetry import get_logger
from gateway.readiness import Readiness
from ingest_bus.port import IngestBus

_log = get_logger(__name__)


def consumer_id(settings: Settings) -> str:
    """The name that this process's leases carry."""
    return settings.coordinator.consumer_id or f"{socket.gethostname()}-{os.getpid()}"


def new_coordinator(
    settings: Settings, catalog: Catalog, bus: IngestBus, *, maintenance: Maintenance | None = None
) -> Coordinator:
    """A coordinator over the settings' store. It does nothing before `run`."""
    group = settings.coordinator
    return Coordinator(
        catalog,
        bus,
        open_object_store(settings),
        options=CoordinatorOptions(
            consumer_id=consumer_id(settings),
            claim_limit=group.claim_limit,
            claim_max_bytes=group.claim_max_bytes,
            lease=group.lease,
            poll=group.poll,
            flush_interval=group.flush_interval,
            inline_file_max_bytes=group.inline_file_max_bytes,
            backoff=group.backoff,
            backoff_max=group.backoff_max,
            key_window=settings.ingest.key_window,
            transaction_idle=settings.transaction.idle,
            session_kept=2 * settings.auth.session_lifetime,
            audited_queries_kept=settings.audit.query_retention,
            acts_kept=settings.audit.act_retention,
            scratch=settings.maintenance.scratch_directory,
        ),
        maintenance=maintenance,
    )


@contextmanager
def observed(
    settings: Settings, catalog: Catalog, bus: IngestBus, stop: threading.Event
) -> Iterator[None]:
    """The process can be observed for the length of the block, if the settings give it a port."""
    group = settings.coordinator
    if group.metrics_port is None:
        yield
        return
    lag = LiveLag(catalog, bus, tenants_max=group.metrics_tenants_max)
    readiness = Readiness(catalog, open_object_store(settings))
    with (
        metrics.LIVE.asking(lag.metrics),
        metrics_port(group.metrics_host, group.metrics_port, readiness, stop) as port,
    ):
        _log.info("metrics_listening", port=port)
        yield
