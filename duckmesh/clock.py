"""Deadlines inside one process. Leases and grace go by Postgres's clock, and by no other."""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Self


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on this process's monotonic clock."""

    at: float

    @classmethod
    def after(cls, span: timedelta) -> Self:
        return cls(time.monotonic() + span.total_seconds())

    @property
    def remaining_seconds(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at
