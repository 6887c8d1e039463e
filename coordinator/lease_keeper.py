"""Extends a claim's lease while its work goes on."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog

from duckmesh.errors import DuckMeshError, Fenced
from ingest_bus.envelope import Claim
from ingest_bus.port import IngestBus

_LOG = structlog.get_logger()


class LeaseKeeper:
    """Renews at a third of the lease, from the first third on: short work never pays for it.

    One thread keeps one claim after the other, and ends when it finds none. It stops renewing when
    the claim is lost. The work learns that from its fenced commit, not from here.
    """

    def __init__(self, bus: IngestBus, lease: timedelta) -> None:
        self._bus = bus
        self._lease = lease
        self._third_seconds = lease.total_seconds() / 3
        self._lock = threading.Lock()
        self._claim: Claim | None = None
        self._due = 0.0
        self._awake = False

    @contextmanager
    def keeping(self, claim: Claim) -> Iterator[None]:
        """The block works on the claim. One at a time."""
        with self._lock:
            self._claim = claim
            self._due = time.monotonic() + self._third_seconds
            starts, self._awake = not self._awake, True
        if starts:
            threading.Thread(target=self._run, name="keep-lease", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._claim = None

    def _run(self) -> None:
        """Sleep to the next renewal, again and again.

        Never for more than a third of a lease: so it need not be told of a claim that begins
        meanwhile, whose first renewal is due no sooner.
        """
        pause = self._third_seconds
        while True:
            time.sleep(pause)
            with self._lock:
                claim, left = self._claim, self._due - time.monotonic()
                if claim is None:
                    self._awake = False
                    return
            if left <= 0:
                left = self._renew(claim)
            pause = min(left, self._third_seconds)

    def _renew(self, claim: Claim) -> float:
        """Renew; how many seconds from now the next renewal is due."""
        due = time.monotonic() + self._third_seconds
        try:
            self._bus.extend_lease(claim, self._lease)
        except Fenced:
            # Also of a claim that ended meanwhile: then nothing is lost.
            if self._claim is claim:
                _LOG.warning("lease_lost", tenant_id=claim.tenant_id)
            due = float("inf")
        except DuckMeshError as failure:
            _LOG.warning("lease_not_extended", error_code=failure.code.value)
        except Exception:  # noqa: BLE001 - without this thread no later claim would be kept either
            _LOG.exception("lease_not_extended")
        with self._lock:
            if self._claim is claim:
                self._due = due
            return max(0.0, self._due - time.monotonic())
