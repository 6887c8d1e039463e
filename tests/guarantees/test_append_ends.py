"""How streams of small batches wait, end and are told when windows or threads are short."""

import json
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc

from flight_server import flight_data, quick_stream
from grpc_transport import frames, outgoing
from grpc_transport.frames import END_HEADERS, Kind, Setting
from grpc_transport.header_blocks import block_of
from grpc_transport.messages import PREFIX
from tests import wire
from tests.bus_worlds import PATIENCE_SECONDS, until
from tests.grpc_transport.test_server import RawClient
from tests.guarantees import test_quick_appends as quick
from tests.guarantees.test_quick_appends import STRICT, Stream, counted, row, rows_of
from tests.http2 import data, message
from tests.wire import batch_message, stream_opening

service, uri, quickly = quick.service, quick.uri, quick.quickly
client, connection = quick.client, quick.connection


class SlowReader:
    """A stream whose client takes no answer before it opens its windows."""

    def __init__(self, uri, first):
        settings = frames.settings({Setting.INITIAL_WINDOW_SIZE: 0})
        self._raw = RawClient(uri.removeprefix("grpc://"), settings)
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", wire.SERVICE + "DoPut"),
            (":authority", "127.0.0.1"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self._raw.say(frames.frame(Kind.HEADERS, END_HEADERS, 1, block_of(fields)))
        self.send(first)

    def send(self, content, *, ends=False):
        self._raw.say(data(1, message(content), ends=ends))

    def send_together(self, contents):
        """What comes in one piece, and ends the stream."""
        messages = [data(1, message(each)) for each in contents]
        self._raw.say(b"".join(messages) + data(1, b"", ends=True))

    def answers(self):
        """Open the windows; every answer up to the end of the stream."""
        self._raw.say(frames.window_update(0, 2**30) + frames.window_update(1, 2**30))
        content, ended = b"", False
        while not ended:
            for each in self._raw.hear():
                if each.kind == Kind.DATA and each.stream_id == 1:
                    content += each.payload
                ended = ended or (each.kind == Kind.HEADERS and each.ends)
        found, at = [], 0
        while at < len(content):
            _, length = PREFIX.unpack_from(content, at)
            at += PREFIX.size
            answer = flight_data.read([content[at : at + length]]).descriptor
            found.append(json.loads(bytes(answer)))
            at += length
        return found

    def close(self):
        self._raw.socket.close()


def test_batches_whose_receipts_are_not_taken_are_accepted_no_more(
    uri, connection, quickly, monkeypatch
):
    monkeypatch.setattr(quick_stream, "_RECEIPTS_MAX_BYTES", 16 * 1024)
    monkeypatch.setattr(outgoing, "SENT_AHEAD_BYTES", 32 * 1024)
    many, before = 2_000, counted("OK")
    with closing(SlowReader(uri, stream_opening(STRICT, "t"))) as reader:
        for number in range(many):
            reader.send(batch_message(row(number)), ends=number == many - 1)
        until(lambda: is_still(lambda: counted("OK")))
        accepted = counted("OK") - before
        # A receipt has some hundred bytes, and a window of batches waits for theirs.
        assert 100 < accepted < 600
        assert 100 < len(quickly) < 300
        answers = reader.answers()
    assert [answer["batch"] for answer in answers] == list(range(many))
    assert counted("OK") - before == many
    assert rows_of(connection) == list(range(many))


def is_still(number):
    """Whether the number stays the same for a while."""
    seen = number()
    threading.Event().wait(0.5)
    return number() == seen


def test_receipts_go_out_though_a_thread_has_nothing_to_answer_yet(client, quickly):
    # A message without rows that is too large for here: the thread waits for the next one.
    beside = json.dumps({"note": "x" * 70_000}).encode()
    with ThreadPoolExecutor(1) as threads:
        for _ in range(10):
            stream = Stream(client)
            stream.send(row(0))
            assert stream.receive()["batch"] == 0
            stream.send(row(1))
            stream.writer.write_metadata(beside)
            told = threads.submit(stream.receive)
            assert told.result(PATIENCE_SECONDS)["batch"] == 1
            assert stream.finish() == []
    assert len(quickly) >= 10


# ---- Ends


def flight_count(code):
    name, labels = "duckmesh_flight_requests_total", {"method": "do_put", "code": code}
    return quick.metrics.REGISTRY.get_sample_value(name, labels) or 0


def test_a_caller_who_goes_is_counted_as_one(service, uri, quickly):
    before, unknown = flight_count("CANCELLED"), flight_count("UNKNOWN")
    sent = queue.Queue()
    with grpc.insecure_channel(uri.removeprefix("grpc://")) as channel:
        call = channel.stream_stream(wire.SERVICE + "DoPut")(iter(sent.get, None), timeout=40)
        sent.put(stream_opening(STRICT, "t"))
        sent.put(batch_message(row(1)))
        assert next(call)
        call.cancel()
        sent.put(None)
        until(lambda: service.opened[-1][0].calls_in_flight == 0)
    assert len(quickly) == 1
    assert (flight_count("CANCELLED"), flight_count("UNKNOWN")) == (before + 1, unknown)


def test_a_fault_in_one_stream_holds_up_none_that_is_told_with_it(
    service, client, connection, quickly, monkeypatch
):
    def broken(_stream, _messages):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(quick_stream.QuickStream, "_hand_over", broken)
    leave, leaving = quick_stream.QuickStream._leave, []

    def noted(stream, messages):
        leave(stream, messages)
        leaving.append(stream)

    monkeypatch.setattr(quick_stream.QuickStream, "_leave", noted)
    streams = [Stream(client) for _ in range(3)]
    for number, stream in enumerate(streams):
        stream.send(row(number))
        assert stream.receive()["batch"] == 0
    leader, large, other = streams
    with service.catalog.connect() as held, held.transaction():
        held.execute("SELECT FROM token_counter FOR UPDATE")
        # The first is under way while the others become one group: all are told at one time.
        for number, stream in enumerate((leader, large, other), start=10):
            taken = len(quickly)
            stream.send(row(number))
            until(lambda taken=taken: len(quickly) == taken + 1)
        large.send(row(20, "x" * 100_000))
        until(lambda: leaving)
    with ThreadPoolExecutor(2) as threads:
        told = [threads.submit(stream.receive) for stream in (leader, other)]
        assert [each.result(PATIENCE_SECONDS)["batch"] for each in told] == [1, 1]
        assert threads.submit(large.receive).result(PATIENCE_SECONDS)["batch"] == 1
        failed = threads.submit(large.receive).result(PATIENCE_SECONDS)
    assert (failed["batch"], failed["error"]["error_code"]) == (2, "INTERNAL")
    assert "INTERNAL" in large.end_of()
    assert leader.finish() == other.finish() == []
    until(lambda: service.opened[-1][0].calls_in_flight == 0)
    assert rows_of(connection) == [0, 1, 2, 10, 11, 12]
