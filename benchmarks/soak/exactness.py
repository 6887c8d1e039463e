"""Every acknowledged row is there once; nothing is there that was not sent."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.clients import PlainClient
from benchmarks.soak.load import EVENTS, Ledger


@dataclass(frozen=True, slots=True)
class Exactness:
    """How the table compares with what the writers were told."""

    acknowledged: int
    unanswered: int
    found: int
    lost: int
    doubled: int
    unknown: int

    @property
    def exact(self) -> bool:
        return not (self.lost or self.doubled or self.unknown)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "exact": self.exact}


def check(uri: str, ledger: Ledger) -> Exactness:
    """Read every id, once all accepted writes are visible, and compare."""
    client = PlainClient(uri)
    answer = client.read(f"SELECT id FROM {EVENTS}", strong=True).read_all()  # noqa: S608 - ours
    client.close()
    return compare(answer["id"].to_numpy(), ledger)


def compare(found: "np.ndarray[Any, np.dtype[np.int64]]", ledger: Ledger) -> Exactness:
    """The ids of the table beside those of the ledger."""
    acknowledged = np.frombuffer(ledger.acknowledged, dtype=np.int64)
    unanswered = np.frombuffer(ledger.unanswered, dtype=np.int64)
    there, times = np.unique(found, return_counts=True)
    return Exactness(
        acknowledged=len(acknowledged),
        unanswered=len(unanswered),
        found=len(found),
        lost=int(np.setdiff1d(acknowledged, there).size),
        doubled=int((times - 1).sum()),
        unknown=int(np.setdiff1d(there, np.concatenate([acknowledged, unanswered])).size),
    )
