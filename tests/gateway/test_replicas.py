"""Native replicas: the same rows as the data files, at every snapshot, whatever happens to them."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from duckmesh.identifiers import SnapshotId
from gateway.reads import ReadLimits, Reads
from gateway.replicas import ReplicaOptions, Replicas
from gateway.writes import IngestMode
from tests.rooms import Rooms, open_rooms, rows

EAGER = ReplicaOptions(
    capacity_bytes=2**30,
    hot_queries=1,
    min_bytes=0,
    min_files=0,
    rest_factor=0,
    table_pause_seconds=0,
    retry_seconds=0.2,
)


@pytest.fixture
def rooms(database_dsn: str, tmp_path: Path) -> Iterator[Rooms]:
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as opened:
        yield opened


def replicas(rooms: Rooms) -> Replicas:
    assert rooms.replicas is not None
    return rooms.replicas


def files_alone(rooms: Rooms) -> Reads:
    """Reads of the same tenant that know of no replica."""
    return Reads(
        rooms.catalog,
        rooms.bus,
        rooms.store,
        engine=rooms.engine,
        cache=rooms.cache,
        visibility=rooms.visibility,
        limits=ReadLimits(),
    )


def newest(rooms: Rooms) -> SnapshotId:
    return rooms.visibility.newest(rooms.acme.tenant_id).snapshot_id


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Ask again until it holds."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def answer(rooms: Rooms, sql: str, snapshot_id: SnapshotId | None = None) -> tuple[pa.Table, int]:
    """The rows, and how many files' rows came from a replica."""
    at = newest(rooms) if snapshot_id is None else snapshot_id
    with rooms.reads.run(rooms.acme, sql, at) as running:
        return running.reader.read_all(), running.stats.replica_files


def replicated(rooms: Rooms, table: str = "t") -> None:
    """Wait until the replica has every file of the table."""

    def whole() -> bool:
        with rooms.reads.run(rooms.acme, f'FROM "{table}"', newest(rooms)) as running:
            running.reader.read_all()
            stats = running.stats
            return stats.replica_files == stats.scanned_files > 0

    until(whole, "the replica has every file")


def written(rooms: Rooms, *numbers: int, table: str = "t", **options: object) -> None:
    rooms.write(table, rows(*numbers), **options)  # type: ignore[arg-type]
    rooms.publish_all()


def test_a_hot_table_is_read_from_its_replica_and_a_cold_one_from_its_files(rooms: Rooms) -> None:
    written(rooms, 1, 2, 3)
    written(rooms, 1, table="cold")
    replicated(rooms)
    found, inside = answer(rooms, "SELECT sum(v) FROM t")
    assert (found.to_pylist(), inside) == ([{"sum(v)": 6}], 1)
    assert answer(rooms, "SELECT count(*) FROM cold")[1] == 0


def test_a_replica_follows_what_is_added_replaced_and_emptied(rooms: Rooms) -> None:
    for number in range(5):
        written(rooms, number)
        replicated(rooms)
        assert answer(rooms, "FROM t")[0].column("v").to_pylist() == list(range(number + 1))
    written(rooms, 10, mode=IngestMode.REPLACE)
    replicated(rooms)
    assert answer(rooms, "FROM t")[0].column("v").to_pylist() == [10]
    rooms.execute("TRUNCATE TABLE t")
    rooms.publish_all()
    assert answer(rooms, "FROM t")[0].num_rows == 0


QUERIES = (
    "FROM t",
    "SELECT count(*) AS n FROM t",
    "FROM t LIMIT 3",
    "SELECT * FROM t ORDER BY ALL",
    "SELECT count(*) AS n FROM t a JOIN t b USING (v)",
    "DESCRIBE t",
)


