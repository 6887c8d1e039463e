"""How streams of small batches wait, end and are told when windows or threads are short."""

import json
import queue
from concurrent.futures import ThreadPoolExecutor

import grpc

from flight_server import quick_appends
from tests import wire
from tests.bus_worlds import PATIENCE_SECONDS, until
from tests.guarantees import test_quick_appends as quick
from tests.guarantees.test_quick_appends import STRICT, Stream, row, rows_of
from tests.wire import batch_message, stream_opening

service, uri, quickly = quick.service, quick.uri, quick.quickly
client, connection = quick.client, quick.connection


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

    monkeypatch.setattr(quick_appends._Stream, "_hand_over", broken)
    leave, leaving = quick_appends._Stream._leave, []

    def noted(stream, messages):
        leave(stream, messages)
        leaving.append(stream)

    monkeypatch.setattr(quick_appends._Stream, "_leave", noted)
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
