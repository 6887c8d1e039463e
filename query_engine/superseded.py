"""Which rows of a keyed table's files are superseded: who writes the files anew leaves them out.

Only the columns of the key are read. What does not fit into memory is spilled to a local directory.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from duckmesh.errors import Corrupt, ErrorCode, Unavailable
from duckmesh.identifiers import FIELD_ID
from duckmesh.statements import Statements
from query_engine.quoting import file_type, literal

if TYPE_CHECKING:
    import duckdb

_SQL: Final = Statements("query_engine", "superseded.sql")
_MEMORY_BYTES: Final = 256 * 2**20
_FETCHED_ROWS: Final = 10_000

RowNumbers = Mapping[int, "array[int]"]
"""By the number of a file in its list: rows of it, counted from 0, in ascending order."""


@dataclass(frozen=True, slots=True)
class Key:
    """The columns of a primary key as files are to be read: found by field id, of these types."""

    columns: pa.Schema

    @property
    def _names(self) -> list[str]:
        return [f"key_{number}" for number in range(len(self.columns))]

    def places(self) -> dict[str, str]:
        """What the statements ask for."""
        names = ", ".join(self._names)
        return {
            "key": names,
            "key_value": names if len(self._names) == 1 else f"({names})",
            "columns": "MAP {" + ", ".join(self._columns()) + "}",
            "same_key": " AND ".join(f"held.{each} = newer.{each}" for each in self._names),
        }

    def _columns(self) -> Iterator[str]:
        for name, field in zip(self._names, self.columns, strict=True):
            kind = literal(file_type(field.type))
            number = int(field.metadata[FIELD_ID])
            yield f"{number}: {{name: {literal(name)}, type: {kind}, default_value: NULL}}"


def superseded_rows(
    files: Sequence[Path], layers: Sequence[int], key: Key, *, scratch: Path
) -> RowNumbers:
    """The rows whose key is in a file of a later layer; `layers` has one number for each file.

    Blocks while it reads. Raises Unavailable when disk or memory do not suffice, Corrupt for files
    that cannot be read.
    """
    oldest = min(layers)
    newer = [number for number, layer in enumerate(layers) if layer > oldest]
    if not newer:
        return {}
    with _database(scratch) as database:
        _set(database, "files", list(map(str, files)))
        _set(database, "layers", list(layers))
        _set(database, "newer_files", [str(files[number]) for number in newer])
        _set(database, "newer_layers", [layers[number] for number in newer])
        return _by_file(database.execute(_SQL["superseded"].format(**key.places())))


def repeated_rows(files: Sequence[Path], key: Key, *, scratch: Path) -> RowNumbers:
    """The rows whose key comes again behind them. Blocks and raises as `superseded_rows` does."""
    with _database(scratch) as database:
        _set(database, "files", list(map(str, files)))
        places = key.places()
        repeats = database.execute(_SQL["repeats"].format(**places)).fetchone()
        if repeats == (0,):
            return {}
        return _by_file(database.execute(_SQL["repeated"].format(**places)))


@contextmanager
def _database(scratch: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A database for one question; DuckDB's failures come as ours."""
    # Not before there is a question: a coordinator without keyed tables has none.
    import duckdb

    try:
        with duckdb.connect(":memory:", config={"threads": 1}) as database:
            database.execute(
                _SQL["configure"].format(
                    memory=literal(f"{_MEMORY_BYTES}B"), spill=literal(str(scratch))
                )
            )
            yield database
    except (duckdb.OutOfMemoryException, duckdb.IOException) as cause:
        raise Unavailable(
            ErrorCode.STORE_UNAVAILABLE,
            "the keys of a table do not fit on the disk that a compaction works on: give it room",
        ) from cause
    except duckdb.Error as cause:
        raise Corrupt("the keys of a data file cannot be read") from cause


def _set(
    database: "duckdb.DuckDBPyConnection", variable: str, values: list[str] | list[int]
) -> None:
    database.execute(_SQL["set_list"].format(variable=variable), [values])


def _by_file(found: "duckdb.DuckDBPyConnection") -> RowNumbers:
    rows: dict[int, array[int]] = {}
    while some := found.fetchmany(_FETCHED_ROWS):
        for file, row in some:
            rows.setdefault(file, array("q")).append(row)
    return rows
