"""`duckmesh up`: all of DuckMesh on one machine."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from command_line.house import House
from command_line.invocation import Invocation
from command_line.stopping import stop_requests
from duckmesh.errors import DuckMeshError
from duckmesh.settings import Settings

SNIPPET = """\
import pyarrow, adbc_driver_flightsql.dbapi as duckmesh
cursor = duckmesh.connect("{uri}", autocommit=True).cursor()
cursor.adbc_ingest("greetings", pyarrow.table({{"text": ["hello"]}}), mode="create_append")
print(cursor.execute("SELECT * FROM greetings").fetchall())"""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="The port; 0 takes a free one.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="The HTTP door's port.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept, for the next start too.",
)
@click.option(
    "--ephemeral", is_flag=True, help="Keep nothing: a new directory, removed at the end."
)
@click.pass_obj
def up(
    invocation: Invocation,
    port: int | None,
    http_port: int | None,
    data_dir: Path | None,
    ephemeral: bool,
) -> None:
    """Start everything on this machine, until Ctrl-C.

    Runs a Postgres of its own and keeps objects in a directory, unless catalog.dsn and store.url
    name yours. Applies pending migrations. A process that dies is started again. The data is found
    again by the next `up` on the same directory.
    """
    if ephemeral and data_dir is not None:
        raise click.UsageError("--ephemeral keeps nothing: leave --data-dir out")
    with stop_requests() as stop, ExitStack() as removed:
        place = removed.enter_context(temporary_directory()) if ephemeral else data_dir
        settings = invocation.process_settings(
            "up", flight__port=port, http__port=http_port, data_dir=place
        )
        _stay(settings, stop)


def _stay(settings: Settings, stop: threading.Event) -> None:
    house = House(settings)
    click.echo("starting …", err=True)
    try:
        house.start(stop)
    except DuckMeshError:
        if stop.is_set():
            return
        raise
    try:
        _announce(house, settings)
        stop.wait()
        click.echo("stopping …", err=True)
    finally:
        house.stop()
    click.echo("stopped", err=True)


def _announce(house: House, settings: Settings) -> None:
    access = "no credentials are needed" if settings.auth.open_mode else "callers show an API key"
    uri = house.uri
    click.echo(f"DuckMesh is up at {uri} ({access}). Ctrl-C stops it.")
    if house.http_uri:
        click.echo(f"HTTP: {house.http_uri}/v1")
    click.echo(f"data: {settings.data_dir}")
    click.echo("")
    click.echo(SNIPPET.format(uri=uri))


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that is gone after the block."""
    place = Path(tempfile.mkdtemp(prefix="duckmesh-up-"))
    if os.geteuid() == 0:
        # Where root may not enter a user namespace, Postgres runs as another user, who must be
        # able to pass through. What lies below is closed to all others.
        place.chmod(0o711)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
