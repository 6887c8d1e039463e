"""Administrative acts, done and refused: who did what to what, and when."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg.types.json import Jsonb

from catalog.connection import Connection
from catalog.queries import storable
from duckmesh.identifiers import TenantId
from duckmesh.statements import Statements
from duckmesh.telemetry import current_trace_id

_SQL = Statements("catalog", "acts.sql")

DONE: Final = "OK"
"""The outcome of an act that was done; else it is the error code that refused it."""
OPERATOR: Final = "operator"
"""The principal of whoever holds the catalog's address: the command line on the catalog itself."""
_TEXT_MAX_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Act:
    """One act, as its row tells it."""

    act_id: int
    at: datetime
    tenant: str | None
    principal: str
    act: str
    target: str
    outcome: str
    detail: Mapping[str, Any]
    trace_id: str | None


def record(
    connection: Connection,
    act: str,
    target: str,
    *,
    tenant_id: TenantId | None,
    principal: str,
    outcome: str = DONE,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Write down an act, within the caller's transaction: the act and its row, or neither.

    The trace is the caller's. `detail` holds plain values, and no secret. Long texts are cut.
    """
    connection.execute(
        _SQL["record"],
        {
            "tenant_id": tenant_id,
            "principal": _storable(principal),
            "act": act,
            "subject": _storable(target),
            "detail": Jsonb({name: _plain(value) for name, value in (detail or {}).items()}),
            "trace_id": current_trace_id(),
            "outcome": outcome,
        },
    )


def recent(
    connection: Connection,
    *,
    tenant_id: TenantId | None = None,
    principal: str | None = None,
    since: datetime | None = None,
    limit: int,
) -> list[Act]:
    """The newest acts first: of one tenant or of everybody, of one principal or of all."""
    values = {"tenant_id": tenant_id, "principal": principal, "since": since, "limit": limit}
    if tenant_id is None:
        rows = connection.execute(_SQL["recent"], values)
    elif principal is None:
        rows = connection.execute(_SQL["recent_of_tenant"], values)
    else:
        rows = connection.execute(_SQL["recent_of_principal"], values)
    return [Act(*row) for row in rows]


def forget(connection: Connection, *, older_than: timedelta, limit: int) -> int:
    """Forget up to `limit` acts that are older; how many."""
    values = {"older_than": older_than, "limit": limit}
    return connection.execute(_SQL["forget"], values).rowcount


def _storable(text: str) -> str:
    """The text as Postgres can hold it: without NUL and half characters, and not too long."""
    return storable(text[:_TEXT_MAX_CHARS])


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value][:100]
    if isinstance(value, Mapping):
        return {_storable(str(name)): _plain(each) for name, each in list(value.items())[:100]}
    return _storable(str(value))
