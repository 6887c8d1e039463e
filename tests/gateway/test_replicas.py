"""Native replicas: the same rows as the data files, at every snapshot, whatever happens to them."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from duckmesh.identifiers import SnapshotId
from gateway.ingest_modes import IngestMode
from gateway.reads import ReadLimits, Reads
from gateway.replicas import ReplicaOptions, Replicas
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


@pytest.mark.parametrize("seed", range(2))
def test_replica_and_files_answer_alike_at_every_snapshot_of_a_random_history(
    rooms: Rooms, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    plain = files_alone(rooms)
    history = _History(rooms, chance)
    seen: list[SnapshotId] = []
    from_replica = 0
    for turn in range(24):
        history.step()
        rooms.publish_all()
        seen.append(newest(rooms))
        for at in {seen[-1], chance.choice(seen)}:
            _compare(rooms, plain, at, chance.choice(QUERIES))
        if turn % 8 == 7:
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
        acts = [self.insert] * 12 + [self._many, self._add, self._drop, self._rename, self._widen]
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


def segments(rooms: Rooms, tenant: str = "acme") -> list[Path]:
    return sorted((rooms.folder / "cache" / tenant / ".replica").glob("*.duckdb"))


def test_a_replica_survives_a_restart_and_is_not_built_again(
    database_dsn: str, tmp_path: Path
) -> None:
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as rooms:
        written(rooms, 1, 2)
        written(rooms, 3)
        replicated(rooms)
        until(lambda: len(segments(rooms)) == replicas(rooms).segments, "older ones are gone")
        before = segments(rooms)
    slow = replace(EAGER, hot_queries=1_000)
    with open_rooms(database_dsn, tmp_path, replica=slow) as rooms:
        found, inside = answer(rooms, "FROM t")
        assert (found.column("v").to_pylist(), inside) == ([1, 2, 3], 2)
        assert segments(rooms) == before


def test_what_a_dead_process_left_half_done_is_removed_and_never_read(
    database_dsn: str, tmp_path: Path
) -> None:
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as rooms:
        written(rooms, 1)
        replicated(rooms)
        whole = segments(rooms)[-1]
    folder = whole.parent
    (folder / "a.building").write_bytes(b"half")
    (folder / "b.duckdb").write_bytes(whole.read_bytes())  # Renamed, and its note not written.
    (folder / "c.duckdb").write_bytes(whole.read_bytes()[:-1])  # Its note is another size's.
    note = json.loads(whole.with_suffix(".json").read_text("utf-8"))
    (folder / "c.json").write_text(json.dumps(note), "utf-8")
    (folder / "d.json").write_text("{", "utf-8")
    (folder / "e.json").write_text(json.dumps(note), "utf-8")
    (folder / "f.duckdb").write_bytes(whole.read_bytes())
    (folder / "f.json").write_text(json.dumps({**note, "format": "1 duckdb 0.1"}), "utf-8")
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as rooms:
        assert segments(rooms) == [whole]
        assert {each.suffix for each in folder.iterdir()} == {".duckdb", ".json"}
        assert answer(rooms, "FROM t")[0].column("v").to_pylist() == [1]


def test_a_build_that_is_killed_leaves_the_files_to_be_read_and_is_done_again(
    rooms: Rooms,
) -> None:
    wide = pa.table({"v": pa.array(range(300_000), pa.int64())})
    for _ in range(4):
        rooms.write("t", wide)
    rooms.publish_all()
    killed: list[int] = []

    def kill() -> bool:
        pid = replicas(rooms).builder_pid
        if pid is None:
            answer(rooms, "SELECT count(*) FROM t")
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return True

    until(kill, "a build was under way")
    found, _ = answer(rooms, "SELECT count(*) AS n, sum(v) AS s FROM t")
    assert found.to_pylist() == [{"n": 1_200_000, "s": 4 * sum(range(300_000))}]
    replicated(rooms)
    assert answer(rooms, "SELECT count(*) AS n, sum(v) AS s FROM t")[0].equals(found)
    until(lambda: len(segments(rooms)) == replicas(rooms).segments, "nothing else is left")
    assert killed
    assert not list(segments(rooms)[0].parent.glob("*.building"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_replica_is_left_for_the_files_and_built_anew(
    database_dsn: str, tmp_path: Path, damage: str
) -> None:
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as rooms:
        for number in range(3):
            written(rooms, number)
        replicated(rooms)
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as rooms:
        # After the start, which looks at sizes, and before a query has it open.
        for path in segments(rooms):
            content = path.read_bytes()
            path.unlink()
            if damage == "cut":
                path.write_bytes(content[: len(content) // 2])
            elif damage == "flipped":
                path.write_bytes(bytes(each ^ 0x5A for each in content))
        found, inside = answer(rooms, "FROM t")
        assert (found.column("v").to_pylist(), inside) == ([0, 1, 2], 0)
        replicated(rooms)
        assert answer(rooms, "FROM t")[0].column("v").to_pylist() == [0, 1, 2]


def test_replicas_stay_within_their_capacity_and_the_hotter_ones_stay(
    database_dsn: str, tmp_path: Path
) -> None:
    capacity = 24 * 2**20
    options = replace(EAGER, capacity_bytes=capacity)
    chance = random.Random(0)  # noqa: S311
    with open_rooms(database_dsn, tmp_path, replica=options) as rooms:
        for name in "abcd":
            values = pa.array((chance.getrandbits(62) for _ in range(700_000)), pa.int64())
            rooms.write(name, pa.table({"v": values}))
        rooms.publish_all()
        sizes = []

        def some_are_kept() -> bool:
            for name in "abcd":
                for _ in range(8 if name == "d" else 1):
                    answer(rooms, f"SELECT sum(v) FROM {name}")
            kept = [path.stat().st_size for path in segments(rooms)]
            sizes.append(sum(kept))
            return answer(rooms, "SELECT sum(v) FROM d")[1] > 0

        until(some_are_kept, "the hottest table has a replica", 60)
        until(lambda: some_are_kept() and len(sizes) > 10, "the bound holds for a while", 60)
        assert max(sizes) <= capacity
        assert replicas(rooms).size_bytes <= capacity


def test_each_tenant_has_its_own_replicas(rooms: Rooms) -> None:
    other = rooms.identity("other")
    written(rooms, 1, 2)
    rooms.write("t", rows(7), identity=other)
    rooms.publish_all()
    replicated(rooms)

    def whole() -> bool:
        at = rooms.visibility.newest(other.tenant_id).snapshot_id
        with rooms.reads.run(other, "FROM t", at) as running:
            assert running.reader.read_all().column("v").to_pylist() == [7]
            return running.stats.replica_files == 1

    until(whole, "the other tenant's table has a replica")
    assert len(segments(rooms, "acme")) == len(segments(rooms, "other")) == 1
    assert answer(rooms, "FROM t")[0].column("v").to_pylist() == [1, 2]


def test_an_answer_under_way_keeps_the_segments_it_began_with(rooms: Rooms) -> None:
    rooms.write("t", pa.table({"v": pa.array(range(500_000), pa.int64())}))
    rooms.publish_all()
    replicated(rooms)
    old = newest(rooms)
    with rooms.reads.run(rooms.acme, "FROM t", old) as running:
        assert running.stats.replica_files == 1
        first = running.next_batch()
        assert first is not None
        written(rooms, -1, mode=IngestMode.REPLACE)
        replicated(rooms)
        read = first.num_rows + sum(batch.num_rows for batch in running.reader)
    assert read == 500_000
    until(lambda: len(segments(rooms)) == 1, "the segment of before is gone")


def test_a_table_read_twice_at_one_snapshot_has_all_its_rows_both_times(rooms: Rooms) -> None:
    written(rooms, 1, 2)
    replicated(rooms)
    at = newest(rooms)
    found, inside = answer(rooms, f"FROM t UNION ALL FROM t AT (VERSION => {at})")
    assert (sorted(found.column("v").to_pylist()), inside) == ([1, 1, 2, 2], 2)


def test_files_that_a_query_leaves_out_leave_the_rest_of_the_parts_as_they_are(
    database_dsn: str, tmp_path: Path
) -> None:
    with open_rooms(database_dsn, tmp_path, replica=EAGER) as rooms:
        written(rooms, 1)
        written(rooms, 5)
        replicated(rooms)
    slow = replace(EAGER, hot_queries=1_000)
    with open_rooms(database_dsn, tmp_path, replica=slow) as rooms:
        for number in (2, 3, 4):
            written(rooms, number)
        for number in range(1, 7):
            found, inside = answer(rooms, f"FROM t WHERE v = {number}")
            assert found.column("v").to_pylist() == ([number] if number < 6 else [])
            assert inside == 2
        found, _ = answer(rooms, "FROM t WHERE v >= 3")
        assert found.column("v").to_pylist() == [5, 3, 4]
        assert answer(rooms, "FROM t")[0].column("v").to_pylist() == [1, 5, 2, 3, 4]


def test_with_a_listing_of_the_catalog_the_files_are_read(rooms: Rooms) -> None:
    written(rooms, 1)
    replicated(rooms)
    found, inside = answer(rooms, "SELECT v, database_name FROM t, duckdb_databases()")
    assert inside == 0
    assert not [name for name in found.column("database_name").to_pylist() if "segment" in name]


def keyed(rooms: Rooms, *pairs: tuple[int, int]) -> None:
    columns = list(zip(*pairs, strict=True))
    rooms.write("k", pa.table(columns, names=["id", "v"]), mode=IngestMode.APPEND)
    rooms.publish_all()


def test_a_replica_of_a_keyed_table_holds_what_its_layers_show(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
    keyed(rooms, *((number, 1) for number in range(1_000)))
    keyed(rooms, *((number, 2) for number in range(0, 1_000, 3)))
    replicated(rooms, "k")
    then = newest(rooms)
    asked = "SELECT count(*) AS n, sum(v) AS total FROM k"
    expected = [{"n": 1_000, "total": 1_334}]
    found, inside = answer(rooms, asked)
    assert (found.to_pylist(), inside) == (expected, 2)
    keyed(rooms, (3, 100), (2_000, 1))
    found, inside = answer(rooms, asked)
    assert (found.to_pylist(), inside) == ([{"n": 1_001, "total": 1_433}], 2)
    replicated(rooms, "k")
    found, inside = answer(rooms, asked)
    assert (found.to_pylist(), inside) == ([{"n": 1_001, "total": 1_433}], 3)
    # What the segment holds now is of too late: the older snapshot is read from its files.
    found, inside = answer(rooms, asked, then)
    assert (found.to_pylist(), inside) == (expected, 0)
