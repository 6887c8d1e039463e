"""A table with a primary key has one row for each key: the newest, in the order of tokens."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog import files, snapshots, tables
from catalog.files import DataFile
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId
from gateway.ingest_modes import IngestMode
from gateway.restores import Restores
from ingest_bus.envelope import Receipt
from query_engine.quoting import identifier
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
        with self.rooms.catalog.connect() as connection:
            kept = snapshots.recent(
                connection, self.rooms.acme.tenant_id, through=SnapshotId(2**62), limit=10_000
            )
        known = {snapshot.snapshot_id for snapshot, _, _ in kept}
        self.snapshots = {at: rows for at, rows in self.snapshots.items() if at in known}

    def restore(self) -> None:
        """Go back, and on from there."""
        self.publish()
        then = self.random.choice(sorted(self.snapshots)[-6:])
        rooms = self.rooms
        Restores(rooms.catalog, rooms.bus, rooms.visibility).restore(rooms.acme, SnapshotId(then))
        self.accepted = dict(self.snapshots[then])
        self.check()

    def check(self) -> None:
        newest = self.rooms.visibility.newest(self.rooms.acme.tenant_id)
        self.snapshots[newest.snapshot_id] = dict(self.accepted)
        assert rows_of(self.rooms.query(ALL)) == self.accepted

    def check_past(self) -> None:
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
    (Model.restore, 1),
]


@pytest.mark.parametrize("replica", [False, True], ids=["files", "replica"])
@pytest.mark.parametrize("seed", range(5))
def test_it_holds_the_newest_row_of_each_key_whatever_happens(
    database_dsn: str, tmp_path: Path, seed: int, replica: bool
) -> None:
    options = EAGER if replica else None
    with open_rooms(database_dsn, tmp_path, replica=options, inline_max_bytes=6_000) as rooms:
        rooms.execute(CREATE)
        model = Model(rooms, random.Random(seed))  # noqa: S311 - a seeded test
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


# -- one thing each

SIMPLE = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("v", pa.int64())])


def simple(*pairs: tuple[int, int | None]) -> pa.Table:
    return pa.table(
        [pa.array([i for i, _ in pairs], pa.int64()), pa.array([v for _, v in pairs], pa.int64())],
        schema=SIMPLE,
    )


def ids(*numbers: int) -> pa.Table:
    return pa.table({"id": pa.array(numbers, pa.int64())})


def upsert(rooms: Rooms, *pairs: tuple[int, int | None], publish: bool = True) -> Receipt:
    receipt = rooms.write("k", simple(*pairs), mode=IngestMode.APPEND)
    if publish:
        rooms.publish_all()
    return receipt


def found(rooms: Rooms) -> dict[int, int | None]:
    rows = rooms.query("SELECT id, v FROM k").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["v"] for row in rows}


@pytest.fixture
def keyed(rooms: Rooms) -> Rooms:
    rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
    return rooms


def test_the_last_row_of_a_key_wins_within_a_write_a_claim_and_a_table(keyed: Rooms) -> None:
    upsert(keyed, (1, 1), (2, 1), (1, 2))
    assert found(keyed) == {1: 2, 2: 1}
    upsert(keyed, (1, 3), publish=False)
    upsert(keyed, (1, 4), (3, 1), publish=False)
    keyed.publish_all()
    assert found(keyed) == {1: 4, 2: 1, 3: 1}


def test_a_delete_removes_what_is_there_and_nothing_that_comes_later(keyed: Rooms) -> None:
    upsert(keyed, (1, 1), (2, 2))
    delete(keyed, ids(1, 99), table="k")
    keyed.publish_all()
    assert found(keyed) == {2: 2}
    upsert(keyed, (1, 5))
    assert found(keyed) == {1: 5, 2: 2}


def test_a_table_that_begins_with_a_delete_shows_no_deleted_row(keyed: Rooms) -> None:
    delete(keyed, ids(1, 2), table="k")
    keyed.publish_all()
    assert found(keyed) == {}
    upsert(keyed, (2, 2))
    assert found(keyed) == {2: 2}
    assert keyed.query("SELECT count(*) FROM k").to_pylist() == [{"count_star()": 1}]


def test_a_merge_above_the_oldest_files_keeps_what_it_deletes(keyed: Rooms) -> None:
    upsert(keyed, *((number, number) for number in range(2_000)))
    delete(keyed, ids(*range(100)), table="k")
    keyed.publish_all()
    upsert(keyed, (5, -5))
    with keyed.catalog.connect() as connection:
        table = tables.find_table(connection, keyed.acme.tenant_id, "k")
    assert table is not None
    before = keyed.visibility.newest(keyed.acme.tenant_id)
    merged = keyed.compactor().compact(keyed.acme.tenant_id, table.table_id)
    assert merged is not None
    assert merged.files_in == 2
    expected = {number: number for number in range(100, 2_000)} | {5: -5}
    assert found(keyed) == expected
    assert sum(file.delete_count for file in live(keyed, "k")) == 99
    assert compact(keyed, "k") == 1
    assert found(keyed) == expected
    assert [file.delete_count for file in live(keyed, "k")] == [0]
    assert keyed.query_at("FROM k", before.snapshot_id).num_rows == len(expected)


def test_a_fold_never_reaches_over_a_file_that_is_newer_than_what_it_folds(
    database_dsn: str, tmp_path: Path
) -> None:
    with open_rooms(database_dsn, tmp_path, inline_max_bytes=1_000) as rooms:
        rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
        upsert(rooms, (1, 1))
        for number in range(4):
            upsert(rooms, (100 + number, 1))
        upsert(rooms, *((number, 2) for number in range(100)))
        for number in range(6):
            upsert(rooms, (200 + number, 3))
        assert found(rooms)[1] == 2
        for number in range(6):
            upsert(rooms, (300 + number, 3))
        assert found(rooms)[1] == 2
        inline = [file for file in live(rooms, "k") if file.path is None]
        assert 12 > len(inline) > 5, "what is newer than the object is folded, what is older is not"


def test_a_staged_write_counts_each_key_once(database_dsn: str, tmp_path: Path) -> None:
    with open_rooms(database_dsn, tmp_path, inline_max_bytes=1_000) as rooms:
        rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
        upsert(rooms, *((number % 300, number) for number in range(1_000)))
        assert found(rooms) == {n: max(range(n, 1_000, 300)) for n in range(300)}
        upsert(rooms, *((number, -1) for number in range(150, 450)))
        delete(rooms, ids(*range(400, 700), *range(400, 700)), table="k")
        rooms.publish_all()
        kept = {n: max(range(n, 1_000, 300)) for n in range(150)}
        assert found(rooms) == kept | dict.fromkeys(range(150, 400), -1)


def test_an_older_snapshot_knows_its_key_by_its_former_name(keyed: Rooms) -> None:
    upsert(keyed, (1, 1), (2, 2))
    upsert(keyed, (1, 10))
    then = keyed.visibility.newest(keyed.acme.tenant_id).snapshot_id
    keyed.execute("ALTER TABLE k RENAME COLUMN id TO number")
    keyed.execute("ALTER TABLE k ADD COLUMN note VARCHAR")
    keyed.execute("INSERT INTO k VALUES (1, 100, 'new'), (3, 3, 'new')")
    keyed.publish_all()
    now = keyed.query("SELECT number, v, note FROM k ORDER BY number").to_pylist()
    assert [tuple(row.values()) for row in now] == [(1, 100, "new"), (2, 2, None), (3, 3, "new")]
    past = keyed.query_at("SELECT id, v FROM k ORDER BY id", then).to_pylist()
    assert [tuple(row.values()) for row in past] == [(1, 10), (2, 2)]
    compact(keyed, "k")
    assert keyed.query("SELECT number, v, note FROM k ORDER BY number").to_pylist() == now
    assert keyed.query_at("SELECT id, v FROM k ORDER BY id", then).to_pylist() == past


def test_a_replaced_table_keeps_its_key(keyed: Rooms) -> None:
    upsert(keyed, (1, 1))
    wide = pa.table({"id": [1, 1, 2], "w": ["a", "b", "c"]})
    keyed.write("k", wide, mode=IngestMode.REPLACE)
    keyed.publish_all()
    read = "SELECT id, w FROM k ORDER BY id"
    assert keyed.query(read).to_pylist() == [{"id": 1, "w": "b"}, {"id": 2, "w": "c"}]
    delete(keyed, ids(1), table="k")
    keyed.publish_all()
    assert keyed.query(read).to_pylist() == [{"id": 2, "w": "c"}]


KEYS: dict[str, tuple[str, str]] = {
    "text": ("VARCHAR", "'k' || n"),
    "bytes": ("BLOB", "('k' || n)::BLOB"),
    "uuid": ("UUID", "('00000000-0000-0000-0000-00000000000' || n)::UUID"),
    "decimal": ("DECIMAL(30, 2)", "n * 1.25"),
    "date": ("DATE", "DATE '2026-01-01' + n"),
    "moment": ("TIMESTAMPTZ", "TIMESTAMPTZ '2026-01-01 00:00:00+00' + to_days(n)"),
    "time": ("TIME", "TIME '00:00:00' + to_hours(n)"),
    "unsigned": ("UBIGINT", "18446744073709551610 + n"),
    "truth": ("BOOLEAN", "n % 2 = 0"),
    "small": ("TINYINT", "n"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type_are_found_again(rooms: Rooms, kind: str) -> None:
    declared, value = KEYS[kind]
    rooms.execute(f"CREATE TABLE k (id {declared} PRIMARY KEY, v BIGINT)")
    source = "FROM range({first}, {last}) AS r(i), (SELECT i::INTEGER AS n)"
    for generation in range(3):
        first, last = generation, generation + 3
        rooms.execute(
            f"INSERT INTO k SELECT {value}, {generation} * 10 + n "
            + source.format(first=first, last=last)
        )
        rooms.publish_all()
    answer = "SELECT v FROM k ORDER BY v"
    expected = [22, 23, 24] if kind != "truth" else None
    seen = [row["v"] for row in rooms.query(answer).to_pylist()]
    assert seen == ([0, 11, *expected] if expected else [23, 24])
    compact(rooms, "k")
    assert [row["v"] for row in rooms.query(answer).to_pylist()] == seen


@pytest.mark.parametrize("declared", ["DOUBLE", "FLOAT"])
def test_a_key_that_has_no_equality_is_refused(rooms: Rooms, declared: str) -> None:
    with pytest.raises(Invalid) as refused:
        rooms.execute(f"CREATE TABLE k (id {declared} PRIMARY KEY, v BIGINT)")
    assert refused.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert "primary key" in refused.value.message


def test_a_delete_is_refused_with_its_reason_and_changes_nothing(keyed: Rooms) -> None:
    keyed.execute("CREATE TABLE plain (id BIGINT, v BIGINT)")
    upsert(keyed, (1, 1))
    with pytest.raises(Invalid) as no_key:
        delete(keyed, ids(1), table="plain")
    assert no_key.value.code is ErrorCode.INVALID_OP
    with pytest.raises(Invalid) as whole_row:
        delete(keyed, simple((1, 1)), table="k")
    assert whole_row.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    with pytest.raises(Invalid) as null:
        delete(keyed, pa.table({"id": pa.array([None], pa.int64())}), table="k")
    assert null.value.code is ErrorCode.INVALID_PAYLOAD
    keyed.publish_all()
    assert found(keyed) == {1: 1}


def test_a_repeated_delete_is_a_duplicate_and_an_insert_under_its_key_a_conflict(
    keyed: Rooms,
) -> None:
    upsert(keyed, (1, 1))
    first = delete(keyed, ids(1), table="k", key="d")
    upsert(keyed, (1, 2))
    again = delete(keyed, ids(1), table="k", key="d")
    assert (again.inserted, again.visibility_token) == (False, first.visibility_token)
    keyed.publish_all()
    assert found(keyed) == {1: 2}
    with pytest.raises(Conflict) as conflict:
        keyed.write("k", simple((1, None)), mode=IngestMode.APPEND, key="d")
    assert conflict.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


def test_a_filter_on_another_column_does_not_bring_an_old_row_back(
    database_dsn: str, tmp_path: Path
) -> None:
    """Files are pruned by their statistics, but not those that supersede others."""
    with open_rooms(database_dsn, tmp_path, inline_max_bytes=100) as rooms:
        rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
        for value in (1, 2, 3):
            upsert(rooms, *((number, value) for number in range(50)))
        assert rooms.query("FROM k WHERE v = 1").num_rows == 0
        assert rooms.query("FROM k WHERE v < 3 OR v IS NULL").num_rows == 0
        assert rooms.query("FROM k WHERE v = 3 AND id < 10").num_rows == 10


def test_a_partitioned_keyed_table_is_one_table(rooms: Rooms) -> None:
    rooms.execute(
        "CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT) PARTITIONED BY (bucket(4, id), v)"
    )
    for value in range(4):
        upsert(rooms, *((number, value) for number in range(value, 10)))
    delete(rooms, ids(0, 9), table="k")
    rooms.publish_all()
    expected = {n: min(n, 3) for n in range(1, 9)}
    assert found(rooms) == expected
    compact(rooms, "k")
    assert found(rooms) == expected
    assert len(live(rooms, "k")) > 2
    assert rooms.query("FROM k WHERE v = 0").num_rows == 0


def test_columns_of_the_names_that_the_layers_use_are_columns_like_others(rooms: Rooms) -> None:
    rooms.execute(
        'CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT, "_deleted" BOOLEAN, "_LAYER" INT)'
    )
    rooms.execute("INSERT INTO k VALUES (1, 1, true, 7), (2, 2, false, 7)")
    rooms.publish_all()
    delete(rooms, ids(2), table="k")
    rooms.execute("INSERT INTO k VALUES (3, 3, true, 7), (1, 5, true, 8)")
    rooms.publish_all()
    read = "FROM k ORDER BY id"
    expected = [
        {"id": 1, "v": 5, "_deleted": True, "_LAYER": 8},
        {"id": 3, "v": 3, "_deleted": True, "_LAYER": 7},
    ]
    assert rooms.query(read).to_pylist() == expected
    compact(rooms, "k")
    assert rooms.query(read).to_pylist() == expected


@pytest.mark.parametrize("name", ["file_index", "file_row_number", "filename", "layer", 'a"b'])
@pytest.mark.parametrize("alone", [False, True], ids=["key and value", "key alone"])
def test_a_key_may_have_any_name(rooms: Rooms, name: str, alone: bool) -> None:
    quoted = identifier(name)
    other = "" if alone else ", held BIGINT, later BIGINT"
    rooms.execute(f"CREATE TABLE k ({quoted} BIGINT PRIMARY KEY{other})")
    for value, keys in enumerate([(0, 1, 2), (2, 3, 4), (0, 3)]):
        rows = [f"({key})" if alone else f"({key}, {value}, {value})" for key in keys]
        rooms.execute(f"INSERT INTO k VALUES {', '.join(rows)}")
        rooms.publish_all()
    delete(rooms, pa.table({name: pa.array([4], pa.int64())}), table="k")
    rooms.publish_all()
    values = [(0, 2), (1, 0), (2, 1), (3, 2)]
    expected = [(key,) if alone else (key, value, value) for key, value in values]
    for _ in range(2):
        read = rooms.query(f"FROM k ORDER BY {quoted}").to_pylist()
        assert [tuple(row.values()) for row in read] == expected
        compact(rooms, "k")


def test_a_key_is_found_in_another_case(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE k (Id BIGINT, v BIGINT, PRIMARY KEY (ID))")
    rooms.execute("INSERT INTO k (ID, V) VALUES (1, 1), (1, 2)")
    rooms.publish_all()
    assert rooms.query("FROM k").to_pylist() == [{"Id": 1, "v": 2}]
    rows = pa.table({"iD": [1, 1, 2], "w": ["a", "b", "c"]})
    rooms.write("k", rows, mode=IngestMode.REPLACE)
    rooms.publish_all()
    rooms.execute("ALTER TABLE k RENAME COLUMN id TO number")
    rooms.execute("INSERT INTO k VALUES (2, 'd')")
    rooms.publish_all()
    read = rooms.query("FROM k ORDER BY number").to_pylist()
    assert read == [{"number": 1, "w": "b"}, {"number": 2, "w": "d"}]


def test_a_table_that_lost_its_key_finds_none_in_a_renamed_column(keyed: Rooms) -> None:
    """Its rows were never told apart by one."""
    other = pa.schema([pa.field("number", pa.int64(), nullable=False)])
    keyed.write("k", pa.table([pa.array([1, 1])], schema=other), mode=IngestMode.REPLACE)
    keyed.publish_all()
    keyed.execute("ALTER TABLE k RENAME COLUMN number TO id")
    keyed.execute("INSERT INTO k VALUES (1)")
    keyed.publish_all()
    assert keyed.query("FROM k").to_pylist() == [{"id": 1}] * 3
    keyed.execute("CREATE OR REPLACE TABLE k AS SELECT 1::INTEGER AS id FROM range(3)")
    keyed.publish_all()
    assert keyed.query("FROM k").to_pylist() == [{"id": 1}]


@pytest.mark.parametrize(
    "made_anew",
    ["id BIGINT NOT NULL, v BIGINT NOT NULL", "id BIGINT NOT NULL, v BIGINT PRIMARY KEY"],
)
def test_a_delete_does_not_reach_a_table_of_another_key(rooms: Rooms, made_anew: str) -> None:
    rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT NOT NULL)")
    pending = rooms.writes.begin(
        rooms.acme, "k", ids(1).schema, mode=IngestMode.APPEND, deletes=True
    )
    pending.append(ids(1).to_batches()[0])
    rooms.execute("DROP TABLE k")
    rooms.execute(f"CREATE TABLE k ({made_anew})")
    with pytest.raises(Conflict) as conflict:
        pending.commit()
    pending.abort()
    assert conflict.value.code is ErrorCode.SCHEMA_INCOMPATIBLE


def test_a_fold_takes_nothing_from_before_a_file_that_was_held_as_it_looked(keyed: Rooms) -> None:
    for number in range(3):
        upsert(keyed, (number, number))
    before, held, behind = live(keyed, "k")
    with keyed.catalog.connect() as connection:
        # The hold has ended by now: the file is inline and free.
        outside = files.newest_tokens_outside(
            connection, [held.table_id], [before.file_id, behind.file_id]
        )
    assert outside == {held.table_id: held.max_token}


@pytest.mark.parametrize("gone", [False, True], ids=["broken", "gone"])
def test_a_staged_write_that_cannot_be_read_holds_nothing_else_up(
    database_dsn: str, tmp_path: Path, gone: bool
) -> None:
    with open_rooms(database_dsn, tmp_path, inline_max_bytes=100) as rooms:
        rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v BIGINT)")
        lost = upsert(rooms, *((number, 1) for number in range(50)), publish=False)
        (staged,) = (tmp_path / "objects").rglob("*.parquet")
        if gone:
            staged.unlink()
        else:
            staged.write_bytes(b"no rows")
        upsert(rooms, (1, 2), publish=False)
        materializer, turns = rooms.materializer(), 0
        while rooms.visibility.newest(rooms.acme.tenant_id).max_visibility_token < 2 and turns < 30:
            with suppress(DuckMeshError):
                materializer.publish_next()
            rooms.advance(timedelta(minutes=5))
            turns += 1
        assert found(rooms) == {1: 2}
        (dead,) = rooms.bus.dead_letters(rooms.acme.tenant_id, limit=9)
        assert dead.visibility_token == lost.visibility_token
