"""Whose queries begin while several tenants ask.

The processors run a few queries well and many badly: those of a crowd that run at once make each
other slow, and everybody else. So while several tenants ask, no more begin than fill the
processors, and who asks for little goes before who asks for much.

Only young queries count. One that has run for a while is long, whatever runs beside it; the kernel
shares the processors between it and the others, and a small query is not to wait for its end.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

YOUNG_SECONDS: Final = 0.5
"""A query that has run for longer counts no more, so nobody waits longer for one."""

LOOK_SECONDS: Final = 0.1
"""A tenant whose last query began so long ago may begin one, whoever else asks."""

_PRESENT_SECONDS: Final = 1.0
"""A tenant that asked within this time is there, also between two of its queries."""


@dataclass(slots=True)
class _Account:
    """What one tenant has now, and when it last had something."""

    seen_at: float
    asking: int = 0
    """Its queries that run or wait."""
    last_began_at: float = float("-inf")
    began_at: list[float] = field(default_factory=list)
    """Of those that run; the old ones may be missing."""

    def young(self, now: float) -> int:
        return sum(now - began < YOUNG_SECONDS for began in self.began_at)


@dataclass(frozen=True, slots=True)
class Moment:
    """The tenants as they stand at one moment, for the decisions that are made in it."""

    at: float
    present: int
    young: int
    least_asking: int
    """Of the tenants that have young queries, the number of that one that asks for least."""


class Crowd:
    """The queries of each tenant. Not thread-safe: the lock of its owner guards it."""

    def __init__(
        self, abreast: int | None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """So many queries fill the processors; None lets every query begin."""
        self._abreast = abreast
        self._monotonic = monotonic
        self._accounts: dict[str, _Account] = {}

    def asks(self, tenant: str) -> None:
        """A query of the tenant comes. `leaves` must follow."""
        account = self._accounts.get(tenant)
        if account is None:
            self._forget()
            account = self._accounts[tenant] = _Account(0.0)
        account.asking += 1
        account.seen_at = self._monotonic()

    def begins(self, tenant: str) -> float:
        """One that asks begins. Returns the mark of its beginning, for `leaves`."""
        account = self._accounts[tenant]
        now = self._monotonic()
        account.last_began_at = now
        account.began_at = [each for each in account.began_at if now - each < YOUNG_SECONDS]
        account.began_at.append(now)
        return now

    def leaves(self, tenant: str, mark: float | None = None) -> None:
        """One that asked has ended, or gone without having begun."""
        account = self._accounts[tenant]
        account.asking -= 1
        account.seen_at = self._monotonic()
        if mark in account.began_at:
            account.began_at.remove(mark)

    def look(self) -> Moment:
        """How it stands now."""
        now = self._monotonic()
        present = young = 0
        least = 0
        for account in self._accounts.values():
            present += account.asking > 0 or now - account.seen_at < _PRESENT_SECONDS
            if of_tenant := account.young(now):
                least = min(least, account.asking) if young else account.asking
                young += of_tenant
        return Moment(now, present, young, least)

    def may_begin(self, tenant: str, moment: Moment) -> bool:
        """Whether one more query of a tenant that asks may begin.

        Always while no other tenant is there, and while the processors are not full. Else when
        each tenant that fills them asks for as much as this one, or its last one began long ago.
        """
        if self._abreast is None or moment.present < 2 or moment.young < self._abreast:
            return True
        account = self._accounts[tenant]
        if moment.at - account.last_began_at >= LOOK_SECONDS:
            return True
        return not account.young(moment.at) and account.asking <= moment.least_asking

    def _forget(self) -> None:
        """Whoever has nothing and has not asked lately is as if he had never asked."""
        now = self._monotonic()
        for tenant, account in list(self._accounts.items()):
            if not account.asking and now - account.seen_at >= _PRESENT_SECONDS:
                del self._accounts[tenant]
