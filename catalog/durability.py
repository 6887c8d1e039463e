"""Whether the catalog's Postgres keeps what it has committed when its machine dies."""

import psycopg

from catalog.connection import is_unavailable, unavailable
from duckmesh.statements import Statements

_SQL = Statements("catalog", "durability.sql")


def waits_for_its_disk(dsn: str) -> bool:
    """Whether the server has what it writes on the disk when it says so: its `fsync`.

    `synchronous_commit` is not asked for: catalog.connection sets it. Raises Unavailable.
    """
    try:
        with psycopg.connect(
            dsn, autocommit=True, application_name="duckmesh durability"
        ) as connection:
            row = connection.execute(_SQL["fsync"]).fetchone()
    except psycopg.Error as cause:
        if not is_unavailable(cause):
            raise
        raise unavailable() from cause
    return row == ("on",)
