"""A real server, and gRPC's own clients: calls of every kind, how they end, who may connect."""

import contextlib
import gzip
import itertools
import os
import queue
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from functools import partial

import grpc
import pytest

from grpc_transport import frames
from grpc_transport.frames import Kind, Setting
from grpc_transport.outgoing import SENT_AHEAD_BYTES
from grpc_transport.server import GrpcServer, Tls
from tests.certificates import Authority
from tests.http2 import SETTINGS, headers, read_frames
from tests.processes import until

MIB = 2**20
SOCKETS_MAX_BYTES = 32 * MIB
"""What the system keeps of a connection on its way."""

SOON_SECONDS = 1.0
BRIEFLY_SECONDS = 0.3
TRANSPORT = "grpc-transport"


@pytest.fixture
def silent():
    """Requests that do not come: the iterator that a client waits at."""
    waiting = queue.Queue()
    yield iter(waiting.get, None)
    waiting.put(None)


class RawClient:
    """A socket that speaks HTTP/2, and takes what it is told to take."""

    def __init__(self, address, settings=SETTINGS):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.sendall(settings and frames.PREFACE + settings)
        self._rest = b""

    def say(self, content):
        self.socket.sendall(content)

    def hear(self):
        """Some frames more; none at the end."""
        content = self.socket.recv(2**20)
        found, self._rest = read_frames(self._rest + content)
        return found

    def hear_until(self, kind):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for each in self.hear():
                if each.kind == kind:
                    return each
        raise AssertionError("it was not said")


@pytest.fixture
def raw_of():
    """Open a raw client of an address."""
    with contextlib.ExitStack() as ends:

        def opened(address, **options):
            client = RawClient(address, **options)
            ends.callback(client.socket.close)
            return client

        yield opened


@pytest.fixture
def raw(service, raw_of):
    """Open a raw client of the service."""
    return partial(raw_of, service.address)


# ---- Calls


def test_a_unary_call_is_answered(client):
    ask = client.channel.unary_unary("/a.Service/echo")
    assert ask(b"question", timeout=10) == b"question"


def test_both_sides_may_stream(client):
    sent = [str(number).encode() * number for number in range(500)]
    assert client.ask("echo", *sent) == sent


def test_an_answer_comes_while_the_client_still_sends(client):
    requests = queue.Queue()
    call = client.stream("echo", iter(requests.get, None), timeout=20)
    for number in range(20):
        requests.put(b"%d" % number)
        assert next(call) == b"%d" % number
    requests.put(None)
    assert list(call) == []


def test_large_messages_go_both_ways(client):
    sent = [bytes([number]) * (8 * MIB) for number in range(3)]
    got = client.ask("echo", *sent)
    assert [len(each) for each in got] == [8 * MIB] * 3
    assert got == sent


def test_an_empty_call_and_an_empty_message_are_not_the_same(client):
    assert client.ask("count") == [b"0 0"]
    assert client.ask("count", b"") == [b"1 0"]


