"""What a caller says in its call headers, as plain values.

Clients such as ADBC append rather than replace a header that is set twice, on connection,
statement and database. The rules per header: an empty value clears those before it; of several
minimum tokens the largest counts; several different snapshots are refused; else the last counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId, check_idempotency_key, check_tag
from duckmesh.telemetry import new_trace_id, parse_trace_id
from duckmesh.tokens import VisibilityToken, parse_token

MIN_TOKEN: Final = "x-duckmesh-min-visibility-token"  # noqa: S105 - a header's name
SNAPSHOT_ID: Final = "x-duckmesh-snapshot-id"
SNAPSHOT_TIME: Final = "x-duckmesh-snapshot-time"
TAG: Final = "x-duckmesh-tag"
CONSISTENCY: Final = "x-duckmesh-consistency"
CONSISTENCY_TIMEOUT: Final = "x-duckmesh-consistency-timeout-ms"
IDEMPOTENCY_KEY: Final = "x-duckmesh-idempotency-key"
WAIT: Final = "x-duckmesh-wait"
TRACE_ID: Final = "x-trace-id"
TRACEPARENT: Final = "traceparent"

TIMEOUT_MAX: Final = timedelta(minutes=10)
_MAX_ID: Final = 2**63 - 1

RawHeaders = Mapping[str, Sequence[str | bytes]]
"""As pyarrow gives them: lower-case names; a name that ends in `-bin` has bytes."""


class Consistency(StrEnum):
    """What a query must see when its call names neither token nor snapshot."""

    LATEST = "latest"
    SESSION = "session"
    STRONG = "strong"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The options of one call. None leaves the choice to the session or the settings."""

    min_token: VisibilityToken | None = None
    snapshot_id: SnapshotId | None = None
    snapshot_time: datetime | None = None
    tag: str | None = None
    consistency: Consistency | None = None
    consistency_timeout: timedelta | None = None
    idempotency_key: str | None = None
    wait: bool = False
    """Whether a write answers only when it is visible."""

    @property
    def names_snapshot(self) -> bool:
        """Whether a snapshot is chosen, by number, time or tag."""
        named = (self.snapshot_id, self.snapshot_time, self.tag)
        return any(each is not None for each in named)


_NAMES: Final = frozenset(
    {
        MIN_TOKEN,
        SNAPSHOT_ID,
        SNAPSHOT_TIME,
        TAG,
        CONSISTENCY,
        CONSISTENCY_TIMEOUT,
        IDEMPOTENCY_KEY,
        WAIT,
    }
)
_NO_OPTIONS: Final = CallOptions()


def read_options(headers: RawHeaders) -> CallOptions:
    """The call's options. Raises Invalid when a value is malformed or two contradict."""
    if _NAMES.isdisjoint(headers):
        # As in most calls, and a small write notices what eight look-ups cost.
        return _NO_OPTIONS
    tokens = [parse_token(text) for text in _values(headers, MIN_TOKEN)]
    options = CallOptions(
        min_token=max(tokens, default=None),
        snapshot_id=_snapshot_id(_values(headers, SNAPSHOT_ID)),
        snapshot_time=_snapshot_time(_values(headers, SNAPSHOT_TIME)),
        tag=_tag(_values(headers, TAG)),
        consistency=_consistency(_values(headers, CONSISTENCY)),
        consistency_timeout=_timeout(_values(headers, CONSISTENCY_TIMEOUT)),
        idempotency_key=_key(_values(headers, IDEMPOTENCY_KEY)),
        wait=_boolean(_values(headers, WAIT)),
    )
    _check_one_selector(options)
    return options


def trace_id_of(headers: RawHeaders) -> str:
    """The caller's trace id, or a new one. Never raises: a bad trace id is not worth a failure."""
    if TRACE_ID not in headers and TRACEPARENT not in headers:
        return new_trace_id()
    x_trace_id, traceparent = _values(headers, TRACE_ID), _values(headers, TRACEPARENT)
    return parse_trace_id(
        x_trace_id=x_trace_id[-1] if x_trace_id else None,
        traceparent=traceparent[-1] if traceparent else None,
    )


def traceparent_of(headers: RawHeaders, trace_id: str) -> str | None:
    """The caller's `traceparent`, when it is what the trace id was taken from. Never raises."""
    if TRACEPARENT not in headers:
        return None
    sent = _values(headers, TRACEPARENT)
    return sent[-1] if sent and trace_id in sent[-1] else None


def _values(headers: RawHeaders, name: str) -> list[str]:
    """The values that count: those after the last empty one."""
    values: list[str] = []
    for value in headers.get(name, ()):
        text = (value.decode("latin-1") if isinstance(value, bytes) else value).strip()
        values = [*values, text] if text else []
    return values


def _single(values: list[str], name: str) -> str | None:
    if len(set(values)) > 1:
        raise Invalid(
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
            f"the call carries different values of {name}: "
            "set the header to an empty value first, then to the one you mean",
            header=name,
            values=values[:5],
        )
    return values[-1] if values else None


def _snapshot_id(values: list[str]) -> SnapshotId | None:
    text = _single(values, SNAPSHOT_ID)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= _MAX_ID):
        raise _malformed(SNAPSHOT_ID, "the positive whole number of a snapshot", text)
    return SnapshotId(int(text))


def _snapshot_time(values: list[str]) -> datetime | None:
    text = _single(values, SNAPSHOT_TIME)
    if text is None:
        return None
    wanted = "an ISO 8601 time with its zone, such as 2026-01-31T12:00:00Z"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _malformed(SNAPSHOT_TIME, wanted, text) from None
    if moment.tzinfo is None:
        raise _malformed(SNAPSHOT_TIME, wanted, text)
    return moment


def _tag(values: list[str]) -> str | None:
    text = _single(values, TAG)
    return None if text is None else check_tag(text)


def _consistency(values: list[str]) -> Consistency | None:
    if not values:
        return None
    try:
        return Consistency(values[-1].lower())
    except ValueError:
        wanted = "one of latest, session and strong"
        raise _malformed(CONSISTENCY, wanted, values[-1]) from None


def _timeout(values: list[str]) -> timedelta | None:
    if not values:
        return None
    text = values[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise _malformed(CONSISTENCY_TIMEOUT, "a whole number of milliseconds", text)
    return min(timedelta(milliseconds=int(text)), TIMEOUT_MAX)


def _key(values: list[str]) -> str | None:
    return check_idempotency_key(values[-1]) if values else None


def _boolean(values: list[str]) -> bool:
    if not values:
        return False
    match values[-1].lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise _malformed(WAIT, "true or false", values[-1])


def _check_one_selector(options: CallOptions) -> None:
    named = {
        SNAPSHOT_ID: options.snapshot_id,
        SNAPSHOT_TIME: options.snapshot_time,
        TAG: options.tag,
        MIN_TOKEN: options.min_token,
    }
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise Invalid(
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
            f"a query is answered at one place in time: send only one of {', '.join(given)}",
            headers=given,
        )


def _malformed(header: str, wanted: str, text: str) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_COMMAND, f"{header} must be {wanted}", header=header, value=text[:80]
    )
