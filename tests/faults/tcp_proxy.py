"""A TCP proxy that fails on command: in front of S3, Postgres, or any server on this machine.

    with TcpProxy(("127.0.0.1", 5432)) as proxy:
        connect(port=proxy.port)
        proxy.switch(Fault.RESET, after_bytes=4096)

A switch resets the open connections, so that every later byte meets the new fault. Those who
connect from then on meet it after `after_bytes` of their connection, counted in both directions.
"""

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self

CHUNK_BYTES: Final = 64 * 1024
SMALL_BUFFER_BYTES: Final = 16 * 1024
"""The receive buffer of the proxy: a peer that is not read from soon cannot write."""
SEND_TIMEOUT: Final = struct.pack("ll", 0, 200_000)
"""A fifth of a second, as the C struct timeval."""


class Fault(Enum):
    PASS = auto()
    """None: bytes go through."""
    REFUSE = auto()
    """Nobody listens."""
    HANG = auto()
    """Everything is read, nothing is answered."""
    RESET = auto()
    """The connection is reset."""
    HALF_CLOSE = auto()
    """The client sees the end of the answer; what it sends is read and forgotten."""
    STOP_READING = auto()
    """Nothing is read and nothing is answered; the connection stays."""


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    fault: Fault
    after_bytes: int
    server: socket.socket | None = None
    seen_bytes: int = 0
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def passes(self, chunk: bytes) -> bool:
        """Count the chunk; whether it comes before the fault."""
        with self.lock:
            self.seen_bytes += len(chunk)
            return self.fault is Fault.PASS or self.seen_bytes <= self.after_bytes

    def reset(self) -> None:
        """Close both sides at once: the client gets a RST, not an end of stream."""
        # First of all: the pumps that wake must not take it for an end, and pass that on.
        self.ended = True
        for side in (self.client, self.server):
            if side is None:
                continue
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A thread that blocks in recv keeps a closed socket open: wake it first.
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RD)
            side.close()


class TcpProxy:
    """Listens on a free port of 127.0.0.1 from `start` to `stop`. Threads, no event loop."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._fault = Fault.PASS
        self._after_bytes = 0
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._placeholder: socket.socket | None = None
        self.port = 0

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._connections)

    def start(self) -> None:
        self._listen()

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self._stop_listening()
        if self._placeholder is not None:
            self._placeholder.close()
        self._reset_all()
        for thread in self._threads:
            thread.join()

    def switch(self, fault: Fault, *, after_bytes: int = 0) -> None:
        """Fail this way from now on."""
        with self._lock:
            self._fault, self._after_bytes = fault, after_bytes
        if fault is Fault.REFUSE:
            self._stop_listening()
        elif self._listener is None:
            self._listen()
        self._reset_all()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _listen(self) -> None:
        listener = self._bound()
        listener.listen(128)
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        self._listener = listener
        self._spawn(self._accept, listener)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        # Bound but not listening: the port stays ours, and who connects is refused.
        self._placeholder = self._bound()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    def _bound(self) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        bound.bind(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        return bound

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads = [thread, *(known for known in self._threads if known.is_alive())]
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                connection = _Connection(client, self._fault, self._after_bytes)
                self._connections.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.server = socket.create_connection(self._upstream)
            for side in (connection.client, connection.server):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)
        except OSError:
            self._end(connection)
            return
        self._spawn(self._pump, connection, connection.server, connection.client)
        self._pump(connection, connection.client, connection.server)

    def _pump(self, connection: _Connection, source: socket.socket, target: socket.socket) -> None:
        """Carry bytes one way until they end, or until the fault."""
        try:
            while True:
                if self._stops_reading(connection):
                    return
                chunk = source.recv(CHUNK_BYTES)
                if connection.ended:
                    return
                if not chunk:
                    target.shutdown(socket.SHUT_WR)
                    return
                if connection.passes(chunk):
                    self._send(connection, target, chunk)
                elif not self._fail(connection):
                    return
        except OSError:
            self._end(connection)

    @staticmethod
    def _send(connection: _Connection, target: socket.socket, chunk: bytes) -> None:
        """Send all, waking now and then: a peer that reads nothing must not hold up `stop`."""
        left = memoryview(chunk)
        while left and not connection.ended:
            with contextlib.suppress(BlockingIOError):
                left = left[target.send(left) :]

    @staticmethod
    def _stops_reading(connection: _Connection) -> bool:
        return (
            connection.fault is Fault.STOP_READING
            and connection.seen_bytes >= connection.after_bytes
        )

    def _fail(self, connection: _Connection) -> bool:
        """Do what the fault says. Return whether to go on reading, and forgetting."""
        match connection.fault:
            case Fault.RESET | Fault.REFUSE:
                self._end(connection)
            case Fault.HALF_CLOSE:
                with contextlib.suppress(OSError):
                    connection.client.shutdown(socket.SHUT_WR)
                return True
            case Fault.HANG:
                return True
            case _:
                pass
        return False

    def _end(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.reset()

    def _reset_all(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            self._end(connection)