@pytest.mark.parametrize("way", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_unpacked(client, way):
    assert client.ask("echo", b"a" * 100_000, compression=way) == [b"a" * 100_000]
    assert len(gzip.compress(b"a" * 100_000)) < 1000


def test_an_error_carries_its_status_its_text_and_its_metadata(client):
    call = client.stream("fail", [b"some"], timeout=10)
    assert next(call) == b"some"
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.NOT_FOUND
    assert call.details() == "50% of ä"
    assert ("x-head", "head") in call.initial_metadata()
    trailers = dict(call.trailing_metadata())
    assert (trailers["x-tail"], trailers["x-tail-bin"]) == ("tail", b"\x00\xff")


def test_metadata_of_a_call_reaches_its_handler(service, client):
    seen = []
    service.look = lambda rpc: seen.append(dict(rpc.headers))
    metadata = [("x-one", "1"), ("x-one", "2"), ("x-bytes-bin", b"\x00\x01\xfe")]
    client.ask("look", b"", metadata=metadata)
    assert (seen[0]["x-one"], seen[0]["x-bytes-bin"]) == (["1", "2"], [b"\x00\x01\xfe"])


def test_a_method_that_is_not_there_is_unimplemented(client):
    with pytest.raises(grpc.RpcError) as caught:
        client.ask("nothing", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_many_calls_of_many_threads_share_one_channel(client):
    failures = []

    def work(number):
        try:
            for turn in range(25):
                sent = [b"%d.%d.%d" % (number, turn, at) * 50 for at in range(5)]
                assert client.ask("echo", *sent) == sent
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_two_hundred_calls_are_open_at_once(client):
    requests = [queue.Queue() for _ in range(200)]
    calls = [client.stream("echo", iter(each.get, None), timeout=25) for each in requests]
    for number, each in enumerate(requests):
        each.put(b"%d" % number)
    assert [next(call) for call in calls] == [b"%d" % number for number in range(200)]
    for each in requests:
        each.put(None)
    assert [list(call) for call in calls] == [[]] * 200


# ---- How they end before their end


def test_a_deadline_ends_its_call_and_stops_who_works_for_it(service, client, silent):
    call = client.stream("wait", silent, timeout=BRIEFLY_SECONDS)
    assert next(call) == b"here"
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.left.acquire(timeout=SOON_SECONDS)
    assert service.gone.acquire(timeout=SOON_SECONDS)


def test_a_deadline_is_held_by_the_server_when_its_client_does_not(service, raw):
    client = raw()
    client.say(headers(1, ("grpc-timeout", "200m"), method="deaf"))
    assert client.hear_until(Kind.HEADERS).ends
    assert service.left.acquire(timeout=SOON_SECONDS)


def test_a_client_that_cancels_reaches_its_handler_soon(service, client, silent):
    call = client.stream("wait", silent, timeout=20)
    assert next(call) == b"here"
    began = time.monotonic()
    call.cancel()
    assert service.left.acquire(timeout=SOON_SECONDS)
    assert service.gone.acquire(timeout=SOON_SECONDS)
    assert time.monotonic() - began < SOON_SECONDS
    assert not service.left.acquire(timeout=BRIEFLY_SECONDS), "told twice"
    assert client.works()


def test_a_slow_reader_holds_its_handler_back_and_nobody_else(service, client):
    call = client.stream("flood", [b""], timeout=25)
    next(call)
    until(lambda: stands_still(service.sent), seconds=20)
    assert client.works()
    before = len(service.sent)
    for _ in itertools.islice(call, before + 40):
        pass
    assert len(service.sent) > before
    call.cancel()
    assert service.gone.acquire(timeout=SOON_SECONDS)


def test_what_is_kept_for_a_slow_reader_is_bounded(service, client, raw):
    reader = raw(settings=frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**30}))
    reader.say(frames.window_update(0, 2**30) + headers(1, method="flood"))
    until(lambda: sum(service.sent) >= SENT_AHEAD_BYTES and stands_still(service.sent), seconds=20)
    (link,) = service.server._links
    assert link.connection._out._outbox_bytes <= SENT_AHEAD_BYTES + 2**18 + 64
    assert sum(service.sent) < SENT_AHEAD_BYTES + SOCKETS_MAX_BYTES
    assert client.works()


def stands_still(sent):
    before = len(sent)
    return not threading.Event().wait(BRIEFLY_SECONDS) and len(sent) == before


def test_a_client_that_is_not_taken_from_is_held_back(service, client):
    asked = []

    def requests():
        while True:
            asked.append(MIB)
            yield bytes(MIB)

    call = client.channel.stream_stream("/a.Service/deaf")(requests(), timeout=20)
    until(lambda: len(asked) > 2 and stands_still(asked), seconds=10)
    assert len(asked) < 32
    call.cancel()
    assert service.left.acquire(timeout=SOON_SECONDS)


@pytest.mark.parametrize("method", ["wait", "flood"])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_connection_that_ends_midway_wakes_who_reads_and_who_sends(service, raw, method, how):
    client = raw(settings=frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**30}))
    client.say(headers(1, method=method))
    client.hear_until(Kind.DATA)
    if method == "flood":
        until(lambda: stands_still(service.sent), seconds=10)
    if how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.socket.close()
    assert service.gone.acquire(timeout=5)
    assert service.left.acquire(timeout=5)
    until(lambda: not service.server._links, seconds=5)


