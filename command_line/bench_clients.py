"""Clients of `duckmesh bench`: each in a thread with a connection of its own, asking in a loop."""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from command_line.flight_client import failure_of_driver
from command_line.server_address import Server
from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, Unavailable

Act = Callable[[], object]
Opened = Callable[[int], AbstractContextManager[Act]]
"""Opens the client of a number; what it gives asks once, and returns when it is answered."""

_OPEN_SECONDS = 60.0


class Crowd:
    """Clients that ask at once, each one answer after the other, for so many seconds."""

    def __init__(self, opened: Opened, *, clients: int, seconds: float) -> None:
        self._opened = opened
        self._seconds = seconds
        self._ready = threading.Barrier(clients + 1)
        self._stop = threading.Event()
        self._took: list[list[float]] = [[] for _ in range(clients)]
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def run(self) -> list[float]:
        """How long each answer took. The first one of each client warms up and does not count.

        Ctrl-C stops all clients, waits for their last answers, and is raised. Raises what a client
        raised first.
        """
        for thread in self._threads:
            thread.start()
        try:
            self._await_ready()
            self._stop.wait(self._seconds)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if self._failures:
            raise _failure(self._failures[0])
        return [each for took in self._took for each in took]

    def _await_ready(self) -> None:
        try:
            self._ready.wait(_OPEN_SECONDS)
        except threading.BrokenBarrierError:
            if not self._failures:
                self._failures.append(
                    Unavailable(ErrorCode.NOT_READY, "the clients got no first answer in time")
                )

    def _ask(self, number: int) -> None:
        try:
            with self._opened(number) as act:
                act()
                self._ready.wait(_OPEN_SECONDS)
                while not self._stop.is_set():
                    began = time.perf_counter()
                    act()
                    self._took[number].append(time.perf_counter() - began)
        except threading.BrokenBarrierError:
            return
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            self._failures.append(error)
            self._ready.abort()
            self._stop.set()


def _failure(error: BaseException) -> BaseException:
    if isinstance(error, DuckMeshError) or not isinstance(error, Exception):
        return error
    return failure_of_driver(error)


def checked_http(uri: str | None) -> SplitResult | None:
    """The address of an HTTP door. Raises Invalid when it is none."""
    if uri is None:
        return None
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "the address of the HTTP door is refused: give http://host:port or https://host:port",
        )
    return parts


class HttpClient:
    """One connection to the HTTP door, that stays open. Used by one thread."""

    def __init__(self, address: SplitResult, server: Server) -> None:
        assert address.hostname is not None  # noqa: S101 - checked_http has seen to it
        if address.scheme == "https":
            trusted = ssl.create_default_context(cadata=server.tls_root)
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address.hostname, address.port, timeout=60, context=trusted
            )
        else:
            self._connection = http.client.HTTPConnection(
                address.hostname, address.port, timeout=60
            )
        self._headers = {"Content-Type": "application/json"}
        if server.key is not None:
            self._headers["Authorization"] = f"Bearer {server.key}"

    def post(self, path: str, body: bytes) -> Any:
        """One request, and its answer. Raises what the door answers, and Unavailable."""
        try:
            self._connection.request("POST", path, body, self._headers)
            answer = self._connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                ErrorCode.NOT_READY,
                "the HTTP door does not answer: check that it listens there, and --http-uri",
            ) from error
        if answer.status >= 300:
            raise failure_of_driver(OSError(_told(answer.status, said)))
        return json.loads(said)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def http_client(address: SplitResult, server: Server) -> Iterator[HttpClient]:
    """A client for the length of the block."""
    client = HttpClient(address, server)
    try:
        yield client
    finally:
        client.close()


def _told(status: int, said: bytes) -> str:
    """What the door answered, as the driver words it: with the code in brackets."""
    try:
        told = json.loads(said)
        return f"[{told['error_code']}] {told['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the HTTP door answers {status}, and gives no reason"
