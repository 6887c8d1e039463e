"""A connection, driven by bytes: what it understands, how calls end, what it refuses."""

import struct

import pytest

from grpc_transport import frames
from grpc_transport.calls import Gone
from grpc_transport.connection import HELLO
from grpc_transport.frame_reader import FRAME_BYTES
from grpc_transport.frames import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    WITH_PRIORITY,
    Fault,
    Kind,
    Setting,
)
from grpc_transport.header_blocks import block_of
from grpc_transport.messages import joined
from grpc_transport.status import Status
from tests.http2 import (
    REQUEST,
    SETTINGS,
    SETTINGS_ACK,
    Peer,
    data,
    go_away,
    headers,
    message,
    ping,
    read_frames,
)

BLOCK = block_of(REQUEST)


@pytest.fixture
def peer():
    return Peer()


def frame(kind, flags, stream_id, payload=b""):
    return frames.frame(kind, flags, stream_id, payload)


def kinds(found):
    return [Kind(each.kind) for each in found]


def fault_of(peer, *content):
    """How the connection ends with these bytes."""
    assert not peer.say(*content)
    return go_away(peer.heard()[-1])[1]


def status_of(peer, found):
    """The status that the last header block says."""
    block = [each for each in found if each.kind == Kind.HEADERS][-1]
    assert block.ends
    return dict(peer.fields_of(block))


# ---- What is understood


def test_the_server_speaks_first():
    peer = Peer(settings=None)
    assert bytes(peer.wire.content) == HELLO
    assert kinds(peer.heard()) == [Kind.SETTINGS, Kind.WINDOW_UPDATE]


def test_a_call_is_answered_with_a_head_its_messages_and_its_status(peer):
    rpc = peer.call(("x-some", "value"))
    assert (rpc.path, rpc.headers["x-some"]) == ("/a.Service/Method", ["value"])
    peer.say(data(1, message(b"question"), ends=True))
    assert joined(rpc.read()) == b"question"
    assert rpc.read() is None
    rpc.set_header("x-head", "1")
    rpc.send([b"ans", b"", memoryview(b"wer")])
    rpc.finish(trailers=[("x-tail-bin", b"\x01"), ("x-more", "2")])
    head, answer, tail = peer.heard()
    said = dict(peer.fields_of(head))
    assert (said[":status"], said["content-type"]) == ("200", "application/grpc")
    assert said["x-head"] == "1"
    assert (answer.kind, answer.payload, answer.ends) == (Kind.DATA, message(b"answer"), False)
    assert tail.ends
    fields = [("grpc-status", "0"), ("x-tail-bin", "AQ"), ("x-more", "2")]
    assert peer.fields_of(tail) == fields
    assert peer.connection.is_quiet


def test_a_call_that_fails_at_once_is_one_header_block(peer):
    rpc = peer.call(ends=True)
    rpc.finish(Status.NOT_FOUND, "50% of ä", [("x-why", "so")])
    (only,) = peer.heard()
    assert only.ends
    said = dict(peer.fields_of(only))
    assert (said[":status"], said["grpc-status"], said["x-why"]) == ("200", "5", "so")
    assert said["grpc-message"] == "50%25 of %C3%A4"


def test_an_end_says_that_the_rest_of_a_request_need_not_come(peer):
    rpc = peer.call()
    rpc.finish()
    found = peer.heard()
    assert kinds(found) == [Kind.HEADERS, Kind.RST_STREAM]
    assert found[1].number == Fault.NO_ERROR


def test_nothing_is_sent_after_the_end(peer):
    rpc = peer.call(ends=True)
    rpc.finish()
    peer.heard()
    rpc.finish(Status.INTERNAL, "again")
    rpc.post([b"late"])
    with pytest.raises(Gone):
        rpc.send([b"late"])
    assert peer.heard() == []


SIZES = (1, 2, 3, 7, 8, 9, 11, 23, 24, 25, 40)


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation_is_understood_however_it_is_cut(peer, size):
    whole = b"".join(
        [
            headers(1),
            data(1, message(b"first") + message(b"sec")[:6]),
            ping(),
            data(1, b"ec"),
            data(1, b"", ends=True),
            headers(3, ends=True),
        ]
    )
    for at in range(0, len(whole), size):
        assert peer.say(whole[at : at + size])
    first, second = peer.calls
    assert [joined(first.read()), joined(first.read())] == [b"first", b"sec"]
    assert first.read() is second.read() is None
    assert Kind.PING in kinds(peer.heard())