# ---- Connections of which there are many, or that say nothing


def is_closed(client):
    """Whether the server has ended the connection, after what it had to say."""
    try:
        while client.hear():
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def open_links(service, number):
    until(lambda: len(service.server._links) == number, seconds=5)


def test_the_connection_that_was_silent_for_longest_makes_room(serve, raw_of):
    service = serve(connections_max=3)
    busy = raw_of(service.address)
    busy.say(headers(1, method="deaf"))
    busy.hear_until(Kind.SETTINGS)
    idle = []
    for number in (2, 3):
        idle.append(raw_of(service.address))
        idle[-1].hear_until(Kind.SETTINGS)
        open_links(service, number)
    latest = raw_of(service.address)
    latest.hear_until(Kind.SETTINGS)
    assert is_closed(idle[0])
    open_links(service, 3)
    for client in (busy, idle[1], latest):
        client.socket.settimeout(BRIEFLY_SECONDS)
        assert not is_closed(client)


def test_with_as_many_busy_connections_as_may_be_another_is_closed(serve, raw_of):
    service = serve(connections_max=2)
    busy = [raw_of(service.address) for _ in range(2)]
    for client in busy:
        client.say(headers(1, method="wait"))
        client.hear_until(Kind.DATA)
    with contextlib.suppress(ConnectionError):
        assert is_closed(raw_of(service.address))
    busy[0].socket.close()
    open_links(service, 1)
    raw_of(service.address).hear_until(Kind.SETTINGS)


def test_without_a_file_descriptor_for_the_next_the_others_are_served(service, client, raw):
    assert client.works()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    try:
        # One for the client's end, and none for the server's.
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
        waiting = raw()
        until(lambda: service.server._deaf_until is not None, seconds=5)
        began = time.monotonic()
        for _ in range(20):
            assert client.works()
        assert time.monotonic() - began < SOON_SECONDS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.hear_until(Kind.SETTINGS)


def test_who_does_not_greet_is_not_waited_for(serve, raw_of, monkeypatch):
    monkeypatch.setattr("grpc_transport.server._HELLO_WITHIN_SECONDS", 0.2)
    monkeypatch.setattr("grpc_transport.server._LOOK_SECONDS", 0.05)
    service = serve()
    greeted = raw_of(service.address)
    silent = raw_of(service.address, settings=b"")
    assert is_closed(silent)
    greeted.socket.settimeout(BRIEFLY_SECONDS)
    assert not is_closed(greeted)


def test_a_call_that_sends_no_message_is_ended_in_a_while(raw_of, monkeypatch):
    monkeypatch.setattr("grpc_transport.server.SPEAKS_WITHIN_SECONDS", 0.2)
    monkeypatch.setattr("grpc_transport.server._LOOK_SECONDS", 0.05)
    server = GrpcServer(lambda _: None, host="127.0.0.1", port=0)
    server.start()
    client = raw_of(f"127.0.0.1:{server.port}")
    client.say(headers(1))
    assert client.hear_until(Kind.HEADERS).ends
    server.close()


def test_nobody_sends_on_a_connection_when_its_socket_is_closed(service, raw):
    client = raw()
    client.say(headers(1, method="flood"))
    client.hear_until(Kind.DATA)
    (link,) = service.server._links
    close, closed = link._wire.close, []
    link._wire.close = lambda: closed.append(link.connection._closed) or close()
    client.socket.close()
    open_links(service, 0)
    assert closed == [True]


# ---- How the server ends


def transport_threads():
    return [each for each in threading.enumerate() if each.name == TRANSPORT]


def test_close_ends_everything_and_its_thread(serve, connect, silent):
    before = transport_threads()
    service = serve()
    client = connect(service.address)
    call = client.stream("wait", silent, timeout=20)
    assert next(call) == b"here"
    service.server.close(timedelta(seconds=0.1))
    assert service.gone.acquire(timeout=5)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert transport_threads() == before
    with pytest.raises(OSError, match="refused"):
        RawClient(service.address)
    service.server.close()


