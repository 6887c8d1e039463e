"""What every statement of either door leaves behind: who asked what, and how it ended."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
from uuid_utils.compat import uuid7

from catalog.queries import AuditedQuery
from duckmesh.identifiers import SnapshotId
from duckmesh.telemetry import current_trace_id
from duckmesh.tokens import VisibilityToken
from gateway.audit_buffer import AuditBuffer
from gateway.counts import code_of
from gateway.identity import Identity
from query_engine.redaction import redacted

OK: Final = "OK"
_CUT: Final = " ..."
_UNDER_AUDIT: ContextVar[bool] = ContextVar("under_audit", default=False)
"""Whether the caller's statement has a row already: the queries that it runs inside have none."""


class StatementRecord:
    """One statement on its way to its row. `ended` makes the row, once; from any thread."""

    __slots__ = (
        "_audit",
        "_began",
        "_ended",
        "_identity",
        "_lock",
        "_started_at",
        "_trace_id",
        "asked_token",
        "byte_count",
        "pruned_files",
        "queue_seconds",
        "row_count",
        "run_seconds",
        "scanned_bytes",
        "scanned_files",
        "snapshot_id",
        "sql",
    )

    def __init__(self, audit: "QueryAudit", identity: Identity, sql: str) -> None:
        self._audit = audit
        self._identity = identity
        self._started_at = time.time()
        self._began = time.perf_counter()
        self._trace_id = current_trace_id()
        self._lock = threading.Lock()
        self._ended = False
        self.sql = sql
        self.asked_token: VisibilityToken | None = None
        self.snapshot_id: SnapshotId | None = None
        self.queue_seconds = 0.0
        self.run_seconds: float | None = None
        self.row_count = 0
        self.byte_count = 0
        self.scanned_files = 0
        self.scanned_bytes = 0
        self.pruned_files = 0

    def gave(self, batch: pa.RecordBatch) -> None:
        """Rows were handed on."""
        self.row_count += batch.num_rows
        self.byte_count += batch.nbytes

    def ended(self, outcome: str = OK) -> None:
        """The statement is over. The first outcome counts."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if self.run_seconds is None:
            self.run_seconds = time.perf_counter() - self._began
        self._audit.keep(self, outcome)

    def row(self, outcome: str, text: str) -> AuditedQuery:
        """The row of the catalog."""
        return AuditedQuery(
            query_id=uuid7(),
            tenant_id=self._identity.tenant_id,
            principal=self._identity.audited_as,
            sql=text,
            snapshot_id=self.snapshot_id,
            asked_token=self.asked_token,
            trace_id=self._trace_id,
            started_at=datetime.fromtimestamp(self._started_at, UTC),
            queue_seconds=self.queue_seconds,
            run_seconds=self.run_seconds or 0.0,
            row_count=self.row_count,
            byte_count=self.byte_count,
            scanned_files=self.scanned_files,
            scanned_bytes=self.scanned_bytes,
            pruned_files=self.pruned_files,
            outcome=outcome,
        )


@contextlib.contextmanager
def ended_by_errors(record: StatementRecord | None) -> Iterator[None]:
    """An error that the block ends with is the statement's outcome."""
    try:
        yield
    except Exception as error:
        if record is not None:
            record.ended(code_of(error))
        raise


class QueryAudit:
    """Gives statements their records. Thread-safe. Without a buffer nothing is written."""

    def __init__(
        self,
        buffer: AuditBuffer | None = None,
        *,
        redact_literals: bool = False,
        sql_max_chars: int = 4096,
    ) -> None:
        self._buffer = buffer
        self._redact = redact_literals
        self._sql_max_chars = sql_max_chars

    def begin(self, identity: Identity, sql: str) -> StatementRecord | None:
        """The record of a statement that begins; None when it is to have no row of its own."""
        if self._buffer is None or _UNDER_AUDIT.get():
            return None
        return StatementRecord(self, identity, sql)

    @contextlib.contextmanager
    def statement(
        self, identity: Identity, sql: str, asked_token: VisibilityToken | None
    ) -> Iterator[StatementRecord | None]:
        """The block runs a whole statement; what it asks of the rooms inside has no other row."""
        record = self.begin(identity, sql)
        if record is None:
            yield None
            return
        record.asked_token = asked_token
        mark = _UNDER_AUDIT.set(True)
        try:
            with ended_by_errors(record):
                yield record
            record.ended()
        finally:
            _UNDER_AUDIT.reset(mark)

    @contextlib.contextmanager
    def refusals(
        self, identity: Identity, sql: str | None, asked_token: VisibilityToken | None = None
    ) -> Iterator[None]:
        """The block prepares a query: it has a row when it ends here, with an error."""
        try:
            yield
        except Exception as error:
            record = None if sql is None else self.begin(identity, sql)
            if record is not None:
                record.asked_token = asked_token
                record.ended(code_of(error))
            raise

    def keep(self, record: StatementRecord, outcome: str) -> None:
        """Hand a record's row over. Its text is made ready where it is written."""
        if self._buffer is None:
            return
        is_cut = len(record.sql) > self._sql_max_chars
        # Cut now: a buffer full of long statements stays small.
        text = record.sql[: self._sql_max_chars]
        record.sql = ""

        def row() -> AuditedQuery:
            shown = redacted(text, is_cut=is_cut) if self._redact else text
            return record.row(outcome, shown + _CUT if is_cut else shown)

        self._buffer.add(row)


UNAUDITED: Final = QueryAudit()
"""Writes nothing."""
