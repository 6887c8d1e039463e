"""Whether every file that a snapshot can read is there, and as large as it was written."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog

from catalog import acts, files
from catalog.connection import Catalog
from catalog.files import KeptFile
from catalog.tenants import Tenant
from duckmesh import metrics
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import FileId
from object_store.port import ObjectStore

_LOG = structlog.get_logger()
_AT_ONCE: Final = 500
_STATS_AT_ONCE: Final = 8
_DAMAGE_MAX: Final = 1_000


class Damage(StrEnum):
    """What is wrong with a file."""

    MISSING = "missing"
    SIZE_MISMATCH = "size_mismatch"


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file that queries cannot read, or must not."""

    table: str
    file_id: FileId
    damage: Damage
    expected_bytes: int
    found_bytes: int | None


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """What a check saw. Of many damaged files the first thousand are named."""

    files_checked: int
    bytes_checked: int
    missing: int
    mismatched: int
    damaged: tuple[DamagedFile, ...] = ()


class IntegrityCheck:
    """Compares the catalog with the store; changes neither. Used by one thread."""

    def __init__(
        self, catalog: Catalog, store: ObjectStore, *, stop: threading.Event | None = None
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._stop = stop or threading.Event()

    def check(self, tenant: Tenant, *, principal: str) -> IntegrityReport:
        """Look at every file of the tenant's snapshots that have not expired.

        Each damaged file leaves a row of the audit. Raises Unavailable when the store does not
        answer: that is no damage.
        """
        after: FileId | None = None
        checked, size_bytes = 0, 0
        damaged: list[DamagedFile] = []
        while not self._stop.is_set():
            with self._catalog.connect() as connection:
                page = files.kept_files(connection, tenant.tenant_id, after=after, limit=_AT_ONCE)
            damaged += self._damaged(page)
            checked += len(page)
            size_bytes += sum(file.size_bytes for file in page)
            if len(page) < _AT_ONCE:
                break
            after = page[-1].file_id
        report = IntegrityReport(
            checked,
            size_bytes,
            sum(each.damage is Damage.MISSING for each in damaged),
            sum(each.damage is Damage.SIZE_MISMATCH for each in damaged),
            tuple(damaged[:_DAMAGE_MAX]),
        )
        self._tell(tenant, report, principal)
        return report

    def _damaged(self, page: Sequence[KeptFile]) -> list[DamagedFile]:
        with ThreadPoolExecutor(_STATS_AT_ONCE, "integrity") as pool:
            sizes = list(pool.map(self._size_of, page))
        wrong = [
            (file, size) for file, size in zip(page, sizes, strict=True) if size != file.size_bytes
        ]
        if not wrong:
            return []
        # A file may have been collected between the listing and the look: then nobody reads it.
        with self._catalog.connect() as connection:
            kept = files.still_kept(connection, [file.file_id for file, _ in wrong])
        return [
            DamagedFile(
                file.table,
                file.file_id,
                Damage.MISSING if size is None else Damage.SIZE_MISMATCH,
                file.size_bytes,
                size,
            )
            for file, size in wrong
            if file.file_id in kept
        ]

    def _size_of(self, file: KeptFile) -> int | None:
        if file.path is None:
            return file.inline_bytes
        try:
            return self._store.stat(file.path).size_bytes
        except NotFound:
            return None

    def _tell(self, tenant: Tenant, report: IntegrityReport, principal: str) -> None:
        metrics.INTEGRITY_RUNS.inc()
        metrics.INTEGRITY_FILES.inc(report.files_checked)
        metrics.INTEGRITY_MISSING.inc(report.missing)
        metrics.INTEGRITY_MISMATCHES.inc(report.mismatched)
        with self._catalog.connect() as connection, connection.transaction():
            for each in report.damaged:
                _LOG.error(
                    "file_damaged",
                    tenant_id=tenant.tenant_id,
                    file_id=str(each.file_id),
                    damage=each.damage.value,
                )
                acts.record(
                    connection,
                    "integrity",
                    each.table,
                    tenant_id=tenant.tenant_id,
                    principal=principal,
                    outcome=ErrorCode.CORRUPT.value,
                    detail={
                        "file_id": str(each.file_id),
                        "damage": each.damage.value,
                        "expected_bytes": each.expected_bytes,
                        "found_bytes": each.found_bytes,
                    },
                )
