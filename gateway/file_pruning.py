"""Which files of a table a query needs, by their columns' statistics and their partitions."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from catalog import files
from catalog.connection import Catalog
from catalog.files import DataFile, FileStats
from catalog.tables import TableAt
from duckmesh.identifiers import FileId
from gateway.partition_pruning import partition_may_match
from query_engine.predicates import Predicate
from query_engine.pruning import may_match

_REMEMBERED_FILES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Asked:
    """What a query asks of its tables, by lower-case name, and the values of its parameters."""

    predicates: Mapping[str, Predicate]
    values: Mapping[str, Any]


NOTHING_ASKED: Final = Asked({}, {})


class FilePruning:
    """Leaves out files that hold no row a query asks for. Thread-safe; statistics never change."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._known: OrderedDict[FileId, FileStats] = OrderedDict()

    def needed(self, table: TableAt, found: Sequence[DataFile], asked: Asked) -> Sequence[DataFile]:
        """The files that may hold a row that the query asks for, in their order.

        Files written with other columns than the table's are always needed, and so are inline
        files of several partitions, or of none.
        """
        predicate = asked.predicates.get(table.name.lower())
        if predicate is None:
            return found
        # An inline file has no statistics; of a table with a spec it may have a partition.
        with_inline = bool(table.partition_spec)
        judged = [
            f for f in found if (f.path or with_inline) and f.schema_version == table.schema.version
        ]
        if len(judged) < 2:
            return found
        stats = self._stats([file.file_id for file in judged])
        fields = {field.name.lower(): field for field in table.schema.arrow}
        left_out = {
            file_id
            for file_id, known in stats.items()
            if not may_match(predicate, fields, known.columns, asked.values)
            or (
                known.partition
                and not partition_may_match(predicate, fields, known.partition, asked.values)
            )
        }
        return [file for file in found if file.file_id not in left_out] if left_out else found

    def _stats(self, file_ids: Sequence[FileId]) -> Mapping[FileId, FileStats]:
        with self._lock:
            known = {file_id: self._known.get(file_id) for file_id in file_ids}
        missing = [file_id for file_id, stats in known.items() if stats is None]
        if missing:
            with self._catalog.connect() as connection:
                loaded = files.stats_of(connection, missing)
            with self._lock:
                self._known.update(loaded)
                while len(self._known) > _REMEMBERED_FILES:
                    self._known.popitem(last=False)
            known.update(loaded)
        return {file_id: stats for file_id, stats in known.items() if stats is not None}
