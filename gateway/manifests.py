"""What a snapshot holds, remembered: snapshots never change, so neither does an entry here."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

from catalog import files, tables, views
from catalog.connection import Catalog
from catalog.files import DataFile
from catalog.tables import TableAt
from catalog.views import View
from duckmesh.identifiers import SnapshotId, TableId, TenantId
from object_store.file_cache import FileCache, PinnedFiles, Wanted
from object_store.port import ObjectStore

_SNAPSHOTS_REMEMBERED: Final = 128


class Manifest:
    """One snapshot of one tenant: its tables, and the files of those that were asked for."""

    def __init__(
        self,
        tenant_id: TenantId,
        snapshot_id: SnapshotId,
        tables_at: list[TableAt],
        views_at: list[View],
    ) -> None:
        self.tenant_id = tenant_id
        self.snapshot_id = snapshot_id
        self.tables = {table.name.lower(): table for table in tables_at}
        self.views = {view.name.lower(): view for view in views_at}
        self.files: dict[TableId, tuple[DataFile, ...]] = {}

    def named(self, names: Collection[str] | None) -> list[TableAt]:
        """The tables of these names, compared without case; all of them for None."""
        if names is None:
            return list(self.tables.values())
        lowered = {name.lower() for name in names}
        return [table for name, table in self.tables.items() if name in lowered]


class Manifests:
    """The manifests that queries used last. Thread-safe."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[TenantId, SnapshotId], Manifest] = OrderedDict()

    def at(self, tenant_id: TenantId, snapshot_id: SnapshotId) -> Manifest:
        """The tables of a snapshot of this tenant."""
        key = (tenant_id, snapshot_id)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        with self._catalog.connect() as connection:
            loaded = tables.tables_at(connection, tenant_id, snapshot_id)
            viewed = views.views_at(connection, tenant_id, snapshot_id)
        with self._lock:
            manifest = self._known.setdefault(key, Manifest(tenant_id, snapshot_id, loaded, viewed))
            while len(self._known) > _SNAPSHOTS_REMEMBERED:
                self._known.popitem(last=False)
        return manifest

    def load_files(self, manifest: Manifest, wanted: Collection[TableAt]) -> None:
        """Make the files of these tables known to the manifest."""
        missing = [t.table_id for t in wanted if t.table_id not in manifest.files]
        if not missing:
            return
        found: dict[TableId, list[DataFile]] = {table_id: [] for table_id in missing}
        with self._catalog.connect() as connection:
            for file in files.manifest(connection, manifest.snapshot_id, missing):
                found[file.table_id].append(file)
        for table_id, table_files in found.items():
            manifest.files[table_id] = tuple(table_files)


class LocalFiles:
    """Data files as paths that DuckDB can open: in place, or as copies in the cache."""

    def __init__(self, catalog: Catalog, store: ObjectStore, cache: FileCache) -> None:
        self._catalog = catalog
        self._store = store
        self._cache = cache

    def folder(self, tenant: str) -> Path:
        """Where the tenant's copies lie. Made now if need be: a worker sees no folder made later.

        Raises Unavailable when the disk refuses.
        """
        return self._cache.folder(tenant)

    def pin(self, tenant: str, wanted: Collection[DataFile]) -> tuple[list[Path], PinnedFiles]:
        """The paths of the files, in order, good until the pin is released.

        Fetches what is missing, in parallel. Raises Unavailable when it cannot.
        """
        paths = [self._in_place(file) for file in wanted]
        fetched = [file for file, path in zip(wanted, paths, strict=True) if path is None]
        pinned = self._cache.pinned(tenant, [self._wanted(file) for file in fetched])
        copies = iter(pinned.paths)
        return [path if path is not None else next(copies) for path in paths], pinned

    def _in_place(self, file: DataFile) -> Path | None:
        return None if file.path is None else self._store.local_path(file.path)

    def _wanted(self, file: DataFile) -> Wanted:
        fetch = (
            partial(self._fetch_inline, file)
            if file.path is None
            else partial(self._download, file.path)
        )
        return Wanted(f"{file.file_id}.parquet", file.file_size_bytes, fetch)

    def _fetch_inline(self, file: DataFile, destination: Path) -> None:
        with self._catalog.connect() as connection:
            content = files.content(connection, file.file_id)
        destination.write_bytes(content)

    def _download(self, key: str, destination: Path) -> None:
        self._store.download(key, destination)
