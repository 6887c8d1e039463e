"""Extends a claim's lease while its work goes on."""

import threading
from datetime import timedelta
from types import TracebackType
from typing import Self

import structlog

from duckmesh.errors import DuckMeshError, Fenced
from ingest_bus.envelope import Claim
from ingest_bus.port import IngestBus

_LOG = structlog.get_logger()


class LeaseKeeper:
    """Renews at a third of the lease, from the first third on: short work never pays for it.

    It stops when the claim is lost. The work learns that from its fenced commit, not from here.
    """

    def __init__(self, bus: IngestBus, claim: Claim, lease: timedelta) -> None:
        self._bus = bus
        self._claim = claim
        self._lease = lease
        self._done = threading.Event()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._schedule()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = threading.Timer(self._lease.total_seconds() / 3, self._renew)
        self._timer.daemon = True
        self._timer.start()

    def _renew(self) -> None:
        if self._done.is_set():
            return
        try:
            self._bus.extend_lease(self._claim, self._lease)
        except Fenced:
            _LOG.warning("lease_lost", tenant_id=self._claim.tenant_id)
            return
        except DuckMeshError as failure:
            _LOG.warning("lease_not_extended", error_code=failure.code.value)
        self._schedule()
