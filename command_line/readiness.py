"""What a process waits for before it begins, and the line that says that it has begun."""

import gc
import threading
from typing import Final

import click
from tenacity import RetryError, Retrying, retry_if_exception_type, sleep_using_event
from tenacity import stop_when_event_set as unless_stopped
from tenacity.wait import wait_exponential_jitter

from catalog.durability import waits_for_its_disk
from catalog.migrate import MigrationState, migration_status
from command_line.catalog_access import catalog_dsn
from duckmesh.errors import ErrorCode, Invalid, Unavailable
from duckmesh.settings import Profile, Settings
from duckmesh.telemetry import get_logger

READY: Final = "ready"
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 5.0
_log = get_logger(__name__)


def say_ready(what: str) -> None:
    """Print the one line that a process prints to standard output: `ready …`.

    Call it once all is loaded: what is in memory by then is taken to stay.
    """
    # Garbage is looked for by walking through all objects, with Python's lock in hand. Those of the
    # modules are well over a hundred thousand, and none of them will ever be garbage.
    gc.collect()
    gc.freeze()
    click.echo(f"{READY} {what}")


def await_catalog(settings: Settings, stop: threading.Event) -> bool:
    """Block until the catalog answers; False when `stop` was set first.

    A catalog that is down is asked again with backoff, without end: a process may start before its
    catalog does. Raises Unavailable (NOT_READY) at once when migrations are pending, Invalid
    (NOT_READY) in the profile `prod` when it may forget what was acknowledged, and what
    `migration_status` raises.
    """
    dsn = catalog_dsn(settings)
    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_exponential_jitter(
            initial=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS, jitter=_FIRST_PAUSE_SECONDS
        ),
        sleep=sleep_using_event(stop),
        stop=unless_stopped(stop),
        before_sleep=lambda state: _log.warning("catalog_awaited", attempt=state.attempt_number),
    )
    try:
        states = retrying(migration_status, dsn)
        waits = retrying(waits_for_its_disk, dsn)
    except RetryError:
        return False
    _check_migrated(states)
    if not waits and refuses_fsync_off(settings):
        raise fsync_is_off()
    return not stop.is_set()


def refuses_fsync_off(settings: Settings) -> bool:
    """Whether the catalog's Postgres must wait for its disk."""
    return settings.profile is Profile.PROD and not settings.catalog.allow_fsync_off


def fsync_is_off() -> Invalid:
    return Invalid(
        ErrorCode.NOT_READY,
        "the catalog's Postgres has fsync off, and may forget what was acknowledged when its "
        "machine dies: set fsync = on in its postgresql.conf and reload it, or "
        "catalog.allow_fsync_off where its storage keeps commits by other means",
    )


def _check_migrated(states: list[MigrationState]) -> None:
    pending = [state.version for state in states if state.applied_at is None]
    if pending:
        raise Unavailable(
            ErrorCode.NOT_READY,
            f"the catalog lacks {len(pending)} of {len(states)} migrations: "
            "run `duckmesh migrate up`, then start again",
            pending=pending,
        )
