"""DuckDB's failures in the words of `duckmesh.errors`, with no local path in them."""

import re
from collections.abc import Iterable
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

_MESSAGE_MAX_CHARS: Final = 1000
_HEADING = re.compile(r"^\s*([A-Z][A-Za-z -]*?) Error: ")
_NO_TABLE = re.compile(r"Table with name (.+?) does not exist")
_OUT_OF_MEMORY = re.compile(r"Allocation failure|std::bad_alloc|could not allocate|ArrowMemory")


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


def timed_out(limit: timedelta) -> Exceeded:
    seconds = limit.total_seconds()
    return Exceeded(
        ErrorCode.QUERY_TIMEOUT,
        f"the query ran longer than its limit of {seconds:g} s; read less, or ask for more time",
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
        return memory_exceeded(context.memory_limit_bytes)
    message = clean(text, context.hidden)
    if isinstance(error, pa.ArrowException) and not kind:
        return Invalid(ErrorCode.QUERY_EXECUTION_FAILED, message)
    return _by_kind(kind, message)


def memory_exceeded(limit_bytes: int) -> Exceeded:
    return Exceeded(
        ErrorCode.QUERY_MEMORY,
        f"the query needs more than its limit of {limit_bytes / 2**20:.0f} MiB of memory; "
        "read fewer rows or columns, or aggregate earlier",
        limit_bytes=limit_bytes,
    )


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
