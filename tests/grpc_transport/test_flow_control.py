"""Flow control both ways, and what a peer who only asks or only sends can make the server keep."""

import threading

import pytest

from grpc_transport import frames
from grpc_transport.calls import Gone
from grpc_transport.connection import (
    CONNECTION_WINDOW_BYTES,
    WINDOW_BYTES,
)
from grpc_transport.frames import PADDED, Fault, Kind, Setting
from grpc_transport.messages import joined
from grpc_transport.outgoing import _FRAME_BYTES_MAX as FRAME_BYTES
from grpc_transport.outgoing import LEFT_MAX_BYTES, SENT_AHEAD_BYTES
from grpc_transport.status import Status
from tests.http2 import SETTINGS, SETTINGS_ACK, Peer, data, go_away, headers, message, ping
from tests.processes import until

WINDOW = frames.DEFAULT_WINDOW
KIB, MIB = 2**10, 2**20
BRIEFLY_SECONDS = 0.2


@pytest.fixture
def peer():
    return Peer()


def with_windows(call_window, connection_window=2**31 - 1):
    """A peer that takes so much."""
    peer = Peer(settings=frames.settings({Setting.INITIAL_WINDOW_SIZE: call_window}))
    if connection_window > WINDOW:
        peer.say(frames.window_update(0, connection_window - WINDOW))
    peer.heard()
    return peer


def content_of(found, stream_id=1):
    return b"".join(
        each.payload for each in found if (each.kind, each.stream_id) == (Kind.DATA, stream_id)
    )


def credit_of(found, stream_id):
    """How much the server gives back of a window."""
    return sum(
        each.number
        for each in found
        if (each.kind, each.stream_id) == (Kind.WINDOW_UPDATE, stream_id)
    )


def leave(peer, rpc, how):
    if how == "lost":
        peer.connection.lost()
    elif how == "cancel":
        rpc.cancel()
    else:
        peer.leave(rpc)


class Sender:
    """Something that may block, on a thread of its own."""

    def __init__(self, act):
        self.failure = None
        self._act = act
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        try:
            self._act()
        except Gone as gone:
            self.failure = gone
        self._ended.set()

    def ends(self, seconds=5.0):
        return self._ended.wait(seconds)


# ---- What goes out


@pytest.mark.parametrize("narrow", ["call", "connection"])
def test_a_message_larger_than_the_windows_goes_out_as_they_open(narrow):
    peer = with_windows(*((1000, 2**31 - 1) if narrow == "call" else (2**31 - 1, WINDOW)))
    first = 1000 if narrow == "call" else WINDOW
    content = bytes(range(256)) * 512
    rpc = peer.call(ends=True)
    rpc.post([content])
    rpc.finish()
    got = content_of(peer.heard())
    assert len(got) == first
    opened = 0
    for increment in (1, 10, 5000, 20_000, 200_000):
        peer.say(frames.window_update(1 if narrow == "call" else 0, increment))
        found = peer.heard()
        got += content_of(found)
        opened += increment
        assert len(got) == min(first + opened, len(message(content)))
    assert got == message(content)
    assert found[-1].ends, "the status comes after all of it"


def test_no_frame_is_larger_than_the_client_takes():
    peer = with_windows(2**31 - 1)
    peer.call(ends=True).post([bytes(100_000)])
    assert max(len(each.payload) for each in peer.heard()) == frames.FRAME_BYTES_MIN
    peer.say(frames.settings({Setting.MAX_FRAME_SIZE: 2**24 - 1}))
    peer.heard()
    peer.calls[0].post([bytes(3 * MIB)])
    assert max(len(each.payload) for each in peer.heard()) == FRAME_BYTES


def test_a_window_that_settings_narrow_may_fall_below_nothing():
    peer = with_windows(1000)
    rpc = peer.call(ends=True)
    rpc.post([bytes(2000)])
    assert len(content_of(peer.heard())) == 1000
    peer.say(frames.settings({Setting.INITIAL_WINDOW_SIZE: 100}), frames.window_update(1, 900))
    assert content_of(peer.heard()) == b"", "900 of it are owed"
    peer.say(frames.window_update(1, 1))
    assert len(content_of(peer.heard())) == 1


def test_settings_open_the_windows_of_calls_under_way():
    peer = with_windows(0)
    calls = [peer.call(ends=True) for _ in range(3)]
    for rpc in calls:
        rpc.post([bytes(100)])
    assert content_of(peer.heard()) == b""
    peer.say(frames.settings({Setting.INITIAL_WINDOW_SIZE: 60}))
    found = peer.heard()
    assert [len(content_of(found, each.stream_id)) for each in calls] == [60, 60, 60]
    assert len(content_of(peer.heard(), 1)) == 0


