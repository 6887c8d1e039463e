"""What a hot statement is, and what one run of it touches in a catalog."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg

from duckmesh.identifiers import BatchId, SessionId, TenantId, new_batch_id, new_session_id
from duckmesh.statements import Statements
from ingest_bus.envelope import Envelope, WritingSession
from ingest_bus.postgres_rows import envelope_values
from tests.bus_worlds import write
from tests.plans.synthetic_catalog import GIANT, Size

_SQL: Final = Statements("tests.plans", "costs.sql")
_ROOT: Final = Path(__file__).parents[2]
ROOMS: Final = ("catalog", "ingest_bus")
"""Where the statements are that the product runs."""


@cache
def statements_of(file: str) -> Statements:
    """The statements of `room/file`."""
    room, _, name = file.partition("/")
    return Statements(room, f"{name}.sql")


def statement_files() -> list[str]:
    """Every `room/file` of statements."""
    return sorted(f"{room}/{each.stem}" for room in ROOMS for each in (_ROOT / room).glob("*.sql"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in one synthetic catalog the statements are tried: ids that are there, and new ones."""

    size: Size
    live_files: list[UUID]
    """The newest live files of the giant."""
    ended_files: list[UUID]
    """Files of the giant that older snapshots read."""
    unreachable_files: list[UUID]
    session: UUID
    transaction: UUID
    """An open one, with writes."""
    dead_tokens: list[int]
    young_since: datetime
    """When the giant's twentieth event was accepted, before any of another tenant."""
    batch_id: BatchId
    published: dict[str, Any]
    """A group of writes with keys, sessions and neither; all of them new."""
    repeated: dict[str, Any]
    """A group of which half was accepted before."""

    @property
    def middle(self) -> int:
        """A snapshot of the giant in the middle of its history."""
        return self.size.newest // 2 // 4 * 4 + 1

    def oldest_snapshots(self, count: int) -> list[int]:
        """The first of the giant that are there. No pin is among them."""
        after = range(self.size.oldest, self.size.newest)
        return [snapshot_id for snapshot_id in after if snapshot_id % 4 != 0][:count]

    @property
    def claim(self) -> dict[str, Any]:
        """The parameters of a claim of the giant's open events."""
        return {
            "tenant_id": GIANT,
            "batch_id": self.batch_id,
            "epoch": 1,
            "acked_token": self.size.acked,
            "after_token": self.size.acked,
            "last_token": self.size.acked + 100,
        }


def place_in(connection: psycopg.Connection[Any], size: Size) -> Place:
    """Look for what the statements are tried on."""

    def column(name: str) -> list[Any]:
        return [row[0] for row in connection.execute(_SQL[name])]

    tokens = column("keyed_tokens")
    known = [_write(f"key-{token}", table=1 + token % 10) for token in tokens]
    return Place(
        size=size,
        live_files=column("live_files"),
        ended_files=column("ended_files"),
        unreachable_files=column("unreachable_files"),
        session=column("a_session")[0],
        transaction=column("a_transaction")[0],
        dead_tokens=column("dead_tokens"),
        young_since=column("twentieth_event")[0],
        batch_id=new_batch_id(),
        published=_group([*_new_writes("new"), _write(None), _write(None)]),
        repeated=_group([*known, *_new_writes("again"), _write(None)]),
    )


def _new_writes(key: str) -> list[Envelope]:
    session = WritingSession(SessionId(new_session_id()), "key")
    return [_write(f"{key}-{n}", session=session) for n in range(10)]


def _write(key: str | None, *, table: int = 1, **fields: Any) -> Envelope:
    return write(TenantId(GIANT), key=key, table=table, **fields)


def _group(envelopes: list[Envelope]) -> dict[str, Any]:
    return envelope_values(TenantId(GIANT), envelopes) | {"fence_epoch": 0}


class Grows(Enum):
    """What the cost of a statement is in proportion to."""

    ANSWER = "what it answers or changes"
    TENANTS = "the number of tenants"
    ENDED_FILES = "the index entries of the files that ended since, in the tables it names"


@dataclass(frozen=True, slots=True)
class Hot:
    """A statement that the product runs again and again, and the values it is tried with."""

    file: str
    name: str
    values: Callable[[Place], Any]
    case: str = ""
    """Which of several uses this is."""
    first: tuple[str, ...] = ()
    """Statements of the same file that run before it in its transaction, with the same values."""
    grows_with: Grows = Grows.ANSWER
    blocks_free: int = 24
    """So many it may touch at any scale: plans differ by whether they look up each row or all."""
    generic: bool = True
    """Whether its generic plan is as good. Where a planner that knows no values expects more rows
    than there are, it thinks the generic plan dear, and Postgres goes on with custom ones."""

    @property
    def text(self) -> LiteralString:
        return statements_of(self.file)[self.name]

    @property
    def label(self) -> str:
        return f"{self.file}.{self.name}" + (f"[{self.case}]" if self.case else "")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run touched, its foreign keys and triggers included."""

    rows: int
    """Read from tables, whether they were of use or not."""
    blocks: int
    """Touched, of tables and indexes."""
    scanned: frozenset[str]
    """Tables that were read from end to end."""


def cost_of(connection: psycopg.Connection[Any], hot: Hot, place: Place, *, runs: int = 2) -> Cost:
    """The cost of the last of some runs, each in a transaction that is undone."""
    return [_cost_of(connection, hot, place) for _ in range(runs)][-1]


def _cost_of(connection: psycopg.Connection[Any], hot: Hot, place: Place) -> Cost:
    with ready(connection, hot, place) as run:
        before = _counts(connection)
        run()
        return _difference(before, _counts(connection))


@contextmanager
def ready(
    connection: psycopg.Connection[Any], hot: Hot, place: Place
) -> Iterator[Callable[[], None]]:
    """A transaction in which everything is done but the statement itself; undone in the end."""
    values = hot.values(place)
    with connection.transaction(force_rollback=True):
        for name in hot.first:
            connection.execute(statements_of(hot.file)[name], values)
        yield lambda: _run(connection, hot.text, values)


def _run(connection: psycopg.Connection[Any], text: LiteralString, values: Any) -> None:
    cursor = connection.execute(text, values, prepare=True)
    if cursor.description is not None:
        cursor.fetchall()


_Counts = dict[str, tuple[int, int, int]]


def _counts(connection: psycopg.Connection[Any]) -> _Counts:
    """What this transaction has read of each table: rows, blocks, scans from end to end."""
    return {
        name: (rows, blocks, scans)
        for name, rows, blocks, scans in connection.execute(_SQL["counts"], prepare=True)
    }


def _difference(before: _Counts, after: _Counts) -> Cost:
    return Cost(
        rows=sum(after[name][0] - before[name][0] for name in after),
        blocks=sum(after[name][1] - before[name][1] for name in after),
        scanned=frozenset(name for name in after if after[name][2] > before[name][2]),
    )
