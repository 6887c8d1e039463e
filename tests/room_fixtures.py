"""Fixtures over tests.rooms."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms import Rooms, open_rooms


@pytest.fixture
def rooms(database_dsn: str, tmp_path: Path) -> Iterator[Rooms]:
    """The rooms of one serving process and one coordinator, over a fresh catalog."""
    with open_rooms(database_dsn, tmp_path) as opened:
        yield opened
