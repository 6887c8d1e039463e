"""Which files of a table a query needs, by the statistics of their columns in the catalog."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from catalog import files
from catalog.connection import Catalog
from catalog.files import DataFile
from catalog.tables import TableAt
from duckmesh.identifiers import FileId
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
        self._known: OrderedDict[FileId, Mapping[str, Any]] = OrderedDict()

    def needed(self, table: TableAt, found: Sequence[DataFile], asked: Asked) -> Sequence[DataFile]:
        """The files that may hold a row that the query asks for, in their order.

        Inline files, and those written with other columns than the table's, are always needed.
        """
        predicate = asked.predicates.get(table.name.lower())
        if predicate is None:
            return found
        judged = [f for f in found if f.path and f.schema_version == table.schema.version]
        if len(judged) < 2:
            return found
        stats = self._stats([file.file_id for file in judged])
        fields = {field.name.lower(): field for field in table.schema.arrow}
        left_out = {
            file.file_id
            for file in judged
            if not may_match(predicate, fields, stats.get(file.file_id, {}), asked.values)
        }
        return [file for file in found if file.file_id not in left_out] if left_out else found

    def _stats(self, file_ids: Sequence[FileId]) -> Mapping[FileId, Mapping[str, Any]]:
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
