"""DuckDB's failures in the words of `duckmesh.errors`, with no local path in them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import pyarrow as pa

from duckmesh.errors import (
    Cancelled,
    DuckMeshError,
    ErrorCode,
    Exceeded,
    Internal,
    Invalid,
    NotFound,
    NotSupported,
    Unavailable,
)
from duckmesh.quotas import Quota

_MESSAGE_MAX_CHARS: Final = 1000
_HEADING = re.compile(r"^\s*([A-Z][A-Za-z -]*?) Error: ")
_NO_TABLE = re.compile(r"Table with name (.+?) does not exist")
_OUT_OF_MEMORY = re.compile(r"Allocation failure|std::bad_alloc|could not allocate|ArrowMemory")
_USED = re.compile(r"\(([\d.]+) (bytes?|[KMGTP]iB)/([\d.]+) (bytes?|[KMGTP]iB) used\)")
_SPILLED = re.compile(r"max_temp_directory_size|failed to offload")
_UNITS: Final[Mapping[str, int]] = {
    "byte": 1,
    "bytes": 1,
    **{f"{letter}iB": 2 ** (10 * power) for power, letter in enumerate("KMGTP", 1)},
}


@dataclass(frozen=True, slots=True)
class FailureContext:
    """What the words of a failure need to know."""

    memory_limit_bytes: int
    hidden: tuple[str, ...]
    """Directories whose names, and the names of what lies in them, stay inside."""


def clean(message: str, hidden: Iterable[str]) -> str:
    """`message` without stack traces and without any path below the hidden directories."""
    text = message.split("\nStack Trace", 1)[0]
    for directory in sorted(hidden, key=len, reverse=True):
        if len(directory) > 1:
            text = re.sub(
                re.escape(directory.rstrip("/")) + r"[^\s'\"\])>,;]*", "a data file", text
            )
    text = text.strip()
    return text if len(text) <= _MESSAGE_MAX_CHARS else text[:_MESSAGE_MAX_CHARS] + "…"


def timed_out(limit: timedelta, used_seconds: float) -> Exceeded:
    """The refusal of a query that ran too long, with the time that it had by then."""
    seconds = limit.total_seconds()
    used = round(used_seconds * 1000)
    return Exceeded(
        ErrorCode.QUERY_TIMEOUT,
        # From the rounded figure: the text and the context say the same.
        f"the query ran {used / 1000:.2f} s and may run {seconds:g} s; read less, or ask for more "
        "time",
        quota=Quota.QUERY_TIME_MS.value,
        used=used,
        limit=round(seconds * 1000),
        limit_seconds=seconds,
    )


def cancelled() -> Cancelled:
    return Cancelled(ErrorCode.QUERY_CANCELLED, "the query was cancelled")


def translate(error: BaseException, context: FailureContext) -> DuckMeshError:
    """The error a caller may see for whatever DuckDB or its Arrow stream raised."""
    if isinstance(error, DuckMeshError):
        return error
    text = str(error)
    heading = _HEADING.match(text)
    kind = heading.group(1) if heading else ""
    if isinstance(error, MemoryError) or kind == "Out of Memory" or _OUT_OF_MEMORY.search(text):
        return memory_exceeded(context.memory_limit_bytes, text)
    message = clean(text, context.hidden)
    if isinstance(error, pa.ArrowException) and not kind:
        return Invalid(ErrorCode.QUERY_EXECUTION_FAILED, message)
    return _by_kind(kind, message)


def memory_exceeded(limit_bytes: int, said: str = "") -> Exceeded:
    """The refusal of a query that needs more memory, or more of the disk, than it may have.

    What it had by then is read from what DuckDB `said`, where it says so.
    """
    found = _USED.search(said)
    used = None if found is None else _bytes_of(found[1], found[2])
    if found is not None and _SPILLED.search(said):
        return _spilled_too_much(used, _bytes_of(found[3], found[4]))
    has = "" if used is None else f", where it has {used / 2**20:.0f} MiB already"
    return Exceeded(
        ErrorCode.QUERY_MEMORY,
        f"the query needs more than its limit of {limit_bytes / 2**20:.0f} MiB of memory{has}; "
        "read fewer rows or columns, or aggregate earlier",
        quota=Quota.QUERY_MEMORY_BYTES.value,
        used=used,
        limit=limit_bytes,
        limit_bytes=limit_bytes,
    )


def _spilled_too_much(used: int | None, limit: int) -> Exceeded:
    return Exceeded(
        ErrorCode.QUERY_MEMORY,
        f"the query needs more memory than it may have, and more than {limit / 2**20:.0f} MiB of "
        "disk beside it; read fewer rows or columns, or aggregate earlier",
        setting="query.spill_max_bytes",
        used=used,
        limit=limit,
        limit_bytes=limit,
    )


def _bytes_of(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _by_kind(kind: str, message: str) -> DuckMeshError:
    match kind:
        case "INTERRUPT":
            return cancelled()
        case "INTERNAL" | "FATAL" | "":
            return Internal()
        case "IO" | "HTTP":
            return Unavailable(
                ErrorCode.STORE_UNAVAILABLE,
                "a data file of the snapshot could not be read; run the query again",
            )
        case "Permission":
            # DuckDB names the file here, which lies where no directory is hidden for us.
            return Invalid(
                ErrorCode.SQL_NOT_ALLOWED, "the query reaches for something outside its tables"
            )
        case "Not implemented":
            return NotSupported(ErrorCode.NOT_SUPPORTED, message)
        case "Catalog" if missing := _NO_TABLE.search(message):
            return NotFound(ErrorCode.TABLE_NOT_FOUND, message, table=missing.group(1))
        case _:
            return Invalid(ErrorCode.QUERY_EXECUTION_FAILED, message)


def table_missing(name: str, suggestion: str | None) -> NotFound:
    """As DuckDB words it: its own search would look for a file of that name first."""
    message = f"Table with name {name} does not exist!"
    if suggestion is not None:
        message += f'\nDid you mean "{suggestion}"?'
    return NotFound(ErrorCode.TABLE_NOT_FOUND, message, table=name)
