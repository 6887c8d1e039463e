"""DELETE and UPDATE: planned at a snapshot, accepted as one write of keys, or of whole rows.

What another client writes to these rows between the snapshot and the write's token is replaced, or
deleted, with them: the newest write of a key wins.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Final

import pyarrow as pa

from catalog.tables import Table
from data_files.batch_size import bytes_of
from data_files.keyed_rows import first_of_each_key
from duckmesh.errors import ErrorCode, Invalid, NotSupported
from gateway.identity import Role
from gateway.ingest_modes import IngestMode
from gateway.sql_steps import Executed, SqlRequest, SqlSteps, executed
from ingest_bus.envelope import Operation
from query_engine.bound_rows import BoundRows
from query_engine.changes import Change, ChangeReader, changed_columns
from query_engine.conversions import CONVERSION, conversion_failed
from query_engine.scratch import Scratch

_NOTHING: Final = Executed(0, None)


class SqlChanges:
    """DELETE and UPDATE statements, for a serving process. Thread-safe."""

    def __init__(self, steps: SqlSteps, scratch: Scratch) -> None:
        self._steps = steps
        self._changes = ChangeReader(scratch)

    def source(self, request: SqlRequest) -> str | None:
        """The query whose parameters are the statement's; None when it has none."""
        change = self._changes.read(request.sql)
        if not change.parameters:
            return None
        schema = self._steps.table(request, change.target.name).schema
        return self._changes.query_of(change, schema.arrow, schema.primary_key)

    def change(self, request: SqlRequest) -> Executed:
        """Delete, or write anew, the rows that match; what was accepted before is seen.

        Where none matches nothing is written, unless an idempotency key is to be remembered. All
        bound rows read one snapshot, and are one write. Raises NotSupported for a table without a
        primary key, and in a transaction that has written to the table: no query sees that yet.
        """
        change = self._changes.read(request.sql)
        request.identity.require(Role.INGEST_WRITER)
        table = self._steps.table(request, change.target.name)
        changed_columns(change, table.schema.arrow, table.schema.primary_key)
        _check_held(request, change, table)
        self._steps.writes.check_may_write(request.identity, table.name, slows=False)
        with self._rows_of(_newest(request), change, table) as rows:
            first = next((batch for batch in rows if batch.num_rows), None)
            if first is None and request.idempotency_key is None:
                return _NOTHING
            begun = () if first is None else (first,)
            receipt = self._steps.write(
                request,
                table.name,
                pa.RecordBatchReader.from_batches(rows.schema, chain(begun, rows)),
                mode=IngestMode.APPEND,
                deletes=change.is_delete,
            )
        return executed(receipt)

    @contextlib.contextmanager
    def _rows_of(
        self, request: SqlRequest, change: Change, table: Table
    ) -> Iterator[pa.RecordBatchReader]:
        """What the statement writes, each key once; of one bound row it comes as it is read.

        Raises Invalid (INVALID_PAYLOAD) naming the column for a value that does not convert.
        """
        columns, key = table.schema.arrow, table.schema.primary_key
        query = self._changes.query_of(change, columns, key)
        try:
            if request.parameters is not None and request.parameters.num_rows > 1:
                yield self._of_several(request, change, table, query).to_reader()
                return
            with self._steps.query(request, query) as reader:
                yield reader
        except Invalid as error:
            if not error.message.startswith(CONVERSION) or change.is_delete:
                raise
            assigned = changed_columns(change, columns, key)
            failing = self._changes.failing_columns_query(change, columns, assigned)
            column = self._steps.failing_column(request, failing, assigned)
            raise conversion_failed(column, error.message) from None

    def _of_several(
        self, request: SqlRequest, change: Change, table: Table, query: str
    ) -> pa.Table:
        """What the statement writes for several bound rows; two may have matched one row."""
        rows = self._at_once(request, change, table) if change.takes_bound_rows else None
        if rows is None:
            rows = self._gathered(request, query)
        distinct = first_of_each_key(rows, table.schema.primary_key)
        if distinct.num_rows < rows.num_rows and not change.is_delete:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "two bound rows change the same row, and none sees what another changes: send "
                "them in statements of their own",
                table=table.name,
            )
        return distinct

    def _at_once(self, request: SqlRequest, change: Change, table: Table) -> pa.Table | None:
        """The rows by one query for all bound rows; None where it takes them one by one."""
        assert request.parameters is not None  # noqa: S101 - asked for several alone
        bound = BoundRows.of(request.parameters, change.parameters, sql=request.sql)
        schema = table.schema
        query = self._changes.query_of(change, schema.arrow, schema.primary_key, bound)
        lists = pa.Table.from_batches([bound.lists])
        try:
            return self._gathered(replace(request, parameters=lists), query)
        except (Invalid, NotSupported) as error:
            if error.code not in (ErrorCode.QUERY_EXECUTION_FAILED, ErrorCode.NOT_SUPPORTED):
                raise
            # Some functions take constants alone. What is wrong with the values is told by the
            # query that takes them one by one.
            return None

    def _gathered(self, request: SqlRequest, query: str) -> pa.Table:
        batches, size_bytes = [], 0
        with self._steps.query(request, query) as reader:
            for batch in reader:
                size_bytes += bytes_of(batch)
                self._steps.writes.check_size(size_bytes)
                batches.append(batch)
            return pa.Table.from_batches(batches, reader.schema)


def _newest(request: SqlRequest) -> SqlRequest:
    """The request that reads everything accepted before it, unless it names a snapshot."""
    if request.point.names_snapshot:
        return request
    return replace(request, point=replace(request.point, strong=True))


def _check_held(request: SqlRequest, change: Change, table: Table) -> None:
    """Raise NotSupported where the statement would have to see what its transaction holds.

    A DELETE after others finds what they found and more: deleted twice is deleted.
    """
    if request.transaction is None or not request.transaction.is_open:
        return
    held = request.transaction.held_operations(table)
    if not held or (held == {Operation.DELETE} and change.is_delete and not change.rereads):
        return
    raise NotSupported(
        ErrorCode.NOT_SUPPORTED,
        f"the transaction has written to {table.name!r}, and {change.verb} does not see that "
        "before COMMIT: commit first, or connect with autocommit on",
        table=table.name,
    )
