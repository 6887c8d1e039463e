"""Session tokens."""

import base64
from dataclasses import replace
from datetime import timedelta

import pytest

from catalog.sessions import SessionRecord
from duckmesh.errors import Denied, ErrorCode
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.tokens import VisibilityToken
from flight_server.sessions import COOKIE, TOKEN_PREFIX, Sessions, token_headers
from flight_server.tickets import Purpose, Seal
from gateway.identity import EVERY_ROLE, Identity
from tests.flight_server.small_house import SmallSessions

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
def records():
    return SmallSessions()


@pytest.fixture
def sessions(seal, records):
    return Sessions(seal, records, lifetime=timedelta(hours=1))


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


def test_a_session_is_recalled_with_what_its_record_knows(sessions, records):
    session = sessions.begin(WHO).having_written(VisibilityToken(5))
    assert sessions.recalled(session) == session
    for known, wanted in ((9, 9), (3, 5)):
        records.records[session.session_id] = SessionRecord(
            session.session_id,
            WHO.tenant_id,
            WHO.principal,
            VisibilityToken(known),
            {"consistency": "latest"},
        )
        recalled = sessions.recalled(session)
        assert recalled.last_token == wanted
        assert recalled.options == {"consistency": "latest"}


def test_a_cookie_is_a_session_when_it_is_valid_and_nothing_otherwise(sessions, clock):
    session = sessions.begin(WHO).having_written(VisibilityToken(3))
    token = sessions.token_of(session)
    header = token_headers(token)["set-cookie"]
    pair = header.split(";")[0]
    assert sessions.of_cookies([f"theme=dark; {pair}"]) == session
    assert sessions.of_cookies(["theme=dark", pair]) == session
    assert sessions.of_cookies([]) is None
    assert sessions.of_cookies([f"{pair}x", "=;=", f"{COOKIE}=other"]) is None
    clock.seconds += 3601
    assert sessions.of_cookies([pair]) is None


def test_a_cookie_that_repeats_the_shown_token_says_nothing_new(sessions):
    session = sessions.begin(WHO)
    token = sessions.token_of(session)
    newer = sessions.token_of(session.having_written(VisibilityToken(9)))
    assert sessions.of_cookies([f"{COOKIE}={token}"], token) is None
    assert sessions.of_cookies([f"{COOKIE}={newer}"], token).last_token == 9


def test_a_token_that_was_opened_before_expires_all_the_same(sessions, clock):
    token = sessions.token_of(sessions.begin(WHO))
    assert sessions.open(token) is sessions.open(token)
    clock.seconds += 3601
    with pytest.raises(Denied):
        sessions.open(token)


def test_a_session_ends_with_the_token_it_began_with_however_often_it_is_renewed(
    sessions, seal, clock
):
    who = replace(WHO, key_id=None, expires_at=seal.now + timedelta(minutes=50))
    token = sessions.token_of(sessions.begin(who))
    assert sessions.open(token).identity == who
    clock.seconds += 40 * 60
    renewed = sessions.renewed(sessions.open(token))
    assert sessions.open(renewed).identity == who
    clock.seconds += 10 * 60
    for each in (token, renewed, sessions.token_of(sessions.begin(who))):
        with pytest.raises(Denied):
            sessions.open(each)
