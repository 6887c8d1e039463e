"""Which rows of a table come from segments, and what the next segment is to hold. Pure.

A segment holds the rows of some data files. Data files never change, and a snapshot is a list of
them. So a snapshot's rows are those of its files, wherever they are read from: what a segment has
of other files is left out, and what no segment has is read from the files themselves.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from catalog.files import DataFile
from duckmesh.identifiers import FileId
from query_engine.relations import FilesPart, NativePart, Part

PARTS_MAX: Final = 12
"""A query of more parts than this reads the data files."""

_MISSING_MAX: Final = 2_000
_DEAD_MAX: Final = 0.3
"""The share of a segment's rows that may be of files that are gone, before it is made anew."""

_NEWER_MAX: Final = 0.003
"""The bytes of newer files, as a share of those in a merged segment, before it is made anew."""

_TIER: Final = 2
"""A segment is taken into the next one when it is no larger than so many times what follows."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A file in DuckDB's own format with the rows of data files, in their order."""

    key: str
    path: Path
    size_bytes: int
    columns: Mapping[int, str]
    """Their types in the data files, by field id."""
    files: tuple[FileId, ...]
    row_counts: tuple[int, ...]
    merged: bool = False
    """Whether it holds what is visible of the files of a table with a primary key, all together."""

    @cached_property
    def rows(self) -> int:
        return sum(self.row_counts)

    def has(self, columns: Mapping[int, str]) -> bool:
        """Whether these columns can be read from it, with these very types."""
        return columns.items() <= self.columns.items()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a table at a snapshot are read from."""

    parts: tuple[Part, ...]
    segments: tuple[Segment, ...]
    """Those that the parts name."""
    outside: tuple[DataFile, ...]
    """The data files that no segment has, in the order of the parts."""
    inside_files: int
    inside_bytes: int

    def with_only(self, needed: Sequence[DataFile]) -> "Layout":
        """The same without those outside files that are not needed; `needed` is in their order."""
        if len(needed) == len(self.outside):
            return self
        ids = {each.file_id for each in needed}
        outside = iter(self.outside)
        parts = [
            FilesPart(sum(next(outside).file_id in ids for _ in range(part.count)))
            if isinstance(part, FilesPart)
            else part
            for part in self.parts
        ]
        read = tuple(each for each in parts if each != FilesPart(0))
        return replace(self, parts=read, outside=tuple(needed))


@dataclass(slots=True)
class _Run:
    """Neighbouring files that are read in one way."""

    segment: Segment | None
    files: list[DataFile]
    numbers: list[int]

    @property
    def bytes(self) -> int:
        return sum(each.file_size_bytes for each in self.files)

    @property
    def is_worn(self) -> bool:
        """Whether too many of its segment's rows are of no use to it."""
        if self.segment is None or not self.segment.rows:
            return False
        live = sum(each.record_count for each in self.files)
        return live < (1 - _DEAD_MAX) * self.segment.rows


def layout(
    files: Sequence[DataFile], columns: Mapping[int, str], segments: Collection[Segment]
) -> Layout | None:
    """How these files are read through these segments; None when they are better read as files."""
    runs = list(_runs(files, columns, segments))
    native = [run for run in runs if run.segment is not None]
    if not native or len(runs) > PARTS_MAX:
        return None
    parts = tuple(_part(run) for run in runs)
    if any(isinstance(each, NativePart) and len(each.missing) > _MISSING_MAX for each in parts):
        return None
    return Layout(
        parts,
        tuple({run.segment.key: run.segment for run in native if run.segment}.values()),
        tuple(file for run in runs if run.segment is None for file in run.files),
        sum(len(run.files) for run in native),
        sum(run.bytes for run in native),
    )


def merged_layout(
    files: Sequence[DataFile], columns: Mapping[int, str], segments: Collection[Segment]
) -> Layout | None:
    """How the files of a table with a primary key are read: a merged segment, and newer files.

    A segment serves when its files are those of the oldest layers, all of them. None without one.
    """
    ordered = sorted(files, key=lambda file: file.max_token)
    best: tuple[Segment, int] | None = None
    for segment in segments:
        count = len(segment.files)
        if segment.merged and segment.has(columns) and _are_oldest(ordered, segment):
            best = (segment, count) if best is None or count > best[1] else best
    if best is None:
        return None
    segment, count = best
    inside = ordered[:count]
    return Layout(
        (NativePart(segment.key, segment.path, 0, 0, whole=True),),
        (segment,),
        tuple(ordered[count:]),
        count,
        sum(file.file_size_bytes for file in inside),
    )


def _are_oldest(ordered: Sequence[DataFile], segment: Segment) -> bool:
    count = len(segment.files)
    if {file.file_id for file in ordered[:count]} != set(segment.files):
        return False
    # A layer is in it whole, or not at all.
    return count == len(ordered) or ordered[count].max_token > ordered[count - 1].max_token


def next_merged_segment(
    files: Sequence[DataFile], columns: Mapping[int, str], segments: Collection[Segment]
) -> tuple[DataFile, ...]:
    """The files that the next merged segment holds: all of the table, or none while few are newer.

    Each query compares the rows of a segment with the keys of all newer files.
    """
    found = merged_layout(files, columns, segments)
    if found is not None:
        newer = sum(file.file_size_bytes for file in found.outside)
        if newer <= _NEWER_MAX * found.inside_bytes:
            return ()
    return tuple(sorted(files, key=lambda file: file.max_token))


def next_segment(
    files: Sequence[DataFile], columns: Mapping[int, str], segments: Collection[Segment]
) -> tuple[DataFile, ...]:
    """The files whose rows the next segment holds: none when the replica is as it should be.

    Always the last files of the table, from the first one that is outside on, and of the segments
    before it those that are not much larger. So a row is written again only when the table has
    grown by a share, and a table has few segments.
    """
    runs = list(_runs(files, columns, segments))
    begin = next(
        (at for at, run in enumerate(runs) if run.segment is None or run.is_worn), len(runs)
    )
    if begin == len(runs) and len(runs) <= PARTS_MAX // 2:
        return ()
    if len(runs) > PARTS_MAX // 2:
        begin = min(begin, PARTS_MAX // 2 - 1)
    size_bytes = sum(run.bytes for run in runs[begin:])
    while begin and runs[begin - 1].bytes <= _TIER * size_bytes:
        begin -= 1
        size_bytes += runs[begin].bytes
    return tuple(file for run in runs[begin:] for file in run.files)


def _runs(
    files: Sequence[DataFile], columns: Mapping[int, str], segments: Collection[Segment]
) -> Iterator[_Run]:
    places = {
        file_id: (segment, number)
        for segment in segments
        if segment.has(columns)
        for number, file_id in enumerate(segment.files)
    }
    run: _Run | None = None
    for file in files:
        segment, number = places.get(file.file_id, (None, -1))
        if run is None or run.segment is not segment or (run.numbers[-1] >= number >= 0):
            if run is not None:
                yield run
            run = _Run(segment, [], [])
        run.files.append(file)
        run.numbers.append(number)
    if run is not None:
        yield run


def _part(run: _Run) -> Part:
    if run.segment is None:
        return FilesPart(len(run.files))
    first, last = run.numbers[0], run.numbers[-1]
    missing = tuple(sorted(set(range(first, last + 1)).difference(run.numbers)))
    whole = len(run.numbers) == len(run.segment.files)
    return NativePart(run.segment.key, run.segment.path, first, last, missing, whole)