def test_close_lets_what_is_under_way_end(serve, connect):
    service = serve()
    client = connect(service.address)
    requests = queue.Queue()
    call = client.stream("echo", iter(requests.get, None), timeout=20)
    requests.put(b"1")
    assert next(call) == b"1"
    closing = threading.Thread(target=service.server.close, args=(timedelta(seconds=20),))
    closing.start()
    requests.put(b"2")
    requests.put(None)
    assert list(call) == [b"2"]
    closing.join(10)
    assert not closing.is_alive()


def test_a_port_that_is_taken_is_an_error(service):
    with pytest.raises(OSError, match="in use"):
        GrpcServer(lambda _: None, host="127.0.0.1", port=service.server.port)


# ---- Who may connect


@pytest.fixture(scope="module")
def authority():
    return Authority()


def tls(authority, *, client_ca=None):
    pair = authority.issue("server")
    return Tls(
        certificate=pair.certificate.encode(),
        key=pair.key.encode(),
        client_ca=None if client_ca is None else client_ca.certificate.encode(),
    )


def credentials(authority, pair=None):
    return grpc.ssl_channel_credentials(
        authority.certificate.encode(),
        None if pair is None else pair.key.encode(),
        None if pair is None else pair.certificate.encode(),
    )


def test_tls_carries_calls_and_large_messages(serve, connect, authority):
    service = serve(tls=tls(authority))
    client = connect(service.address, credentials(authority))
    sent = [bytes([number]) * (8 * MIB) for number in range(2)]
    assert client.ask("echo", *sent) == sent
    with pytest.raises(grpc.RpcError):
        connect(service.address).ask("echo", b"plain", timeout=2)
    assert client.works()


def test_with_a_client_ca_only_its_clients_are_let_in(serve, connect, authority):
    service = serve(tls=tls(authority, client_ca=authority))
    known, stranger = authority.issue("client"), Authority("other").issue("client")
    assert connect(service.address, credentials(authority, known)).works()
    for pair in (None, stranger):
        with pytest.raises(grpc.RpcError) as caught:
            connect(service.address, credentials(authority, pair)).ask("echo", b"", timeout=3)
        assert caught.value.code() in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }
    assert connect(service.address, credentials(authority, known)).works()


def test_who_says_nothing_of_tls_does_not_hold_up_the_others(serve, connect, authority):
    service = serve(tls=tls(authority))
    host, port = service.address.split(":")
    with contextlib.ExitStack() as ends:
        for said in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            stranger = ends.enter_context(socket.create_connection((host, int(port))))
            stranger.sendall(said)
        assert connect(service.address, credentials(authority)).works()


FLOOD = """
    import socket, ssl, sys
    context = ssl.create_default_context(cadata=sys.stdin.read())
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    client = context.wrap_socket(raw, server_hostname="127.0.0.1")
    client.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(3) + b"\\4" + bytes(5))
    # A frame of nothing, of a kind that nobody knows.
    frames = (bytes(3) + b"\\xfa" + bytes(5)) * 7000
    while True:
        client.sendall(frames)
"""


def test_who_sends_without_end_over_tls_does_not_hold_up_the_others(serve, connect, authority):
    service = serve(tls=tls(authority))
    client = connect(service.address, credentials(authority))
    assert client.works()
    program = [sys.executable, "-c", textwrap.dedent(FLOOD), str(service.server.port)]
    flood = subprocess.Popen(program, stdin=subprocess.PIPE, text=True)
    try:
        flood.stdin.write(authority.certificate)
        flood.stdin.close()
        open_links(service, 2)
        until(lambda: any(link.connection.has_begun and link.is_quiet for link in links(service)))
        for _ in range(5):
            assert client.ask("echo", b"x", timeout=10) == [b"x"]
        assert flood.poll() is None
    finally:
        flood.kill()
        flood.wait()


def links(service):
    return list(service.server._links)


def test_a_key_that_does_not_fit_is_an_error(authority):
    pair, other = authority.issue("server"), authority.issue("other")
    made = Tls(certificate=pair.certificate.encode(), key=other.key.encode())
    with pytest.raises(OSError, match="mismatch"):
        GrpcServer(lambda _: None, host="127.0.0.1", port=0, tls=made)
