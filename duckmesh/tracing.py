"""Spans of what a process does, for whoever collects them.

Off, which is the default, a span is nothing: no library is loaded, and a call costs less than a
microsecond. `duckmesh.open_telemetry` turns it on. A write's envelope carries its trace, so that
the publication that shows it, in another process, links to it.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeAlias

from duckmesh.errors import DuckMeshError, ErrorCode

Attribute: TypeAlias = str | int | float | bool

LINKS_MAX: Final = 32
"""Traces that one publication names; it may show thousands of writes."""

_CARRIED: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")


class Span:
    """One thing under way. This one is nothing; used from any thread."""

    def note(self, **attributes: Attribute) -> None:
        """Add what is known now."""

    def end(self, code: str = "OK") -> None:
        """It is over; `code` is OK or an error code. The first call counts."""

    def active(self) -> AbstractContextManager[None]:
        """Spans that begin in the block are its children."""
        return contextlib.nullcontext()

    def carried(self, trace_id: str | None) -> str | None:
        """What an envelope carries of the trace: where a later span finds this one."""
        return trace_id


NOTHING: Final = Span()


class Tracer(Protocol):
    """Where spans go."""

    def begin(
        self, name: str, *, links: Sequence[str], attributes: dict[str, Attribute]
    ) -> Span: ...

    def arriving(self, traceparent: str) -> AbstractContextManager[None]: ...


class _Current:
    tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Send the spans of this process there from now on; None turns them off."""
    _Current.tracer = tracer


def begin(name: str, *, links: Sequence[str] = (), **attributes: Attribute) -> Span:
    """A span that `end` ends, a child of the one that is active. `links` are carried traces."""
    tracer = _Current.tracer
    if tracer is None:
        return NOTHING
    return tracer.begin(f"duckmesh.{name}", links=links[:LINKS_MAX], attributes=attributes)


@contextlib.contextmanager
def span(name: str, *, links: Sequence[str] = (), **attributes: Attribute) -> Iterator[Span]:
    """A span of the block, active in it; an error that the block ends with is its code."""
    if _Current.tracer is None:
        yield NOTHING
        return
    begun = begin(name, links=links, **attributes)
    with ended_by_errors(begun), begun.active():
        yield begun
    begun.end()


@contextlib.contextmanager
def ended_by_errors(begun: Span) -> Iterator[None]:
    """An error that the block ends with ends the span."""
    try:
        yield
    except Exception as error:
        code = error.code if isinstance(error, DuckMeshError) else ErrorCode.INTERNAL
        begun.end(code.value)
        raise


def arriving(traceparent: str | None) -> AbstractContextManager[None]:
    """The block is a caller's: its spans are children of the one that `traceparent` names."""
    tracer = _Current.tracer
    if tracer is None or not traceparent:
        return contextlib.nullcontext()
    return tracer.arriving(traceparent)


def trace_of(carried: str) -> str:
    """The trace id in what an envelope carries."""
    found = _CARRIED.fullmatch(carried)
    return found[1] if found else carried


def span_of(carried: str) -> tuple[str, str] | None:
    """Trace id and span id in what an envelope carries; None when no span was recorded."""
    found = _CARRIED.fullmatch(carried)
    return (found[1], found[2]) if found else None
