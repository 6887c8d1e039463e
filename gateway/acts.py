"""Every administrative act leaves a row: the one that was done, and the one that was refused.

    with administrative_act(catalog, identity, "create_key", name) as act:
        identity.require(Role.TABLE_ADMIN)
        with catalog.connect() as connection, connection.transaction():
            ...
            act.done(connection, roles=roles)

Died before the commit: neither the act nor its row is there. A refusal has a transaction of its
own, and a refusal that cannot be written is counted and logged: it stays a refusal.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from catalog import acts
from catalog.connection import Catalog, Connection
from duckmesh import metrics
from duckmesh.errors import Denied, DuckMeshError, ErrorCode
from duckmesh.identifiers import TenantId
from duckmesh.telemetry import get_logger
from gateway.identity import Identity

_REFUSALS_PER_MINUTE: Final = 60
"""Of one tenant, in one process: whoever is refused in a loop does not fill the catalog."""
_TENANTS_MAX: Final = 10_000
_log = get_logger(__name__)


class AdministrativeAct:
    """One act under way. `done` is called where it is done, in its own transaction."""

    def __init__(self, name: str, target: str, identity: Identity) -> None:
        self.name = name
        self.target = target
        """What the act is about; may be set until it is done."""
        self._identity = identity

    def done(self, connection: Connection, **detail: Any) -> None:
        """Write the act down in the caller's transaction. No detail is a secret."""
        self._record(connection, acts.DONE, detail)

    def refused(self, connection: Connection, error: DuckMeshError) -> None:
        """Write down that the act was refused."""
        self._record(connection, error.code.value, {})

    def _record(self, connection: Connection, outcome: str, detail: Mapping[str, Any]) -> None:
        acts.record(
            connection,
            self.name,
            self.target,
            tenant_id=self._identity.tenant_id,
            principal=self._identity.audited_as,
            outcome=outcome,
            detail=detail,
        )


@contextlib.contextmanager
def administrative_act(
    catalog: Catalog, identity: Identity, name: str, target: str
) -> Iterator[AdministrativeAct]:
    """An act of `identity`; when the block ends with FORBIDDEN, the refusal is written down.

    What fails otherwise changed nothing, and has no row. Raises what the block raises. An operator
    at the command line has no identity: his acts are written with `catalog.acts.record`.
    """
    act = AdministrativeAct(name, target, identity)
    try:
        yield act
    except Denied as denied:
        if denied.code is ErrorCode.FORBIDDEN:
            _write_refusal(catalog, identity.tenant_id, act, denied)
        raise


def _write_refusal(
    catalog: Catalog, tenant_id: TenantId, act: AdministrativeAct, denied: Denied
) -> None:
    if not _REFUSALS.admit(tenant_id):
        metrics.ACTS_UNWRITTEN.inc()
        return
    try:
        with catalog.connect() as connection:
            act.refused(connection, denied)
    except DuckMeshError as error:
        metrics.ACTS_UNWRITTEN.inc()
        _log.warning("refusal_not_audited", act=act.name, error_code=error.code.value)


class _Rate:
    """How many refusals of each tenant are written in a minute. Thread-safe."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._minute = 0
        self._counts: dict[TenantId, int] = {}

    def admit(self, tenant_id: TenantId) -> bool:
        minute = int(time.monotonic() // 60)
        with self._lock:
            if minute != self._minute or len(self._counts) > _TENANTS_MAX:
                self._minute = minute
                self._counts.clear()
            count = self._counts[tenant_id] = self._counts.get(tenant_id, 0) + 1
        return count <= self._per_minute


_REFUSALS: Final = _Rate(_REFUSALS_PER_MINUTE)
