"""Leases of periodic duties: one holder at a time across all processes, by Postgres's clock."""

from dataclasses import dataclass
from datetime import timedelta

from catalog.connection import Connection
from duckmesh.identifiers import Epoch
from duckmesh.statements import Statements

_SQL = Statements("catalog", "leases.sql")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do one duty, until the lease runs out or is given back."""

    name: str
    holder: str
    epoch: Epoch


def acquire(connection: Connection, name: str, *, holder: str, span: timedelta) -> Lease | None:
    """Take or renew the lease; None while another holder's is live.

    The epoch grows whenever the lease changes hands or had run out.
    """
    row = connection.execute(
        _SQL["acquire"], {"name": name, "holder": holder, "span": span}
    ).fetchone()
    return None if row is None else Lease(name, holder, Epoch(row[0]))


def release(connection: Connection, lease: Lease) -> bool:
    """Give the lease back; False when it had already passed to another."""
    done = connection.execute(_SQL["release"], (lease.name, lease.holder, lease.epoch))
    return done.rowcount == 1
