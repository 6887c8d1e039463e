"""Several writes of one table that are accepted together: all of them, or none."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from catalog.tables import Table
from data_files.parquet import event_time_column, event_times
from data_files.payload import encode_batches
from data_files.row_hash import hash_of
from duckmesh.errors import Unavailable
from duckmesh.identifiers import new_event_id
from gateway.identity import Identity
from gateway.staging import Gathered, Staging
from ingest_bus.envelope import Envelope, InlinePayload

NewStaging = Callable[[bool], Staging]
"""Begins the staging of one write; the argument says whether its rows are hashed."""


@dataclass(frozen=True, slots=True)
class KeyedRows:
    """One write of a group: rows of the table's schema, and the key that names them."""

    rows: pa.RecordBatch
    idempotency_key: str | None


class EnvelopeGroup:
    """The envelopes of a group. What it staged is removed when the block ends by an error.

    Call `keep` before the publish: from then on an accepted write may name the staged objects.
    """

    def __init__(
        self,
        identity: Identity,
        table: Table,
        *,
        trace_id: str | None,
        inline_max_bytes: int,
        new_staging: NewStaging,
    ) -> None:
        self._identity = identity
        self._table = table
        self._trace_id = trace_id
        self._inline_max_bytes = inline_max_bytes
        self._new_staging = new_staging
        self._staged: list[Staging] = []

    @contextlib.contextmanager
    def envelopes(self, parts: Sequence[KeyedRows]) -> Iterator[list[Envelope]]:
        """An envelope for each part, in order."""
        try:
            yield [self._envelope(part) for part in parts]
        except BaseException:
            for staging in self._staged:
                with contextlib.suppress(Unavailable):
                    staging.abort()
            raise

    def keep(self) -> None:
        """Leave the staged objects alone from now on."""
        for staging in self._staged:
            staging.keep()

    def _envelope(self, part: KeyedRows) -> Envelope:
        return _envelope_of(
            self._identity, self._table, part, self._gathered(part), trace_id=self._trace_id
        )

    def _gathered(self, part: KeyedRows) -> Gathered:
        rows, hashed = part.rows, part.idempotency_key is not None
        if rows.nbytes > self._inline_max_bytes:
            staging = self._new_staging(hashed)
            self._staged.append(staging)
            staging.add(rows)
            return staging.finish()
        return _gathered_inline(self._table, part)


def inline_envelope(
    identity: Identity, table: Table, part: KeyedRows, *, trace_id: str | None
) -> Envelope:
    """The envelope of rows that are few enough for the bus itself."""
    return _envelope_of(identity, table, part, _gathered_inline(table, part), trace_id=trace_id)


def _gathered_inline(table: Table, part: KeyedRows) -> Gathered:
    rows = part.rows
    content = encode_batches([rows])
    return Gathered(
        InlinePayload(content),
        rows.num_rows,
        len(content),
        event_times(rows, event_time_column(table.schema.arrow)),
        None if part.idempotency_key is None else hash_of(rows),
    )


def _envelope_of(
    identity: Identity, table: Table, part: KeyedRows, gathered: Gathered, *, trace_id: str | None
) -> Envelope:
    return Envelope(
        event_id=new_event_id(),
        tenant_id=identity.tenant_id,
        table_id=table.table_id,
        schema_version=table.schema.version,
        payload=gathered.payload,
        row_count=gathered.row_count,
        byte_count=gathered.byte_count,
        idempotency_key=part.idempotency_key,
        payload_hash=gathered.payload_hash,
        min_event_time=gathered.times.earliest,
        max_event_time=gathered.times.latest,
        trace_id=trace_id,
    )
