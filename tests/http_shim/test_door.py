"""The door of a real process: a caller who leaves, a drain, TLS, many at once."""

import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.processes import ProductProcess, service, until

ENDLESS = "SELECT count(*) FROM range(100000000000) a(i) WHERE hash(i) = 1"


@pytest.fixture
def serving(database_dsn: str, tmp_path: Path) -> Iterator[tuple[ProductProcess, str]]:
    """A serving process with little room, and the address of its HTTP door."""
    settings = {"DUCKMESH_QUERY_MAX_CONCURRENT": "1", "DUCKMESH_QUERY_MAX_QUEUED": "0"}
    with service(database_dsn, tmp_path, **settings) as running:
        process, uri = running.serve(DUCKMESH_FLIGHT_DRAIN_SECONDS="2")
        yield process, running.http_of(uri)


def in_flight(uri: str) -> float:
    page = httpx.get(f"{uri}/v1/metrics").text
    (line,) = (each for each in page.splitlines() if each.startswith("duckmesh_http_requests_in"))
    return float(line.split()[1])


def half_closed_request(uri: str, sql: str) -> socket.socket:
    """A request under way whose caller can be made to leave."""
    host, _, port = uri.removeprefix("http://").partition(":")
    body = json.dumps({"sql": sql}).encode()
    caller = socket.create_connection((host, int(port)))
    head = (
        f"POST /v1/query HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    caller.sendall(head.encode() + body)
    return caller


def answers(uri: str) -> bool:
    return httpx.post(f"{uri}/v1/query", json={"sql": "SELECT 1"}, timeout=30).status_code == 200


def test_a_caller_who_leaves_ends_the_query_before_and_after_its_first_row(serving) -> None:
    _, uri = serving
    for sql, first_bytes in ((ENDLESS, 0), ("SELECT i FROM range(10000000000) r(i)", 65_536)):
        assert answers(uri)
        caller = half_closed_request(uri, sql)
        if first_bytes:
            assert caller.recv(first_bytes)
        until(lambda: in_flight(uri) == 2)
        refused = httpx.post(f"{uri}/v1/query", json={"sql": "SELECT 1"}, timeout=30)
        if not first_bytes:
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        caller.close()
        # The one turn that there is comes back.
        until(lambda: in_flight(uri) == 1, seconds=20)
        until(lambda: answers(uri), seconds=20)


def test_a_slow_reader_slows_the_query_down_and_not_the_door(serving) -> None:
    _, uri = serving
    caller = half_closed_request(uri, "SELECT i, repeat('x', 1000) FROM range(10000000) r(i)")
    assert caller.recv(1000)
    # It reads no more: others are answered, and memory holds what was on its way.
    until(lambda: answers(uri), seconds=20)
    caller.close()
    until(lambda: in_flight(uri) == 1, seconds=20)


def test_sigterm_lets_requests_end_and_refuses_new_ones(serving) -> None:
    process, uri = serving
    answered: list[httpx.Response] = []
    sql = "SELECT count(*) FROM range(300000000) r(i) WHERE hash(i) % 7 = 1"

    def ask() -> None:
        answered.append(httpx.post(f"{uri}/v1/query", json={"sql": sql}, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: in_flight(uri) == 2)
    process.send(signal.SIGTERM)

    def refuses() -> bool:
        try:
            return httpx.get(f"{uri}/v1/tables").status_code == 503
        except httpx.TransportError:
            return True

    until(refuses)
    asking.join(timeout=60)
    # Ended by itself, or by the end of the patience: answered in any case.
    assert answered[0].status_code in (200, 499)
    assert process.process is not None
    assert process.process.wait(timeout=30) == 0


def test_an_endless_query_is_stopped_when_the_drain_ends(serving) -> None:
    process, uri = serving
    caller = half_closed_request(uri, ENDLESS)
    until(lambda: in_flight(uri) == 2)
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 25
    caller.close()


def test_many_callers_at_once_are_all_answered(serving) -> None:
    _, uri = serving
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=uri, timeout=60) as client:
            statuses.extend(client.get("/v1/tables").status_code for _ in range(10))

    callers = [threading.Thread(target=ask) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert statuses == [200] * 160


def test_tls_and_mutual_tls(database_dsn: str, tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.issue("server"), authority.issue("client")
    files = {
        "ca.pem": authority.certificate,
        "server.pem": server.certificate,
        "server.key": server.key,
        "client.pem": client.certificate,
        "client.key": client.key,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    settings = {
        "DUCKMESH_HTTP_TLS_CERTIFICATE": str(tmp_path / "server.pem"),
        "DUCKMESH_HTTP_TLS_KEY": str(tmp_path / "server.key"),
        "DUCKMESH_HTTP_CLIENT_CA": str(tmp_path / "ca.pem"),
    }
    with service(database_dsn, tmp_path, **settings) as running:
        _, uri = running.serve()
        address = running.http_of(uri).replace("http://", "https://")
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/v1/health", verify=context)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        assert httpx.get(f"{address}/v1/health", verify=context).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/v1/health")


def test_bytes_that_are_no_http_are_refused_and_the_door_lives(serving) -> None:
    _, uri = serving
    host, _, port = uri.removeprefix("http://").partition(":")
    for garbage in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=20) as caller:
            try:
                caller.sendall(garbage)
                caller.shutdown(socket.SHUT_WR)
                answer = caller.recv(100)
            except OSError:
                answer = b""
            assert b" 500 " not in answer
    assert httpx.get(f"{uri}/v1/health").status_code == 200