@pytest.mark.parametrize("seed", range(3))
def test_replica_and_files_answer_alike_at_every_snapshot_of_a_random_history(
    rooms: Rooms, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    plain = files_alone(rooms)
    history = _History(rooms, chance)
    seen: list[SnapshotId] = []
    from_replica = 0
    for turn in range(40):
        history.step()
        rooms.publish_all()
        seen.append(newest(rooms))
        for at in {seen[-1], chance.choice(seen)}:
            _compare(rooms, plain, at, chance.choice(QUERIES))
        if turn % 10 == 9:
            history.insert()
            rooms.publish_all()
            replicated(rooms)
            seen.append(newest(rooms))
            for sql in QUERIES:
                from_replica += _compare(rooms, plain, seen[-1], sql)
    for at in seen:
        _compare(rooms, plain, at, chance.choice(QUERIES))
    assert from_replica >= 12, "nothing was compared: the replica was not read"


def _compare(rooms: Rooms, plain: Reads, at: SnapshotId, sql: str) -> int:
    with plain.run(rooms.acme, sql, at) as running:
        expected = running.reader.read_all()
        assert not running.stats.replica_files
    found, inside = answer(rooms, sql, at)
    assert found.schema.equals(expected.schema), sql
    assert found.to_pylist() == expected.to_pylist(), (sql, at)
    return int(inside > 0)


class _History:
    """What writers and owners do to a table."""

    def __init__(self, rooms: Rooms, chance: random.Random) -> None:
        self._rooms = rooms
        self._chance = chance
        self._number = 0
        self._extra: list[str] = []
        self.insert()

    def step(self) -> None:
        acts = [self.insert] * 8 + [self._many, self._add, self._drop, self._rename, self._widen]
        acts += [self._replace, self._empty, self._transaction]
        self._chance.choice(acts)()

    def _row(self) -> str:
        self._number += 1
        extra = [str(self._number + at) for at, _ in enumerate(self._extra)]
        return f"({', '.join([str(self._number), *extra])})"

    def insert(self) -> None:
        if not self._number:
            self._rooms.execute("CREATE TABLE t (v INTEGER)")
        values = ", ".join(self._row() for _ in range(self._chance.randint(1, 5)))
        self._rooms.execute(f"INSERT INTO t VALUES {values}")

    def _many(self) -> None:
        # So many small files that the next publication carries their rows on in its own.
        for _ in range(34):
            self.insert()
            self._rooms.publish_all()

    def _add(self) -> None:
        name = f"x{self._number}"
        if name not in self._extra:
            self._rooms.execute(f"ALTER TABLE t ADD COLUMN {name} INTEGER")
            self._extra.append(name)

    def _drop(self) -> None:
        if self._extra:
            name = self._extra.pop(self._chance.randrange(len(self._extra)))
            self._rooms.execute(f"ALTER TABLE t DROP COLUMN {name}")

    def _rename(self) -> None:
        if self._extra:
            at = self._chance.randrange(len(self._extra))
            name = f"y{self._number}"
            if name not in self._extra:
                self._rooms.execute(f"ALTER TABLE t RENAME COLUMN {self._extra[at]} TO {name}")
                self._extra[at] = name

    def _widen(self) -> None:
        if self._extra:
            self._rooms.execute(f"ALTER TABLE t ALTER {self._extra[0]} TYPE BIGINT")

    def _replace(self) -> None:
        if not self._extra:
            self._number += 1
            values = pa.table({"v": pa.array([self._number], pa.int32())})
            self._rooms.write("t", values, mode=IngestMode.REPLACE)

    def _empty(self) -> None:
        self._rooms.execute("TRUNCATE TABLE t")

    def _transaction(self) -> None:
        begun = self._rooms.transactions.begin(self._rooms.acme, None)
        found = self._rooms.transactions.find(self._rooms.acme, begun)
        for _ in range(2):
            self._rooms.execute(f"INSERT INTO t VALUES {self._row()}", transaction=found)
        self._rooms.transactions.commit(self._rooms.acme, begun)
