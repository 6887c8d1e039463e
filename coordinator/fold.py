"""Keep the hot tail short: many small inline files of a table become one, in a publication's wake.

Every publication of small writes leaves an inline file, and a query pays for each file it opens.
Inline files are sorted into size classes. When a class of one table holds enough of them, the next
publication to that table carries their rows on in its own new file and ends them, in the same
transaction. A row is rewritten once for each class it passes; a file that outgrows the inline limit
goes to the store. Rows and watermark stay what they are; older snapshots keep the old files.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from catalog import files
from catalog.connection import Catalog
from catalog.files import DataFile
from coordinator.encode import SchemaOf, TableRows
from data_files.parquet import decode_parquet
from duckmesh.identifiers import FileId, TableId

FOLD_FROM_FILES: Final = 32
_CLASS_BOUNDS_BYTES: Final = (16 * 2**10, 128 * 2**10)


def fold_tail(catalog: Catalog, tables: Sequence[TableRows], schema_of: SchemaOf) -> list[FileId]:
    """Add the rows of files that are due to the tables' new rows; return the files to end.

    Only tables that get new inline rows are looked at. The commit is fenced by the files still
    being live.
    """
    growing = {t.table_id: t for t in tables if t.batches and not t.emptied}
    if not growing:
        return []
    with catalog.connect() as connection:
        live = files.live_inline_files(connection, list(growing))
        due = _due(live, growing)
        contents = files.contents(connection, [file.file_id for file in due]) if due else {}
    for file in reversed(due):
        table = growing[file.table_id]
        schema = schema_of(file.table_id, file.schema_version)
        older = decode_parquet(contents[file.file_id], schema.arrow)
        table.batches[file.schema_version][:0] = older
        if table.first_token is None or file.min_token < table.first_token:
            table.first_token = file.min_token
    return [file.file_id for file in due]


def _due(live: Sequence[DataFile], growing: dict[TableId, TableRows]) -> list[DataFile]:
    """The files of the smallest full class of each table, of a schema version that is written."""
    classes: dict[tuple[TableId, int], list[DataFile]] = defaultdict(list)
    for file in live:
        if file.schema_version in growing[file.table_id].batches:
            classes[file.table_id, _class_of(file)].append(file)
    due: dict[TableId, list[DataFile]] = {}
    for (table_id, _), members in sorted(classes.items(), key=lambda item: item[0]):
        if len(members) >= FOLD_FROM_FILES and table_id not in due:
            due[table_id] = members
    return [file for members in due.values() for file in members]


def _class_of(file: DataFile) -> int:
    return sum(file.file_size_bytes > bound for bound in _CLASS_BOUNDS_BYTES)
