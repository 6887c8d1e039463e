"""Who calls, decided once per call.

Basic (the password is the API key) and Bearer (an API key, or a session token of ours) lead to an
Identity. The answer to a call that came with anything but a session carries a session token, in
its `authorization` header and in a cookie: ADBC keeps the one, JDBC and ODBC the other, and each is
in a session from then on with no option set.
"""

from dataclasses import replace

from duckmesh.tokens import VisibilityToken
from flight_server.calls import Place
from flight_server.counts import CallCount
from flight_server.headers import (
    CallOptions,
    RawHeaders,
    read_options,
    traceparent_of,
)
from flight_server.sessions import TOKEN_PREFIX, Session, Sessions, token_headers
from gateway.credentials import Authenticator, Bearer, identify, parse_authorization, recall
from gateway.identity import Identity
from grpc_transport.calls import Call as Rpc
from ingest_bus.envelope import WritingSession
from query_engine.engine import Interruption


class Call:
    """One call: who, in which session, with which headers. Lives as long as the call."""

    def __init__(
        self,
        rpc: Rpc,
        session: Session,
        trace_id: str,
        *,
        place: Place,
        sessions: Sessions,
        is_new: bool,
        count: CallCount,
        tells_at_once: bool = True,
    ) -> None:
        self.rpc = rpc
        self.count = count
        self.place = place
        self.stop = Interruption()
        """Pressed when the caller goes: whatever the call waits for or runs takes it along."""
        self.session = session
        """The session as the client's token has it; `recalled` knows more."""
        self.trace_id = trace_id
        self.traceparent = traceparent_of(rpc.headers, trace_id)
        self._options: CallOptions | None = None
        self._sessions = sessions
        self._is_new = is_new
        self._recalled: Session | None = None
        self._told_token: str | None = None
        if is_new and tells_at_once:
            self._told_token = sessions.token_of(session)
            self._send(token_headers(self._told_token))

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

    def send_session(self, token: VisibilityToken | None = None) -> None:
        """Send the session's token anew when the client's knows less, or grows old.

        It goes out with the first bytes of the answer: call this before them.
        """
        self._send(self._headers_after(token))

    def _send(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.rpc.set_header(name, value)

    def _headers_after(self, token: VisibilityToken | None) -> dict[str, str]:
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
            self._options = read_options(self.rpc.headers)
        return self._options


class Authentication:
    """Turns the credential of each call into a Call, or refuses it. Safe for threads."""

    def __init__(self, authenticator: Authenticator, sessions: Sessions) -> None:
        self._authenticator = authenticator
        self._sessions = sessions

    def admit(
        self, rpc: Rpc, trace_id: str, place: Place, count: CallCount, *, tells_at_once: bool
    ) -> Call:
        """The call of who is let in. Blocks. Raises Denied, Overloaded, Unavailable.

        With `tells_at_once` the answer begins with the token of a new session; a write tells its
        own token in the same header, and waits for that.
        """
        session = self._shown(rpc.headers)
        is_new = session is None
        if session is None:
            credential = parse_authorization(_texts(rpc.headers, "authorization"))
            session = self._sessions.begin(identify(self._authenticator, credential))
        return Call(
            rpc,
            session,
            trace_id,
            place=place,
            sessions=self._sessions,
            is_new=is_new,
            count=count,
            tells_at_once=tells_at_once,
        )

    def identity(self, headers: RawHeaders) -> Identity:
        """Who calls, in no session. Blocks. Raises as `admit` does."""
        return identify(self._authenticator, parse_authorization(_texts(headers, "authorization")))

    def recall(self, headers: RawHeaders) -> Identity | None:
        """Who calls, by what memory knows; None when it cannot tell, and for one in a session.

        Never blocks. Raises Denied for what is no credential at all.
        """
        if "cookie" in headers:
            return None
        credential = parse_authorization(_texts(headers, "authorization"))
        if isinstance(credential, Bearer) and credential.token.startswith(TOKEN_PREFIX):
            return None
        return recall(self._authenticator, credential)

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
