"""Who calls, decided once per call in one thin middleware.

Basic (the password is the API key) and Bearer (an API key, or a session token of ours) lead to an
Identity. The answer to a call that came with anything but a session carries a session token, in
its `authorization` header and in a cookie: ADBC keeps the one, JDBC and ODBC the other, and each is
in a session from then on with no option set.
"""

from dataclasses import replace
from typing import Any, Final

import structlog
from pyarrow import flight

from duckmesh.errors import DuckMeshError, Internal
from duckmesh.tokens import VisibilityToken
from flight_server.boundary import flight_exception
from flight_server.calls import CallsInFlight, Place
from flight_server.counts import CallCount
from flight_server.headers import (
    CallOptions,
    RawHeaders,
    read_options,
    trace_id_of,
    traceparent_of,
)
from flight_server.sessions import TOKEN_PREFIX, Session, Sessions, token_headers
from flight_server.thread_state import HeldThreadState
from gateway.credentials import Authenticator, Bearer, identify, parse_authorization
from gateway.identity import Identity
from ingest_bus.envelope import WritingSession
from query_engine.engine import Interruption

MIDDLEWARE: Final = "duckmesh"
"""The key of this middleware in pyarrow's dictionary."""

_FINISHING: Final = (flight.FlightMethod.DO_GET, flight.FlightMethod.DO_ACTION)
"""Fetching what a ticket promises, and closing: admitted while the server drains."""

_log = structlog.get_logger(__name__)


class Call(flight.ServerMiddleware):  # type: ignore[misc]
    """One call: who, in which session, with which headers. Lives as long as the call."""

    def __init__(
        self,
        session: Session,
        headers: RawHeaders,
        trace_id: str,
        *,
        place: Place,
        sessions: Sessions,
        is_new: bool,
        count: CallCount,
        tells_at_once: bool = True,
    ) -> None:
        super().__init__()
        self.count = count
        self.place = place
        self.stop = Interruption()
        """Pressed when the caller goes: whatever the call waits for or runs takes it along."""
        self.session = session
        """The session as the client's token has it; `recalled` knows more."""
        self.trace_id = trace_id
        self.traceparent = traceparent_of(headers, trace_id)
        self._headers = headers
        self._options: CallOptions | None = None
        self._sessions = sessions
        self._is_new = is_new
        self._recalled: Session | None = None
        self._told_token: str | None = None
        if is_new and tells_at_once:
            self._told_token = sessions.token_of(session)
        # Last of all: a call that was refused is not completed.
        self._thread_state = HeldThreadState()

    @property
    def identity(self) -> Identity:
        return self.session.identity

    @property
    def writing(self) -> WritingSession | None:
        """The session that a write of this call is part of.

        None for a client that shows none and is told of none before the write: nobody can be in a
        session that he does not know, so such a write has no record to move.
        """
        return None if self._is_new and self._told_token is None else self.session.writing

    @property
    def in_session(self) -> bool:
        """Whether the client showed a session: its state can outlast this call."""
        return not self._is_new

    def recalled(self) -> Session:
        """The session with what its record knows: one look-up a call, none for a new session.

        Raises Unavailable: call it inside the boundary.
        """
        if self._recalled is None:
            self._recalled = self.session if self._is_new else self._sessions.recalled(self.session)
        return self._recalled

    def headers_after(self, token: VisibilityToken | None) -> dict[str, str]:
        """The headers that tell the client of its session when it knows less, or grows old."""
        session = self._recalled or self.session
        if token is not None:
            session = session.having_written(token)
        if self._is_new and self._told_token is None:
            return token_headers(self._sessions.token_of(session))
        if self._sessions.due_for_renewal(self.session):
            return token_headers(self._sessions.renewed(session))
        if session.last_token > self.session.last_token:
            return token_headers(self._sessions.token_of(session))
        return {}

    def options(self) -> CallOptions:
        """The call's options. Raises Invalid: call it inside the boundary."""
        if self._options is None:
            self._options = read_options(self._headers)
        return self._options

    def sending_headers(self) -> dict[str, str]:
        # pyarrow asks before the RPC runs, and a second time after GetFlightInfo: the answer is
        # the same each time. A token that a write moved, or that grows old, is sent by the RPC
        # itself; of two such headers ADBC keeps the first, so a session sends none here.
        return {} if self._told_token is None else token_headers(self._told_token)

    def call_completed(self, exception: Exception | None) -> None:
        self.count.ended(failed=exception is not None)
        self.place.leave()
        self._thread_state.release()


