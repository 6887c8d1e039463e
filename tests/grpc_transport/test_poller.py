"""Both ways to wait for descriptors: they do the same."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from grpc_transport import server
from grpc_transport.poller import READ, WRITE, Poller, Portable, best_poller

WAYS = [best_poller, Portable]


@pytest.fixture(params=WAYS, ids=["best", "portable"])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


class Noted:
    """What a poller said, in its order."""

    def __init__(self) -> None:
        self.events: list[int] = []

    def __call__(self, events: int) -> None:
        self.events.append(events)


def turn(poller: Poller, seconds: float = 0.05) -> None:
    for act, events in poller.wait(seconds):
        act(events)


def test_what_is_ready_is_told_until_it_is_taken(poller: Poller, pair) -> None:
    (ours, theirs), noted = pair, Noted()
    poller.register(ours.fileno(), READ, noted)
    turn(poller, 0.01)
    assert noted.events == []
    theirs.send(b"x")
    turn(poller)
    turn(poller)
    assert noted.events == [READ, READ]
    ours.recv(1)
    turn(poller, 0.01)
    poller.modify(ours.fileno(), READ | WRITE)
    turn(poller)
    theirs.send(b"x")
    turn(poller)
    assert noted.events == [READ, READ, WRITE, READ | WRITE]
    poller.unregister(ours.fileno())
    turn(poller, 0.01)
    assert len(noted.events) == 4


def test_who_has_gone_is_told_to_whoever_waits_for_anything(poller: Poller, pair) -> None:
    (ours, theirs), noted = pair, Noted()
    poller.register(ours.fileno(), READ, noted)
    theirs.close()
    turn(poller)
    assert noted.events
    assert noted.events[0] & READ


def test_once_is_once_and_may_be_asked_again(poller: Poller, pair) -> None:
    (ours, theirs), noted = pair, Noted()
    for round_number in range(1, 4):
        poller.once(ours.fileno(), noted)
        turn(poller, 0.01)
        assert len(noted.events) == round_number - 1
        theirs.send(b"x")
        turn(poller)
        # It is not taken, and still it is told no more.
        turn(poller, 0.01)
        assert noted.events == [READ] * round_number
        ours.recv(1)


NUMBER = 200


@contextlib.contextmanager
def open_as_number() -> Iterator[socket.socket]:
    """The other side of a socket whose descriptor is NUMBER, and no other."""
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), NUMBER)
    ours.close()
    try:
        yield theirs
    finally:
        theirs.close()
        os.close(NUMBER)


def test_what_was_waited_for_once_may_be_closed_and_its_number_another_s(poller: Poller) -> None:
    """A connection of the pool is closed; its number goes to the next one, or to a client."""
    first, second, third = Noted(), Noted(), Noted()
    with open_as_number() as peer:
        poller.once(NUMBER, first)
        peer.send(b"x")
        turn(poller)
    with open_as_number() as peer:
        poller.once(NUMBER, second)
        peer.send(b"x")
        turn(poller)
    with open_as_number() as peer:
        poller.register(NUMBER, READ, third)
        peer.send(b"x")
        turn(poller)
        poller.unregister(NUMBER)
    assert (first.events, second.events, third.events) == ([READ], [READ], [READ])


def test_what_is_no_descriptor_is_refused(poller: Poller) -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    for wrong in (-1, read):
        with pytest.raises((OSError, ValueError, KeyError)):
            poller.once(wrong, Noted())


def test_another_thread_changes_what_is_waited_for(poller: Poller, pair) -> None:
    (ours, theirs), noted = pair, Noted()
    theirs.send(b"x")

    def ask() -> None:
        time.sleep(0.1)
        poller.once(ours.fileno(), noted)

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    turn(poller, 20)
    assert noted.events == [READ]
    assert time.monotonic() - began < 10
    asking.join()


def test_a_server_answers_over_what_every_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "best_poller", Portable)
    arrived = threading.Event()
    served = server.GrpcServer(lambda _: arrived.set(), host="127.0.0.1", port=0)
    read, write = os.pipe()
    seen = threading.Event()
    try:
        served.start()
        assert served.watch(read, seen.set)
        os.write(write, b"x")
        assert seen.wait(10)
        with contextlib.closing(socket.create_connection(("127.0.0.1", served.port))) as client:
            client.settimeout(10)
            assert client.recv(9)[3] == 4, "the first frame is no SETTINGS"
    finally:
        served.close()
        os.close(read)
        os.close(write)
