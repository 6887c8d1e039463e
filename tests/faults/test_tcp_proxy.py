"""The proxy itself fails as it says."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.faults.tcp_proxy import Fault, TcpProxy

LIMIT_SECONDS = 10


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that answers each connection with what it sends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(peer: socket.socket) -> None:
        with peer:
            try:
                while chunk := peer.recv(65536):
                    peer.sendall(chunk)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def proxy(echo: tuple[str, int]) -> Iterator[TcpProxy]:
    with TcpProxy(echo) as proxy:
        yield proxy


def dial(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT_SECONDS)


def test_it_passes_bytes_both_ways(proxy: TcpProxy) -> None:
    with dial(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"


def test_it_refuses_and_then_listens_on_the_same_port_again(proxy: TcpProxy) -> None:
    proxy.switch(Fault.REFUSE)
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    proxy.switch(Fault.PASS)
    with dial(proxy) as client:
        client.sendall(b"again")
        assert client.recv(5) == b"again"


def test_a_switch_resets_open_connections(proxy: TcpProxy) -> None:
    with dial(proxy) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        proxy.switch(Fault.HANG)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_it_stops_though_a_peer_reads_nothing(proxy: TcpProxy) -> None:
    with dial(proxy) as client:
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.sendall(b"x" * 64_000_000)
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        stopping.join(LIMIT_SECONDS)
        assert not stopping.is_alive()


def test_a_hanging_connection_is_read_but_never_answered(proxy: TcpProxy) -> None:
    proxy.switch(Fault.HANG)
    with dial(proxy) as client:
        client.sendall(b"x" * 4_000_000)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_it_resets_after_so_many_bytes(proxy: TcpProxy) -> None:
    proxy.switch(Fault.RESET, after_bytes=100)
    with dial(proxy) as client:
        client.sendall(b"x" * 10)
        assert client.recv(10) == b"x" * 10
        client.sendall(b"x" * 200)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_half_closed_connection_ends_the_answer_and_still_reads(proxy: TcpProxy) -> None:
    proxy.switch(Fault.HALF_CLOSE, after_bytes=5)
    with dial(proxy) as client:
        client.sendall(b"x" * 10)
        assert client.recv(10) == b""
        client.sendall(b"x" * 4_000_000)


def test_a_peer_that_stops_reading_blocks_the_writer(proxy: TcpProxy) -> None:
    proxy.switch(Fault.STOP_READING)
    with dial(proxy) as client:
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.sendall(b"x" * 64_000_000)
