"""Keep the hot tail short: many small inline files of a table become one, in a publication's wake.

Every publication of small writes leaves an inline file, and a query pays for each file it opens.
Inline files are sorted into size classes. When a class of one table holds enough of them, the next
publication to that table carries their rows on in its own new file and ends them, in the same
transaction (docs/adr/0024-fold-at-eight-files.md). A file that outgrows the inline limit goes to
the store. Rows and watermark stay what they are; older snapshots keep the old files.

In a table with a primary key newer files supersede older ones, so only neighbours are folded: the
newest inline files, as far back as each is not much larger than those behind it together.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Final

from catalog import files
from catalog.connection import Catalog, Connection
from catalog.files import DataFile
from coordinator.encode import SchemaOf, TableRows
from data_files.keyed_rows import read_keyed
from data_files.parquet import decode_parquet
from duckmesh.identifiers import Epoch, FileId, TableId, TenantId
from duckmesh.tokens import BEFORE_ALL

FOLD_FROM_FILES: Final = 8
_CLASS_BOUNDS_BYTES: Final = (16 * 2**10, 128 * 2**10)
_NEIGHBOUR_TIMES: Final = 4
"""A neighbour is folded when it is no larger than so many times what lies behind it."""
_TENANTS_KNOWN: Final = 10_000


class Tails:
    """The hot tails of tables, and how much they may still grow before one is looked at again.

    What this publisher does not see, a restore that brings files back, makes a tail longer by no
    more than what it counts. Used by one thread.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._room: dict[TenantId, tuple[Epoch, dict[TableId, int]]] = {}
        """By tenant the epoch of its last claim here, and the files that its tables may gain."""

    def fold(
        self, tenant_id: TenantId, epoch: Epoch, tables: Sequence[TableRows], schema_of: SchemaOf
    ) -> list[FileId]:
        """Add the rows of files that are due to the tables' new rows; return the files to end.

        Only tables that get new inline rows are looked at, and no tail that is short for certain.
        `epoch` is that of the claim. The commit is fenced by the files still being live.
        """
        room = self._room_of(tenant_id, epoch)
        growing = _growing(tables)
        crowded = {i: t for i, t in growing.items() if room.get(i, 0) <= 0}
        due: list[DataFile] = []
        if crowded:
            live, due, contents = self._look(crowded)
            for file in reversed(due):
                _carry_on(file, contents[file.file_id], growing[file.table_id], schema_of)
            room |= _room_left(crowded, live, {file.file_id for file in due})
        for table in tables:
            if table.table_id in room:
                room[table.table_id] -= len(table.batches)
        return [file.file_id for file in due]

    def _room_of(self, tenant_id: TenantId, epoch: Epoch) -> dict[TableId, int]:
        """What is known of the tenant's tails: nothing, once another publisher had a claim."""
        before, room = self._room.pop(tenant_id, (None, {}))
        if before is None or before + 1 != epoch:
            room = {}
        if len(self._room) >= _TENANTS_KNOWN:
            self._room.clear()
        self._room[tenant_id] = epoch, room
        return room

    def _look(
        self, tables: dict[TableId, TableRows]
    ) -> tuple[list[DataFile], list[DataFile], dict[FileId, bytes]]:
        """The inline files of the tables, those of them to fold, and the bytes of these."""
        with self._catalog.connect() as connection:
            live = files.live_inline_files(connection, list(tables))
            due = _due([file for file in live if not tables[file.table_id].key], tables)
            due += self._due_neighbours(connection, live, tables)
            contents = files.contents(connection, [file.file_id for file in due]) if due else {}
        return live, due, contents

    @staticmethod
    def _due_neighbours(
        connection: Connection, live: Sequence[DataFile], tables: dict[TableId, TableRows]
    ) -> list[DataFile]:
        """Of tables with a primary key the newest files, when there are enough of them."""
        tails = {
            table_id: tail
            for table_id, table in tables.items()
            if table.key and len(tail := _neighbours(live, table)) >= FOLD_FROM_FILES
        }
        if not tails:
            return []
        within = [file.file_id for tail in tails.values() for file in tail]
        outside = files.newest_tokens_outside(connection, list(tails), within)
        due: list[DataFile] = []
        for table_id, tail in tails.items():
            # What lies before a newer file that is not of the tail is no neighbour of what lies
            # behind it: an object, or a file that a compaction holds.
            newest = outside.get(table_id, BEFORE_ALL)
            behind = [file for file in tail if file.min_token > newest]
            due += behind if len(behind) >= FOLD_FROM_FILES else []
        return due


def _growing(tables: Sequence[TableRows]) -> dict[TableId, TableRows]:
    """The tables whose new rows can carry others on: those with a primary key in one part only."""
    parts = Counter(table.table_id for table in tables)
    return {
        t.table_id: t
        for t in tables
        if t.batches and not t.emptied and (not t.key or (parts[t.table_id] == 1 and not t.staged))
    }


def _neighbours(live: Sequence[DataFile], table: TableRows) -> list[DataFile]:
    """The table's newest inline files of the version that is written, in their order."""
    tail: list[DataFile] = []
    size_bytes = 0
    for file in sorted(
        (file for file in live if file.table_id == table.table_id),
        key=lambda file: file.max_token,
        reverse=True,
    ):
        if file.schema_version not in table.batches:
            break
        if tail and file.file_size_bytes > _NEIGHBOUR_TIMES * size_bytes:
            break
        tail.insert(0, file)
        size_bytes += file.file_size_bytes
    return tail


def _carry_on(file: DataFile, content: bytes, table: TableRows, schema_of: SchemaOf) -> None:
    """Put the file's rows before the table's new ones."""
    schema = schema_of(file.table_id, file.schema_version)
    decode = read_keyed if table.key else decode_parquet
    table.batches[file.schema_version][:0] = decode(content, schema.arrow)
    if table.first_token is None or file.min_token < table.first_token:
        table.first_token = file.min_token


def _room_left(
    tables: Collection[TableId], live: Sequence[DataFile], folded: Collection[FileId]
) -> dict[TableId, int]:
    """How many files each table may gain before a class of its files can be full."""
    longest = dict.fromkeys(tables, 0)
    classes = Counter((f.table_id, _class_of(f)) for f in live if f.file_id not in folded)
    for (table_id, _), members in classes.items():
        longest[table_id] = max(longest[table_id], members)
    return {table_id: FOLD_FROM_FILES - members for table_id, members in longest.items()}


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
