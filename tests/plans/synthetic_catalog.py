"""A catalog of the size that a large installation has after its retention, made by SQL alone."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from duckmesh.statements import Statements

_SQL: Final = Statements("tests.plans", "synthetic_catalog.sql")
_BEFORE: Final = ("may_skip_triggers", "skip_triggers")
GIANT: Final = 1
"""The tenant that has most of everything."""
SMALL: Final = 2
"""A tenant with little, and with open events."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is. At scale 1: a million snapshots and files, ten million events."""

    tenants: int
    """Beside the giant."""
    oldest: int
    newest: int
    """The first and the last snapshot that is there."""
    last_token: int
    acked: int
    """Of the giant: beyond it lie its open events."""
    small_last_token: int
    """Of every other tenant."""
    sessions: int
    """So many sessions, ended transactions, administrative acts and runs."""

    @classmethod
    def of(cls, scale: float) -> "Size":
        """Multiples of 640, so that what is spread over the history is as much at every scale."""
        newest = max(4, round(scale * 1_000_000 / 640)) * 640
        tenants = round(1_000 * scale**0.5)
        last_token = newest * 8
        return cls(
            tenants=tenants,
            oldest=newest // 16,
            newest=newest + newest // 16 // 640 * 640,
            last_token=last_token,
            acked=last_token - 500,
            small_last_token=newest * 2 // tenants,
            sessions=newest // 5,
        )


def build(
    connection: psycopg.Connection[Any], size: Size, *, said: Callable[[str], None] | None = None
) -> None:
    """Fill an empty, migrated catalog, and bring its statistics up to date. In autocommit.

    Tells of each step to `said`. Dies anywhere: drop the database.
    """
    # Numbers as literals: Postgres shall choose their width.
    cursor = psycopg.ClientCursor(connection)
    if cursor.execute(_SQL["may_skip_triggers"]).fetchone() == (True,):
        cursor.execute(_SQL["skip_triggers"])
    for name, statement in _SQL.items():
        if name not in _BEFORE:
            if said is not None:
                said(name)
            cursor.execute(statement, asdict(size) if "%(" in statement else None)
    if said is not None:
        said("vacuum")
    connection.execute(sql.SQL("VACUUM (FREEZE, ANALYZE)"))
    connection.execute(sql.SQL("RESET session_replication_role"))