@pytest.mark.parametrize("size", SIZES)
def test_a_preface_is_understood_however_it_is_cut(size):
    peer = Peer(settings=None)
    whole = frames.PREFACE + SETTINGS + headers(1, ends=True)
    for at in range(0, len(whole), size):
        assert peer.say(whole[at : at + size])
    assert peer.calls[0].read() is None


def test_padding_and_priorities_are_passed_over(peer):
    padded = b"\x03" + struct.pack(">IB", 0, 15) + BLOCK + bytes(3)
    peer.say(frame(Kind.HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, padded))
    peer.say(frame(Kind.PRIORITY, 0, 1, struct.pack(">IB", 0, 15)))
    peer.say(frame(Kind.DATA, PADDED | END_STREAM, 1, b"\x05" + message(b"in") + bytes(5)))
    assert joined(peer.calls[0].read()) == b"in"
    assert peer.calls[0].read() is None


def test_frames_of_other_kinds_are_passed_over(peer):
    assert peer.say(frame(99, 0xFF, 5, b"new"), frame(Kind.GOAWAY, 0, 0, bytes(8)))
    assert peer.call().path == "/a.Service/Method"


def test_a_header_block_may_come_in_pieces(peer):
    peer.say(frame(Kind.HEADERS, END_STREAM, 1, BLOCK[:5]))
    peer.say(frame(Kind.CONTINUATION, 0, 1, BLOCK[5:9]))
    assert not peer.calls
    peer.say(frame(Kind.CONTINUATION, END_HEADERS, 1, BLOCK[9:]))
    assert peer.calls[0].read() is None


def test_a_header_block_larger_than_a_frame_goes_out_in_pieces(peer):
    rpc = peer.call(ends=True)
    value = "v" * 40_000
    rpc.finish(Status.INTERNAL, "", [("x-large", value)])
    found = peer.heard()
    assert kinds(found) == [Kind.HEADERS, Kind.CONTINUATION, Kind.CONTINUATION]
    assert [bool(each.flags & END_HEADERS) for each in found] == [False, False, True]
    assert found[0].ends
    assert max(len(each.payload) for each in found) <= frames.FRAME_BYTES_MIN
    peer._decoder.max_header_list_size = 2**17
    assert ("x-large", value) in peer.decoded(b"".join(each.payload for each in found))


def test_trailers_of_a_request_end_it(peer):
    rpc = peer.call()
    peer.say(frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, block_of([("x-sum", "1")])))
    assert rpc.read() is None


def test_each_ping_and_each_settings_frame_is_answered(peer):
    peer.say(ping(b"abcdefgh"), SETTINGS, frame(Kind.PING, frames.ACK, 0, bytes(8)), SETTINGS_ACK)
    answered, settings = peer.heard()
    assert (answered.kind, answered.flags, answered.payload) == (Kind.PING, 1, b"abcdefgh")
    assert (settings.kind, settings.flags, settings.payload) == (Kind.SETTINGS, 1, b"")


# ---- How calls end before their end


def test_a_reset_cancels_its_call_once_and_no_other(peer):
    acts = []
    first, second = peer.call(), peer.call()
    first.on_cancel(lambda: acts.append(1))
    second.on_cancel(lambda: acts.append(2))
    peer.leave(first)
    peer.leave(first)
    assert (acts, first.is_cancelled, second.is_cancelled) == ([1], True, False)
    for use in (first.read, lambda: first.send([b"x"])):
        with pytest.raises(Gone):
            use()
    peer.heard()
    first.finish()
    assert peer.heard() == [], "nothing is said to who has left"
    first.on_cancel(lambda: acts.append(3))
    assert acts == [1, 3], "who asks later is told at once"


def test_what_follows_a_call_is_told_once_of_what_comes_together(peer):
    told = []
    rpc = peer.call()
    rpc.follow(lambda: told.append(len(rpc.inbox)))
    peer.say(data(1, message(b"a") + message(b"b")), data(1, message(b"c"), ends=True))
    assert told == [3]
    assert rpc.half_closed


def test_the_end_of_the_socket_cancels_every_call(peer):
    acts = []
    calls = [peer.call() for _ in range(5)]
    for number, rpc in enumerate(calls):
        rpc.on_cancel(lambda number=number: acts.append(number))
    peer.connection.lost()
    assert acts == list(range(5))
    assert all(rpc.is_cancelled for rpc in calls)
    assert peer.connection.is_quiet


