"""The processes under the load: Postgres, `coordinate` with maintenance, `serve` with workers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.stage import process_environment, started
from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from command_line.children import ChildProcess
from command_line.up import temporary_directory

_DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """What runs, and where its data lies."""

    uri: str
    dsn: str
    directory: Path
    serve: ChildProcess
    coordinate: ChildProcess
    postgres_pid: int

    @property
    def objects(self) -> Path:
        return self.directory / "objects"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def postgres(self) -> "psycopg.Connection[Any]":
        """A connection to the catalog's Postgres, in autocommit."""
        return psycopg.connect(self.dsn, autocommit=True)


@contextmanager
def running(window: timedelta) -> Iterator[Processes]:
    """Start everything in a temporary directory; everything is kept for `window` and then goes."""
    with ExitStack() as undo:
        directory = undo.enter_context(temporary_directory())
        postgres = undo.enter_context(EmbeddedPostgres(directory / "postgres"))
        migrate_up(postgres.dsn)
        environment = {
            **process_environment(postgres.dsn, directory, directory / "objects"),
            **retention_settings(window),
        }
        coordinate, serve, uri, _ = started(undo, environment, grace_seconds=5)
        yield Processes(
            uri=uri,
            dsn=postgres.dsn,
            directory=directory,
            serve=serve,
            coordinate=coordinate,
            postgres_pid=postgres.pid,
        )


def retention_settings(window: timedelta) -> Mapping[str, str]:
    """Everything that is kept for a while is kept for `window`: a short run then shows it go."""
    seconds = window.total_seconds()
    days = str(seconds / _DAY_SECONDS)
    return {
        "DUCKMESH_MAINTENANCE_IN_COORDINATOR": "true",
        "DUCKMESH_MAINTENANCE_SNAPSHOT_RETENTION_DAYS": days,
        "DUCKMESH_MAINTENANCE_RUN_HISTORY_DAYS": days,
        "DUCKMESH_MAINTENANCE_RETENTION_INTERVAL_SECONDS": "5",
        "DUCKMESH_MAINTENANCE_GC_SAFETY_AGE_SECONDS": str(seconds),
        "DUCKMESH_MAINTENANCE_ORPHAN_GRACE_SECONDS": str(max(60.0, seconds)),
        "DUCKMESH_MAINTENANCE_ORPHAN_INTERVAL_SECONDS": "60",
        "DUCKMESH_INGEST_KEY_WINDOW_DAYS": days,
        "DUCKMESH_AUDIT_QUERY_RETENTION_DAYS": days,
        "DUCKMESH_AUDIT_ACT_RETENTION_DAYS": days,
        # The copies of a day of inline files, in the measure of the run.
        "DUCKMESH_CACHE_FILES_MAX": "500",
        "DUCKMESH_AUTH_SESSION_LIFETIME_SECONDS": str(max(60.0, seconds)),
        # Together the longest read, for which files are spared at least.
        "DUCKMESH_AUTH_TICKET_LIFETIME_SECONDS": "15",
        "DUCKMESH_QUERY_WALL_TIME_SECONDS": "15",
        "DUCKMESH_QUERY_FETCH_TIMEOUT_SECONDS": "15",
    }
