"""Staged writes to a table with a primary key: each key of a write counts once, its last row.

The door writes a stream to the store as it comes, and does not remember its keys. Here they are
looked at before the write is published. Hardly any write repeats a key; one that does is written
anew without the rows that a later one supersedes. Died after that: the new objects are orphans, and
the staged ones are still there.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from catalog.compaction import LiveFile
from catalog.connection import Catalog
from catalog.snapshots import NewFile
from catalog.table_schema import TableSchema
from catalog.tables import Place
from coordinator.rewrite import Rewrite, RewriteOptions
from duckmesh.errors import Corrupt
from duckmesh.identifiers import TableId
from object_store import keys
from object_store.port import ObjectStore

_TARGET_BYTES: Final = 128 * 2**20


class UniqueKeys:
    """Looks at staged writes. Used by one thread."""

    def __init__(self, catalog: Catalog, store: ObjectStore, *, scratch: Path | None) -> None:
        self._catalog = catalog
        self._store = store
        self._scratch = scratch

    def of(
        self, table_id: TableId, staged: Sequence[NewFile], place: Place, schema: TableSchema
    ) -> list[NewFile]:
        """The files of one staged write, with one row for each key.

        Reads the columns of the key, from a copy where the store is remote. Raises Unavailable.
        """
        rewrite = Rewrite(
            self._catalog,
            self._store,
            partial(keys.data_file_key, place.tenant, place.name, table_id),
            options=RewriteOptions(
                target_bytes=_TARGET_BYTES,
                # Rows that delete have no values to cut them by.
                spec=() if any(file.delete_count for file in staged) else place.partition_spec,
                scratch=self._scratch,
            ),
            spend=lambda _: None,
        )
        try:
            unique = rewrite.without_repeats(table_id, [_as_read(f) for f in staged], schema)
        except BaseException:
            rewrite.discard()
            raise
        return list(staged) if unique is None else unique


def _as_read(file: NewFile) -> LiveFile:
    if file.path is None:
        raise Corrupt("a staged file has no place", file_id=str(file.file_id))
    return LiveFile(
        file.file_id,
        file.path,
        file.schema_version,
        file.record_count,
        file.file_size_bytes,
        file.min_token,
        file.max_token,
        timedelta(0),
        file.partition,
        file.delete_count,
    )
