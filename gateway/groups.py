"""Several writes of one table that are accepted together: all of them, or none."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from catalog.tables import Table
from data_files.parquet import event_time_column
from duckmesh.errors import Unavailable
from gateway.envelopes import envelope_of, gathered_inline
from gateway.identity import Identity
from gateway.staging import Gathered, Staging
from ingest_bus.envelope import Envelope, Operation

NewStaging = Callable[[bool, Operation], Staging]
"""Begins the staging of one write, told whether its rows are hashed and what they do."""


@dataclass(frozen=True, slots=True)
class KeyedRows:
    """One write of a group: rows of the table's schema, and the key that names them."""

    rows: pa.RecordBatch
    idempotency_key: str | None
    operation: Operation = Operation.INSERT
    """The rows of a delete have the columns of the table's primary key."""


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
        return envelope_of(
            self._identity,
            self._table,
            self._gathered(part),
            idempotency_key=part.idempotency_key,
            trace_id=self._trace_id,
            operation=part.operation,
        )

    def _gathered(self, part: KeyedRows) -> Gathered:
        rows, hashed = part.rows, part.idempotency_key is not None
        if rows.nbytes > self._inline_max_bytes:
            staging = self._new_staging(hashed, part.operation)
            self._staged.append(staging)
            staging.add(rows)
            return staging.finish()
        return gathered_inline(rows, event_time_column(self._table.schema.arrow), hashed=hashed)
