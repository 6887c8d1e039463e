"""A table with a primary key has one row for each key: the newest, in the order of tokens."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog import files, tables
from catalog.files import DataFile
from duckmesh.errors import ErrorCode, Invalid
from gateway.ingest_modes import IngestMode
from ingest_bus.envelope import Receipt
from tests.gateway.test_replicas import EAGER
from tests.rooms import Rooms, open_rooms

COLUMNS = pa.schema(
    [
        pa.field("region", pa.string(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("seen", pa.timestamp("us", tz="UTC")),
        pa.field("value", pa.int64()),
    ]
)
KEY = pa.schema([COLUMNS.field("region"), COLUMNS.field("id")])
CREATE = (
    "CREATE TABLE t (region VARCHAR, id BIGINT, seen TIMESTAMPTZ, value BIGINT, "
    "PRIMARY KEY (region, id))"
)
ALL = "SELECT region, id, value FROM t ORDER BY region, id"

Key = tuple[str, int]


def delete(rooms: Rooms, keys: pa.Table, *, table: str = "t", key: str | None = None) -> Receipt:
    """Delete the rows of these keys, as one write."""
    pending = rooms.writes.begin(
        rooms.acme,
        table,
        keys.schema,
        mode=IngestMode.APPEND,
        deletes=True,
        idempotency_key=key,
    )
    try:
        for batch in keys.to_batches():
            pending.append(batch)
        return pending.commit()
    except BaseException:
        pending.abort()
        raise


def live(rooms: Rooms, name: str = "t") -> list[DataFile]:
    with rooms.catalog.connect() as connection:
        found = tables.find_table(connection, rooms.acme.tenant_id, name)
        assert found is not None
        newest = rooms.visibility.newest(rooms.acme.tenant_id)
        return files.manifest(connection, newest.snapshot_id, [found.table_id])


def compact(rooms: Rooms, name: str = "t", *, eager: bool = True) -> int:
    """Merge what is due until nothing is; how many merges that took."""
    with rooms.catalog.connect() as connection:
        found = tables.find_table(connection, rooms.acme.tenant_id, name)
    assert found is not None
    compactor, done = rooms.compactor(rest=timedelta(0)), 0
    while compactor.compact(rooms.acme.tenant_id, found.table_id, eager=eager) is not None:
        done += 1
        assert done < 50, "compaction comes to no end"
    return done


@dataclass
class Model:
    """The table as it should be, beside the table."""

    rooms: Rooms
    random: random.Random
    accepted: dict[Key, int] = field(default_factory=dict)
    snapshots: dict[int, dict[Key, int]] = field(default_factory=dict)
    value: int = 0

    def keys(self, most: int) -> list[Key]:
        """Some keys, often the same ones, often twice."""
        spread = self.random.choice([3, 40, 400])
        return [
            (self.random.choice("ab"), self.random.randrange(spread))
            for _ in range(self.random.randint(1, most))
        ]

    def upsert(self, *, mode: IngestMode = IngestMode.APPEND, most: int = 30) -> None:
        rows: list[dict[str, Any]] = []
        if mode is IngestMode.REPLACE:
            self.accepted.clear()
        for region, number in self.keys(most):
            self.value += 1
            rows.append({"region": region, "id": number, "seen": None, "value": self.value})
            self.accepted[region, number] = self.value
        self.rooms.write("t", pa.Table.from_pylist(rows, COLUMNS), mode=mode)

    def upsert_many(self) -> None:
        """Enough for the store."""
        self.upsert(most=1_000)

    def replace(self) -> None:
        if self.random.random() < 0.3:
            self.upsert(mode=IngestMode.REPLACE)

    def delete(self, most: int = 20) -> None:
        keys = self.keys(most)
        self.accepted = {key: v for key, v in self.accepted.items() if key not in keys}
        rows = [{"region": region, "id": number} for region, number in keys]
        delete(self.rooms, pa.Table.from_pylist(rows, KEY))

    def delete_many(self) -> None:
        self.delete(most=1_000)

    def publish(self) -> None:
        """All of it: in one snapshot, or a few events in each."""
        limit = self.random.choice([1, 2, 5_000])
        materializer = self.rooms.materializer(
            claim_limit=limit, inline_file_max_bytes=self.random.choice([0, 600, 2**20])
        )
        while materializer.publish_next() is not None:
            pass
        self.check()

    def compact(self) -> None:
        compact(self.rooms, eager=self.random.random() < 0.5)
        self.rooms.publish_all()
        self.check()

    def collect(self) -> None:
        self.rooms.collect(self.rooms.collector(kept_at_least=6, kept_for=timedelta(0)))

    def check(self) -> None:
        newest = self.rooms.visibility.newest(self.rooms.acme.tenant_id)
        self.snapshots[newest.snapshot_id] = dict(self.accepted)
        assert rows_of(self.rooms.query(ALL)) == self.accepted

    def check_past(self) -> None:
        """The newest six snapshots are kept by the collector."""
        for snapshot_id in sorted(self.snapshots)[-6:]:
            found = rows_of(self.rooms.query_at(ALL, snapshot_id))
            assert found == self.snapshots[snapshot_id]


def rows_of(answer: pa.Table | list[tuple[Any, ...]]) -> dict[Key, int]:
    """Region, id and value of each row; a key that is there twice is an error."""
    rows = answer if isinstance(answer, list) else [tuple(r.values()) for r in answer.to_pylist()]
    found = {(region, number): value for region, number, value in rows}
    assert len(found) == len(rows)
    return found


ACTS: list[tuple[Callable[[Model], None], int]] = [
    (Model.upsert, 12),
    (Model.upsert_many, 2),
    (Model.replace, 1),
    (Model.delete, 5),
    (Model.delete_many, 1),
    (Model.publish, 8),
    (Model.compact, 2),
    (Model.collect, 1),
]


@pytest.mark.parametrize("replica", [False, True], ids=["files", "replica"])
@pytest.mark.parametrize("seed", range(5))
def test_it_holds_the_newest_row_of_each_key_whatever_happens(
    database_dsn: str, tmp_path: Path, seed: int, replica: bool
) -> None:
    options = EAGER if replica else None
    with open_rooms(database_dsn, tmp_path, replica=options, inline_max_bytes=6_000) as rooms:
        rooms.execute(CREATE)
        model = Model(rooms, random.Random(seed))
        acts, weights = zip(*ACTS, strict=True)
        for act in model.random.choices(acts, weights, k=70):
            act(model)
        model.publish()
        model.check_past()
        compact(rooms)
        model.check()
        assert len({file.max_token for file in live(rooms)}) <= 1
        assert not any(file.delete_count for file in live(rooms))
        assert sum(file.record_count for file in live(rooms)) == len(model.accepted)
        model.check_past()
