"""Whether anything grew: of each series, the last quarter's median beside the second's."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.soak.samples import KINDS, Sample

_TABLE_ROWS: Final = 2_000
"""A table that never had so many rows is not looked at."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """A series may grow by this ratio, or by this much: small numbers are noise."""

    ratio: float
    slack: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One series, and whether it stayed as it was."""

    name: str
    second_quarter: float
    last_quarter: float
    allowed: Allowed

    @property
    def ratio(self) -> float:
        return self.last_quarter / self.second_quarter if self.second_quarter else 1.0

    @property
    def flat(self) -> bool:
        grown = self.last_quarter - self.second_quarter
        return self.ratio <= self.allowed.ratio or grown <= self.allowed.slack

    def as_json(self) -> dict[str, Any]:
        return {
            "series": self.name,
            "second_quarter": self.second_quarter,
            "last_quarter": self.last_quarter,
            "ratio": round(self.ratio, 3),
            "allowed_ratio": self.allowed.ratio,
            "flat": self.flat,
        }


_LATENCY: Final = Allowed(1.5, 10.0)
_FILES: Final = Allowed(1.5, 40.0)
_MEMORY: Final = Allowed(1.15, 15.0)
_ROWS: Final = Allowed(1.25, 1_000.0)
_SERIES: Final[dict[str, Allowed]] = {
    **{f"{kind}_p95_ms": _LATENCY for kind in KINDS},
    "pending_writes": Allowed(1.5, 200.0),
    "files_inline": _FILES,
    "files_objects": _FILES,
    "files_known": Allowed(1.25, 200.0),
    "catalog_mb": Allowed(1.2, 10.0),
    "store_beside_live_mb": Allowed(1.5, 60.0),
    "cache_mb": Allowed(1.25, 20.0),
    "cache_files": Allowed(1.25, 100.0),
    "memory_serve_mb": _MEMORY,
    "memory_workers_mb": Allowed(1.25, 50.0),
    "memory_coordinate_mb": _MEMORY,
    "memory_postgres_mb": Allowed(1.25, 50.0),
    "descriptors_serve": Allowed(1.2, 20.0),
    "descriptors_coordinate": Allowed(1.2, 20.0),
    "threads_serve": Allowed(1.2, 10.0),
    "threads_coordinate": Allowed(1.2, 10.0),
    "cores_postgres": Allowed(1.5, 0.1),
    "cores_coordinate": Allowed(1.5, 0.1),
    "cores_serve": Allowed(1.5, 0.1),
}


def judge(samples: Sequence[Sample]) -> list[Judged]:
    """Each series that has numbers in both quarters; none while there are too few samples."""
    quarter = len(samples) // 4
    if quarter < 1:
        return []
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    judged = []
    for name, allowed in (*_SERIES.items(), *_tables(samples)):
        before, after = _median(second, name), _median(last, name)
        if before is not None and after is not None:
            judged.append(Judged(name, round(before, 3), round(after, 3), allowed))
    return judged


def value(sample: Sample, name: str) -> float | None:
    """A number of a sample; `tables.NAME.rows` is one of the catalog's tables."""
    if name.startswith("tables."):
        _, table, what = name.split(".")
        found = sample["tables"].get(table)
        return None if found is None else float(found[what])
    if name == "store_beside_live_mb":
        # The data itself grows with what is written: what else lies in the store must not.
        return float(sample["store_mb"] - sample["store_live_mb"])
    found = sample.get(name)
    return None if found is None else float(found)


def _median(samples: Sequence[Sample], name: str) -> float | None:
    found = [each for sample in samples if (each := value(sample, name)) is not None]
    return statistics.median(found) if found else None


def _tables(samples: Sequence[Sample]) -> Iterator[tuple[str, Allowed]]:
    names = {name for sample in samples for name in sample["tables"]}
    for name in sorted(names):
        rows = [each for sample in samples if (each := value(sample, f"tables.{name}.rows"))]
        if max(rows, default=0) >= _TABLE_ROWS:
            yield f"tables.{name}.rows", _ROWS
