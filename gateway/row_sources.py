"""Where the rows of a query's tables lie: in data files on the local disk, and in segments."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from catalog.files import DataFile
from catalog.tables import TableAt
from duckmesh.errors import ErrorCode, Internal, Unavailable
from duckmesh.identifiers import SchemaVersion, SnapshotId, TableId
from gateway.file_pruning import NOTHING_ASKED, Asked, FilePruning
from gateway.layers import NO_LAYERS, Layers, layers_of
from gateway.manifests import LocalFiles, Manifest, Manifests
from gateway.replica_parts import Layout
from gateway.replicas import Replicas
from object_store.file_cache import PinnedFiles
from query_engine.relations import FilesPart, Part, Relation

_Place = tuple[SnapshotId, TableId]
_ALTERED_REMEMBERED: Final = 10_000


class AlteredTables:
    """The tables of which some files are older than their columns. Thread-safe.

    To bind a statement opens no file, and loads no list of files. It is bound as the table was
    last read, so that it needs no instance of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[tuple[TableId, SchemaVersion]] = set()

    def is_uniform(self, table: TableAt, files: Sequence[DataFile] | None) -> bool:
        """Whether all its files have the table's columns; as last seen, when files are unknown."""
        key = (table.table_id, table.schema.version)
        with self._lock:
            if files is None:
                return key not in self._known
            uniform = all(file.schema_version == table.schema.version for file in files)
            if uniform:
                self._known.discard(key)
            else:
                if len(self._known) >= _ALTERED_REMEMBERED:
                    self._known.clear()
                self._known.add(key)
        return uniform


class HeldRows:
    """The files and segments that one query reads, held in place until `release`."""

    def __init__(
        self,
        paths: Mapping[_Place, tuple[Path, ...]],
        pinned: PinnedFiles,
        layouts: Mapping[_Place, Layout],
        replicas: Replicas | None,
        tenant: str,
        *,
        layers: Mapping[_Place, Layers],
        pruned: Sequence[DataFile] = (),
        altered: AlteredTables,
    ) -> None:
        self._altered = altered
        self._kept = frozenset() if replicas is None else replicas.kept(tenant)
        self.pruned = pruned
        """Files of the tables that hold no row that the query asks for."""
        self.in_segments = bool(layouts)
        """Whether some of the rows lie in segments."""
        self._paths = paths
        self._pinned = pinned
        self._layouts = layouts
        self._layers = layers
        self._replicas = replicas
        self._tenant = tenant

    def relation(self, name: str, manifest: Manifest, table: TableAt) -> Relation:
        """The table as the engine reads it; over no rows when the query does not read them."""
        place = (manifest.snapshot_id, table.table_id)
        paths, layout = self._paths.get(place, ()), self._layouts.get(place)
        layers = self._layers.get(place, NO_LAYERS)
        begin = len(paths) - len(layers.newer)
        files, newer = paths[:begin], paths[begin:]
        parts: tuple[Part, ...] = ()
        if layout is not None:
            parts = layout.parts
        elif table.table_id in self._kept or table.primary_key:
            # In the same instance as the queries that do read its segments, or its layers.
            parts = (FilesPart(len(files)),)
        return Relation(
            name,
            table.schema.arrow,
            files,
            table.primary_key,
            parts=parts,
            uniform=self._altered.is_uniform(table, manifest.files.get(table.table_id)),
            segment_files=0 if layout is None else layout.inside_files,
            newer=newer,
            newer_layers=layers.numbers,
        )

    def distrust(self, error: BaseException) -> bool:
        """Drop the segments if they may be why the query failed; whether they may be."""
        damaged = isinstance(error, Internal) or (
            isinstance(error, Unavailable) and error.code is ErrorCode.STORE_UNAVAILABLE
        )
        if not damaged or self._replicas is None or not self._layouts:
            return False
        for (_, table_id), layout in self._layouts.items():
            self._replicas.distrust((self._tenant, table_id), layout)
        return True

    def release(self) -> None:
        """Let everything go. Call it once, from any thread."""
        self._pinned.release()
        if self._replicas is not None:
            for layout in self._layouts.values():
                self._replicas.release(layout)


class RowSources:
    """Finds the rows of tables. Thread-safe."""

    def __init__(
        self,
        manifests: Manifests,
        files: LocalFiles,
        pruning: FilePruning,
        replicas: Replicas | None = None,
    ) -> None:
        self._pruning = pruning
        self._manifests = manifests
        self._files = files
        self._replicas = replicas
        self._altered = AlteredTables()

    def none(self, tenant: str) -> HeldRows:
        """For a statement that is bound and not run: no file is held, and none is opened."""
        nothing = PinnedFiles((), lambda: None)
        return HeldRows({}, nothing, {}, self._replicas, tenant, layers={}, altered=self._altered)

    def hold(
        self,
        tenant: str,
        wanted: Sequence[tuple[Manifest, TableAt]],
        *,
        segments: bool,
        asked: Asked = NOTHING_ASKED,
    ) -> HeldRows:
        """The rows of tables, each of its own snapshot; from `segments` too where there are any.

        Files without a row that is `asked` for are left out, unless they supersede others.

        Fetches the files that are missing. Raises Unavailable when it cannot.
        """
        for manifest in {id(manifest): manifest for manifest, _ in wanted}.values():
            self._manifests.load_files(manifest, [t for m, t in wanted if m is manifest])
        files: dict[_Place, Sequence[DataFile]] = {}
        layouts: dict[_Place, Layout] = {}
        layers: dict[_Place, Layers] = {}
        pruned: list[DataFile] = []
        replicas = self._replicas if segments else None
        try:
            for manifest, table in wanted:
                place = (manifest.snapshot_id, table.table_id)
                if place in files:
                    continue
                files[place] = manifest.files[table.table_id]
                if replicas is not None:
                    layout = replicas.hold(tenant, manifest.snapshot_id, table, files[place])
                    if layout is not None:
                        layouts[place] = layout
                        files[place] = layout.outside
                if table.primary_key:
                    layers[place] = layers_of(files[place], all_newer=place in layouts)
                    files[place] = layers[place].oldest
                needed = self._pruning.needed(table, files[place], asked)
                kept = {file.file_id for file in needed}
                pruned += [file for file in files[place] if file.file_id not in kept]
                files[place] = needed
                if place in layers:
                    files[place] = [*needed, *layers[place].newer]
                elif place in layouts:
                    layouts[place] = layouts[place].with_only(needed)
            found, pinned = self._files.pin(
                tenant, [file for each in files.values() for file in each]
            )
        except BaseException:
            if replicas is not None:
                for layout in layouts.values():
                    replicas.release(layout)
            raise
        left = iter(found)
        paths = {place: tuple(next(left) for _ in each) for place, each in files.items()}
        return HeldRows(
            paths,
            pinned,
            layouts,
            replicas,
            tenant,
            layers=layers,
            pruned=pruned,
            altered=self._altered,
        )
