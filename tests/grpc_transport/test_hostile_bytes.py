"""Bytes that no client would send: whoever sends them, the others are served as before."""

import contextlib
import random
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_transport import frames
from grpc_transport.connection import Connection
from grpc_transport.frames import Kind
from grpc_transport.outgoing import Outgoing
from tests.http2 import REQUEST, SETTINGS, Peer, data, headers, message, ping, read_frames

STREAMS = 400
PIECE_SECONDS = 0.002


def conversation():
    """All kinds of frames that a good client sends."""
    return b"".join(
        [
            frames.PREFACE,
            SETTINGS,
            frames.window_update(0, 2**20),
            headers(1, ("x-some", "value"), ("grpc-timeout", "10S"), method="echo"),
            data(1, message(b"question") + message(b"more")[:6]),
            ping(),
            headers(3, ("content-length", "8"), method="count", ends=False),
            data(3, message(b"abc"), ends=True),
            frames.frame(Kind.PRIORITY, 0, 1, bytes(4) + b"\x10"),
            data(1, b"re", ends=False),
            frames.window_update(1, 1000),
            headers(5, method="wait"),
            frames.reset(5, frames.Fault.CANCEL),
            data(1, b"", ends=True),
            headers(7, ("grpc-encoding", "gzip"), ("x-bin", b"\0\1"), method="echo"),
            data(7, message(b"no archive", compressed=True), ends=True),
        ]
    )


def mutated(content, pick):
    """The bytes, damaged in one to four places; `pick(n)` chooses below n."""
    content = bytearray(content)
    for _ in range(1 + pick(4)):
        at, length = pick(len(content)), 1 + pick(12)
        match pick(5):
            case 0:
                content[at] ^= 1 << pick(8)
            case 1:
                content[at] = pick(256)
            case 2 if len(content) > length + 30:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case _:
                content[at:at] = bytes(pick(256) for _ in range(length))
    return bytes(content)


@pytest.fixture
def recorded(monkeypatch, client):
    """What gRPC's own client sends in a few calls."""
    content = []
    received = Connection.received

    def received_and_kept(self, piece):
        content.append(piece)
        return received(self, piece)

    monkeypatch.setattr(Connection, "received", received_and_kept)
    assert client.works()
    client.ask("count", b"a" * 1000, b"", metadata=[("x-some", "value"), ("x-bin", b"\1")])
    with contextlib.suppress(Exception):
        client.ask("fail", b"b")
    monkeypatch.undo()
    whole = b"".join(content)
    assert whole.startswith(frames.PREFACE)
    return whole


def send(address, content, pick):
    """Send it as a stranger who may cut it anywhere, and may not listen."""
    host, port = address.split(":")
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, int(port)), timeout=5) as stranger,
    ):
        cut = pick(len(content) + 1)
        stranger.sendall(content[:cut])
        if pick(2):
            stranger.settimeout(PIECE_SECONDS)
            with contextlib.suppress(TimeoutError):
                stranger.recv(2**16)
        stranger.settimeout(5)
        stranger.sendall(content[cut:])
        if pick(2):
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(2**16):
                pass


@pytest.mark.parametrize("source", ["made", "recorded"])
def test_damaged_conversations_do_not_hurt_the_others(service, client, request, caplog, source):
    content = conversation() if source == "made" else request.getfixturevalue("recorded")
    assert client.works()
    for seed in range(STREAMS):
        choose = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        damaged = mutated(content, choose.randrange)
        sender = threading.Thread(target=send, args=(service.address, damaged, choose.randrange))
        sender.start()
        sender.join(10)
        assert not sender.is_alive(), f"{seed}: nobody answers"
        if not seed % 50:
            assert client.works(), seed
    assert client.works()
    assert not caplog.records, "it was noticed, and not only survived"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        frames.PREFACE + b"\xff" * 100,
        frames.PREFACE,
        b"",
        bytes(100_000),
    ],
)
def test_who_does_not_speak_grpc_does_not_hurt_the_others(service, client, said):
    host, port = service.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as stranger:
        stranger.sendall(said)
        assert client.works()
        stranger.shutdown(socket.SHUT_WR)
        content = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := stranger.recv(2**16):
                content += piece
    found, _ = read_frames(content)
    assert not content or found[0].kind == Kind.SETTINGS
    assert client.works()


def test_a_conversation_that_is_whole_is_answered():
    peer = Peer(settings=None)
    assert peer.say(conversation())
    assert [rpc.path for rpc in peer.calls] == [
        f"/a.Service/{method}" for method in ("echo", "count", "wait", "echo")
    ]


def handle(rpc):
    """Take all that has come, and answer."""

    def look():
        while (taken := rpc.take()) is not None:
            rpc.post(taken)
        if rpc.is_complete:
            rpc.finish()

    rpc.follow(look)
    look()


@settings(max_examples=600, deadline=None)
@given(st.data(), st.integers(1, 200))
def test_damaged_bytes_raise_nothing(choices, size):
    content = mutated(conversation(), lambda below: choices.draw(st.integers(0, below - 1)))
    peer = Peer(handle, settings=None)
    for at in range(0, len(content), size):
        if not peer.say(content[at : at + size]):
            break
    peer.connection.lost()
    assert peer.connection.is_quiet


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.builds(
            frames.frame,
            st.sampled_from(Kind),
            st.integers(0, 255),
            st.integers(0, 9),
            st.binary(max_size=40),
        )
        | st.sampled_from([headers(1), headers(3, ends=True), data(1, message(b"a")), ping()]),
        max_size=20,
    )
)
def test_any_frames_raise_nothing(sent):
    peer = Peer(handle)
    for each in sent:
        if not peer.say(each):
            break
    peer.connection.lost()
    assert peer.connection.is_quiet


VALUES = st.binary(max_size=12) | st.sampled_from([b"1S", b"1", b"\xb2", b"identity"])
NAMES = ["content-length", "grpc-timeout", "grpc-encoding", "x-bin", "te", "content-type", "cookie"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), min_size=1, max_size=3))
def test_any_values_of_headers_raise_nothing(fields):
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in [
            *((name.encode(), value.encode()) for name, value in REQUEST),
            *((name.encode(), value) for name, value in fields),
        ]
    )
    peer = Peer(handle)
    peer.say(frames.frame(Kind.HEADERS, frames.END_HEADERS, 1, block))
    assert peer.goes_on


def test_one_frame_of_settings_is_no_work_for_minutes(monkeypatch):
    heeded = []
    heed = Outgoing._heed

    def heed_and_count(self, number, value, calls):
        heeded.append(number)
        heed(self, number, value, calls)

    monkeypatch.setattr(Outgoing, "_heed", heed_and_count)
    peer = Peer()
    calls = [peer.call() for _ in range(100)]
    window = int(frames.Setting.INITIAL_WINDOW_SIZE)
    payload = b"".join(
        window.to_bytes(2, "big") + (1000 + turn % 2).to_bytes(4, "big") for turn in range(1000)
    )
    peer.say(frames.frame(Kind.SETTINGS, 0, 0, payload))
    assert heeded == [window]
    assert {call.window for call in calls} == {1001}
