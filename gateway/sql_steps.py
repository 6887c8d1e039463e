"""The steps that SQL statements which write are made of: find a table, run a query, write rows."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from catalog.tables import Table
from duckmesh.errors import DuckMeshError, ErrorCode, Invalid
from duckmesh.tokens import VisibilityToken
from gateway.identity import Identity, Role
from gateway.ingest_modes import IngestMode
from gateway.pending_write import PendingWrite
from gateway.reads import ReadPoint, Reads
from gateway.transactions import ClientTransaction
from gateway.writes import Writes
from ingest_bus.envelope import Receipt, WritingSession
from query_engine.describe import Description
from query_engine.engine import Interruption, QueryEngine


@dataclass(frozen=True, slots=True)
class Executed:
    """The outcome of a statement that is no query. `row_count` is None when it has none (DDL)."""

    row_count: int | None
    visibility_token: VisibilityToken | None


DONE: Final = Executed(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlRequest:
    """One call to `execute`."""

    identity: Identity
    sql: str
    point: ReadPoint
    parameters: pa.Table | None
    idempotency_key: str | None
    session: WritingSession | None
    transaction: ClientTransaction | None = None
    trace_id: str | None
    stop: Interruption

    @property
    def digest(self) -> bytes | None:
        """What makes a repeat of the statement: its text and its bound rows."""
        if self.idempotency_key is None:
            return None
        digest = hashlib.blake2b(self.sql.encode(), digest_size=32)
        if self.parameters is not None:
            rows = self.parameters.replace_schema_metadata(None).combine_chunks()
            digest.update(rows.schema.serialize())
            for batch in rows.to_batches():
                digest.update(batch.serialize())
        return digest.digest()


class SqlSteps:
    """What the statements of one serving process share. Thread-safe."""

    def __init__(self, reads: Reads, writes: Writes, *, engine: QueryEngine) -> None:
        self.reads = reads
        self.writes = writes
        self.engine = engine

    def table(self, request: SqlRequest, name: str) -> Table:
        """The table that a statement names. Raises TABLE_NOT_FOUND."""
        known = self.writes.definitions.live_name(request.identity, name)
        if known is None and self.writes.definitions.is_view(request.identity, name):
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED, f"{name!r} is a view: write to the tables it reads"
            )
        return self.writes.table(request.identity, known or name, request.transaction)

    def described(self, request: SqlRequest, query: str) -> pa.Schema:
        """The columns of a query of the statement's."""
        return self.description(request, query).result_schema

    def description(self, request: SqlRequest, query: str) -> Description:
        """What a query of the statement's takes and gives, over the snapshot that it would read."""
        pinned = self.reads.pin(request.identity, query, request.point, stop=request.stop)
        return self.reads.describe(request.identity, query, pinned.snapshot_id, stop=request.stop)

    @contextlib.contextmanager
    def query(self, request: SqlRequest, query: str) -> Iterator[pa.RecordBatchReader]:
        """The rows of a query of the statement's, once for each bound row, as they are read.

        Waits at the barrier for what the request's read point names.
        """
        pinned = self.reads.pin(request.identity, query, request.point, stop=request.stop)
        answer = self.reads.run(
            request.identity,
            query,
            pinned.snapshot_id,
            parameters=_one_batch(request.parameters),
            last_token=request.point.min_token,
            interruption=request.stop,
        )
        with answer:
            yield answer.reader

    def failing_column(self, request: SqlRequest, query: str, names: Sequence[str]) -> str | None:
        """Which column a value did not fit, asked once it is known that one did not.

        The query says it of each of `names`, in a row for each bound row.
        """
        try:
            with self.query(request, query) as reader:
                failed = [any(column.to_pylist()) for column in reader.read_all().columns]
        except DuckMeshError:
            return None
        return next((name for name, bad in zip(names, failed, strict=True) if bad), None)

    def write(
        self,
        request: SqlRequest,
        table: str,
        rows: pa.RecordBatchReader,
        *,
        mode: IngestMode,
        deletes: bool = False,
    ) -> Receipt:
        """Accept the rows as one write, in bounded memory however many they are.

        With `deletes` they are the keys of the rows to delete.
        """
        pending = self.writes.begin(
            request.identity,
            table,
            rows.schema,
            mode=mode,
            deletes=deletes,
            idempotency_key=request.idempotency_key,
            payload_hash=request.digest,
            session=request.session,
            transaction=request.transaction,
            trace_id=request.trace_id,
            # Nobody holds a statement back while it runs.
            slows=False,
        )
        return _sent(pending, rows, request.stop)


def executed(receipt: Receipt) -> Executed:
    return Executed(receipt.row_count, None if receipt.is_held else receipt.visibility_token)


def _sent(
    pending: PendingWrite, rows: Iterable[pa.RecordBatch], interruption: Interruption
) -> Receipt:
    """Append all rows and commit; nothing is left of the write when either fails."""
    try:
        for batch in rows:
            pending.append(batch)
        # The last moment to know that the caller has cancelled, or left.
        interruption.check()
        return pending.commit()
    except BaseException:
        # A write that may stand all the same keeps its staged files: `abort` knows.
        pending.abort()
        raise


def computing(request: SqlRequest, tables: frozenset[str] | None) -> SqlRequest:
    """The request for a source that reads no table: to compute needs no right to read."""
    if tables is None or tables:
        return request
    return replace(request, identity=reading(request))


def reading(request: SqlRequest) -> Identity:
    """The caller, with the right to read."""
    return replace(request.identity, roles=request.identity.roles | {Role.QUERY_READER})


def _one_batch(rows: pa.Table | None) -> pa.RecordBatch | None:
    if rows is None:
        return None
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
