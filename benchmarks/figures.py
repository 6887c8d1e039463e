"""What was measured, beside its limit and its target."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from command_line.bench_figures import percentile

__all__ = ["Direction", "Figure", "Target", "percentile"]


class Direction(StrEnum):
    """Which way is better."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Target:
    """A floor and a goal; `of_ratio` when they are multiples of the limit and not amounts."""

    floor: float | None
    goal: float | None
    of_ratio: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table.

    `runs` and `limit_runs` are pairs when there is a limit: each run has the limit that was
    measured next to it, so that a load from elsewhere weighs on both. What could not be measured
    has no runs, and says the reason in `not_run`.
    """

    benchmark: str
    what: str
    unit: str
    runs: Sequence[float] = ()
    limit: str = ""
    limit_runs: Sequence[float] = ()
    direction: Direction = Direction.HIGHER
    target: Target = Target(None, None)
    not_run: str = ""

    def __post_init__(self) -> None:
        if bool(self.runs) == bool(self.not_run):
            raise ValueError(f"{self.what}: give its runs, or the reason in not_run")

    @property
    def median(self) -> float | None:
        return statistics.median(self.runs) if self.runs else None

    @property
    def limit_median(self) -> float | None:
        return statistics.median(self.limit_runs) if self.limit_runs else None

    @property
    def ratio(self) -> float | None:
        """The median of the pairs' ratios, product to limit."""
        if not self.limit_runs:
            return None
        pairs = zip(self.runs, self.limit_runs, strict=True)
        return statistics.median(run / limit for run, limit in pairs)

    @property
    def stands(self) -> str:
        """`goal`, `floor`, `below goal` (it has no floor) or `below floor`.

        Empty without a target, and for what was not run.
        """
        reached = self.ratio if self.target.of_ratio else self.median
        if reached is None or (self.target.floor is None and self.target.goal is None):
            return ""
        if self._meets(reached, self.target.goal):
            return "goal"
        if self.target.floor is None:
            return "below goal"
        return "floor" if self._meets(reached, self.target.floor) else "below floor"

    def _meets(self, reached: float, wanted: float | None) -> bool:
        if wanted is None:
            return False
        return reached >= wanted if self.direction is Direction.HIGHER else reached <= wanted

    @property
    def meets_floor(self) -> bool | None:
        """Whether the floor is met, or the goal beyond it; None without a floor or runs."""
        if self.target.floor is None or not self.stands:
            return None
        return self.stands != "below floor"

    @property
    def meets_goal(self) -> bool | None:
        """Whether the goal is met; None without a goal or runs."""
        return None if self.target.goal is None or not self.stands else self.stands == "goal"

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """The figure that `as_json` wrote. What is derived is derived anew."""
        return cls(
            benchmark=said["benchmark"],
            what=said["what"],
            unit=said["unit"],
            runs=tuple(said["runs"]),
            limit=said["limit"] or "",
            limit_runs=tuple(said["limit_runs"]),
            direction=Direction(said["better"]),
            target=Target(said["floor"], said["goal"], said["target_of"] == "ratio"),
            not_run=said["not_run"] or "",
        )

    def as_json(self) -> dict[str, Any]:
        """The figure as `--json` writes it."""
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "runs": list(self.runs),
            "limit": self.limit or None,
            "limit_median": self.limit_median,
            "limit_runs": list(self.limit_runs),
            "ratio": self.ratio,
            "better": self.direction.value,
            "floor": self.target.floor,
            "goal": self.target.goal,
            "target_of": "ratio" if self.target.of_ratio else "value",
            "stands": self.stands or None,
            "not_run": self.not_run or None,
        }
