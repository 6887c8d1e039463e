"""What the figures were measured on: no host names and no paths."""

import os
import platform
from importlib.metadata import version
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

_LIBRARIES: Final = ("pyarrow", "duckdb", "psycopg", "adbc-driver-flightsql")


def describe(postgres_version: str) -> dict[str, Any]:
    """The machine, its load at this moment, and the versions that matter."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_average": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": postgres_version,
        **{name: version(name) for name in _LIBRARIES},
    }