class Authentication(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Turns the credential of each call into a Call, or refuses it as UNAUTHENTICATED."""

    def __init__(
        self, authenticator: Authenticator, sessions: Sessions, calls: CallsInFlight
    ) -> None:
        super().__init__()
        self._calls = calls
        self._authenticator = authenticator
        self._sessions = sessions

    def start_call(self, info: Any, headers: RawHeaders) -> Call:
        trace_id = trace_id_of(headers)
        count = CallCount(info.method)
        place: Place | None = None
        try:
            place = self._calls.enter(finishes=info.method in _FINISHING)
            return self._admit(info.method, headers, trace_id, place, count)
        except DuckMeshError as error:
            _give_back(place)
            count.refused(error)
            _log.info(
                "call_refused", rpc=str(info.method), error_code=error.code.value, trace_id=trace_id
            )
            raise flight_exception(error, trace_id) from None
        except Exception:  # noqa: BLE001 - logged, and mapped to INTERNAL
            _give_back(place)
            count.refused(Internal())
            _log.exception("call_failed", rpc=str(info.method), trace_id=trace_id)
            raise flight_exception(Internal(), trace_id) from None

    def _admit(
        self, method: Any, headers: RawHeaders, trace_id: str, place: Place, count: CallCount
    ) -> Call:
        session = self._shown(headers)
        is_new = session is None
        if session is None:
            credential = parse_authorization(_texts(headers, "authorization"))
            session = self._sessions.begin(identify(self._authenticator, credential))
        return Call(
            session,
            headers,
            trace_id,
            place=place,
            sessions=self._sessions,
            is_new=is_new,
            count=count,
            # A write tells its token in the same header: it waits for that.
            tells_at_once=method != flight.FlightMethod.DO_PUT,
        )

    def _shown(self, headers: RawHeaders) -> Session | None:
        """The live session that a call shows, by its bearer token, its cookie or both."""
        credential = parse_authorization(_texts(headers, "authorization"))
        cookies = _texts(headers, "cookie")
        if isinstance(credential, Bearer) and credential.token.startswith(TOKEN_PREFIX):
            session = self._sessions.open(credential.token)
            cookie = self._sessions.of_cookies(cookies, credential.token)
            if cookie is not None and _is_same_caller(cookie.identity, session.identity):
                session = session.having_written(cookie.last_token)
        elif (cookie := self._sessions.of_cookies(cookies)) is None:
            return None
        elif credential is not None:
            # The credential says who calls; the cookie, in which session, if it is his.
            identity = identify(self._authenticator, credential)
            if not _is_same_caller(cookie.identity, identity):
                return None
            session = replace(cookie, identity=identity)
        else:
            session = cookie
        self._authenticator.check_live(session.identity)
        return session


def _texts(headers: RawHeaders, name: str) -> list[str]:
    return [str(value) for value in headers.get(name, ())]


def _is_same_caller(one: Identity, other: Identity) -> bool:
    return (one.tenant_id, one.principal, one.key_id) == (
        other.tenant_id,
        other.principal,
        other.key_id,
    )


def _give_back(place: Place | None) -> None:
    # pyarrow does not complete a call that was refused here.
    if place is not None:
        place.leave()


class AcceptHandshake(flight.ServerAuthHandler):  # type: ignore[misc]
    """Lets the Handshake call through: the middleware has already judged its credential.

    JDBC, ODBC and ADBC with a password open with a handshake, which pyarrow refuses when no such
    object is given.
    """

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Nothing to ask: the credential came in the headers."""

    def is_valid(self, token: bytes) -> bytes:  # noqa: ARG002 - pyarrow's signature
        return b""


def call_of(context: flight.ServerCallContext) -> Call:
    """The Call of a running RPC."""
    call = context.get_middleware(MIDDLEWARE)
    assert isinstance(call, Call)  # noqa: S101 - the server is built with this middleware
    return call
