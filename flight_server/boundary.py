"""The one place where errors of DuckMesh become statuses of gRPC.

The contract's code leads the status' text, `[TABLE_EXISTS] ...`, and the whole contract travels in
the trailer `x-duckmesh-error`; where Arrow's clients look for it, as a google.rpc.Status detail.
Arrow's own trailers tell its C++ and Python clients which exception to raise.
"""

import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol

import structlog
from google.protobuf import wrappers_pb2  # type: ignore[import-untyped]

from duckmesh import tracing
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
from duckmesh.telemetry import bind_trace
from flight_server import messages
from grpc_transport.calls import Call, Gone
from grpc_transport.status import Status

TEXT_MAX_CHARS: Final = 1024
"""gRPC keeps all headers of a failed call under 8 KiB, and the text is in several of them."""

_CONTRACT_MAX_CHARS: Final = 1200
_log = structlog.get_logger(__name__)


CODE_OF_CLASS: Final[Mapping[type[DuckMeshError], Status]] = {
    Invalid: Status.INVALID_ARGUMENT,
    Denied: Status.UNAUTHENTICATED,
    NotFound: Status.NOT_FOUND,
    Conflict: Status.INVALID_ARGUMENT,
    NotYetVisible: Status.DEADLINE_EXCEEDED,
    Overloaded: Status.UNAVAILABLE,
    Exceeded: Status.INVALID_ARGUMENT,
    Cancelled: Status.CANCELLED,
    NotSupported: Status.UNIMPLEMENTED,
    Unavailable: Status.UNAVAILABLE,
    Fenced: Status.INTERNAL,
    Corrupt: Status.INTERNAL,
    Internal: Status.INTERNAL,
}
"""The gRPC code of each class of error."""

CODE_OF_ERROR: Final[Mapping[ErrorCode, Status]] = {
    ErrorCode.FORBIDDEN: Status.PERMISSION_DENIED,
    ErrorCode.QUERY_TIMEOUT: Status.DEADLINE_EXCEEDED,
}
"""The codes that say more than their class does."""

_ARROW_CODE: Final[Mapping[Status, int]] = {
    Status.INVALID_ARGUMENT: 4,
    Status.NOT_FOUND: 2,
    Status.UNIMPLEMENTED: 10,
}
"""Arrow's StatusCode: Invalid, KeyError, NotImplemented. The others are its IOError."""

_ARROW_IO_ERROR: Final = 5
_FLIGHT_DETAIL: Final[Mapping[Status, str]] = {
    Status.CANCELLED: "Cancelled",
    Status.DEADLINE_EXCEEDED: "TimedOut",
    Status.PERMISSION_DENIED: "Unauthorized",
    Status.INTERNAL: "Internal",
    Status.UNAVAILABLE: "Unavailable",
    Status.UNAUTHENTICATED: "Unauthenticated",
}
"""Arrow's FlightStatusCode: which FlightError its clients raise."""

_SQLSTATE_OF_CLASS: Final[Mapping[type[DuckMeshError], str]] = {
    Invalid: "22023",
    Denied: "28000",
    NotFound: "42704",
    Conflict: "23505",
    NotYetVisible: "HYT00",
    Overloaded: "53300",
    Exceeded: "54000",
    Cancelled: "57014",
    NotSupported: "0A000",
    Unavailable: "57P03",
    Fenced: "40001",
    Corrupt: "XX001",
    Internal: "XX000",
}
_SQLSTATE_OF_ERROR: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.INVALID_JSON: "22032",
    ErrorCode.INVALID_COMMAND: "08P01",
    ErrorCode.TABLE_REQUIRED: "42602",
    ErrorCode.INVALID_PAYLOAD: "22000",
    ErrorCode.SCHEMA_INCOMPATIBLE: "42804",
    ErrorCode.PARTITION_SPEC_INVALID: "42P16",
    ErrorCode.TOO_MANY_PARTITIONS: "54000",
    ErrorCode.SQL_REQUIRED: "42601",
    ErrorCode.SQL_NOT_ALLOWED: "42501",
    ErrorCode.QUERY_EXECUTION_FAILED: "42000",
    ErrorCode.TICKET_INVALID: "26000",
    ErrorCode.PAYLOAD_TOO_LARGE: "54000",
    ErrorCode.FORBIDDEN: "42501",
    ErrorCode.TABLE_NOT_FOUND: "42P01",
    ErrorCode.TENANT_NOT_FOUND: "3D000",
    ErrorCode.TABLE_EXISTS: "42P07",
    ErrorCode.RATE_LIMITED: "53400",
    ErrorCode.TRANSACTION_ENDED: "25P03",
    ErrorCode.QUERY_TIMEOUT: "57014",
    ErrorCode.QUERY_MEMORY: "53200",
    ErrorCode.STORE_UNAVAILABLE: "58030",
    ErrorCode.NOT_READY: "57P01",
    ErrorCode.NOT_SUPPORTED: "0A000",
    ErrorCode.SETTINGS_INVALID: "F0000",
}
"""The codes that say more than their class does. Names of the codes: PostgreSQL, appendix A."""