def test_settings_are_acknowledged_before_what_they_let_through():
    peer = with_windows(10)
    peer.call(ends=True).post([bytes(100)])
    peer.heard()
    peer.say(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1000, Setting.MAX_FRAME_SIZE: 2**20}))
    # A client widens its own window when it hears that the server knows.
    assert [each.kind for each in peer.heard()] == [Kind.SETTINGS, Kind.DATA]


def test_calls_that_wait_for_the_window_of_the_connection_take_turns():
    peer = with_windows(2**31 - 1, WINDOW)
    calls = [peer.call(ends=True) for _ in range(3)]
    for rpc in calls:
        rpc.post([bytes(200_000)])
    peer.heard()
    for _ in range(6):
        peer.say(frames.window_update(0, 10_000))
    found = peer.heard()
    assert all(content_of(found, each.stream_id) for each in calls)


def test_a_window_that_overflows_resets_its_call_alone(peer):
    peer.call(ends=True)
    assert peer.say(frames.window_update(1, 2**31 - 1))
    (reset,) = peer.heard()
    assert (reset.stream_id, reset.number) == (1, Fault.FLOW_CONTROL_ERROR)
    assert peer.calls[0].is_cancelled
    peer.call(ends=True)
    assert peer.say(frames.window_update(3, 2**31 - 1 - WINDOW))


def test_settings_that_make_a_window_overflow_end_the_connection(peer):
    peer.call(ends=True)
    peer.say(frames.window_update(1, 2**31 - 1 - WINDOW))
    assert not peer.say(frames.settings({Setting.INITIAL_WINDOW_SIZE: WINDOW + 1}))
    assert go_away(peer.heard()[-1])[1] is Fault.FLOW_CONTROL_ERROR


