"""A claim is kept while its work lasts, whatever becomes of one renewal."""

from datetime import timedelta
from typing import Any

import pytest

from coordinator.lease_keeper import LeaseKeeper
from tests.bus_worlds import MemoryWorld, claimed, publish, until


def test_a_failure_that_nobody_foresaw_ends_no_later_renewal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = MemoryWorld()
    publish(world.bus, world.tenant(), 1)
    renew, asked = world.bus.extend_lease, []

    def fail_first(*args: Any, **options: Any) -> None:
        asked.append(args)
        if len(asked) == 1:
            raise RuntimeError("unforeseen")
        renew(*args, **options)

    monkeypatch.setattr(world.bus, "extend_lease", fail_first)
    keeper = LeaseKeeper(world.bus, timedelta(seconds=0.15))
    claim = claimed(world.bus)
    with keeper.keeping(claim):
        until(lambda: len(asked) >= 3)
    assert {asked_for[0].batch_id for asked_for in asked} == {claim.batch_id}