_OF_ARROW: Final = ("x-arrow-status", "x-arrow-status-detail-bin", "grpc-status-details-bin")


class Failed(Exception):
    """How a call ends that did not succeed: its status, its text and its trailers."""

    def __init__(
        self,
        error: DuckMeshError,
        status: Status,
        text: str,
        trailers: list[tuple[str, str | bytes]],
    ) -> None:
        super().__init__(text)
        self.error = error
        self.status = status
        self.text = text
        self.trailers = trailers

    def sent_as(self, status: Status) -> "Failed":
        """The same under another status, without what has Arrow's clients raise the first one."""
        trailers = [each for each in self.trailers if each[0] not in _OF_ARROW]
        return Failed(self.error, status, self.text, trailers)


class CallContext(Protocol):
    """What this module asks of a call."""

    @property
    def is_cancelled(self) -> bool: ...


def grpc_code(error: DuckMeshError) -> Status:
    """The gRPC status code that `error` is sent with."""
    return CODE_OF_ERROR.get(error.code, CODE_OF_CLASS[type(error)])


def sqlstate(error: DuckMeshError) -> str:
    """The SQLSTATE (ISO 9075, and PostgreSQL's where that has none) of `error`."""
    return _SQLSTATE_OF_ERROR.get(error.code, _SQLSTATE_OF_CLASS[type(error)])


def error_text(error: DuckMeshError) -> str:
    """What the client reads: `[CODE] message`, ASCII, at most TEXT_MAX_CHARS."""
    text = f"[{error.code}] {error.message}"
    safe = text.encode("ascii", "backslashreplace").decode("ascii").replace("\x00", "\\x00")
    return safe if len(safe) <= TEXT_MAX_CHARS else safe[: TEXT_MAX_CHARS - 3] + "..."


def contract_json(error: DuckMeshError, trace_id: str) -> str:
    """The contract as ASCII JSON that fits a trailer: a context too large is left out whole."""
    contract = error.as_contract(trace_id)
    contract["message"] = contract["message"][:512]
    text = ascii_json(contract)
    if len(text) > _CONTRACT_MAX_CHARS:
        text = ascii_json({**contract, "message": contract["message"][:160], "context": {}})
    return text


def failed(error: DuckMeshError, trace_id: str) -> Failed:
    """How a call ends for `error`."""
    code, text = grpc_code(error), error_text(error)
    contract = contract_json(error, trace_id)
    detail = _FLIGHT_DETAIL.get(code)
    trailers: list[tuple[str, str | bytes]] = [*trailers_of(error, trace_id, contract).items()]
    trailers += [
        ("x-arrow-status", str(_ARROW_CODE.get(code, _ARROW_IO_ERROR))),
        ("x-arrow-status-message-bin", text.encode()),
    ]
    if detail is not None:
        trailers += [
            ("x-arrow-status-detail-bin", detail.encode()),
            ("grpc-status-details-bin", _status(code, text, contract)),
        ]
    return Failed(error, code, text, trailers)


def end_with(rpc: Call, failure: Failed, *, among_rows: bool = False) -> None:
    """End a call that failed; `among_rows` when some of them went out before."""
    if among_rows and failure.status is Status.CANCELLED:
        # pyarrow takes a cancellation among rows for Ctrl-C, and raises KeyboardInterrupt.
        failure = failure.sent_as(Status.ABORTED)
    rpc.finish(failure.status, failure.text, failure.trailers)


