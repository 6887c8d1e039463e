"""The tables that this process looked up lately, so that a small write asks the catalog nothing.

What is known may be behind by a second. That is safe for rows: whoever replaces, renames or drops
a table raises its schema fence, and the bus refuses what was checked against the older definition.
Who changes a definition here forgets the table.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from catalog import tables
from catalog.connection import Catalog
from catalog.tables import Table
from duckmesh.errors import Invalid
from duckmesh.identifiers import TenantId
from gateway.conform import Conformer

_KEPT_SECONDS: Final = 1.0
_LIMIT: Final = 10_000


@dataclass(slots=True)
class _Known:
    table: Table
    until: float
    fit: tuple[pa.Buffer, Conformer] | None = None
    """The schema that was offered last, as a message, and how its rows fit in."""
    own: Conformer | None = None
    """How rows of the table's very columns fit in."""

    def conformer(self, offered: pa.Schema) -> Conformer:
        """Raises Invalid (SCHEMA_INCOMPATIBLE)."""
        # Each write brings a schema of its own. To compare two of them Arrow first takes the
        # fingerprint of every field, which costs several times what the message does.
        message = offered.serialize()
        if self.fit is not None and self.fit[0].equals(message):
            return self.fit[1]
        conformer = Conformer.between(offered, self.table.schema.arrow)
        # One assignment: other threads read it meanwhile.
        self.fit = (message, conformer)
        return conformer

    def as_it_is(self) -> tuple[Table, Conformer]:
        """The table, and how rows of its very columns fit in."""
        if self.own is None:
            self.own = Conformer.between(self.table.schema.arrow, self.table.schema.arrow)
        return self.table, self.own


class KnownTables:
    """Tables by name, from memory or from the catalog. Thread-safe."""

    def __init__(
        self, catalog: Catalog, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog = catalog
        self._monotonic = monotonic
        self._known: dict[tuple[TenantId, str], _Known] = {}

    def look(self, tenant_id: TenantId, name: str) -> Table | None:
        """The live table of that name as the catalog has it now."""
        found = self._look(tenant_id, name)
        return None if found is None else found.table

    def recall(self, tenant_id: TenantId, name: str) -> Table | None:
        """The same, from memory if it was looked up within the last second."""
        known = self._recall(tenant_id, name) or self._look(tenant_id, name)
        return None if known is None else known.table

    def fitted(
        self, tenant_id: TenantId, name: str, offered: pa.Schema
    ) -> tuple[Table, Conformer] | None:
        """The table, and how rows of the offered schema fit in; None when there is no table.

        Raises Invalid (SCHEMA_INCOMPATIBLE) when they do not fit the table as it is now.
        """
        known = self._recall(tenant_id, name)
        if known is not None:
            try:
                return known.table, known.conformer(offered)
            except Invalid:
                # The rows may be those of a newer definition than the one in memory.
                self.forget(tenant_id, name)
        found = self._look(tenant_id, name)
        return None if found is None else (found.table, found.conformer(offered))

    def recall_fitted(
        self, tenant_id: TenantId, name: str, offered: pa.Schema
    ) -> tuple[Table, Conformer] | None:
        """The same from memory; None when the catalog must be asked. Never blocks."""
        known = self._recall(tenant_id, name)
        if known is None:
            return None
        try:
            return known.table, known.conformer(offered)
        except Invalid:
            # They may be of a newer definition than the one in memory.
            return None

    def as_it_is(
        self, tenant_id: TenantId, name: str, *, now: bool
    ) -> tuple[Table, Conformer] | None:
        """The table, and how rows of its very columns fit in: as they are, or are refused.

        With `now` it is as the catalog has it; without, as it was within the last second.
        """
        known = None if now else self._recall(tenant_id, name)
        known = known or self._look(tenant_id, name)
        return None if known is None else known.as_it_is()

    def recall_as_it_is(self, tenant_id: TenantId, name: str) -> tuple[Table, Conformer] | None:
        """The same from memory; None when the catalog must be asked. Never blocks."""
        known = self._recall(tenant_id, name)
        return None if known is None else known.as_it_is()

    def forget(self, tenant_id: TenantId, name: str) -> None:
        """Ask the catalog the next time."""
        self._known.pop((tenant_id, name), None)

    def _recall(self, tenant_id: TenantId, name: str) -> _Known | None:
        known = self._known.get((tenant_id, name))
        return known if known is not None and self._monotonic() < known.until else None

    def _look(self, tenant_id: TenantId, name: str) -> _Known | None:
        asked_at = self._monotonic()
        with self._catalog.connect() as connection:
            table = tables.find_table(connection, tenant_id, name)
        if table is None:
            self.forget(tenant_id, name)
            return None
        if len(self._known) >= _LIMIT:
            self._known.clear()
        # From the question on, not from the answer: the table may have been changed in between.
        found = self._known[tenant_id, name] = _Known(table, asked_at + _KEPT_SECONDS)
        return found
