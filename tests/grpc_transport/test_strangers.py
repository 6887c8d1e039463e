"""Calls whose callers nobody knows yet: little is kept of them, and none stays for nothing."""

import pytest

from grpc_transport.calls import MET_BYTES
from grpc_transport.connection import CONNECTION_WINDOW_BYTES, HELD_MAX_BYTES, WINDOW_BYTES
from grpc_transport.frames import Kind
from grpc_transport.messages import MESSAGE_MAX_BYTES, PREFIX, joined
from tests.http2 import Peer, data, headers, message

MIB = 2**20
PIECE = 16 * 2**10
BEGUN = PREFIX.pack(0, MESSAGE_MAX_BYTES)
"""A message that never comes to its end."""


@pytest.fixture
def peer():
    return Peer(lets_in=False)


def credit_of(found, stream_id):
    return sum(
        each.number
        for each in found
        if (each.kind, each.stream_id) == (Kind.WINDOW_UPDATE, stream_id)
    )


class Sender:
    """Sends as much as the windows of its connection and of its calls let it."""

    def __init__(self, peer):
        self.peer = peer
        self.window = CONNECTION_WINDOW_BYTES
        self.windows = {}

    def begin(self):
        rpc = self.peer.call()
        self.windows[rpc.stream_id] = WINDOW_BYTES
        self.send(rpc, BEGUN)
        return rpc

    def send(self, rpc, content):
        """Whether it could be sent."""
        stream_id, size = rpc.stream_id, len(content)
        if min(self.window, self.windows[stream_id]) < size:
            return False
        assert self.peer.say(data(stream_id, content))
        self.window -= size
        self.windows[stream_id] -= size
        self.hear()
        return True

    def hear(self):
        for each in self.peer.heard():
            if each.kind == Kind.WINDOW_UPDATE and each.stream_id:
                self.windows[each.stream_id] += each.number
            elif each.kind == Kind.WINDOW_UPDATE:
                self.window += each.number

    def send_on(self, rpc):
        """Send until no more may be sent; how many bytes."""
        sent = 0
        while self.send(rpc, bytes(PIECE)):
            sent += PIECE
        return sent


def test_of_a_large_message_little_comes_before_its_sender_is_known(peer):
    sender = Sender(peer)
    rpc = sender.begin()
    assert not rpc.is_to_be_met
    assert MET_BYTES < sender.send_on(rpc) <= 2 * WINDOW_BYTES
    assert rpc.is_to_be_met, "so that somebody looks who sends it"
    rpc.let_in()
    sender.hear()
    assert sender.windows[rpc.stream_id] > 0


def test_all_calls_that_nobody_knows_are_bounded_together(peer):
    sender = Sender(peer)
    calls = [sender.begin() for _ in range(200)]
    sent = sum(sender.send_on(rpc) for rpc in calls)
    assert sent < HELD_MAX_BYTES + CONNECTION_WINDOW_BYTES + len(calls) * PIECE
    for rpc in calls[:-20]:
        peer.leave(rpc)
    sender.hear()
    assert sender.send_on(sender.begin()) > MET_BYTES, "those that have left make room"


def test_small_pieces_count_as_what_they_take(peer):
    sender = Sender(peer)
    rpc = sender.begin()
    pieces = 0
    while not rpc.is_to_be_met and sender.send(rpc, b"x"):
        pieces += 1
    assert pieces < MET_BYTES // 50


def test_a_large_message_comes_whole_once_its_sender_is_known(peer):
    sender = Sender(peer)
    rpc = peer.call()
    sender.windows[rpc.stream_id] = WINDOW_BYTES
    content = bytes(range(256)) * (8 * MIB // 256)
    whole = message(content)
    at = 0
    while at < len(whole):
        if sender.send(rpc, whole[at : at + PIECE]):
            at += PIECE
        else:
            assert not rpc.is_let_in
            rpc.let_in()
            sender.hear()
    assert joined(rpc.take()) == content


@pytest.mark.parametrize("is_under_way", [True, False])
def test_a_message_over_the_limit_of_its_call_ends_it(peer, is_under_way):
    left = []
    rpc = peer.call()
    rpc.on_cancel(lambda: left.append(rpc))
    if is_under_way:
        peer.say(data(1, PREFIX.pack(0, 3 * MIB) + b"begun"))
    rpc.let_in(message_max_bytes=2 * MIB)
    if not is_under_way:
        peer.say(data(1, message(bytes(2 * MIB))))
        assert len(joined(rpc.take())) == 2 * MIB
        peer.say(data(1, PREFIX.pack(0, 2 * MIB + 1)))
    (end,) = [each for each in peer.heard() if each.kind == Kind.HEADERS]
    assert ("grpc-status", "8") in peer.fields_of(end)
    assert left == [rpc]
    assert rpc.is_cancelled
    assert peer.say(headers(3, ends=True)), "it is the call that suffers, and not its connection"


def test_a_call_that_says_nothing_is_ended_and_no_other():
    now = [100.0]
    peer = Peer(lets_in=False, now=lambda: now[0])
    silent, half, known, speaking = (peer.call() for _ in range(4))
    peer.say(data(half.stream_id, message(b"more follows")[:-1]))
    known.let_in()
    peer.say(data(speaking.stream_id, message(b"x")))
    now[0] = 200.0
    late = peer.call()
    peer.heard()
    peer.connection.end_silent(begun_before=150.0)
    ends = {each.stream_id: each for each in peer.heard() if each.kind == Kind.HEADERS}
    assert set(ends) == {silent.stream_id, half.stream_id}
    for end in ends.values():
        assert ("grpc-status", "4") in peer.fields_of(end)
    assert not any(rpc.is_cancelled for rpc in (known, speaking, late))
