"""`duckmesh maintain`: a process that keeps storage in order, and publishes no writes."""

from datetime import timedelta

import click

from command_line.catalog_access import open_bus, open_catalog
from command_line.coordinating import consumer_id, observed
from command_line.invocation import Invocation
from command_line.maintaining import new_maintenance
from command_line.readiness import await_catalog, say_ready
from command_line.stopping import end_hard_after, stop_requests
from coordinator import duties
from duckmesh.imports import do_without_pandas
from duckmesh.telemetry import get_logger

_log = get_logger(__name__)


@click.command()
@click.option(
    "--grace-seconds",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="How long the work in hand may take to end after SIGTERM.",
)
@click.pass_obj
def maintain(invocation: Invocation, grace_seconds: float) -> None:
    """Merge small files, expire snapshots and delete what nothing reads, until SIGTERM.

    `duckmesh coordinate` does the same unless maintenance.in_coordinator is off. Any number of
    both share the work by leases. Prints `ready NAME` when it works.
    """
    settings = invocation.process_settings("maintain")
    with stop_requests() as stop:
        end_hard_after(timedelta(seconds=grace_seconds), stop)
        with open_catalog(settings) as catalog:
            if not await_catalog(settings, stop):
                return
            do_without_pandas()
            bus = open_bus(catalog)
            kept = new_maintenance(settings, catalog, bus).duties(stop)
            with observed(settings, catalog, bus, stop):
                name = consumer_id(settings)
                say_ready(name)
                duties.keep(kept, catalog, holder=name, stop=stop)
    _log.info("stopped")
