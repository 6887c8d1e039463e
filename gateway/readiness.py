"""Whether a serving process can do its work: the catalog, its schema, and the object store."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from catalog.connection import Catalog
from catalog.migrate import pending_migrations
from duckmesh.errors import DuckMeshError, ErrorCode, Unavailable
from duckmesh.shared_answer import SharedAnswer
from object_store.port import ObjectStore

_PATIENCE: Final = timedelta(seconds=3)
"""How long each probe may take. A load balancer's own patience is seldom longer."""

_TOO_SLOW: Final = f"it did not answer within {_PATIENCE.total_seconds():g} s"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One dependency: whether it answers, and what to do when it does not."""

    name: str
    ok: bool
    detail: str


class Readiness:
    """Live probes, asked at most once a second. Thread-safe.

    A dependency that hangs fails its probe after a few seconds, and holds one thread.
    """

    def __init__(self, catalog: Catalog, store: ObjectStore) -> None:
        self._catalog = catalog
        self._store = store
        self._catalog_answer = SharedAnswer(self._catalog_probes, patience=_PATIENCE)
        self._store_answer = SharedAnswer(self._store_probe, patience=_PATIENCE)

    def check(self) -> tuple[ProbeResult, ...]:
        """The result of every probe. Blocks for a few seconds at most; raises nothing of theirs.

        Those who ask while a probe is under way wait for it and share its result.
        """
        try:
            results = self._catalog_answer.get()
        except TimeoutError:
            results = _without_catalog(_TOO_SLOW)
        try:
            return *results, self._store_answer.get()
        except TimeoutError:
            return *results, ProbeResult("store", ok=False, detail=_TOO_SLOW)

    def _catalog_probes(self) -> tuple[ProbeResult, ...]:
        try:
            with self._catalog.connect() as connection:
                pending = pending_migrations(connection)
        except DuckMeshError as error:
            return _without_catalog(error.message)
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


def _without_catalog(why: str) -> tuple[ProbeResult, ...]:
    return (
        ProbeResult("catalog", ok=False, detail=why),
        ProbeResult("schema", ok=False, detail="not known while the catalog is away"),
    )


def not_ready(results: tuple[ProbeResult, ...]) -> Unavailable | None:
    """The error that failed probes are, or None."""
    failed = [result for result in results if not result.ok]
    if not failed:
        return None
    said = "; ".join(f"{result.name}: {result.detail}" for result in failed)
    return Unavailable(
        ErrorCode.NOT_READY, f"not ready: {said}", failed=[result.name for result in failed]
    )
