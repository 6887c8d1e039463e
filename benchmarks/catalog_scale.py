"""Every hot statement in a large catalog, beside the same in a small one with the same answer.

At scale 1 the large one has a million snapshots, a million data files and ten million events.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from benchmarks.figures import Direction, Figure, percentile
from benchmarks.stage import Stage
from catalog.migrate import migrate_up
from tests.plans import hot_bus, hot_catalog, hot_upkeep
from tests.plans.hot import Hot, Place, place_in, ready
from tests.plans.synthetic_catalog import Size, build

_SMALL_SCALE: Final = 0.001
_WARM_UP: Final = 6
"""After so many runs Postgres has chosen between custom and generic plans."""
_RUNS: Final = 15
_HOT: Final = (*hot_bus.HOT, *hot_catalog.HOT, *hot_upkeep.HOT)
_SIZE: Final = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True, slots=True)
class _Built:
    """A synthetic catalog, and how long it took to make it."""

    connection: psycopg.Connection[Any]
    place: Place
    seconds: float

    @property
    def gibibytes(self) -> float:
        row = self.connection.execute(_SIZE).fetchone()
        assert row is not None
        return float(row[0]) / 2**30

    def time_us(self, hot: Hot) -> float:
        """One run, from the send to the last row, without the transaction around it."""
        with ready(self.connection, hot, self.place) as run:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e6

    def p50_us(self, hot: Hot) -> float:
        return percentile([self.time_us(hot) for _ in range(_RUNS)], 50)


def measure(stage: Stage) -> Iterator[Figure]:
    """Build both catalogs in the stage's Postgres; they are dropped in the end."""
    with ExitStack() as undo:
        small, large = (
            undo.enter_context(_built(stage.dsn, name, scale))
            for name, scale in (("small", _SMALL_SCALE), ("large", stage.sizes.catalog_scale))
        )
        yield _amount(f"making a catalog of {_said(large.place.size)}", "s", large.seconds)
        yield _amount("its size on disk", "GiB", large.gibibytes)
        for hot in _HOT:
            yield _beside_small(hot, small, large, stage.sizes.repetitions)


def _beside_small(hot: Hot, small: _Built, large: _Built, repetitions: int) -> Figure:
    for _ in range(_WARM_UP):
        small.time_us(hot)
        large.time_us(hot)
    pairs = [(large.p50_us(hot), small.p50_us(hot)) for _ in range(repetitions)]
    return Figure(
        benchmark="catalog_scale",
        what=hot.label,
        unit="us p50",
        runs=[ours for ours, _ in pairs],
        limit=f"{small.place.size.newest:,} snapshots",
        limit_runs=[other for _, other in pairs],
        direction=Direction.LOWER,
    )


def _amount(what: str, unit: str, value: float) -> Figure:
    return Figure(
        benchmark="catalog_scale",
        what=what,
        unit=unit,
        runs=[value],
        direction=Direction.LOWER,
    )


def _said(size: Size) -> str:
    events = size.last_token + size.tenants * size.small_last_token
    return f"{size.newest:,} snapshots and files, {events:,} events, {size.tenants + 1:,} tenants"


@contextmanager
def _built(server: str, name: str, scale: float) -> Iterator[_Built]:
    dsn = urlunsplit(urlsplit(server)._replace(path=f"/catalog_{name}"))
    database = sql.Identifier(f"catalog_{name}")
    with psycopg.connect(server, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE DATABASE {}").format(database))
        try:
            migrate_up(dsn)
            with psycopg.connect(dsn, autocommit=True) as connection:
                began = time.perf_counter()
                build(connection, Size.of(scale))
                seconds = time.perf_counter() - began
                yield _Built(connection, place_in(connection, Size.of(scale)), seconds)
        finally:
            owner.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
