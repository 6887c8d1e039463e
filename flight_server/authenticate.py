"""Who calls, decided once per call in one thin middleware.

Basic (the password is the API key) and Bearer (an API key, or a session token of ours) lead to an
Identity. The answer to a call that came with anything but a session carries a session token in
its `authorization` header: ADBC keeps it and is in a session from then on with no option set.
"""

from typing import Any, Final

import structlog
from pyarrow import flight

from duckmesh.errors import DuckMeshError, Internal
from duckmesh.tokens import VisibilityToken
from flight_server.boundary import flight_exception
from flight_server.calls import CallsInFlight, Place
from flight_server.headers import CallOptions, RawHeaders, read_options, trace_id_of
from flight_server.sessions import TOKEN_PREFIX, Session, Sessions
from gateway.credentials import Authenticator, Bearer, identify, parse_authorization
from gateway.identity import Identity
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
        carried_token: VisibilityToken,
        new_token: str | None,
    ) -> None:
        super().__init__()
        self.carried_token = carried_token
        """The last token that the client knows its session by."""
        self.place = place
        self.stop = Interruption()
        """Pressed when the caller goes: whatever the call waits for or runs takes it along."""
        self.session = session
        self.trace_id = trace_id
        self._headers = headers
        self._new_token = new_token

    @property
    def identity(self) -> Identity:
        return self.session.identity

    def options(self) -> CallOptions:
        """The call's options. Raises Invalid: call it inside the boundary."""
        return read_options(self._headers)

    def sending_headers(self) -> dict[str, str]:
        # pyarrow asks before the RPC runs, and a second time after GetFlightInfo: the answer is
        # the same each time. A token that a write moved, or that grows old, is sent by the RPC
        # itself; of two such headers ADBC keeps the first, so a session sends none here.
        return {} if self._new_token is None else {"authorization": f"Bearer {self._new_token}"}

    def call_completed(self, exception: Exception | None) -> None:  # noqa: ARG002 - pyarrow's
        self.place.leave()


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
        place: Place | None = None
        try:
            place = self._calls.enter(finishes=info.method in _FINISHING)
            return self._admit(headers, trace_id, place)
        except DuckMeshError as error:
            _give_back(place)
            _log.info(
                "call_refused", rpc=str(info.method), error_code=error.code.value, trace_id=trace_id
            )
            raise flight_exception(error, trace_id) from None
        except Exception:  # noqa: BLE001 - logged, and mapped to INTERNAL
            _give_back(place)
            _log.exception("call_failed", rpc=str(info.method), trace_id=trace_id)
            raise flight_exception(Internal(), trace_id) from None

    def _admit(self, headers: RawHeaders, trace_id: str, place: Place) -> Call:
        credential = parse_authorization([str(v) for v in headers.get("authorization", ())])
        if isinstance(credential, Bearer) and credential.token.startswith(TOKEN_PREFIX):
            session = self._sessions.open(credential.token)
            self._authenticator.check_live(session.identity)
            current = self._sessions.last_writes.brought_up(session)
            return Call(
                current,
                headers,
                trace_id,
                place=place,
                carried_token=session.last_token,
                new_token=None,
            )
        session = self._sessions.begin(identify(self._authenticator, credential))
        token = self._sessions.token_of(session)
        return Call(
            session,
            headers,
            trace_id,
            place=place,
            carried_token=session.last_token,
            new_token=token,
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
