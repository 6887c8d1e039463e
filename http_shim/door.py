"""The HTTP door: uvicorn on a thread of its own, opened and drained like the Flight door."""

import asyncio
import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import uvicorn

from duckmesh.errors import Conflict, ErrorCode, Invalid, Unavailable
from http_shim.app import new_app
from http_shim.rooms import Door, HttpLimits, HttpRooms
from http_shim.small_ingest import SmallIngest

_START_SECONDS: Final = 30.0
_LAST_BYTES_SECONDS: Final = 2
"""After a drain: how long the last answers' bytes may take to leave."""
_HEADERS_MAX_BYTES: Final = 64 * 2**10
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTls:
    """Certificates as PEM files. With `client_ca` set a client must show one that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How the door listens."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: HttpTls | None = None


class HttpDoor:
    """Serves from its construction on. `drain`, then `close`, end it.

    Raises Conflict when the port is taken, Invalid for a host or a certificate that is wrong.
    """

    def __init__(self, options: HttpOptions, rooms: HttpRooms, limits: HttpLimits) -> None:
        self._options = options
        self._app = new_app(rooms, limits)
        self._context = None if options.tls is None else _tls_context(options.tls)
        self._socket = _listening(options)
        self._port = int(self._socket.getsockname()[1])
        self._small_ingest = SmallIngest(self._app, self._door)
        self._server = uvicorn.Server(self._config())
        self._failed: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http-door", daemon=True)
        self._thread.start()
        if not self._started.wait(_START_SECONDS) or self._failed is not None:
            self._socket.close()
            raise Unavailable(ErrorCode.NOT_READY, "the HTTP door did not open: see the log")

    @property
    def port(self) -> int:
        return self._port

    @property
    def uri(self) -> str:
        """The address as clients name it."""
        host = self._options.host
        host = f"[{host}]" if ":" in host else host
        scheme = "http" if self._options.tls is None else "https"
        return f"{scheme}://{host}:{self._port}"

    @property
    def calls_in_flight(self) -> int:
        return self._door.calls.count

    def drain(self, grace: timedelta) -> bool:
        """Refuse new requests, let those in flight end, stop what outlasts `grace`.

        Whether all have ended, after at most twice `grace`.
        """
        return self._door.calls.drain(grace)

    def close(self) -> None:
        """Stop listening, and end the thread. Blocks for seconds at most: `drain` first."""
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)
        self._door.calls.close()

    @property
    def _door(self) -> Door:
        door = self._app.state.door
        assert isinstance(door, Door)  # noqa: S101 - the application is built with it
        return door

    def _config(self) -> uvicorn.Config:
        # What uvicorn has to say the passage has said already, or is a client's bad bytes.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        return uvicorn.Config(
            self._small_ingest,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_HEADERS_MAX_BYTES,
            timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
            ssl_context_factory=self._context_for if self._context else None,
        )

    def _context_for(self, *_: object) -> ssl.SSLContext:
        assert self._context is not None  # noqa: S101 - named as the factory only then
        return self._context

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
            self._failed = error
        finally:
            self._small_ingest.close()
            self._started.set()

    async def _serve(self) -> None:
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(0.005)
        self._started.set()
        await serving


def _listening(options: HttpOptions) -> socket.socket:
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            f"http.host {options.host!r} is no address of this machine: correct it",
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise Conflict(
            ErrorCode.SETTINGS_INVALID,
            f"port {options.port} of {options.host} cannot be listened on: end what listens "
            "there, or set http.port (--http-port); 0 takes a free one",
        ) from error
    return listening


def _tls_context(tls: HttpTls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "a file that http.tls_certificate, http.tls_key or http.client_ca names cannot be "
            "used: give PEM files that this process may read",
        ) from error
    return context
