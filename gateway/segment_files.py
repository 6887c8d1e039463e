"""The segments of a serving process on its disk, below the cache of data files.

`{cache}/{tenant}/.replica/{key}.duckdb` is a segment, and `{key}.json` beside it says which table
and files it holds. The second one is written last, by a rename: a segment without it is not one,
and is removed at the next start. Like the cache, segments outlive the process and not the machine.
"""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import structlog

from duckmesh.identifiers import FileId, TableId, new_file_id
from gateway.replica_parts import Segment
from object_store import keys
from query_engine.segments import FORMAT, SUFFIX

_FOLDER: Final = ".replica"
_NOTE_SUFFIX: Final = ".json"
_log = structlog.get_logger(__name__)

Place = tuple[str, TableId]
"""A tenant's name, and one of its tables."""


class SegmentFiles:
    """Which segments there are. Thread-safe. One process has the folder: the cache's lock says so.

    A segment in use stays until its last user has released it, whatever is dropped meanwhile.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._lock = threading.Lock()
        self._segments: dict[Place, list[Segment]] = {}
        self._users: dict[str, int] = {}
        self._dropped: dict[str, Segment] = {}
        for place, segment in self._found():
            self._segments.setdefault(place, []).append(segment)

    @property
    def size_bytes(self) -> int:
        """What they take of the disk, those included that go when their last user has ended."""
        with self._lock:
            live = sum(each.size_bytes for among in self._segments.values() for each in among)
            return live + sum(each.size_bytes for each in self._dropped.values())

    @property
    def count(self) -> int:
        with self._lock:
            return sum(map(len, self._segments.values()))

    def places(self) -> list[Place]:
        with self._lock:
            return [place for place, segments in self._segments.items() if segments]

    def of(self, place: Place) -> tuple[Segment, ...]:
        """The segments of a table, oldest first."""
        with self._lock:
            return tuple(self._segments.get(place, ()))

    def new_path(self, tenant: str) -> tuple[str, Path]:
        """A fresh key, and where its segment is to be written. Raises OSError."""
        folder = self._root / keys.tenant_prefix(tenant) / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        key = new_file_id().hex
        return key, folder / f"{key}{SUFFIX}"

    def add(self, place: Place, segment: Segment) -> None:
        """Enter a segment that lies in its place. Die before the rename, and it is not one."""
        note = segment.path.with_suffix(_NOTE_SUFFIX)
        written = note.with_suffix(".note")
        written.write_text(json.dumps(_note(place, segment)), "utf-8")
        written.rename(note)
        with self._lock:
            self._segments.setdefault(place, []).append(segment)

    def hold(self, place: Place, segments: Iterable[Segment]) -> bool:
        """Keep these in place until `release`. False, and nothing is held, when one was dropped."""
        wanted = list(segments)
        with self._lock:
            known = self._segments.get(place, [])
            if any(each not in known for each in wanted):
                return False
            for each in wanted:
                self._users[each.key] = self._users.get(each.key, 0) + 1
        return True

    def release(self, segments: Iterable[Segment]) -> None:
        with self._lock:
            for each in segments:
                self._users[each.key] -= 1
                if not self._users[each.key]:
                    del self._users[each.key]
                    if self._dropped.pop(each.key, None) is not None:
                        _remove(each)

    def drop(self, place: Place, segments: Iterable[Segment]) -> bool:
        """Take these out of the books, and off the disk as soon as nobody uses them.

        Whether any of them was there.
        """
        gone = list(segments)
        was_there = False
        with self._lock:
            known = self._segments.get(place, [])
            for each in gone:
                if each not in known:
                    continue
                known.remove(each)
                was_there = True
                if each.key in self._users:
                    self._dropped[each.key] = each
                else:
                    _remove(each)
            if not known:
                self._segments.pop(place, None)
        return was_there

    def _found(self) -> Iterator[tuple[Place, Segment]]:
        """The segments of an earlier life, oldest first; all else is removed."""
        for folder in sorted(self._root.glob(f"*/{_FOLDER}")):
            if not keys.is_component(folder.parent.name):
                continue
            whole: set[Path] = set()
            for note in sorted(folder.glob(f"*{_NOTE_SUFFIX}")):
                read = _read(note, folder.parent.name)
                if read is not None:
                    whole.update((note, read[1].path))
                    yield read
            for path in folder.iterdir():
                if path not in whole:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _remove(segment: Segment) -> None:
    # The note first: die here, and the rest is removed at the next start.
    for path in (segment.path.with_suffix(_NOTE_SUFFIX), segment.path):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _note(place: Place, segment: Segment) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "table_id": place[1],
        "size_bytes": segment.size_bytes,
        "columns": {str(field_id): kind for field_id, kind in segment.columns.items()},
        "files": [str(file_id) for file_id in segment.files],
        "row_counts": segment.row_counts,
        "merged": segment.merged,
    }


def _read(note: Path, tenant: str) -> tuple[Place, Segment] | None:
    """What a note says; None when it, or its segment, is not as it was written."""
    path = note.with_suffix(SUFFIX)
    try:
        said = json.loads(note.read_text("utf-8"))
        if said["format"] != FORMAT or path.stat().st_size != said["size_bytes"]:
            return None
        segment = Segment(
            note.stem,
            path,
            said["size_bytes"],
            {int(field_id): str(kind) for field_id, kind in said["columns"].items()},
            tuple(FileId(UUID(each)) for each in said["files"]),
            tuple(map(int, said["row_counts"])),
            bool(said["merged"]),
        )
        return (tenant, TableId(said["table_id"])), segment
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _log.warning("a segment is not as it was written, and is removed", key=note.stem)
        return None