def test_send_waits_for_a_client_that_takes_less_than_it_is_sent():
    peer = with_windows(0)
    rpc = peer.call(ends=True)
    sent = []

    def send():
        while True:
            rpc.send([bytes(MIB)])
            sent.append(MIB)

    sender = Sender(send)
    until(lambda: len(sent) == SENT_AHEAD_BYTES // MIB, seconds=5)
    assert not sender.ends(BRIEFLY_SECONDS)
    assert rpc.pending_bytes <= SENT_AHEAD_BYTES + MIB + 5
    peer.say(frames.window_update(1, 3 * MIB))
    until(lambda: len(sent) >= SENT_AHEAD_BYTES // MIB + 1, seconds=5)
    peer.leave(rpc)
    assert sender.ends()
    assert sender.failure is not None


def test_send_waits_for_a_socket_that_takes_nothing():
    peer = with_windows(2**31 - 1)
    peer.wire.room = 100
    rpc = peer.call(ends=True)
    sent = []

    def send():
        for _ in range(8):
            rpc.send([bytes(MIB)])
            sent.append(MIB)

    sender = Sender(send)
    until(lambda: len(sent) >= SENT_AHEAD_BYTES // MIB - 1, seconds=5)
    assert not sender.ends(BRIEFLY_SECONDS)
    assert len(sent) * MIB <= SENT_AHEAD_BYTES
    assert peer.wire.asked == 1, "it is asked once until it has room"
    peer.wire.room = None
    peer.connection.writable()
    assert sender.ends()
    assert len(content_of(peer.heard())) == 8 * (MIB + 5)


@pytest.mark.parametrize("how", ["lost", "cancel", "reset"])
def test_who_waits_to_read_is_woken_when_the_caller_leaves(peer, how):
    rpc = peer.call()
    reader = Sender(rpc.read)
    until(lambda: rpc.arrived is not None, seconds=5)
    leave(peer, rpc, how)
    assert reader.ends()
    assert reader.failure is not None


@pytest.mark.parametrize(
    "how",
    ["lost", "cancel", "reset"],
)
def test_who_waits_to_send_is_woken_when_the_caller_leaves(how):
    peer = with_windows(0)
    rpc = peer.call()
    rpc.send([bytes(5 * MIB)])
    assert rpc.pending_bytes > SENT_AHEAD_BYTES
    sender = Sender(lambda: rpc.send([b"more"]))
    assert not sender.ends(BRIEFLY_SECONDS)
    leave(peer, rpc, how)
    assert sender.ends()
    assert sender.failure is not None


def test_a_message_that_has_more_after_it_goes_out_when_its_send_must_wait(peer):
    rpc = peer.call(ends=True)
    peer.heard()
    rpc.send([b"a"], more=True)
    rpc.send([bytes(5 * MIB)], more=True)
    sender = Sender(lambda: rpc.send([b"last"], more=True))
    until(lambda: len(peer.wire.content) > WINDOW, seconds=BRIEFLY_SECONDS)
    peer.leave(rpc)
    assert sender.ends()


def test_nothing_is_sent_after_an_end_that_waits_for_the_client():
    peer = with_windows(10)
    rpc = peer.call(ends=True)
    rpc.post([bytes(100)])
    rpc.finish()
    rpc.post([b"late"])
    peer.say(frames.window_update(1, 1000))
    assert content_of(peer.heard()) == message(bytes(100))


def test_nothing_follows_an_end_that_came_while_it_waited_for_room():
    peer = with_windows(2**31 - 1)
    first, second = peer.call(ends=True), peer.call(ends=True)
    peer.wire.room = 0
    first.post([bytes(SENT_AHEAD_BYTES + MIB)])
    sender = Sender(lambda: second.send([b"late"]))
    assert not sender.ends(BRIEFLY_SECONDS)
    # On the server it is the thread that moves bytes that cancels, in a moment.
    peer.connection._in_turn = lambda _: None
    peer.connection.give_up(second)
    peer.wire.room = None
    peer.connection.writable()
    assert sender.ends()
    assert sender.failure is not None
    of_second = [each for each in peer.heard() if each.stream_id == second.stream_id]
    assert [each.kind for each in of_second] == [Kind.HEADERS]
    assert of_second[0].ends


# ---- What comes in


def test_a_reader_gets_credit_for_what_it_takes(peer):
    rpc = peer.call()
    sent = taken = credit = 0
    for _ in range(20):
        peer.say(data(1, message(bytes(WINDOW_BYTES // 4 - 5))))
        sent += WINDOW_BYTES // 4
        taken += len(joined(rpc.read()))
        credit += credit_of(peer.heard(), 1)
        assert sent - credit <= WINDOW_BYTES, "the client could not have sent that"
    assert taken == sent - 20 * 5


def test_a_reader_that_is_not_taken_from_gets_no_more_credit(peer):
    rpc = peer.call()
    size = 64 * KIB
    sent, window = 0, WINDOW_BYTES
    while window >= size:
        peer.say(data(1, message(bytes(size - 5))))
        sent += size
        window += credit_of(peer.heard(), 1) - size
    assert sent <= 2 * WINDOW_BYTES + size
    while rpc.inbox:
        rpc.read()
    window += credit_of(peer.heard(), 1)
    assert window > WINDOW_BYTES // 2


def test_a_reader_that_is_not_taken_from_keeps_no_end_of_empty_messages(peer):
    rpc = peer.call()
    size = 60 * KIB // 5 * 5
    window = WINDOW_BYTES
    while window >= size and len(rpc.inbox) < WINDOW_BYTES:
        peer.say(data(1, message(b"") * (size // 5)))
        window += credit_of(peer.heard(), 1) - size
    assert len(rpc.inbox) < WINDOW_BYTES


def test_a_call_that_nobody_reads_does_not_hold_up_the_others(peer):
    for _ in range(2 * CONNECTION_WINDOW_BYTES // WINDOW_BYTES):
        rpc = peer.call()
        for _ in range(WINDOW_BYTES // MIB):
            peer.say(data(rpc.stream_id, message(bytes(MIB - 5))))
    assert credit_of(peer.heard(), 0) >= CONNECTION_WINDOW_BYTES


def test_padding_counts_and_is_given_back_too(peer):
    peer.call()
    payload = b"\xff" + message(b"x") + bytes(255)
    credit = sent = 0
    while sent < 2 * WINDOW_BYTES:
        peer.say(frames.frame(Kind.DATA, PADDED, 1, payload) * 1000)
        sent += len(payload) * 1000
        credit += credit_of(peer.heard(), 1)
        while peer.calls[0].take():
            pass
    assert sent - credit <= WINDOW_BYTES


def test_who_sends_more_than_the_window_of_a_call_is_reset(peer):
    rpc = peer.call()
    piece = data(1, message(bytes(MIB - 5)))
    # What is given back is heard of later.
    assert peer.say(piece * (2 * WINDOW_BYTES // MIB + 1))
    resets = [each for each in peer.heard() if each.kind == Kind.RST_STREAM]
    assert [each.number for each in resets] == [Fault.FLOW_CONTROL_ERROR]
    assert rpc.is_cancelled


def test_data_that_is_passed_over_is_given_back_to_the_connection(peer):
    rpc = peer.call()
    rpc.finish()
    peer.heard()
    for _ in range(CONNECTION_WINDOW_BYTES // MIB):
        assert peer.say(data(1, bytes(MIB)))
    assert credit_of(peer.heard(), 0) >= CONNECTION_WINDOW_BYTES // 2


# ---- Peers who do not read


KEPT_MAX_BYTES = 16 * MIB


def kept_for(peer, content, times):
    """How much lies in memory for a peer that sends this again and again and reads nothing."""
    peer.wire.room = 0
    for _ in range(times):
        if not peer.say(content):
            break
    return peer.connection._out._outbox_bytes


@pytest.mark.parametrize("asks", [ping(), SETTINGS], ids=["ping", "settings"])
def test_who_asks_for_answers_and_reads_none_is_told_to_calm_down(peer, asks):
    assert kept_for(peer, asks * 1000, 1000) < 2 * MIB
    peer.wire.room = None
    peer.connection.writable()
    assert go_away(peer.heard()[-1])[1] is Fault.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("asks", [ping(), SETTINGS], ids=["ping", "settings"])
def test_who_asks_and_reads_may_ask_for_ever(peer, asks):
    for _ in range(300):
        assert peer.say(asks * 1000)
        assert len(peer.heard()) == 1000
    assert peer.say(SETTINGS_ACK)


@pytest.mark.parametrize("what", ["stray data", "priorities", "refused calls"])
def test_who_makes_the_server_answer_and_reads_nothing_is_not_read_any_more(what):
    peer = Peer(lambda rpc: rpc.finish(Status.UNAUTHENTICATED, "w" * 2000))
    peer.call(ends=True)
    peer.heard()
    peer.wire.room = 100
    start = 3
    for _ in range(200):
        if what == "refused calls":
            many = b"".join(headers(start + at, ends=True) for at in range(0, 1000, 2))
            start += 1000
        else:
            stray = frames.frame(Kind.PRIORITY, 0, 1, b"1234")
            many = (data(1, b"") if what == "stray data" else stray) * 1000
        assert peer.say(many)
        if peer.connection.is_choked:
            break
    assert peer.connection.is_choked
    assert peer.connection._out._outbox_bytes < 2 * KEPT_MAX_BYTES
    peer.wire.room = None
    peer.connection.writable()
    assert not peer.connection.is_choked


def test_who_leaves_what_he_asked_for_untaken_asks_no_more():
    peer = Peer(answer_of_a_mebibyte, settings=frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    refused = None
    for number in range(100):
        assert peer.say(headers(2 * number + 1, ends=True))
        found = peer.heard()
        if any(each.kind == Kind.RST_STREAM for each in found):
            refused = number
            break
    assert refused is not None
    (reset,) = [each for each in found if each.kind == Kind.RST_STREAM]
    assert reset.number == Fault.REFUSED_STREAM
    assert LEFT_MAX_BYTES <= refused * MIB < LEFT_MAX_BYTES + 2 * MIB
    # It takes some of it, and goes on.
    peer.say(frames.window_update(0, 100 * MIB))
    for number in range(4):
        peer.say(frames.window_update(2 * number + 1, 2 * MIB))
    peer.heard()
    assert peer.say(headers(1001, ends=True))
    assert not any(each.kind == Kind.RST_STREAM for each in peer.heard())


def answer_of_a_mebibyte(rpc):
    rpc.post([bytes(MIB)])
    rpc.finish()


def test_calls_that_wait_for_their_own_windows_cost_nothing_while_that_of_all_opens(monkeypatch):
    peer = with_windows(0)
    calls = [peer.call(ends=True) for _ in range(50)]
    for rpc in calls:
        rpc.post([bytes(1000)])
    pumped = []
    pump = peer.connection._out.pump
    monkeypatch.setattr(
        peer.connection._out, "pump", lambda rpc: pumped.append(rpc.stream_id) or pump(rpc)
    )
    peer.connection._out._window -= 2**20
    peer.say(frames.window_update(0, 1) * 1000)
    assert pumped == []
    peer.say(frames.window_update(5, 1000), frames.window_update(5, 5))
    assert content_of(peer.heard(), 5) == message(bytes(1000))
    assert set(pumped) == {5}


def test_settings_that_move_the_windows_of_many_calls_again_and_again_end_the_connection(peer):
    narrow, wide = (frames.settings({Setting.INITIAL_WINDOW_SIZE: size}) for size in (100, 200))
    for _ in range(1000):
        peer.call()
    for _ in range(20):
        assert peer.say((narrow + wide) * 10), "now and then it may"
    assert not peer.say((narrow + wide) * 1000)
    assert go_away(peer.heard()[-1])[1] is Fault.ENHANCE_YOUR_CALM
