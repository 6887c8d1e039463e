"""Real processes of the product, to be killed, stopped and restarted; and a small plain client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import flight

from flight_server import messages

PATIENCE_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition; fail when it does not come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {condition.__name__}")
        time.sleep(0.02)


@dataclass
class ProductProcess:
    """One process of the product: `serve` or `coordinate`."""

    arguments: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> "ProductProcess":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "command_line.main", *self.arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9: nothing of the process runs any more when this returns."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)

    def said(self, word: str) -> bool:
        return word in self.log.read_text(errors="replace")


class Service:
    """Serving processes and coordinators over one catalog and one directory store."""

    def __init__(self, dsn: str, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._processes: list[ProductProcess] = []
        self._http_uris: dict[str, str] = {}
        self._settings = {
            "DUCKMESH_CATALOG_DSN": dsn,
            "DUCKMESH_STORE_URL": (folder / "objects").as_uri(),
            "DUCKMESH_AUTH_OPEN_MODE": "true",
            "DUCKMESH_AUTH_DEFAULT_TENANT": "acme",
            **settings,
        }

    def serve(self, **settings: str) -> tuple[ProductProcess, str]:
        """A serving process that answers, and its URI. A restarted one keeps its port."""
        process, uri = self.serve_unawaited(**settings)
        wait_until_served(uri)
        return process, uri

    def serve_unawaited(self, **settings: str) -> tuple[ProductProcess, str]:
        """A serving process that may not answer yet, and its URI without TLS."""
        port, http_port = free_port(), free_port()
        process = self._start(
            ["serve"],
            DUCKMESH_FLIGHT_PORT=str(port),
            DUCKMESH_HTTP_PORT=str(http_port),
            DUCKMESH_CACHE_DIRECTORY=str(self._folder / f"cache-{port}"),
            **settings,
        )
        scheme = "grpc+tls" if "DUCKMESH_FLIGHT_TLS_CERTIFICATE" in settings else "grpc"
        uri = f"{scheme}://127.0.0.1:{port}"
        self._http_uris[uri] = f"http://127.0.0.1:{http_port}"
        return process, uri

    def http_of(self, uri: str) -> str:
        """The HTTP door of the serving process that answers at `uri`."""
        return self._http_uris[uri]

    def coordinate(self, name: str, **settings: str) -> ProductProcess:
        return self._start(["coordinate"], DUCKMESH_COORDINATOR_CONSUMER_ID=name, **settings)

    def _start(self, arguments: list[str], **settings: str) -> ProductProcess:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DUCKMESH_")}
        log = self._folder / f"{arguments[0]}-{len(self._processes)}.log"
        process = ProductProcess(arguments, kept | self._settings | settings, log)
        self._processes.append(process)
        return process.start()

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send(signal.SIGCONT)
            process.kill()


@contextmanager
def service(dsn: str, folder: Path, **settings: str) -> Iterator[Service]:
    running = Service(dsn, folder, **settings)
    try:
        yield running
    finally:
        running.close()


def wait_until_served(uri: str) -> None:
    def answers() -> bool:
        try:
            with flight.connect(uri, disable_server_verification=True) as client:
                list(client.list_actions())
        except flight.FlightUnauthenticatedError:
            return True
        except (flight.FlightError, pa.ArrowException, OSError):
            return False
        return True

    until(answers)


class PlainClient:
    """A Flight client with no driver: one DoPut a write, and queries that name a token."""

    def __init__(self, uri: str) -> None:
        self._client = flight.connect(uri)

    def put(self, table: str, batch: pa.RecordBatch, *, key: str | None = None) -> dict[str, int]:
        """Write one batch; return its receipt."""
        headers = [] if key is None else [(b"x-duckmesh-idempotency-key", key.encode())]
        options = flight.FlightCallOptions(headers=headers, timeout=30)
        descriptor = flight.FlightDescriptor.for_path(table)
        writer, reader = self._client.do_put(descriptor, batch.schema, options)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            answer = reader.read()
            assert answer is not None, "no receipt"
            receipt: dict[str, int] = json.loads(answer.to_pybytes())
        return receipt

    def query(self, sql: str, *, token: int | None = None, timeout_ms: int = 30_000) -> pa.Table:
        headers = [(b"x-duckmesh-consistency-timeout-ms", str(timeout_ms).encode())]
        if token is not None:
            headers.append((b"x-duckmesh-min-visibility-token", str(token).encode()))
        options = flight.FlightCallOptions(headers=headers, timeout=60)
        command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
        info = self._client.get_flight_info(flight.FlightDescriptor.for_command(command), options)
        return self._client.do_get(info.endpoints[0].ticket, options).read_all()

    def close(self) -> None:
        self._client.close()
