"""What the figures were measured on: no host names and no paths."""

import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

_LIBRARIES: Final = ("pyarrow", "duckdb", "psycopg", "adbc-driver-flightsql")


def describe(postgres_version: str) -> dict[str, Any]:
    """The machine, and the versions that matter."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": ".".join(platform.release().split(".")[:2]),
        "disk": _disk(Path(tempfile.gettempdir())),
        "python": platform.python_version(),
        "postgres": postgres_version,
        **{name: version(name) for name in _LIBRARIES},
    }


def load_average() -> float:
    """Of the last minute. Above 0 before a benchmark, other work shares the cores."""
    return round(os.getloadavg()[0], 1)


def stolen_seconds() -> float:
    """Processor time that other machines on the same hardware took so far, of all cores.

    0 where the system does not tell.
    """
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _disk(place: Path) -> str:
    """The kind of disk and file system that data lies on; empty where the system does not tell."""
    number = place.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    # A partition's queue is that of the disk which it is on.
    queue = next((each for each in (device, device.parent) if (each / "queue").is_dir()), None)
    if queue is None:
        return _file_system(place)
    if queue.name.startswith(("vd", "xvd")):
        kind = "virtual disk"
    else:
        rotates = (queue / "queue" / "rotational").read_text(encoding="ascii").strip() == "1"
        kind = "rotating disk" if rotates else "solid state disk"
    return f"{kind} with {_file_system(place)}".removesuffix(" with ")


def _file_system(place: Path) -> str:
    mounts = [
        each
        for each in psutil.disk_partitions(all=True)
        if place.resolve().is_relative_to(each.mountpoint)
    ]
    return max(mounts, key=lambda each: len(each.mountpoint)).fstype if mounts else ""
