"""Session tokens."""

import base64
from dataclasses import replace
from datetime import timedelta

import pytest

from duckmesh.errors import Denied, ErrorCode
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.tokens import VisibilityToken
from flight_server.sessions import TOKEN_PREFIX, LastWrites, Sessions
from flight_server.tickets import Purpose, Seal
from gateway.identity import EVERY_ROLE, Identity

WHO = Identity(TenantId(7), "acme", "etl", KeyId("k1"), EVERY_ROLE)


class Clock:
    def __init__(self):
        self.seconds = 1_000_000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def seal(clock):
    return Seal(b"s" * 32, now=clock)


@pytest.fixture
def sessions(seal):
    return Sessions(seal, lifetime=timedelta(hours=1))


def test_a_session_travels_whole(sessions):
    session = sessions.begin(WHO).having_written(VisibilityToken(41))
    opened = sessions.open(sessions.token_of(session))
    assert opened == session
    assert opened.identity == WHO


def test_the_last_token_never_moves_back(sessions):
    session = sessions.begin(WHO).having_written(VisibilityToken(5))
    assert session.having_written(VisibilityToken(4)).last_token == 5
    assert session.having_written(VisibilityToken(6)).last_token == 6


def test_an_identity_without_a_key_stays_without(sessions):
    opened_door = Identity(TenantId(1), "default", "anonymous", None, frozenset())
    opened = sessions.open(sessions.token_of(sessions.begin(opened_door)))
    assert opened.identity == opened_door


def test_a_token_is_a_printable_header(sessions):
    token = sessions.token_of(sessions.begin(WHO))
    assert token.isascii()
    assert token.isprintable()
    assert " " not in token


@pytest.mark.parametrize("damage", [lambda t: t[:-1], lambda t: t + "A", lambda t: t[:9] + "!é"])
def test_a_damaged_session_is_unauthorized(sessions, damage):
    with pytest.raises(Denied) as caught:
        sessions.open(damage(sessions.token_of(sessions.begin(WHO))))
    assert caught.value.code is ErrorCode.UNAUTHORIZED


def test_a_ticket_is_no_session(sessions, seal):
    ticket = seal.seal(Purpose.TICKET, b"", lifetime=timedelta(hours=1))
    with pytest.raises(Denied):
        sessions.open(TOKEN_PREFIX + base64.urlsafe_b64encode(ticket).decode())


def test_a_session_expires_unless_it_is_renewed_in_time(sessions, clock):
    token = sessions.token_of(sessions.begin(WHO))
    clock.seconds += 1799
    assert not sessions.due_for_renewal(sessions.open(token))
    clock.seconds += 2
    session = sessions.open(token)
    assert sessions.due_for_renewal(session)
    renewed = sessions.token_of(session)
    clock.seconds += 1800
    with pytest.raises(Denied, match="expired: connect again"):
        sessions.open(token)
    assert sessions.open(renewed).session_id == session.session_id


def test_a_process_remembers_what_a_session_wrote_when_its_token_does_not_say(sessions):
    before = sessions.begin(WHO)
    sessions.last_writes.note(before.having_written(VisibilityToken(7)))
    sessions.last_writes.note(before.having_written(VisibilityToken(6)))
    assert sessions.last_writes.brought_up(before).last_token == 7
    later = before.having_written(VisibilityToken(9))
    assert sessions.last_writes.brought_up(later) is later
    assert sessions.last_writes.brought_up(sessions.begin(WHO)).last_token == 0


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(sessions):
    memory = LastWrites(limit=2)
    written = [sessions.begin(WHO).having_written(VisibilityToken(1)) for _ in range(3)]
    for session in written:
        memory.note(session)
    fresh = [replace(session, last_token=VisibilityToken(0)) for session in written]
    assert [memory.brought_up(session).last_token for session in fresh] == [0, 1, 1]
