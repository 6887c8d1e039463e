"""A TCP balancer without sense: each new connection goes to the next backend in turn.

with TcpRoundRobin([("127.0.0.1", 4001), ("127.0.0.1", 4002)]) as balancer:
    connect(port=balancer.port)
"""

import contextlib
import itertools
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class TcpRoundRobin:
    """Listens on a free port of 127.0.0.1 inside the `with` block. Counts what it hands out."""

    def __init__(self, backends: Sequence[tuple[str, int]]) -> None:
        self._turns = itertools.cycle(range(len(backends)))
        self._backends = list(backends)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket()
        self.given = [0] * len(backends)
        """How many connections each backend was given."""
        self.port = 0
        self.carries_answers = True
        """Whether what the backends say still reaches the clients."""

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A thread that blocks keeps a closed socket open: shutting it down wakes the thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sides = list(self._open)
        for side in sides:
            self._end(side)
        for thread in self._threads:
            thread.join()

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads = [thread, *(known for known in self._threads if known.is_alive())]
            thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            turn = next(self._turns)
            self.given[turn] += 1
            try:
                server = socket.create_connection(self._backends[turn])
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            self._spawn(self._pump, client, server, False)
            self._spawn(self._pump, server, client, True)

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        """Carry bytes one way until they end; then both sides end."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                if self.carries_answers or not answers:
                    target.sendall(chunk)
        self._end(source)
        self._end(target)

    def _end(self, side: socket.socket) -> None:
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(side)
        side.close()
