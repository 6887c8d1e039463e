"""`duckmesh serve`: one serving process."""

import threading
from datetime import timedelta
from typing import Final

import click

from catalog.connection import Catalog
from command_line.catalog_access import open_catalog
from command_line.doors import flight_uri
from command_line.failures import CHECK_FAILED
from command_line.invocation import Invocation
from command_line.readiness import await_catalog, say_ready
from command_line.stopping import end_hard_after, end_now, stop_requests
from command_line.wiring import open_doors
from duckmesh.exporting import exporting
from duckmesh.imports import do_without_pandas
from duckmesh.settings import Settings
from duckmesh.telemetry import get_logger

_MARGIN: Final = timedelta(seconds=3)
_log = get_logger(__name__)


@click.command()
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port; 0 takes a free one.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="The HTTP door's port.")
@click.option(
    "--grace-seconds",
    type=click.FloatRange(min=0.1),
    help="How long calls in flight may go on after SIGTERM; flight.drain_seconds when not given.",
)
@click.pass_obj
def serve(
    invocation: Invocation,
    host: str | None,
    port: int | None,
    http_port: int | None,
    grace_seconds: float | None,
) -> None:
    """Answer Flight SQL and HTTP until SIGTERM.

    Waits for the catalog, and refuses to start while migrations are pending. Prints
    `ready grpc://host:port http://host:port` when it listens. SIGTERM refuses new calls and lets
    those in flight end; after the grace they are cancelled, and after twice the grace the process
    ends in any case.
    """
    settings = invocation.process_settings(
        "serve", flight__host=host, flight__port=port, http__host=host, http__port=http_port
    )
    grace = settings.flight.drain if grace_seconds is None else timedelta(seconds=grace_seconds)
    with exporting(settings.telemetry, service="serve"), stop_requests() as stop:
        end_hard_after(2 * grace + _MARGIN, stop)
        with open_catalog(settings) as catalog:
            if await_catalog(settings, stop):
                _serve(settings, catalog, stop, grace)
    # All is closed. DuckDB's bindings complain of what Python's own teardown leaves to them.
    end_now(0)


def _serve(settings: Settings, catalog: Catalog, stop: threading.Event, grace: timedelta) -> None:
    """Hold the doors open until `stop`, then drain it. Does not return when a call never ends."""
    do_without_pandas()
    with open_doors(settings, catalog) as doors:
        port = doors.flight.port
        addresses = [flight_uri(settings.flight, port), *([doors.http.uri] if doors.http else [])]
        say_ready(" ".join(addresses))
        _log.info("serving", port=port, open_mode=settings.auth.open_mode)
        stop.wait()
        _log.info("draining", calls=doors.calls_in_flight)
        if not doors.drain(grace):
            # A caller who neither reads nor leaves holds its call, and a thread, for ever.
            _log.warning("calls_cut_off", calls=doors.calls_in_flight)
            end_now(CHECK_FAILED)
        doors.close()
    _log.info("stopped")
