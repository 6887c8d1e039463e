"""Builds segments, in a process apart: `python -m query_engine.segments`.

A segment holds the rows of data files, in their order, in one file of DuckDB's own format. It is
written under another name and renamed when it is whole, and never changes from then on. Query
workers may read the folder of segments and nothing else of it; only this process writes there.

The process takes one order and ends. It runs when nothing else wants the processor, on one
thread, and dies with the thread that started it.
"""

import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import query_engine
from duckmesh.arrow_types import DELETED_FIELD_ID
from duckmesh.imports import do_without_pandas
from duckmesh.statements import Statements
from query_engine import sandbox
from query_engine.quoting import literal

if TYPE_CHECKING:
    import duckdb

_SQL: Final = Statements("query_engine", "segments.sql")
_NICENESS: Final = 19
_ADDRESS_SPACE_SPARE_BYTES: Final = 2**30
FORMAT: Final = f"2 duckdb {importlib.metadata.version('duckdb')}"
"""How segments are written. Those of another format are not read."""

SUFFIX: Final = ".duckdb"
BUILDING_SUFFIX: Final = ".building"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOrder:
    """What a segment is to hold. It travels pickled."""

    path: Path
    """Where it is to lie; it does not exist yet, and its folder does."""
    files: tuple[str, ...]
    """The data files, in the order of their rows; each one's place here is its number."""
    row_counts: tuple[int, ...]
    columns: Mapping[int, str]
    """The types of the columns in the data files, by field id."""
    memory_limit_bytes: int
    size_max_bytes: int
    layers: tuple[int, ...] = ()
    """Of each file of a table with a primary key the number of its layer: their rows are merged."""
    key: tuple[int, ...] = ()
    """The field ids of that key."""


class NotBuilt(Exception):
    """There is no segment, and nothing is left of it. The text is for the log."""


def column_map(columns: Mapping[int, str]) -> str:
    """The columns as DuckDB's `schema` option spells them, each named by its field id."""
    listed = (
        f"{field_id}: {{name: 'f{field_id}', type: {literal(kind)}, default_value: NULL}}"
        for field_id, kind in columns.items()
    )
    return "MAP {" + ", ".join(listed) + "}"


def build(order: SegmentOrder) -> int:
    """Write the segment, and return its size. Raises NotBuilt.

    Die anywhere before the rename, and a file of the other name is left, that nobody reads.
    """
    unfinished = order.path.with_suffix(BUILDING_SUFFIX)
    unfinished.unlink(missing_ok=True)
    try:
        _write(order, unfinished)
        size_bytes = unfinished.stat().st_size
        unfinished.chmod(0o444)
        unfinished.rename(order.path)
    finally:
        unfinished.unlink(missing_ok=True)
    return size_bytes


def _write(order: SegmentOrder, path: Path) -> None:
    import duckdb

    from query_engine.native import FILE_NUMBER

    root = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": f"{order.memory_limit_bytes}B",
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    with root:
        try:
            root.execute(_SQL["attach"].format(path=literal(str(path))))
            if order.key:
                _merge(root, order)
            else:
                root.execute(
                    _SQL["create_rows"].format(
                        file_number=FILE_NUMBER, columns=column_map(order.columns)
                    ),
                    {"files": list(order.files)},
                )
            types = dict(root.execute(_SQL["column_types"]).fetchall())
            counted = root.execute(_SQL["rows_by_file"].format(file_number=FILE_NUMBER))
            counts = dict(counted.fetchall())
            root.execute(_SQL["complete"])
            root.execute(_SQL["detach"])
        except duckdb.Error as error:
            raise NotBuilt(str(error)) from error
    _check(order, types, counts)