@pytest.mark.parametrize("begun", [False, True], ids=["unanswered", "begun"])
def test_a_deadline_is_told_to_the_client_and_to_who_works_for_it(peer, begun):
    acts = []
    rpc = peer.call(("grpc-timeout", "1S"))
    rpc.on_cancel(lambda: acts.append("stopped"))
    if begun:
        rpc.send([b"some"])
    peer.connection.give_up(rpc)
    assert status_of(peer, peer.heard())["grpc-status"] == str(int(Status.DEADLINE_EXCEEDED))
    assert rpc.is_cancelled
    assert acts == ["stopped"]


def test_a_deadline_counts_from_the_arrival_of_its_call():
    peer = Peer(now=lambda: 1000.0)
    assert peer.call(("grpc-timeout", "1500m")).deadline == pytest.approx(1001.5)
    assert peer.call().deadline is None


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (data(1, b"\x02\0\0\0\x01x"), Status.INTERNAL),
        (data(1, message(b"abc")[:6], ends=True), Status.INTERNAL),
        (data(1, message(b"abc", compressed=True)), Status.UNIMPLEMENTED),
    ],
    ids=["flag", "cut short", "packed"],
)
def test_what_is_no_message_ends_its_call_with_a_status(peer, sent, status):
    rpc = peer.call()
    assert peer.say(sent)
    assert status_of(peer, peer.heard())["grpc-status"] == str(int(status))
    with pytest.raises(Gone):
        rpc.read()
    assert peer.call(), "the connection goes on"


def test_what_is_no_message_stops_who_works_for_its_call(peer):
    acts = []
    peer.call().on_cancel(lambda: acts.append("stopped"))
    peer.say(data(1, b"\x02\0\0\0\x01x"))
    assert acts == ["stopped"]


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        ([headers(1), headers(1)], Fault.PROTOCOL_ERROR),
        ([headers(1, ends=True), data(1, b"x")], Fault.STREAM_CLOSED),
        ([headers(1, ends=True), headers(1, ends=True)], Fault.STREAM_CLOSED),
        ([headers(1, ("content-length", "3")), data(1, b"four")], Fault.PROTOCOL_ERROR),
        ([headers(1, ("content-length", "3")), data(1, b"", ends=True)], Fault.PROTOCOL_ERROR),
        ([headers(1, ("connection", "close"))], Fault.PROTOCOL_ERROR),
        ([headers(1), frame(Kind.WINDOW_UPDATE, 0, 1, bytes(4))], Fault.PROTOCOL_ERROR),
        ([headers(1), frame(Kind.PRIORITY, 0, 1, b"1234")], Fault.FRAME_SIZE_ERROR),
    ],
    ids=["twice", "after end", "again after end", "long", "short", "header", "window", "priority"],
)
def test_a_fault_of_one_stream_resets_it_and_no_other(peer, sent, fault):
    acts = []
    peer._service = lambda rpc: rpc.on_cancel(lambda: acts.append(rpc.stream_id))
    assert peer.say(*sent)
    resets = [each for each in peer.heard() if each.kind == Kind.RST_STREAM]
    assert [(each.stream_id, each.number) for each in resets] == [(1, fault)]
    assert acts in ([1], [])
    assert peer.say(headers(3, ends=True))
    assert peer.calls[-1].read() is None


def test_data_of_a_call_that_has_ended_here_is_passed_over(peer):
    rpc = peer.call()
    rpc.finish()
    peer.heard()
    assert peer.say(data(1, message(b"late")), data(1, bytes(100), ends=True))
    assert peer.say(frames.window_update(1, 10), frames.reset(1, Fault.CANCEL))
    assert peer.heard() == []


def test_after_a_goaway_of_ours_nothing_new_begins_and_what_began_goes_on(peer):
    rpc = peer.call()
    peer.connection.leave()
    peer.connection.leave()
    (leaving,) = peer.heard()
    assert go_away(leaving)[:2] == (1, Fault.NO_ERROR)
    assert peer.say(headers(3, ends=True))
    (refused,) = peer.heard()
    assert (refused.stream_id, refused.number) == (3, Fault.REFUSED_STREAM)
    assert len(peer.calls) == 1
    assert not peer.connection.is_quiet
    peer.say(data(1, message(b"still"), ends=True))
    assert joined(rpc.read()) == b"still"
    rpc.finish()
    assert peer.connection.is_quiet


