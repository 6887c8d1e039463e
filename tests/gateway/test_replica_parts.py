"""A layout is the snapshot's files, each once and in order, whatever segments there are."""

import random
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.files import DataFile
from duckmesh.identifiers import FileId, SchemaVersion, SnapshotId, TableId
from duckmesh.tokens import VisibilityToken
from gateway.replica_parts import PARTS_MAX, Layout, Segment, layout, next_segment
from query_engine.relations import FilesPart

COLUMNS = {1: "BIGINT", 2: "VARCHAR"}


def file(number: int, size: int = 100) -> DataFile:
    return DataFile(
        FileId(UUID(int=number)),
        TableId(1),
        None,
        SchemaVersion(1),
        record_count=size,
        file_size_bytes=size,
        min_event_time=None,
        max_event_time=None,
        min_token=VisibilityToken(number + 1),
        max_token=VisibilityToken(number + 1),
        begin_snapshot=SnapshotId(1),
    )


def segment(key: str, files: Sequence[DataFile], columns: dict[int, str] | None = None) -> Segment:
    return Segment(
        key,
        Path(f"{key}.duckdb"),
        sum(each.file_size_bytes for each in files),
        COLUMNS if columns is None else columns,
        tuple(each.file_id for each in files),
        tuple(each.record_count for each in files),
    )


def read(found: Layout, segments: Sequence[Segment]) -> list[FileId]:
    """The files whose rows a query of this layout sees, in its order."""
    by_key = {each.key: each for each in segments}
    outside, seen = iter(found.outside), []
    for part in found.parts:
        if isinstance(part, FilesPart):
            seen += [next(outside).file_id for _ in range(part.count)]
        else:
            files = by_key[part.key].files
            if part.whole:
                assert (part.first, part.last, part.missing) == (0, len(files) - 1, ())
            numbers = range(part.first, part.last + 1)
            seen += [files[each] for each in numbers if each not in part.missing]
    assert next(outside, None) is None
    return seen


NUMBERS = st.lists(st.integers(0, 30), unique=True)


@settings(deadline=None)
@given(NUMBERS, st.lists(NUMBERS.filter(bool), max_size=4))
def test_a_layout_is_the_files_each_once_and_in_their_order(
    live: list[int], held: list[list[int]]
) -> None:
    files = [file(each) for each in live]
    segments = [segment(f"s{at}", [file(n) for n in numbers]) for at, numbers in enumerate(held)]
    found = layout(files, COLUMNS, segments)
    if found is None:
        return
    assert len(found.parts) <= PARTS_MAX
    assert read(found, segments) == [each.file_id for each in files]
    assert found.inside_files + len(found.outside) == len(files)
    assert found.inside_files > 0


@pytest.mark.parametrize("seed", range(60))
def test_after_each_build_every_file_is_inside_and_segments_stay_few(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    files: list[DataFile] = []
    segments: list[Segment] = []
    written = 0
    for step in range(40):
        files = [each for each in files if chance.randrange(10)]
        files += [
            file(step * 10 + at, chance.choice([1, 10, 1000])) for at in range(chance.randrange(4))
        ]
        wanted = next_segment(files, COLUMNS, segments)
        if wanted:
            assert list(wanted) == files[len(files) - len(wanted) :]
            segments.append(segment(f"s{step}", wanted))
            written += 1
        found = layout(files, COLUMNS, segments)
        needed = () if found is None else found.segments
        segments = [each for each in segments if each in needed]
        if files:
            assert found is not None
            assert not found.outside
            assert len(segments) <= PARTS_MAX // 2
            assert sum(each.rows for each in segments) <= 2 * sum(f.record_count for f in files)
        assert not next_segment(files, COLUMNS, segments), "one build is enough"
    assert written <= 40


def test_an_append_is_not_paid_with_the_whole_table() -> None:
    table = [file(each, 1000) for each in range(100)]
    appended = file(100, 10)
    assert next_segment([*table, appended], COLUMNS, [segment("all", table)]) == (appended,)


def test_a_segment_without_a_column_or_of_another_type_is_not_read() -> None:
    files = [file(0)]
    for columns in ({1: "BIGINT"}, {1: "INTEGER", 2: "VARCHAR"}, {}):
        assert layout(files, COLUMNS, [segment("s", files, columns)]) is None
    wider = {**COLUMNS, 3: "DATE"}
    assert layout(files, COLUMNS, [segment("s", files, wider)]) is not None


def test_a_table_in_too_many_pieces_is_read_from_its_files() -> None:
    files = [file(each) for each in range(40)]
    every_other = segment("s", files[::2])
    assert layout(files, COLUMNS, [every_other]) is None
    assert next_segment(files, COLUMNS, [every_other]) == tuple(files)
