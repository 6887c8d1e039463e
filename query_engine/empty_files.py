"""Parquet files without rows: what a view reads while its table has no files."""

import hashlib
import threading
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from query_engine.relations import Relation

_NO_COLUMNS: Final = pa.schema([("none", pa.int32())])


class EmptyFiles:
    """An instance's files without rows, each made when it is first asked for. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._lock = threading.Lock()
        self._made: dict[str, str] = {}

    def of(self, relation: Relation) -> str:
        """The file for a relation: with its columns when its files are read as they are."""
        return self._file(relation.plain_schema or _NO_COLUMNS)

    def _file(self, schema: pa.Schema) -> str:
        key = schema.to_string(show_field_metadata=False, show_schema_metadata=False)
        with self._lock:
            if key not in self._made:
                path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.parquet"
                pq.write_table(schema.empty_table(), path)
                self._made[key] = str(path)
            return self._made[key]
