"""INSERT: its values, or the rows of its query, accepted as one write."""

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from catalog.table_schema import TableSchema
from duckmesh.errors import Invalid
from gateway.identity import Role
from gateway.ingest_modes import IngestMode
from gateway.sql_steps import Executed, SqlRequest, SqlSteps, computing, executed
from query_engine.conflicts import check_clause, check_conflict
from query_engine.conversions import CONVERSION, conversion_failed
from query_engine.insertion import Insertion, InsertionReader, filled_columns
from query_engine.scratch import Scratch


class SqlInserts:
    """INSERT statements, for a serving process. Thread-safe."""

    def __init__(self, steps: SqlSteps, scratch: Scratch) -> None:
        self._steps = steps
        self._insertions = InsertionReader(scratch)

    def source(self, request: SqlRequest) -> str | None:
        """The query whose parameters are the statement's; None when it has none."""
        insertion = self._insertions.read(request.sql)
        if not insertion.parameters:
            return None
        target = self._steps.table(request, insertion.target.name).schema
        names = _filled(insertion, target, self._given(request, insertion))
        return self._insertions.query_of(insertion, names, target.arrow)

    def insert(self, request: SqlRequest) -> Executed:
        """Accept the rows of an INSERT. In a table with a key each replaces the row of its key."""
        insertion = self._insertions.read(request.sql)
        request.identity.require(Role.INGEST_WRITER)
        table = self._steps.table(request, insertion.target.name)
        with self._rows_of(request, insertion, table.schema) as rows:
            receipt = self._steps.write(request, table.name, rows, mode=IngestMode.APPEND)
        return executed(receipt)

    @contextlib.contextmanager
    def _rows_of(
        self, request: SqlRequest, insertion: Insertion, target: TableSchema
    ) -> Iterator[pa.RecordBatchReader]:
        """The rows to insert, with the table's columns; from a query they come as they are read.

        Raises Invalid (INVALID_PAYLOAD) naming the column for a value that does not convert.
        """
        schema = target.arrow
        if insertion.is_written_out:
            cells = insertion.cells or [[]]
            names = _filled(insertion, target, len(cells[0]))
            rows = self._insertions.written_rows(insertion, names, schema, request.parameters)
            yield rows.to_reader()
            return
        request = computing(request, self._steps.engine.tables_read(self._source_text(insertion)))
        names = _filled(insertion, target, self._given(request, insertion))
        query = self._insertions.query_of(insertion, names, schema)
        try:
            with self._steps.query(request, query) as reader:
                yield reader
        except Invalid as error:
            if not error.message.startswith(CONVERSION):
                raise
            failing = self._insertions.failing_columns_query(insertion, names, schema)
            column = self._steps.failing_column(request, failing, names)
            raise conversion_failed(column, error.message) from None

    def _source_text(self, insertion: Insertion) -> str:
        return self._insertions.source_text(insertion)

    def _given(self, request: SqlRequest, insertion: Insertion) -> list[str] | int:
        if (cells := insertion.cells) is not None:
            return len(cells[0])
        return list(self._steps.described(request, self._source_text(insertion)).names)


def _filled(insertion: Insertion, target: TableSchema, given: Sequence[str] | int) -> list[str]:
    """The columns that the statement fills. Raises what its clause for conflicts does not allow."""
    check_clause(insertion.conflict, target.primary_key)
    names = filled_columns(insertion, target.arrow, given)
    check_conflict(
        insertion.conflict, filled=names, columns=target.arrow.names, key=target.primary_key
    )
    return names