def trailers_of(error: DuckMeshError, trace_id: str, contract: str) -> dict[str, str]:
    """The trailers of a failed call: what drivers show beside the text."""
    trailers = {
        "x-sqlstate": sqlstate(error),
        "x-trace-id": trace_id,
        "x-duckmesh-error": contract,
    }
    if (token := error.context.get("latest_token")) is not None:
        trailers["x-duckmesh-visibility-token"] = str(token)
    if (seconds := error.context.get("retry_after_seconds")) is not None:
        trailers["retry-after"] = str(seconds)
    return trailers


class boundary:  # noqa: N801 - read as a `with` word
    """Every RPC runs inside one of these: what leaves it is Failed.

    An error of DuckMesh is logged once and mapped; any other exception is logged with its
    traceback and leaves as INTERNAL with the trace id. An exception of a call whose client has
    gone is CANCELLED: it is the consequence and not the fault. `failing` is told the error.
    """

    __slots__ = ("_arriving", "_bound", "_context", "_failing", "_rpc", "_tenant", "_trace_id")

    # Not a generator: every call passes here, and a small write notices what one costs.
    def __init__(
        self,
        rpc: str,
        *,
        context: CallContext,
        trace_id: str,
        tenant: str | None = None,
        tenant_id: int | None = None,
        traceparent: str | None = None,
        failing: Callable[[DuckMeshError], None] = lambda _: None,
    ) -> None:
        self._rpc = rpc
        self._context = context
        self._trace_id = trace_id
        self._tenant = tenant
        self._failing = failing
        self._bound = bind_trace(trace_id, tenant=tenant, tenant_id=tenant_id)
        self._arriving = tracing.arriving(traceparent)

    def __enter__(self) -> None:
        self._bound.__enter__()
        self._arriving.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, Exception):
                raise self._mapped(error) from None
        finally:
            self._arriving.__exit__(kind, error, trace)
            self._bound.__exit__(kind, error, trace)

    def _mapped(self, error: Exception) -> Failed:
        return judged(
            self._rpc,
            error,
            context=self._context,
            trace_id=self._trace_id,
            tenant=self._tenant,
            failing=self._failing,
        )


def judged(
    rpc: str,
    error: Exception,
    *,
    context: CallContext,
    trace_id: str,
    tenant: str | None = None,
    failing: Callable[[DuckMeshError], None] = lambda _: None,
) -> Failed:
    """How a call ends that left its boundary with `error`, which is logged here, once."""
    known: DuckMeshError
    if isinstance(error, DuckMeshError):
        known = error
        _log_error(rpc, known, trace_id, tenant)
    elif isinstance(error, Gone) or context.is_cancelled:
        known = Cancelled(ErrorCode.QUERY_CANCELLED, "the caller has gone")
        _log_error(rpc, known, trace_id, tenant)
    else:
        known = Internal()
        _log.error("rpc_failed", rpc=rpc, trace_id=trace_id, tenant=tenant, exc_info=error)
    failing(known)
    return failed(known, trace_id)


def _log_error(rpc: str, error: DuckMeshError, trace_id: str, tenant: str | None) -> None:
    fault = isinstance(error, Fenced | Corrupt | Internal)
    write = _log.error if fault else _log.warning if error.retryable else _log.info
    write(
        "rpc_refused",
        rpc=rpc,
        error_code=error.code.value,
        message=error.message,
        trace_id=trace_id,
        tenant=tenant,
    )


def _status(code: Status, text: str, contract: str) -> bytes:
    """A google.rpc.Status. Go shows its text and details only if `code` equals the call's."""
    status = messages.status()(code=int(code), message=text)
    detail = status.details.add()
    detail.type_url = "type.googleapis.com/google.protobuf.StringValue"
    detail.value = wrappers_pb2.StringValue(value=contract).SerializeToString()
    return bytes(status.SerializeToString())


def ascii_json(value: Mapping[str, Any]) -> str:
    """Compact JSON that any header may carry; what JSON lacks is its text."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, default=str)
