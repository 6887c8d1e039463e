"""The one place where errors of DuckMesh become answers of HTTP.

Every error is the same JSON object at both doors; here its status and headers are chosen. What the
framework refuses by itself (an unknown path, a wrong method) speaks the same contract.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from duckmesh.errors import (
    Cancelled,
    Conflict,
    Corrupt,
    Denied,
    DuckMeshError,
    ErrorCode,
    Exceeded,
    Fenced,
    Internal,
    Invalid,
    NotFound,
    NotSupported,
    NotYetVisible,
    Overloaded,
    Unavailable,
)
from duckmesh.telemetry import get_logger

TRACE_HEADER: Final = "x-trace-id"
CLIENT_CLOSED_REQUEST: Final = 499
"""Nobody reads this answer: the caller has gone. The number is nginx's, for logs and metrics."""

STATUS_OF_CLASS: Final[Mapping[type[DuckMeshError], int]] = {
    Invalid: 400,
    Denied: 401,
    NotFound: 404,
    Conflict: 409,
    NotYetVisible: 504,
    Overloaded: 429,
    Exceeded: 400,
    Cancelled: CLIENT_CLOSED_REQUEST,
    NotSupported: 501,
    Unavailable: 503,
    Fenced: 500,
    Corrupt: 500,
    Internal: 500,
}
"""The HTTP status of each class of error."""

STATUS_OF_ERROR: Final[Mapping[ErrorCode, int]] = {
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.QUERY_TIMEOUT: 504,
    ErrorCode.QUOTA_EXCEEDED: 429,
}
"""The codes that say more than their class does."""

_RETRY_AFTER_SECONDS: Final = 1
_MESSAGE_MAX_CHARS: Final = 4096
_log = get_logger(__name__)


def http_status(error: DuckMeshError) -> int:
    """The HTTP status that `error` is answered with."""
    if error.code is ErrorCode.FORBIDDEN and not isinstance(error, Denied):
        return STATUS_OF_CLASS[type(error)]
    return STATUS_OF_ERROR.get(error.code, STATUS_OF_CLASS[type(error)])


def error_body(error: DuckMeshError, trace_id: str) -> bytes:
    """The contract as JSON, in ASCII: a text that is not valid Unicode is escaped, not refused."""
    contract = error.as_contract(trace_id)
    contract["message"] = contract["message"][:_MESSAGE_MAX_CHARS]
    return json.dumps(contract, separators=(",", ":"), default=str).encode("ascii")


def error_headers(error: DuckMeshError) -> dict[str, str]:
    """What a client may act on without reading the body."""
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded | Unavailable):
        seconds = error.context.get("retry_after_seconds", _RETRY_AFTER_SECONDS)
        headers["retry-after"] = str(seconds)
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(
    error: DuckMeshError, trace_id: str, *, status: int | None = None, **headers: str
) -> Response:
    """The answer to a request that failed before its answer began."""
    return Response(
        error_body(error, trace_id),
        status_code=status or http_status(error),
        headers=error_headers(error) | headers,
        media_type="application/json",
    )


def known_error(error: Exception) -> tuple[DuckMeshError, int, Mapping[str, str]]:
    """Any exception as an error of ours, its status, and headers; a fault of ours is logged here.

    Nothing of an unforeseen exception reaches the client.
    """
    if isinstance(error, DuckMeshError):
        return error, http_status(error), {}
    if isinstance(error, HTTPException):
        return _of_framework(error), error.status_code, dict(error.headers or {})
    _log.error("request_failed", exc_info=error)
    return Internal(), STATUS_OF_CLASS[Internal], {}


def refusal(status: int, message: str, **context: Any) -> HTTPException:
    """A refusal that only HTTP knows, such as 415: raise it, and `known_error` maps it."""
    refused = HTTPException(status, message)
    refused.context = context  # type: ignore[attr-defined]
    return refused


def log_refusal(error: DuckMeshError, route: str, status: int, **fields: Any) -> None:
    """Log a refusal once: faults as errors, what may pass as warnings."""
    fault = isinstance(error, Fenced | Corrupt | Internal)
    write = _log.error if fault else _log.warning if error.retryable else _log.info
    write(
        "request_refused",
        route=route,
        status=status,
        error_code=error.code.value,
        message=error.message,
        **fields,
    )


_FRAMEWORK_MESSAGES: Final = {
    404: "there is no such endpoint: see docs/http.md and /v1/openapi.json",
    405: "the endpoint does not take this method: see the Allow header",
}


def _of_framework(error: HTTPException) -> DuckMeshError:
    context = getattr(error, "context", {})
    message = _FRAMEWORK_MESSAGES.get(error.status_code, str(error.detail))
    if error.status_code == 404:
        return NotFound(ErrorCode.NOT_FOUND, message, **context)
    return Invalid(ErrorCode.INVALID_COMMAND, message, **context)
