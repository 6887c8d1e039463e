"""Listens, and moves the bytes of all connections on one thread.

A thread for each call costs a small call several times its work: threads wake each other, and fight
for Python's lock. Here one thread reads what has come, hands each call to the service, and sends
what is ready; what may block is given to threads by the service.
"""

import contextlib
import logging
import os
import socket
import ssl
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from grpc_transport.calls import Call, Part
from grpc_transport.connection import Connection
from grpc_transport.poller import READ, WRITE, Poller, best_poller

_log = logging.getLogger(__name__)
_READ_BYTES: Final = 256 * 1024
_BACKLOG: Final = 1024
_TLS_SEND_BYTES: Final = 64 * 1024
_DEADLINE_LOOK_SECONDS: Final = 0.02
_HELLO_WITHIN_SECONDS: Final = 20.0
"""A client that has not greeted by then, in TLS and in HTTP/2, is not waited for."""

SPEAKS_WITHIN_SECONDS: Final = 60.0
"""A call whose first message has not come by then is ended."""

_LOOK_SECONDS: Final = 5.0
"""Between two looks at those who say nothing."""

CONNECTIONS_MAX: Final = 10_000
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 4}
"""A client whose machine is gone is noticed within some two minutes."""

_DEAF_SECONDS: Final = 0.1
"""So long no connection is accepted when the system has no file descriptor for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates in PEM. With `client_ca` set a client must show one that it signed."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None

    def context(self) -> ssl.SSLContext:
        """What a server's sockets are wrapped with. Raises ssl.SSLError, ValueError."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.set_alpn_protocols(["h2"])
        # OpenSSL reads a chain from files alone.
        with tempfile.TemporaryDirectory(prefix="duckmesh-tls-") as directory:
            certificate, key = Path(directory, "certificate"), Path(directory, "key")
            certificate.write_bytes(self.certificate)
            key.touch(mode=0o600)
            key.write_bytes(self.key)
            made.load_cert_chain(certificate, key)
        if self.client_ca is not None:
            made.load_verify_locations(cadata=self.client_ca.decode("ascii"))
            made.verify_mode = ssl.CERT_REQUIRED
        return made


