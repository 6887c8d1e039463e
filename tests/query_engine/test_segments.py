"""Tables that lie partly in segments answer as their data files do."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, ErrorCode, Internal, Unavailable
from query_engine.engine import QueryEngine
from query_engine.relations import FilesPart, NativePart, Part, Relation
from query_engine.segments import NotBuilt, SegmentBuilder, SegmentOrder, build
from tests.query_engine.conftest import NUMBERS, Lake

ROWS = 50


def fill(lake: Lake, count: int) -> list[Path]:
    """Files of ROWS rows each, whose `a` counts on."""
    return [
        lake.write(
            NUMBERS,
            {
                "a": list(range(each * ROWS, (each + 1) * ROWS)),
                "b": [f"{row % 7}" for row in range(ROWS)],
            },
        )
        for each in range(count)
    ]


def order(lake: Lake, key: str, files: Sequence[Path], relation: Relation) -> SegmentOrder:
    return SegmentOrder(
        path=lake.directory / f"{key}.duckdb",
        files=tuple(map(str, files)),
        row_counts=(ROWS,) * len(files),
        columns={each: kind for each, (_, kind) in relation.stored_columns.items()},
        memory_limit_bytes=128 * 2**20,
        size_max_bytes=2**30,
    )


def rows(engine: QueryEngine, lake: Lake, sql: str, *relations: Relation) -> list[Any]:
    with engine.run(sql, lake.snapshot(*relations)) as running:
        return running.reader.read_all().to_pylist()


def with_parts(files: Sequence[Path], parts: Sequence[Part], covered: int) -> Relation:
    return Relation("t", NUMBERS, tuple(files), parts=tuple(parts), segment_files=covered)


def test_parts_read_as_the_files_they_stand_for_and_in_their_order(
    engine: QueryEngine, lake: Lake
) -> None:
    files = fill(lake, 8)
    plain = Relation("t", NUMBERS, tuple(files))
    path = order(lake, "one", files[1:5], plain).path
    build(order(lake, "one", files[1:5], plain))
    build(order(lake, "two", files[5:7], plain))
    two = path.with_name("two.duckdb")
    sets: list[tuple[list[Path], Relation]] = [
        (files[1:5], with_parts([], [NativePart("one", path, 0, 3, whole=True)], 4)),
        ([files[1], files[3]], with_parts([], [NativePart("one", path, 0, 2, missing=(1,))], 2)),
        (
            [files[0], files[2], files[7], files[3], *files[5:7]],
            with_parts(
                [files[0], files[7]],
                [
                    FilesPart(1),
                    NativePart("one", path, 1, 1),
                    FilesPart(1),
                    NativePart("one", path, 2, 2),
                    NativePart("two", two, 0, 1, whole=True),
                ],
                4,
            ),
        ),
    ]
    questions = [
        "FROM t",
        "SELECT count(*), sum(a) FROM t",
        "SELECT b, count(*) FROM t GROUP BY b ORDER BY b",
    ]
    questions += ["FROM t WHERE a = 120", "FROM t ORDER BY a DESC LIMIT 3", "FROM t LIMIT 60"]
    for _ in range(2):
        for chosen, native in sets:
            for sql in questions:
                expected = rows(engine, lake, sql, Relation("t", NUMBERS, tuple(chosen)))
                assert rows(engine, lake, sql, native) == expected


def test_a_renamed_column_reads_the_segment_of_before(engine: QueryEngine, lake: Lake) -> None:
    files = fill(lake, 2)
    plain = Relation("t", NUMBERS, tuple(files))
    build(order(lake, "old", files, plain))
    renamed = Lake.schema(z=(2, pa.string()), a=(1, pa.int64()))
    part = NativePart("old", lake.directory / "old.duckdb", 0, 1, whole=True)
    native = Relation("t", renamed, (), parts=(part,), segment_files=2)
    assert rows(engine, lake, "FROM t", native) == rows(
        engine, lake, "FROM t", Relation("t", renamed, tuple(files))
    )


VALUES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.float64(), [0.0, -0.0, float("inf"), 1e-300, None]),
    (pa.float32(), [1.5, -0.0, float("-inf"), 3.25, None]),
    (pa.decimal128(38, 9), [Decimal("1.5"), Decimal("-99999999999999999.123456789"), None]),
    (pa.timestamp("us", "Europe/Berlin"), [datetime(2020, 2, 29, tzinfo=UTC), None]),
    (pa.timestamp("us"), [datetime(2020, 2, 29, 1, 2, 3, tzinfo=UTC).replace(tzinfo=None), None]),
    (pa.timestamp("ns"), [1, -1, None]),
    (pa.date32(), [date(1, 1, 1), date(9999, 12, 31), None]),
    (pa.time64("us"), [time(23, 59, 59, 999999), None]),
    (pa.duration("us"), [timedelta(days=200_000, microseconds=7), timedelta(-1), None]),
    (pa.string(), ["", "ä\U0001f600", None]),
    (pa.binary(), [b"\0\xff", b"", None]),
    (pa.list_(pa.int32()), [[1, None], [], None]),
    (pa.list_(pa.float32(), 2), [[1.0, 2.0], None]),
    (pa.struct({"x": pa.int8(), "y": pa.list_(pa.string())}), [{"x": 1, "y": ["a"]}, None]),
    (pa.map_(pa.string(), pa.int64()), [[("k", 1)], [], None]),
    (pa.uint64(), [2**64 - 1, 0, None]),
    (pa.bool_(), [True, False, None]),
    (pa.uuid(), [b"\1" * 16, None]),
]


def test_every_type_reads_back_as_from_its_files(engine: QueryEngine, lake: Lake) -> None:
    kinds = {f"v{at}": (at + 7, kind) for at, (kind, _) in enumerate(VALUES)}
    lying = {
        name: (field_id, pa.int64() if pa.types.is_duration(kind) else kind)
        for name, (field_id, kind) in kinds.items()
    }
    longest = max(len(values) for _, values in VALUES)
    columns = {}
    for at, (kind, values) in enumerate(VALUES):
        column = pa.array([*values, *[None] * (longest - len(values))], kind)
        columns[f"v{at}"] = column.cast(lying[f"v{at}"][1])
    file = lake.write(Lake.schema(**lying), columns)
    plain = Relation("t", Lake.schema(**kinds), (file,))
    wanted = replace(order(lake, "types", [file], plain), row_counts=(longest,))
    build(wanted)
    part = NativePart("types", wanted.path, 0, 0, whole=True)
    native = Relation("t", plain.schema, (), parts=(part,))
    with engine.run("FROM t", lake.snapshot(native)) as answer:
        got = answer.reader.read_all()
    with engine.run("FROM t", lake.snapshot(plain)) as answer:
        expected = answer.reader.read_all()
    assert got.schema.equals(expected.schema)
    for name in expected.schema.names:
        # As texts: one NaN is not equal to another, and 0.0 is equal to -0.0.
        assert str(got[name].to_pylist()) == str(expected[name].to_pylist()), kinds[name]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone"])
def test_a_damaged_segment_fails_as_a_lost_file_and_its_tables_still_read(
    engine: QueryEngine, lake: Lake, damage: str
) -> None:
    files = fill(lake, 3)
    plain = Relation("t", NUMBERS, tuple(files))
    wanted = order(lake, f"damaged{damage}", files, plain)
    build(wanted)
    content = wanted.path.read_bytes()
    wanted.path.unlink()
    if damage != "gone":
        changed = {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "flipped": bytes(each ^ 0x5A for each in content),
        }
        wanted.path.write_bytes(changed[damage])
    part = NativePart(f"damaged{damage}", wanted.path, 0, 2, whole=True)
    with pytest.raises((Unavailable, Internal)) as caught:
        rows(engine, lake, "SELECT sum(a) FROM t", with_parts([], [part], 3))
    assert str(lake.directory) not in str(caught.value)
    assert rows(engine, lake, "SELECT count(*) AS n FROM t", plain) == [{"n": 3 * ROWS}]


HOSTILE = [
    "FROM duckmesh_segment_hidden.main.rows",
    "FROM duckmesh_segment_hidden.rows",
    "FROM duckmesh.duckmesh_native.segment_hidden",
    "FROM duckmesh_native.files_74_0",
    "SELECT * FROM query_table('duckmesh_segment_hidden.main.rows')",
    "SELECT getvariable('duckmesh_parts_74')",
    "SUMMARIZE duckmesh_segment_hidden.main.rows",
    "DESCRIBE duckmesh_segment_hidden.main.rows",
    "DETACH duckmesh_segment_hidden",
    "USE duckmesh_segment_hidden",
    "CHECKPOINT duckmesh_segment_hidden",
    "WITH x AS (DELETE FROM duckmesh_segment_hidden.main.rows) SELECT 1",
    "ATTACH 'x.duckdb' AS y",
    "EXPLAIN ANALYZE DROP TABLE duckmesh_segment_hidden.main.rows",
]


def test_no_sql_reaches_a_segment_by_its_name(engine: QueryEngine, lake: Lake) -> None:
    files = fill(lake, 1)
    wanted = order(lake, "hidden", files, Relation("t", NUMBERS, tuple(files)))
    build(wanted)
    native = with_parts([], [NativePart("hidden", wanted.path, 0, 0, whole=True)], 1)
    assert len(rows(engine, lake, "FROM t", native)) == ROWS
    for sql in HOSTILE:
        with pytest.raises(DuckMeshError) as caught:
            rows(engine, lake, sql, native)
        assert caught.value.code in (ErrorCode.SQL_NOT_ALLOWED, ErrorCode.NOT_SUPPORTED), sql


def test_no_listing_shows_a_segment(engine: QueryEngine, lake: Lake) -> None:
    files = fill(lake, 1)
    plain = Relation("t", NUMBERS, tuple(files))
    wanted = order(lake, "listed", files, plain)
    build(wanted)
    native = with_parts([], [NativePart("listed", wanted.path, 0, 0, whole=True)], 1)
    assert len(rows(engine, lake, "FROM t", native)) == ROWS
    for view in ("duckdb_databases()", "duckdb_tables()", "duckdb_views()", "duckdb_columns()"):
        for sql in (f"FROM {view}", f"SELECT v.*, t.a FROM {view} AS v, t LIMIT 100"):
            seen = str(rows(engine, lake, sql, plain))
            assert "segment" not in seen
            assert "duckmesh_native" not in seen


def test_a_set_of_segments_left_behind_is_detached(local_engine: QueryEngine, lake: Lake) -> None:
    engine = local_engine
    files = fill(lake, 2)
    plain = Relation("t", NUMBERS, tuple(files))
    for at in range(6):
        key = f"generation{at}"
        build(order(lake, key, files, plain))
        path = lake.directory / f"{key}.duckdb"
        native = with_parts([], [NativePart(key, path, 0, 1, whole=True)], 2)
        assert len(rows(engine, lake, "FROM t", native)) == 2 * ROWS
    opened = [link for link in _open_files() if link.startswith(str(lake.directory))]
    assert len({each for each in opened if each.endswith(".duckdb")}) <= 1


def _open_files() -> list[str]:
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except OSError:  # The listing's own descriptor is closed by now.
            continue
    return found


def test_a_build_that_contradicts_the_catalog_leaves_nothing(lake: Lake) -> None:
    files = fill(lake, 2)
    plain = Relation("t", NUMBERS, tuple(files))
    wanted = order(lake, "wrong", files, plain)
    with pytest.raises(NotBuilt, match="50 rows and not 51"):
        build(replace(wanted, row_counts=(50, 51)))
    assert not list(lake.directory.glob("wrong*"))


def test_a_build_in_its_process_is_bounded_and_leaves_nothing_when_it_fails(lake: Lake) -> None:
    files = fill(lake, 2)
    plain = Relation("t", NUMBERS, tuple(files))
    builder = SegmentBuilder()
    wanted = order(lake, "apart", files, plain)
    assert builder.run(wanted) == wanted.path.stat().st_size
    assert wanted.path.stat().st_mode & 0o222 == 0
    with pytest.raises(NotBuilt):
        builder.run(order(lake, "missing", [lake.directory / "none.parquet"], plain))
    with pytest.raises(NotBuilt):
        builder.run(replace(order(lake, "large", files, plain), size_max_bytes=1000))
    builder.close()
    with pytest.raises(NotBuilt):
        builder.run(order(lake, "closed", files, plain))
    left = {each.name for each in lake.directory.iterdir() if each.suffix != ".parquet"}
    assert left == {"apart.duckdb"}
