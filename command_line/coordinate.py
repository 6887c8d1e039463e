"""`duckmesh coordinate`: one coordinating process."""

import threading
from datetime import timedelta

import click

from catalog.connection import Catalog
from command_line.catalog_access import open_bus, open_catalog
from command_line.coordinating import consumer_id, new_coordinator, observed
from command_line.invocation import Invocation
from command_line.maintaining import new_maintenance
from command_line.readiness import await_catalog, say_ready
from command_line.stopping import end_hard_after, stop_requests
from coordinator.maintenance import Maintenance
from duckmesh.exporting import exporting
from duckmesh.imports import do_without_pandas
from duckmesh.settings import Settings
from duckmesh.telemetry import get_logger
from ingest_bus.port import IngestBus

_log = get_logger(__name__)


@click.command()
@click.option(
    "--grace-seconds",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="How long the claim in hand may take after SIGTERM.",
)
@click.pass_obj
def coordinate(invocation: Invocation, grace_seconds: float) -> None:
    """Make accepted writes visible until SIGTERM.

    Waits for the catalog, and refuses to start while migrations are pending. Prints
    `ready NAME` when it works. SIGTERM lets it finish the claim in hand; what it has not finished
    after the grace is another coordinator's when the lease runs out.
    """
    settings = invocation.process_settings("coordinate")
    with exporting(settings.telemetry, service="coordinate"), stop_requests() as stop:
        end_hard_after(timedelta(seconds=grace_seconds), stop)
        with open_catalog(settings) as catalog:
            if not await_catalog(settings, stop):
                return
            do_without_pandas()
            bus = open_bus(catalog)
            coordinator = new_coordinator(
                settings, catalog, bus, maintenance=_maintenance(settings, catalog, bus)
            )
            threading.Thread(target=_wake_at, args=(stop, bus), daemon=True).start()
            with observed(settings, catalog, bus, stop):
                say_ready(consumer_id(settings))
                coordinator.run(stop)
            bus.close()
    _log.info("stopped")


def _maintenance(settings: Settings, catalog: Catalog, bus: IngestBus) -> Maintenance | None:
    return new_maintenance(settings, catalog, bus) if settings.maintenance.in_coordinator else None


def _wake_at(stop: threading.Event, bus: IngestBus) -> None:
    """An idle coordinator sleeps until its next look for work: end that sleep."""
    stop.wait()
    bus.wake()
