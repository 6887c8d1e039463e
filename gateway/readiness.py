"""Whether a serving process can do its work: the catalog, its schema, and the object store."""

import threading
import time
from dataclasses import dataclass
from typing import Final

from catalog.connection import Catalog
from catalog.migrate import pending_migrations
from duckmesh.errors import DuckMeshError, ErrorCode, Unavailable
from object_store.port import ObjectStore

_KEPT_SECONDS: Final = 1.0
"""How long a verdict is kept: the probe asks nobody's credentials, and must cost little."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One dependency: whether it answers, and what to do when it does not."""

    name: str
    ok: bool
    detail: str


class Readiness:
    """Live probes, asked at most once a second. Thread-safe."""

    def __init__(self, catalog: Catalog, store: ObjectStore) -> None:
        self._catalog = catalog
        self._store = store
        self._lock = threading.Lock()
        self._kept_until = 0.0
        self._kept: tuple[ProbeResult, ...] = ()

    def check(self) -> tuple[ProbeResult, ...]:
        """The result of every probe. Blocks for the probes; raises nothing of theirs.

        Those who ask while a probe is under way wait for it and share its result.
        """
        with self._lock:
            if time.monotonic() >= self._kept_until:
                self._kept = (*self._catalog_probes(), self._store_probe())
                self._kept_until = time.monotonic() + _KEPT_SECONDS
            return self._kept

    def _catalog_probes(self) -> tuple[ProbeResult, ProbeResult]:
        try:
            with self._catalog.connect() as connection:
                pending = pending_migrations(connection)
        except DuckMeshError as error:
            return (
                ProbeResult("catalog", ok=False, detail=error.message),
                ProbeResult("schema", ok=False, detail="not known while the catalog is away"),
            )
        catalog = ProbeResult("catalog", ok=True, detail="it answers")
        if pending:
            count = f"{len(pending)} migrations are pending: run `duckmesh migrate up`"
            return catalog, ProbeResult("schema", ok=False, detail=count)
        return catalog, ProbeResult("schema", ok=True, detail="all migrations are applied")

    def _store_probe(self) -> ProbeResult:
        try:
            self._store.probe()
        except DuckMeshError as error:
            return ProbeResult("store", ok=False, detail=error.message)
        return ProbeResult("store", ok=True, detail="an object was written, read and deleted")


def not_ready(results: tuple[ProbeResult, ...]) -> Unavailable | None:
    """The error that failed probes are, or None."""
    failed = [result for result in results if not result.ok]
    if not failed:
        return None
    said = "; ".join(f"{result.name}: {result.detail}" for result in failed)
    return Unavailable(
        ErrorCode.NOT_READY, f"not ready: {said}", failed=[result.name for result in failed]
    )
