"""`duckmesh doctor`: what stands in the way of running, and what to do about it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click

from catalog.durability import waits_for_its_disk
from catalog.migrate import migration_status
from catalog.postgres_binaries import find_binaries, major_version
from command_line.catalog_access import catalog_dsn
from command_line.data_directory import DataDirectory
from command_line.failures import CHECK_FAILED
from command_line.invocation import Invocation
from command_line.output import as_json, print_json
from command_line.ports import check_port_is_free
from command_line.readiness import fsync_is_off, refuses_fsync_off
from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, Unavailable
from duckmesh.settings import Settings

_LIBRARIES: Final = ("duckdb", "pyarrow", "psycopg", "obstore")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `detail` says what was found, or what to do."""

    name: str
    ok: bool
    detail: str


@click.command()
@as_json
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check settings, versions, Postgres, migrations, store and port.

    Ends with 1 when a check fails; its line says what to do. Writes and deletes one small object
    in the store, and changes nothing else.
    """
    checks = list(_checks(context.obj))
    healthy = all(check.ok for check in checks)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<10}  {check.detail}")
    if not healthy:
        context.exit(CHECK_FAILED)


def _checks(invocation: Invocation) -> Iterator[Check]:
    yield _check("versions", _versions)
    try:
        settings = invocation.tool_settings()
    except DuckMeshError as error:
        # Nothing else can be looked at without them.
        yield Check("settings", ok=False, detail=error.message)
        return
    yield Check("settings", ok=True, detail=f"profile {settings.profile.value}")
    yield _check("postgres", lambda: _postgres(settings))
    yield _check("migrations", lambda: _migrations(settings))
    yield _check("store", lambda: _store(settings))
    yield _check("port", lambda: _port(settings))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, detail=look())
    except DuckMeshError as error:
        return Check(name, ok=False, detail=error.message)


def _versions() -> str:
    found = [f"Python {sys.version.split()[0]}"]
    for name in ("duckmesh", *_LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            raise Invalid(
                ErrorCode.NOT_READY, f"{name} is not installed: run `make setup`, or install it"
            ) from None
    if find_spec("adbc_driver_flightsql") is None:
        found.append("no ADBC client here (pip install 'duckmesh[clients]' has one)")
    return ", ".join(found)


def _has_catalog(settings: Settings) -> bool:
    running = DataDirectory(settings.data_dir).running()
    return settings.catalog.dsn is not None or running is not None


def _postgres(settings: Settings) -> str:
    if _has_catalog(settings):
        dsn = catalog_dsn(settings)
        migration_status(dsn)
        said = "catalog.dsn" if settings.catalog.dsn else "the one of `duckmesh up`"
        if waits_for_its_disk(dsn):
            return f"{said} answers, and waits for its disk"
        if refuses_fsync_off(settings):
            raise fsync_is_off()
        return f"{said} answers; {fsync_is_off().message}"
    return f"Postgres {major_version(find_binaries())} is here for `duckmesh up`"


def _migrations(settings: Settings) -> str:
    if not _has_catalog(settings):
        return "`duckmesh up` applies them when it starts"
    states = migration_status(catalog_dsn(settings))
    pending = [state for state in states if state.applied_at is None]
    if pending:
        raise Unavailable(
            ErrorCode.NOT_READY,
            f"{len(pending)} of {len(states)} are pending: run `duckmesh migrate up`",
        )
    return f"all {len(states)} are applied"


def _store(settings: Settings) -> str:
    if settings.store.url is not None:
        from command_line.stores import open_object_store

        open_object_store(settings).probe()
        return "an object was written, read and deleted"
    with ExitStack() as undo:
        _check_writable(settings.data_dir, undo)
    return "`duckmesh up` keeps objects in data_dir, which can be written"


def _check_writable(place: Path, undo: ExitStack) -> None:
    """Write in the nearest directory above `place` that exists."""
    existing = next(each for each in (place, *place.absolute().parents) if each.exists())
    attempt = existing / f".duckmesh-doctor-{id(undo)}"
    undo.callback(attempt.unlink, missing_ok=True)
    try:
        attempt.touch(exist_ok=False)
    except OSError as error:
        undo.pop_all()
        raise Unavailable(
            ErrorCode.STORE_UNAVAILABLE,
            "data_dir cannot be written: change its permissions, or set data_dir to another place",
        ) from error


def _port(settings: Settings) -> str:
    running = DataDirectory(settings.data_dir).running()
    if running is not None:
        return f"`duckmesh up` serves {running.uri}"
    check_port_is_free(settings.flight)
    return f"{settings.flight.port} of {settings.flight.host} is free"
