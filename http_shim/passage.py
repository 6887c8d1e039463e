"""The way in and out of every request: its trace, its place, its metrics, and its errors."""

import secrets
import time
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duckmesh import metrics, tracing
from duckmesh.errors import Cancelled
from duckmesh.telemetry import bind_trace, parse_trace_id
from http_shim.boundary import TRACE_HEADER, error_response, known_error, log_refusal
from http_shim.calls import Call
from http_shim.rooms import Door

_UNCOUNTED: Final = frozenset({"/v1/health", "/v1/ready", "/v1/metrics"})
"""They answer when all places are taken, and while the door drains."""
_HEX: Final = frozenset("0123456789abcdef")


class Passage:
    """Wraps the application: nothing but an answer leaves it, whatever happens inside."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace_id = parse_trace_id(
            x_trace_id=headers.get(TRACE_HEADER), traceparent=headers.get("traceparent")
        )
        scope.setdefault("state", {})["call"] = Call(
            headers,
            trace_id,
            calls=self._door.calls,
            keys=self._door.rooms.authenticator,
            source=(scope.get("client") or ("",))[0],
        )
        answer = _Answer(send, trace_id)
        began = time.perf_counter()
        metrics.HTTP_IN_FLIGHT.inc()
        try:
            with bind_trace(trace_id), tracing.arriving(_parent(headers, trace_id)):
                await self._answered(scope, receive, answer)
        finally:
            metrics.HTTP_IN_FLIGHT.dec()
            _count(scope, answer.status, time.perf_counter() - began)

    async def _answered(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        try:
            if scope["path"] in _UNCOUNTED:
                await self._app(scope, receive, answer.send)
            else:
                with self._door.calls.place():
                    await self._app(scope, receive, answer.send)
        except Exception as failed:  # noqa: BLE001 - the boundary: nothing leaves but an answer
            error, status, headers = known_error(failed)
            if not (isinstance(error, Cancelled) and answer.begun):
                log_refusal(error, _route_of(scope), status, **_tenant_of(scope))
            if answer.begun:
                # Too late for a status. The answer ends without its end, which uvicorn makes a
                # closed connection: no client takes it for a whole one.
                return
            response = error_response(error, answer.trace_id, status=status, **headers)
            await response(scope, receive, answer.send)


class _Answer:
    """Adds what every answer carries, and remembers how far it came."""

    def __init__(self, send: Send, trace_id: str) -> None:
        self._send = send
        self.trace_id = trace_id
        self.begun = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[TRACE_HEADER] = self.trace_id
            headers["x-content-type-options"] = "nosniff"
            headers.setdefault("cache-control", "no-store")
            if len(self.trace_id) == 32 and _HEX.issuperset(self.trace_id):
                headers["traceparent"] = f"00-{self.trace_id}-{secrets.token_hex(8)}-00"
        await self._send(message)


def _count(scope: Scope, status: int, seconds: float) -> None:
    route, method = _route_of(scope), _method_of(scope)
    metrics.HTTP_REQUESTS.labels(route, method, str(status)).inc()
    metrics.HTTP_SECONDS.labels(route, method).observe(seconds)


def _parent(headers: Headers, trace_id: str) -> str | None:
    """The caller's `traceparent`, when it is what the trace id was taken from."""
    sent = headers.get("traceparent")
    return sent if sent is not None and trace_id in sent else None


def _tenant_of(scope: Scope) -> dict[str, Any]:
    """The log's fields of the tenant that called, once it is known."""
    call: Call = scope["state"]["call"]
    who = call.known_identity
    return {} if who is None else {"tenant": who.tenant, "tenant_id": who.tenant_id}


def _route_of(scope: Scope) -> str:
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "unknown"


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _method_of(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in _METHODS else "other"
