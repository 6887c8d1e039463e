"""Logs on standard error, and the trace id that ties an answer to them.

A record is one line: timestamp (RFC 3339, UTC), level, event, service, profile, and tenant_id,
trace_id, error_code where they are known. Secrets are taken out of every record, whoever wrote it.
"""

import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
import uuid_utils
from structlog.typing import EventDict, Processor, WrappedLogger

from duckmesh.errors import DuckMeshError
from duckmesh.settings_groups import LogFormat, LoggingSettings, Profile

__all__ = [
    "bind_trace",
    "configure_logging",
    "current_trace_id",
    "get_logger",
    "new_trace_id",
    "parse_trace_id",
]

REDACTED: Final = "[redacted]"
_SECRET_KEYS: Final = re.compile(
    r"(^|_)(password|passwd|secret|dsn|authorization|cookie|credentials?|api_?key|private_key"
    r"|secret_access_key|session_token|bearer)(_|$)"
)
_SECRET_TEXT: Final = re.compile(
    r"""
      (?P<url> \b[a-z][a-z0-9+.-]*://[^\s:/@]*: ) [^\s@]+ (?=@)          # user:password@host
    | (?P<pair> \b(?:password|passwd|secret|secret_access_key|session_token|api_?key)
        ["']?\s*[=:]\s*["']? ) [^\s"',;&]+                              # password=…
    | (?P<scheme> \b(?:bearer|basic)\s+ ) [A-Za-z0-9._~+/=-]{6,}         # an Authorization header
    """,
    re.VERBOSE | re.IGNORECASE,
)
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_TRACE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NO_TRACE: Final = "0" * 32


def new_trace_id() -> str:
    """A random trace id: 32 hexadecimal digits, as W3C Trace Context has them."""
    return uuid_utils.uuid4().hex


def parse_trace_id(*, x_trace_id: str | None = None, traceparent: str | None = None) -> str:
    """The trace id that a caller sent, else a new one.

    `x-trace-id` wins over `traceparent` (W3C Trace Context). One that is malformed counts as not
    sent: a trace id never makes a call fail, and never carries text into a log or an answer.
    """
    if x_trace_id and _TRACE_ID.fullmatch(x_trace_id):
        return x_trace_id
    sent = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if sent is None or sent[1] == _NO_TRACE:
        return new_trace_id()
    return sent[1]


class bind_trace:  # noqa: N801 - read as a `with` word
    """Put the trace id (a new one when None) and `fields` into the block's records; yield it.

    Fields that are None are left out. Holds for the current thread or task: a thread that the
    block starts binds its own.
    """

    __slots__ = ("_before", "_fields", "_trace_id")

    # Not a generator, nor structlog's own binding: every call and request passes here, and a small
    # write notices what those cost.
    def __init__(self, trace_id: str | None = None, **fields: Any) -> None:
        self._trace_id = trace_id or new_trace_id()
        self._fields = fields

    def __enter__(self) -> str:
        known = {key: value for key, value in self._fields.items() if value is not None}
        self._before: Token[Mapping[str, Any]] = _BOUND.set(
            {**_BOUND.get(), "trace_id": self._trace_id, **known}
        )
        return self._trace_id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _BOUND.reset(self._before)


_BOUND: Final[ContextVar[Mapping[str, Any]]] = ContextVar("duckmesh_bound", default={})  # noqa: B039


def add_bound(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add what the blocks around the caller bind; a record's own fields win."""
    return {**_BOUND.get(), **event}


def current_trace_id() -> str | None:
    """The trace id of the innermost `bind_trace` around the caller, or None."""
    found: str | None = _BOUND.get().get("trace_id")
    return found


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that takes fields: `log.info("published", snapshot_id=7)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure_logging(
    settings: LoggingSettings,
    *,
    service: str,
    profile: Profile,
    stream: TextIO | None = None,
) -> None:
    """Send the records of this process, also those of libraries, to `stream` (standard error).

    Repeatable: the last call holds. Call it once, at start, before other threads log.
    """
    before: list[Processor] = [
        add_bound,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Origin(service, profile),
        name_error,
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings.format, colors=handler.stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    for former in root.handlers[:]:
        if isinstance(former.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # A second call must reach loggers that have logged already.
        cache_logger_on_first_use=False,
    )


def _rendering(form: LogFormat, *, colors: bool) -> list[Processor]:
    # The traceback becomes text before the secrets are taken out, so that none hides in it.
    if form is LogFormat.JSON:
        last: Processor = structlog.processors.JSONRenderer(default=str)
    else:
        last = structlog.dev.ConsoleRenderer(colors=colors)
    return [structlog.processors.format_exc_info, redact, last]


class _Origin:
    """Adds which process wrote the record."""

    def __init__(self, service: str, profile: Profile) -> None:
        self._fields = {"service": service, "profile": profile.value}

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**event, **self._fields}


def name_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the error_code of the DuckMeshError that a record carries or is logged within."""
    carried = event.get("exc_info")
    error = sys.exception() if carried is True else carried
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, DuckMeshError):
        event.setdefault("error_code", error.code.value)
    return event


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace secrets by their names, and by their looks in any text."""
    return {key: _without_secrets(key, value) for key, value in event.items()}


def _without_secrets(key: str, value: Any) -> Any:
    if _SECRET_KEYS.search(str(key).lower()):
        return REDACTED
    if isinstance(value, dict):
        return {inner: _without_secrets(inner, each) for inner, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_without_secrets("", each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # Whatever else a record holds is rendered by its str or repr: that is what is searched.
    return _SECRET_TEXT.sub(_keep_the_name, str(value))


def _keep_the_name(found: re.Match[str]) -> str:
    name = found["url"] or found["pair"] or found["scheme"]
    return f"{name}{REDACTED}"