# ---- What ends the connection


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (data(0, b"x"), Fault.PROTOCOL_ERROR),
        (data(5, b"x"), Fault.PROTOCOL_ERROR),
        (headers(2), Fault.PROTOCOL_ERROR),
        (headers(0), Fault.PROTOCOL_ERROR),
        (headers(5) + headers(3), Fault.PROTOCOL_ERROR),
        (
            headers(1, ends=True)[:3] + b"\x01\x05\0\0\0\x01" + b"\xff" * 200,
            Fault.COMPRESSION_ERROR,
        ),
        (frame(Kind.SETTINGS, 0, 1), Fault.PROTOCOL_ERROR),
        (frame(Kind.SETTINGS, 0, 0, b"12345"), Fault.FRAME_SIZE_ERROR),
        (frame(Kind.SETTINGS, 1, 0, b"123456"), Fault.FRAME_SIZE_ERROR),
        (frames.settings({Setting.ENABLE_PUSH: 2}), Fault.PROTOCOL_ERROR),
        (frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}), Fault.FLOW_CONTROL_ERROR),
        (frames.settings({Setting.MAX_FRAME_SIZE: 16_383}), Fault.PROTOCOL_ERROR),
        (frames.settings({Setting.MAX_FRAME_SIZE: 2**24}), Fault.PROTOCOL_ERROR),
        (frame(Kind.PING, 0, 0, b"1234567"), Fault.FRAME_SIZE_ERROR),
        (frame(Kind.PING, 0, 1, b"12345678"), Fault.PROTOCOL_ERROR),
        (frame(Kind.RST_STREAM, 0, 1, bytes(4)), Fault.PROTOCOL_ERROR),
        (frame(Kind.RST_STREAM, 0, 0, bytes(4)), Fault.PROTOCOL_ERROR),
        (frames.window_update(7, 1), Fault.PROTOCOL_ERROR),
        (frames.window_update(0, 0), Fault.PROTOCOL_ERROR),
        (frames.window_update(0, 2**31 - 1), Fault.FLOW_CONTROL_ERROR),
        (frame(Kind.WINDOW_UPDATE, 0, 0, b"123"), Fault.FRAME_SIZE_ERROR),
        (frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), Fault.PROTOCOL_ERROR),
        (frame(Kind.CONTINUATION, END_HEADERS, 1, BLOCK), Fault.PROTOCOL_ERROR),
        (frame(Kind.HEADERS, 0, 1, BLOCK) + ping(), Fault.PROTOCOL_ERROR),
        (frame(Kind.HEADERS, 0, 1, BLOCK) + data(1, b""), Fault.PROTOCOL_ERROR),
        (headers(1) + frame(Kind.DATA, PADDED, 1, b"\x05abc"), Fault.PROTOCOL_ERROR),
        (frames.head(FRAME_BYTES + 1, Kind.DATA, 0, 1), Fault.FRAME_SIZE_ERROR),
        (frame(Kind.HEADERS, 0, 1, bytes(70_000)), Fault.FRAME_SIZE_ERROR),
        (
            frame(
                Kind.HEADERS,
                END_HEADERS | WITH_PRIORITY,
                1,
                struct.pack(">IB", 1, 0) + BLOCK,
            ),
            Fault.PROTOCOL_ERROR,
        ),
    ],
)
def test_a_fault_of_the_connection_ends_it_and_says_why(peer, sent, fault):
    assert fault_of(peer, sent) is fault


def test_before_its_settings_a_client_says_nothing_else():
    assert fault_of(Peer(settings=None), frames.PREFACE, headers(1)) is Fault.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0", b"PRI * X"]
)
def test_who_does_not_speak_http_2_is_told_so(said):
    peer = Peer(settings=None)
    assert fault_of(peer, said) is Fault.PROTOCOL_ERROR


def test_headers_without_end_are_not_kept_for_ever(peer):
    peer.say(frame(Kind.HEADERS, 0, 1, BLOCK))
    piece = frame(Kind.CONTINUATION, 0, 1, bytes(16_000))
    assert fault_of(peer, piece, piece, piece, piece, piece) is Fault.ENHANCE_YOUR_CALM


def test_empty_headers_without_end_are_counted_too(peer):
    peer.say(frame(Kind.HEADERS, 0, 1))
    assert fault_of(peer, frame(Kind.CONTINUATION, 0, 1) * 100) is Fault.ENHANCE_YOUR_CALM


def test_a_broken_socket_is_no_error_of_who_sends(peer):
    rpc = peer.call()
    peer.wire.is_broken = True
    rpc.send([b"into the void"])
    rpc.finish()
    peer.connection.lost()
    assert read_frames(bytes(peer.wire.content))[0] == []


def test_when_the_service_fails_at_one_call_the_others_that_came_with_it_are_told():
    told = []

    def arrived(rpc):
        told.append(rpc.stream_id)
        if rpc.stream_id == 1:
            raise RuntimeError("the service's fault")

    peer = Peer(arrived)
    with pytest.raises(RuntimeError, match="fault"):
        peer.say(headers(1), headers(3), headers(5))
    assert told == [1, 3, 5]
