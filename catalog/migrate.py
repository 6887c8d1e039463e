"""Migrations: numbered SQL, up and down, each in its own transaction, under one advisory lock."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import psycopg

from catalog.connection import Connection, is_unavailable, unavailable
from duckmesh.errors import Corrupt, ErrorCode, Invalid
from duckmesh.statements import Statements

_SQL = Statements("catalog", "migrate.sql")
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.(up|down)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema, with the way back."""

    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.up.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A known migration, and when it was applied (None: pending)."""

    version: int
    name: str
    applied_at: datetime | None


def migrations_folder() -> Traversable:
    """The SQL files: inside the package in a wheel, beside it in a source tree."""
    packaged = resources.files("catalog") / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "migrations"


def known_migrations() -> list[Migration]:
    """Every migration in order. Raises Corrupt when a number is missing or has no way back."""
    texts: dict[tuple[int, str], dict[str, str]] = {}
    for file in migrations_folder().iterdir():
        if match := _FILE.fullmatch(file.name):
            number, name, direction = match.groups()
            texts.setdefault((int(number), name), {})[direction] = file.read_text("utf-8")
    ordered = sorted(texts)
    if [number for number, _ in ordered] != list(range(1, len(ordered) + 1)):
        raise Corrupt("migrations are not numbered 1, 2, 3, …")
    if any(set(texts[key]) != {"up", "down"} for key in ordered):
        raise Corrupt("a migration lacks its up or its down file")
    return [Migration(*key, texts[key]["up"], texts[key]["down"]) for key in ordered]


@contextmanager
def _locked(dsn: str) -> Iterator[Connection]:
    """A connection that holds the one migration lock: a second migrator waits."""
    try:
        with psycopg.connect(
            dsn, autocommit=True, application_name="duckmesh migrate"
        ) as connection:
            connection.execute(_SQL["lock"])
            connection.execute(_SQL["create_migration_table"])
            yield connection
    except psycopg.Error as cause:
        if not is_unavailable(cause):
            raise
        raise unavailable() from cause


def _applied(connection: Connection, known: Sequence[Migration]) -> dict[int, datetime]:
    by_version = {migration.version: migration for migration in known}
    applied = {}
    for version, name, checksum, applied_at in connection.execute(_SQL["applied"]):
        if version not in by_version:
            raise Invalid(
                ErrorCode.NOT_READY,
                f"the catalog has migration {version} ({name}), which this release does not know: "
                "use a newer release",
            )
        if by_version[version].checksum != checksum:
            raise Corrupt(f"migration {version} ({name}) was changed after it was applied")
        applied[version] = applied_at
    return applied


def migrate_up(dsn: str) -> list[MigrationState]:
    """Apply every pending migration; return those applied now.

    Each commits alone: after a crash, a second run goes on where the first stopped. Concurrent
    runs are safe. Raises Unavailable, Corrupt (an applied file was edited) or Invalid (the catalog
    is newer than this release).
    """
    known = known_migrations()
    done = []
    with _locked(dsn) as connection:
        applied = _applied(connection, known)
        for migration in known:
            if migration.version in applied:
                continue
            with connection.transaction():
                connection.execute(migration.up)
                row = connection.execute(
                    _SQL["record"], (migration.version, migration.name, migration.checksum)
                ).fetchone()
            assert row is not None  # noqa: S101 - RETURNING of one inserted row
            done.append(MigrationState(migration.version, migration.name, row[0]))
    return done


def migrate_down(dsn: str, *, to_version: int) -> list[int]:
    """Undo applied migrations above `to_version`, newest first; return their numbers.

    This drops tables with their rows: it is for development and for a failed deployment.
    """
    known = known_migrations()
    undone = []
    with _locked(dsn) as connection:
        applied = _applied(connection, known)
        for migration in reversed(known):
            if migration.version in applied and migration.version > to_version:
                with connection.transaction():
                    connection.execute(migration.down)
                    connection.execute(_SQL["forget"], (migration.version,))
                undone.append(migration.version)
    return undone


def migration_status(dsn: str) -> list[MigrationState]:
    """Every known migration with the time it was applied."""
    known = known_migrations()
    with _locked(dsn) as connection:
        applied = _applied(connection, known)
    return [MigrationState(m.version, m.name, applied.get(m.version)) for m in known]


def pending_migrations(connection: Connection) -> list[int]:
    """The numbers of the migrations that this catalog lacks. Takes no lock, and changes nothing.

    Raises as `migrate_up` does for a catalog that is newer than this release, or was edited.
    """
    known = known_migrations()
    applied = _applied(connection, known)
    return [migration.version for migration in known if migration.version not in applied]
