"""Small writes for a caller that must not block: an event loop.

They are checked as all writes are, by what this process knows of the caller and of the table. What
it does not know, or knew too long ago, it does not ask for here: the caller goes the long way
then, on a thread, and what that looks up serves the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from catalog.tables import Table
from data_files.batch_size import bytes_of
from duckmesh import tracing
from duckmesh.errors import DuckMeshError
from duckmesh.identifiers import check_idempotency_key, check_table_name
from gateway.conform import Conformer, check_batch
from gateway.counts import WriteCount
from gateway.envelopes import envelope_of, gathered_inline
from gateway.groups import KeyedRows
from gateway.identity import Identity, Role
from gateway.known_quotas import Allowance, KnownQuotas
from gateway.known_tables import KnownTables
from gateway.limits import Backpressure
from gateway.rates import IngestRates
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Envelope, Operation
from ingest_bus.port import IngestBus, Watch

ROWS_MAX: Final = 65_536
"""Of one write: few bytes may be many rows."""


@dataclass(frozen=True, slots=True)
class QuickTarget:
    """A table that a caller may write to now, and what the caller may take."""

    table: Table
    conformer: Conformer
    allowance: Allowance


class QuickWrites:
    """Accepts small writes without blocking. Thread-safe."""

    def __init__(
        self,
        bus: IngestBus,
        *,
        quotas: KnownQuotas,
        rates: IngestRates,
        backpressure: Backpressure,
        tables: KnownTables,
        inline_max_bytes: int,
        partitions_max: int,
    ) -> None:
        self._bus = bus
        self._quotas = quotas
        self._rates = rates
        self._backpressure = backpressure
        self._tables = tables
        self._inline_max_bytes = inline_max_bytes
        # Each row may be of another partition.
        self._partitioned_rows_max = min(partitions_max, ROWS_MAX)

    def target(self, identity: Identity, table_name: str) -> QuickTarget | None:
        """What a write needs, when memory has all of it; None when the catalog must be asked.

        The table may be as it was a second ago: what is written for it may be refused with
        SCHEMA_INCOMPATIBLE, and the caller makes the rows again for the table of now. Raises what a
        write would raise before its first row.
        """
        return self._recalled(
            identity,
            table_name,
            lambda name: self._tables.recall_as_it_is(identity.tenant_id, name),
        )

    def target_for(
        self, identity: Identity, table_name: str, offered: pa.Schema
    ) -> QuickTarget | None:
        """The same for rows of another schema; None, too, when they do not fit what is known."""
        return self._recalled(
            identity,
            table_name,
            lambda name: self._tables.recall_fitted(identity.tenant_id, name, offered),
        )

    def _recalled(
        self,
        identity: Identity,
        table_name: str,
        find: Callable[[str], tuple[Table, Conformer] | None],
    ) -> QuickTarget | None:
        identity.require(Role.INGEST_WRITER)
        found = find(check_table_name(table_name))
        allowance = self._quotas.recall(identity)
        if allowance is None or found is None:
            return None
        if not self._backpressure.check_recalled(identity, allowance):
            return None
        self._rates.check_by(allowance, identity)
        return QuickTarget(*found, allowance)

    def submit(
        self,
        identity: Identity,
        target: QuickTarget,
        parts: Sequence[KeyedRows],
        *,
        again: Callable[[DuckMeshError], bool] | None = None,
        trace_id: str | None = None,
        settled: Callable[[], None] | None = None,
        watch: Watch | None = None,
    ) -> Acceptance | None:
        """Several writes of one table in one transaction, all or none; a receipt for each.

        None, with nothing accepted, when one is too large for the bus, has very many rows, deletes,
        is to change its types, or has so many rows that their partitions are to be counted. Tokens
        follow the order of `parts`, and of calls. Raises at once what the rows alone tell (Invalid,
        Overloaded); the outcome raises Conflict and Unavailable: after the latter they may have
        been accepted. `again` tells whether the caller goes the long way after an error, and is
        counted there.
        `settled` and `watch` are as for the bus.
        """
        if not target.conformer.keeps_types:
            # How much they become would have to be found out, and is made on no event loop.
            return None
        rows_max = self._partitioned_rows_max if target.table.partition_spec else ROWS_MAX
        rows = size_bytes = 0
        for part in parts:
            check_batch(part.rows)
            if part.operation is not Operation.INSERT or part.rows.num_rows > rows_max:
                return None
            rows += part.rows.num_rows
            size_bytes += bytes_of(part.rows)
        if size_bytes > self._inline_max_bytes:
            return None
        span = tracing.begin("ingest", tenant_id=identity.tenant_id, table=target.table.name)
        count = WriteCount(span, again=again)
        with count.refusals(), span.active():
            for part in parts:
                if part.idempotency_key is not None:
                    check_idempotency_key(part.idempotency_key)
            # Together or not at all: rows that are here already can be held back no more.
            self._rates.charge_by(target.allowance, identity, rows, size_bytes)
            carried = span.carried(trace_id)
            answer = self._bus.submit(
                [_envelope(identity, target, part, carried) for part in parts],
                settled=settled,
                watch=watch,
            )
        answer.add_done_callback(count.answered)
        return answer


def _envelope(
    identity: Identity, target: QuickTarget, part: KeyedRows, trace_id: str | None
) -> Envelope:
    key = part.idempotency_key
    # What is stored has no names: nothing here asks for them.
    gathered = gathered_inline(
        target.conformer.converted(part.rows), target.conformer.event_time, hashed=key is not None
    )
    return envelope_of(identity, target.table, gathered, idempotency_key=key, trace_id=trace_id)
