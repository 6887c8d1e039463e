"""A real server on loopback, and real clients of it."""

import contextlib
import threading
from functools import partial

import grpc
import pytest

from duckmesh.threads import Threads
from grpc_transport.calls import Gone
from grpc_transport.messages import joined
from grpc_transport.server import GrpcServer
from grpc_transport.status import Status

PATH = "/a.Service/"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)


class Service:
    """Handlers by the last part of a path, each call on a thread of its own."""

    def __init__(self):
        self.server = None
        self.left = threading.Semaphore(0)
        """One for each caller who has left."""
        self.gone = threading.Semaphore(0)
        """One for each handler that was woken by that."""
        self.sent = []
        """The sizes of what a flood could send, in their order."""
        self._threads = Threads("service")

    @property
    def address(self):
        return f"127.0.0.1:{self.server.port}"

    def arrived(self, rpc):
        handler = getattr(self, rpc.path.removeprefix(PATH), None)
        if handler is None:
            rpc.finish(Status.UNIMPLEMENTED, "no such method")
            return
        rpc.let_in()
        rpc.on_cancel(self.left.release)
        self._threads.run(partial(self._handle, handler, rpc))

    def _handle(self, handler, rpc):
        try:
            handler(rpc)
        except Gone:
            self.gone.release()
        else:
            rpc.finish()

    def echo(self, rpc):
        """Each message as it came."""
        while (message := rpc.read()) is not None:
            rpc.send(message)

    def count(self, rpc):
        """How many messages and bytes came, when all have."""
        messages = size = 0
        while (message := rpc.read()) is not None:
            messages += 1
            size += len(joined(message))
        rpc.send([f"{messages} {size}".encode()])

    def fail(self, rpc):
        """A message, and then an error with trailers."""
        rpc.set_header("x-head", "head")
        rpc.send(rpc.read())
        rpc.finish(Status.NOT_FOUND, "50% of ä", [("x-tail", "tail"), ("x-tail-bin", b"\x00\xff")])

    def wait(self, rpc):
        """Answer once, and wait for more."""
        rpc.send([b"here"])
        while rpc.read() is not None:
            pass
        rpc.read()
        self.left.acquire(timeout=20)
        self.left.release()
        rpc.send([b"late"])

    def flood(self, rpc):
        """Send for ever."""
        block = bytes(2**18)
        while True:
            rpc.send([block])
            self.sent.append(len(block))

    def deaf(self, rpc):
        """Take nothing, until the caller leaves."""
        gone = threading.Event()
        rpc.on_cancel(gone.set)
        gone.wait(20)

    def close(self):
        self.server.close()
        self._threads.close()


class Client:
    """A channel of gRPC's own library."""

    def __init__(self, channel):
        self.channel = channel

    def stream(self, method, requests, **options):
        """The call itself, which is an iterator of messages."""
        return self.channel.stream_stream(PATH + method)(iter(requests), **options)

    def ask(self, method, *requests, timeout=20, **options):
        return list(self.stream(method, requests, timeout=timeout, **options))

    def works(self):
        return self.ask("echo", b"still there") == [b"still there"]


@pytest.fixture
def serve():
    """Start a service; options are those of the server."""
    services = []

    def start(**options):
        service = Service()
        service.server = GrpcServer(service.arrived, host="127.0.0.1", port=0, **options)
        service.server.start()
        services.append(service)
        return service

    yield start
    for service in services:
        service.close()


@pytest.fixture
def service(serve):
    return serve()


@pytest.fixture
def connect():
    """A client of an address; `credentials` for TLS."""
    with contextlib.ExitStack() as ends:

        def connected(address, credentials=None):
            channel = (
                grpc.insecure_channel(address, OPTIONS)
                if credentials is None
                else grpc.secure_channel(address, credentials, OPTIONS)
            )
            ends.callback(channel.close)
            return Client(channel)

        yield connected


@pytest.fixture
def client(service, connect):
    return connect(service.address)