def _merge(root: "duckdb.DuckDBPyConnection", order: SegmentOrder) -> None:
    """Write the rows that are visible through all the layers of the files."""
    from query_engine.native import FILE_NUMBER

    written = {
        "file_number": FILE_NUMBER,
        "columns": ", ".join(f"f{field_id}" for field_id in order.columns),
        "all_map": column_map({**order.columns, DELETED_FIELD_ID: "BOOLEAN"}),
        "deleted": f"f{DELETED_FIELD_ID}",
    }
    oldest = min(order.layers)
    newer = [n for n, layer in enumerate(order.layers) if layer > oldest]
    if not newer:
        root.execute(_SQL["create_undeleted_rows"].format(**written), {"files": list(order.files)})
        return
    key = [f"f{field_id}" for field_id in order.key]
    kinds = {field_id: order.columns[field_id] for field_id in order.key}
    root.execute(
        _SQL["create_merged_rows"].format(
            **written,
            key=", ".join(key),
            same_key=" AND ".join(f"held.{each} = later.{each}" for each in key),
            key_map=column_map(kinds),
        ),
        {
            "files": list(order.files),
            "layers": list(order.layers),
            "newer_files": [order.files[n] for n in newer],
            "newer_layers": [order.layers[n] for n in newer],
        },
    )


def _check(order: SegmentOrder, types: Mapping[str, str], counts: Mapping[int, int]) -> None:
    """What the segment holds is what the catalog says of the files, and of the same types."""
    import duckdb

    if order.key and sum(counts.values()) > sum(order.row_counts):
        raise NotBuilt("there are more rows than in the files")
    for number, expected in enumerate(() if order.key else order.row_counts):
        if counts.get(number, 0) != expected:
            raise NotBuilt(f"file {number} has {counts.get(number, 0)} rows and not {expected}")
    for field_id, kind in order.columns.items():
        if str(duckdb.type(types[f"f{field_id}"])) != str(duckdb.type(kind)):
            raise NotBuilt(f"field {field_id} is {types[f'f{field_id}']} and not {kind}")


class SegmentBuilder:
    """Runs builds in processes, one at a time. `run` is called by one thread that lives on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process that builds now."""
        with self._lock:
            return None if self._process is None else self._process.pid

    def run(self, order: SegmentOrder) -> int:
        """Build the segment, and return its size. Blocks. Raises NotBuilt, also when it died."""
        with self._lock:
            if self._closed:
                raise NotBuilt("it was not begun: the process ends")
            process = self._process = _start()
        try:
            said, _ = process.communicate(pickle.dumps(order))
        finally:
            with self._lock:
                self._process = None
            order.path.with_suffix(BUILDING_SUFFIX).unlink(missing_ok=True)
        if process.returncode != 0:
            order.path.unlink(missing_ok=True)
            raise NotBuilt(f"its process ended with {process.returncode}")
        answer = json.loads(said)
        if "failure" in answer:
            raise NotBuilt(str(answer["failure"]))
        return int(answer["size_bytes"])

    def close(self) -> None:
        """Kill the build under way, from any thread. Later ones fail."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                with suppress(OSError):
                    self._process.kill()


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 - this Python, this package
        [sys.executable, "-P", "-m", "query_engine.segments", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(Path(query_engine.__file__).parents[1]),
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "MALLOC_ARENA_MAX": "2",
            "OPENBLAS_NUM_THREADS": "1",
        },
        start_new_session=True,
    )


def main() -> None:
    """Take an order from standard input, and tell on standard output what became of it."""
    sandbox.leave_network()
    sandbox.yield_to_others()
    os.nice(_NICENESS)
    sandbox.renounce_privileges()
    sandbox.drop_capabilities()
    sandbox.die_with_parent(int(sys.argv[1]))
    do_without_pandas()
    import duckdb  # noqa: F401 - before the walls, which are for the data.

    # From the process that started this one, over a pipe that nobody else has.
    order: SegmentOrder = pickle.load(sys.stdin.buffer)  # noqa: S301
    space = sandbox.address_space_bytes() + 2 * order.memory_limit_bytes
    folders = {Path(each).parent for each in order.files}
    sandbox.see_only(read=folders, write=[order.path.parent])
    sandbox.limit_resources(
        address_space_bytes=space + _ADDRESS_SPACE_SPARE_BYTES, file_bytes=order.size_max_bytes
    )
    try:
        said: dict[str, object] = {"size_bytes": build(order)}
    except (NotBuilt, OSError, MemoryError) as error:
        said = {"failure": str(error)}
    sys.stdout.write(json.dumps(said))
    sys.stdout.flush()
    # DuckDB's threads would hold an orderly end up.
    os._exit(0)


if __name__ == "__main__":
    main()
