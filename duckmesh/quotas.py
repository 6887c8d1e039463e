"""Quotas: how much of a process, and of the machine room, one tenant or one API key may take."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, Self


class Quota(StrEnum):
    """The name of a quota: in the catalog, in settings, flags, errors and system tables."""

    INGEST_ROWS_PER_SECOND = "ingest_rows_per_second"
    INGEST_BYTES_PER_SECOND = "ingest_bytes_per_second"
    PENDING_EVENTS = "pending_events"
    PENDING_BYTES = "pending_bytes"
    STORAGE_BYTES = "storage_bytes"
    TABLES = "tables"
    CONCURRENT_QUERIES = "concurrent_queries"
    QUEUED_QUERIES = "queued_queries"
    QUERY_TIME_MS = "query_time_ms"
    QUERY_MEMORY_BYTES = "query_memory_bytes"
    QUERY_ROWS = "query_rows"
    QUERY_BYTES = "query_bytes"


KEY_QUOTAS: Final = (
    Quota.INGEST_ROWS_PER_SECOND,
    Quota.INGEST_BYTES_PER_SECOND,
    Quota.CONCURRENT_QUERIES,
    Quota.QUERY_TIME_MS,
    Quota.QUERY_MEMORY_BYTES,
    Quota.QUERY_ROWS,
    Quota.QUERY_BYTES,
)
"""Those that an API key may have smaller than its tenant."""

VALUE_MAX: Final = 2**60
"""The largest value of a quota: as good as none."""

LEAST: Final[Mapping[Quota, int]] = {
    **dict.fromkeys(Quota, 1),
    Quota.STORAGE_BYTES: 0,
    Quota.TABLES: 0,
    Quota.QUEUED_QUERIES: 0,
    # DuckDB does not start with less.
    Quota.QUERY_MEMORY_BYTES: 64 * 2**20,
}
"""The smallest value that each quota may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """A value for each quota; None is no limit, or none of its own."""

    ingest_rows_per_second: int | None = None
    ingest_bytes_per_second: int | None = None
    pending_events: int | None = None
    pending_bytes: int | None = None
    storage_bytes: int | None = None
    tables: int | None = None
    concurrent_queries: int | None = None
    queued_queries: int | None = None
    query_time_ms: int | None = None
    query_memory_bytes: int | None = None
    query_rows: int | None = None
    query_bytes: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, int]) -> Self:
        """From values by name; names that this release does not know are left out."""
        return cls(**{name: value for name, value in values.items() if name in _NAMES})

    def value(self, quota: Quota) -> int | None:
        found: int | None = getattr(self, quota.value)
        return found

    def own(self) -> dict[Quota, int]:
        """The values that are set."""
        values = ((quota, self.value(quota)) for quota in Quota)
        return {quota: value for quota, value in values if value is not None}

    def by_name(self) -> dict[str, int]:
        """The values that are set, by the names of their quotas: as JSON has them."""
        return {quota.value: value for quota, value in self.own().items()}

    def over(self, defaults: "Quotas") -> "Quotas":
        """These values, and the defaults where there is none."""
        return Quotas.of({**defaults.by_name(), **self.by_name()})

    def narrowed(self, by: "Quotas") -> "Quotas":
        """The smaller of both for each quota."""
        own = self.by_name()
        narrow = {name: min(value, own.get(name, value)) for name, value in by.by_name().items()}
        return Quotas.of({**own, **narrow})

    @property
    def limits_ingest_rate(self) -> bool:
        return self.ingest_rows_per_second is not None or self.ingest_bytes_per_second is not None


_NAMES: Final = frozenset(field.name for field in fields(Quotas))
NO_QUOTAS: Final = Quotas()
