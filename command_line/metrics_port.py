"""The coordinator's own port: what it counts, whether it lives, whether it can do its work."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, ClassVar, Final

from duckmesh import metrics
from duckmesh.errors import ErrorCode, Invalid, Unavailable
from gateway.readiness import Readiness, not_ready

_IDLE_SECONDS: Final = 10.0
"""How long a caller may pause: one that says nothing holds a thread."""

Answer = tuple[HTTPStatus, str, bytes]
"""The status, the content type and the body."""


class _Request(BaseHTTPRequestHandler):
    """One request. The pages are the server's."""

    timeout = _IDLE_SECONDS
    pages: ClassVar[dict[str, Callable[[], Answer]]] = {}

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        status, kind, body = (
            (HTTPStatus.NOT_FOUND, "text/plain", b"metrics, health and ready are here\n")
            if page is None
            else page()
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "duckmesh"

    def log_message(self, *_: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Nothing: the caller has gone in the middle of his answer."""


@contextlib.contextmanager
def metrics_port(
    host: str, port: int, readiness: Readiness, stopping: threading.Event
) -> Iterator[int]:
    """Answer `/metrics`, `/health` and `/ready` for the length of the block; yield the port.

    Raises Invalid when the address cannot be listened on.
    """

    def ready() -> Answer:
        return _ready(readiness, stopping)

    pages = {"/metrics": _metrics, "/health": _health, "/ready": ready}
    request = type("_Requests", (_Request,), {"pages": pages})
    server_type = type("_Listening", (_Server,), {"address_family": _family(host)})
    try:
        server = server_type((host, port), request)
    except OSError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "the coordinator cannot listen at coordinator.metrics_host and metrics_port: "
            "choose a free port of this machine",
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics-port", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _family(host: str) -> int:
    return AF_INET6 if ":" in host else AF_INET


def _metrics() -> Answer:
    return HTTPStatus.OK, metrics.CONTENT_TYPE, metrics.page()


def _health() -> Answer:
    return _json(HTTPStatus.OK, {"status": "ok"})


def _ready(readiness: Readiness, stopping: threading.Event) -> Answer:
    failure = (
        Unavailable(ErrorCode.NOT_READY, "this coordinator is stopping")
        if stopping.is_set()
        else None
    )
    results = readiness.check() if failure is None else ()
    failure = failure or not_ready(results)
    if failure is not None:
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, failure.as_contract())
    probes = {each.name: each.detail for each in results}
    return _json(HTTPStatus.OK, {"status": "ready", "probes": probes})


def _json(status: HTTPStatus, content: dict[str, Any]) -> Answer:
    return status, "application/json", json.dumps(content).encode()
