"""Who has said nothing yet: he takes no place, no thread, and little memory."""

import contextlib
import socket
import threading

import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh import metrics
from flight_server import messages
from grpc_transport import frames
from grpc_transport.frames import END_HEADERS, Fault, Kind
from grpc_transport.header_blocks import block_of
from tests.http2 import SETTINGS, read_frames
from tests.processes import until
from tests.wire import RawFlight

MIB = 2**20


class Stranger:
    """A connection without a credential, that speaks HTTP/2 as it likes."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(frames.PREFACE + SETTINGS)

    def begin(self, rpc, number):
        """The headers of so many calls, and nothing of what they ask for."""
        block = block_of(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", f"/arrow.flight.protocol.FlightService/{rpc}"),
                (":authority", "127.0.0.1"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ]
        )
        return [frames.frame(Kind.HEADERS, END_HEADERS, 2 * at + 1, block) for at in range(number)]

    def say(self, *content):
        self.socket.sendall(b"".join(content))

    def is_heard(self):
        """Wait until the server has read all that was said."""
        self.say(frames.frame(Kind.PING, 0, 0, b"12345678"))
        rest = b""
        while True:
            found, rest = read_frames(rest + self.socket.recv(2**16))
            if any(each.kind == Kind.PING for each in found):
                return True


@pytest.fixture
def stranger(door):
    opened = Stranger(door.port)
    with contextlib.closing(opened.socket):
        yield opened


def info_of(sql):
    return flight.FlightDescriptor.for_command(
        messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    )


@pytest.mark.parametrize("rpc", ["DoPut", "ListActions", "GetFlightInfo", "DoGet"])
def test_calls_that_say_nothing_take_no_place_and_no_thread(door, uri, stranger, rpc):
    before = threading.active_count()
    stranger.say(*stranger.begin(rpc, 3000))
    assert stranger.is_heard()
    assert door.calls_in_flight == 0
    assert threading.active_count() <= before + 2
    with flight.connect(uri) as client:
        info = client.get_flight_info(info_of("SELECT 1 AS n"))
        assert client.do_get(info.endpoints[0].ticket).read_all().to_pylist() == [{"n": 1}]


def cancelled(method):
    labels = {"method": method, "code": "CANCELLED"}
    return metrics.REGISTRY.get_sample_value("duckmesh_flight_requests_total", labels) or 0


@pytest.mark.parametrize(("rpc", "name"), [("DoPut", "do_put"), ("ListActions", "list_actions")])
def test_calls_that_are_taken_back_at_once_are_counted_and_cost_no_thread(
    door, stranger, rpc, name
):
    before, threads = cancelled(name), threading.active_count()
    begun = stranger.begin(rpc, 2000)
    resets = [frames.reset(2 * at + 1, Fault.CANCEL) for at in range(len(begun))]
    stranger.say(*(each for pair in zip(begun, resets, strict=True) for each in pair))
    assert stranger.is_heard()
    assert threading.active_count() <= threads + 2
    until(lambda: cancelled(name) == before + 2000, seconds=5)
    assert door.calls_in_flight == 0


def test_a_call_that_there_is_no_thread_for_is_refused_and_leaves_its_place(door, uri, monkeypatch):
    def refuse(_work):
        raise RuntimeError("can't start new thread")

    with flight.connect(uri) as client:
        with monkeypatch.context() as patch:
            patch.setattr(door._threads, "run", refuse)
            with pytest.raises(flight.FlightUnavailableError, match="TOO_MANY_QUERIES"):
                list(client.list_actions())
        until(lambda: door.calls_in_flight == 0, seconds=5)
        assert list(client.list_actions())


def test_a_stream_whose_first_message_is_large_is_begun_all_the_same(uri):
    schema = pa.schema([("v", pa.int64())], metadata={"large": "x" * (5 * MIB)})
    with flight.connect(uri) as client:
        writer, reader = client.do_put(flight.FlightDescriptor.for_path("missing"), schema)
        assert reader.read() is None
        with pytest.raises((flight.FlightError, pa.ArrowException, KeyError), match="missing"):
            writer.close()


def test_a_request_that_holds_no_rows_is_bounded(door):
    raw = RawFlight(f"127.0.0.1:{door.port}")
    reply = raw.call("GetFlightInfo", [bytes(33 * MIB)])
    assert reply.status == "RESOURCE_EXHAUSTED"
    until(lambda: door.calls_in_flight == 0, seconds=5)