class GrpcServer:
    """Serves from `start` on, until `close`."""

    def __init__(
        self,
        arrived: Callable[[Call], None],
        *,
        host: str,
        port: int,
        tls: Tls | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """Listen. `arrived` is told of each new call, on the thread that moves bytes: it must not
        block, and finds what has come of the call in it. Raises OSError, ssl.SSLError.

        Beyond `connections_max` the one that has no call and was silent for longest makes room.
        """
        self._service = arrived
        self._connections_max = connections_max
        self._tls = None if tls is None else tls.context()
        self.poller: Poller = best_poller()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.poller.register(self._listener.fileno(), READ, self._accept)
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self.poller.register(self._woken.fileno(), READ, self._woken_up)
        self._links: set[_Link] = set()
        self._requests: deque[Callable[[], None]] = deque()
        self._turn = threading.Lock()
        """Held while bytes are moved. Between two times the poller waits without it."""
        self._with_deadlines: set[Call] = set()
        self._greeting: dict[_Link, float] = {}
        self._look_at = 0.0
        self._deaf_until: float | None = None
        self._closing = False
        self._ended = False
        self._watching = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._thread = threading.Thread(target=self._run, name="grpc-transport", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, grace: timedelta = timedelta(seconds=1)) -> None:
        """Accept nothing more; send what is ready for as long as `grace`, then end all."""
        self.ask(self._stop_listening)
        ends_at = time.monotonic() + grace.total_seconds()
        while time.monotonic() < ends_at and not all(each.is_quiet for each in list(self._links)):
            time.sleep(0.01)
        self._end()
        self._thread.join()

    def ask(self, act: Callable[[], None]) -> None:
        """Have `act` run in turn with all that moves bytes, soon. From any thread.

        It runs on this thread when the other one waits for bytes: that one need not be woken.
        """
        self._requests.append(act)
        self._answer_requests()

    def watch(self, descriptor: int, act: Callable[[], None]) -> bool:
        """Have `act` run in turn, once, when `descriptor` has bytes to read. From any thread.

        False, and it never runs, when the server has ended.
        """
        with self._watching:
            if self._ended:
                return False
            # First: the other thread may see it at once.
            self._watched[descriptor] = act
            try:
                self.poller.once(descriptor, partial(self._seen, descriptor))
            except BaseException:
                del self._watched[descriptor]
                raise
            return True

    def _seen(self, descriptor: int, _events: int = READ) -> None:
        act = self._watched.pop(descriptor, None)
        if act is not None:
            _run(act)

    def _answer_requests(self) -> None:
        # Whoever has the turn looks again when he has given it back, so that none is left over.
        while self._requests and self._turn.acquire(blocking=False):
            try:
                while self._requests:
                    _run(self._requests.popleft())
            finally:
                self._turn.release()

    # ---- On the thread that moves bytes

    def _run(self) -> None:
        while not self._closing:
            ready = self.poller.wait(self._pause())
            with self._turn:
                for act, events in ready:
                    act(events)
                if self._with_deadlines:
                    self._look_at_deadlines()
                if self._links or self._deaf_until is not None:
                    self._look_around()
            self._answer_requests()
        for link in list(self._links):
            link.end()
        with self._watching:
            self._ended = True
            watched = list(self._watched)
        for descriptor in watched:
            # Whoever waits finds that he has to look for himself.
            self._seen(descriptor)
        self.poller.close()
        for each in (self._woken, self._wake):
            each.close()

    def _pause(self) -> float | None:
        if self._with_deadlines:
            return _DEADLINE_LOOK_SECONDS
        if self._deaf_until is not None:
            return _DEAF_SECONDS
        return _LOOK_SECONDS if self._links else None

    def _accept(self, _events: int) -> None:
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # No file descriptor is free, say: the next one waits, and this thread must not spin.
            self.poller.unregister(self._listener.fileno())
            self._deaf_until = time.monotonic() + _DEAF_SECONDS
            return
        if len(self._links) >= self._connections_max and not self._make_room():
            accepted.close()
            return
        try:
            _prepare(accepted)
            link = _Link(self, accepted, self._tls)
            link.begin()
        except OSError:
            accepted.close()
            return
        self._links.add(link)
        self._greeting[link] = time.monotonic() + _HELLO_WITHIN_SECONDS

    def _make_room(self) -> bool:
        """End a connection that nothing happens on; whether there was one."""
        idle = [link for link in self._links if link.is_quiet]
        if not idle:
            return False
        link = min(idle, key=lambda each: each.heard_at)
        link.connection.leave()
        link.end()
        return True

    def arrived(self, call: Call) -> None:
        if call.deadline is not None:
            self._with_deadlines.add(call)
        self._service(call)

    def ended(self, link: "_Link") -> None:
        self._links.discard(link)
        self._greeting.pop(link, None)

    def _end(self) -> None:
        """Have the thread come back from its wait, and find that it is over."""
        self._closing = True
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake.send(b"\0")

    def _woken_up(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        over = [
            c for c in self._with_deadlines if c.ended or c.cancelled or (c.deadline or 0) < now
        ]
        self._with_deadlines.difference_update(over)
        for call in over:
            if not (call.ended or call.cancelled):
                call.connection.give_up(call)

    def _look_around(self) -> None:
        now = time.monotonic()
        if self._deaf_until is not None and self._deaf_until < now:
            self._deaf_until = None
            if self._listener.fileno() >= 0:
                self.poller.register(self._listener.fileno(), READ, self._accept)
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        for link in [each for each, until in self._greeting.items() if until < now]:
            if link.connection.has_begun:
                del self._greeting[link]
            else:
                link.end()
        for link in list(self._links):
            link.connection.end_silent(now - SPEAKS_WITHIN_SECONDS)

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            if self._deaf_until is None:
                self.poller.unregister(self._listener.fileno())
            self._listener.close()
        for link in self._links:
            link.connection.leave()


class _Link:
    """A socket and the connection over it."""

    def __init__(
        self, server: GrpcServer, accepted: socket.socket, tls: ssl.SSLContext | None
    ) -> None:
        self._server = server
        self._wire: _Plain | _Encrypted = (
            _Plain(accepted, self._ask_to_write)
            if tls is None
            else _Encrypted(accepted, self._ask_to_write, tls)
        )
        self.connection = Connection(self._wire, server.arrived, time.monotonic, server.ask)
        self.heard_at = time.monotonic()
        self._events = READ
        self._over = False
        self._paused = False
        self._interest = threading.Lock()
        """Of what the poller waits for. Nothing else is locked under it."""

    @property
    def is_quiet(self) -> bool:
        return self._over or self.connection.is_quiet

    def begin(self) -> None:
        """Serve it from now on."""
        self._server.poller.register(self._wire.socket.fileno(), self._events, self._ready)
        if isinstance(self._wire, _Plain):
            self.connection.writable()

    def end(self) -> None:
        """Close the socket, and tell all calls."""
        with self._interest:
            if self._over:
                return
            self._over = True
            self._server.poller.unregister(self._wire.socket.fileno())
        self._server.ended(self)
        # First: nobody sends after it. Else one who is about to would find the number of the
        # socket given to another client's.
        self.connection.lost()
        self._wire.close()

    def _ready(self, events: int) -> None:
        if self._over:
            # Ended by another thread since the poller told of it.
            return
        try:
            if not self._wire.is_open and not self._open():
                return
            if events & WRITE:
                self._listen_for(READ)
                self.connection.writable()
            if events & READ or self._paused:
                self._read()
        except OSError:
            self.end()
        except Exception:  # noqa: BLE001 - logged
            # The service's fault, or ours: it costs this client his connection, and nobody else's.
            _log.exception("a connection failed")
            self.end()

    def _open(self) -> bool:
        """Go on with the handshake of TLS; whether it is done."""
        wanted = self._wire.open()
        if wanted:
            self._listen_for(wanted)
            return False
        self._listen_for(READ)
        self.connection.writable()
        return True

    def _read(self) -> None:
        self._paused = self.connection.is_choked
        if self._paused:
            # It asks and does not take: it is heard again when it has taken something.
            self._listen_for(WRITE)
            return
        data = self._wire.receive()
        if data is None:
            return
        self.heard_at = time.monotonic()
        if not data or not self.connection.received(data):
            self.end()
            return
        self._paused = self.connection.is_choked

    def _ask_to_write(self) -> None:
        # Under the connection's lock, on any thread: nothing else may be run here.
        self._listen_for(READ | WRITE)

    def _listen_for(self, events: int) -> None:
        with self._interest:
            if not self._over and events != self._events:
                self._events = events
                self._server.poller.modify(self._wire.socket.fileno(), events)


class _Plain:
    """A socket as it is."""

    is_open = True

    def __init__(self, accepted: socket.socket, wants_to_write: Callable[[], None]) -> None:
        self.socket = accepted
        self.wants_to_write = wants_to_write

    def open(self) -> int:
        return 0

    def receive(self) -> bytes | None:
        """What has come; nothing at the end, None when nothing has. Raises OSError."""
        try:
            return self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None

    def send(self, buffers: Sequence[Part]) -> int:
        try:
            return (
                self.socket.send(buffers[0]) if len(buffers) == 1 else self.socket.sendmsg(buffers)
            )
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.socket.close()


class _Encrypted:
    """A socket under TLS. OpenSSL is not made for two threads in one connection: a lock."""

    def __init__(
        self,
        accepted: socket.socket,
        wants_to_write: Callable[[], None],
        context: ssl.SSLContext,
    ) -> None:
        self._lock = threading.Lock()
        self.socket = context.wrap_socket(
            accepted, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self.wants_to_write = wants_to_write
        self.is_open = False

    def open(self) -> int:
        """What the handshake waits for; 0 when it is done. Raises OSError."""
        try:
            with self._lock:
                self.socket.do_handshake()
        except ssl.SSLWantReadError:
            return READ
        except ssl.SSLWantWriteError:
            return WRITE
        self.is_open = True
        return 0

    def receive(self) -> bytes | None:
        # A record at a time, for OpenSSL gives no more; and no further than other sockets are read
        # in one go. It keeps no record back: the system tells of what is left.
        records: list[bytes] = []
        size = 0
        try:
            while size < _READ_BYTES:
                with self._lock:
                    record = self.socket.recv(_READ_BYTES)
                if not record:
                    return b"".join(records)
                records.append(record)
                size += len(record)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not records:
                return None
        return b"".join(records)

    def send(self, buffers: Sequence[Part]) -> int:
        if not self.is_open:
            return 0
        content = _some_of(buffers, _TLS_SEND_BYTES)
        try:
            with self._lock:
                return self.socket.send(content)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def close(self) -> None:
        self.socket.close()


def _some_of(buffers: Sequence[Part], size: int) -> bytes:
    """The first bytes of the buffers, put together."""
    parts: list[Part] = []
    for buffer in buffers:
        parts.append(memoryview(buffer)[:size])
        size -= len(parts[-1])
        if not size:
            break
    return b"".join(parts)


def _run(act: Callable[[], None]) -> None:
    try:
        act()
    except Exception:  # noqa: BLE001 - logged
        # Whoever has the turn does it for others: what fails of theirs is not his.
        _log.exception("an act in turn failed")


def _prepare(accepted: socket.socket) -> None:
    accepted.setblocking(False)
    with contextlib.suppress(OSError):
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    os.set_inheritable(accepted.fileno(), False)
