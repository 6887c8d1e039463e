"""Sessions: a signed token that says who and which session, and the record that knows the rest.

Clients that keep the `authorization` response header (ADBC) or a cookie (JDBC, ODBC) send the token
back by themselves. It replaces the credential: its holder is the identity it names. It says the
session's last visibility token as well, but a client may lose the header that says so; the record
in the catalog is moved with the write itself, and any serving process asks it.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, Protocol, Self
from uuid import UUID

from catalog.sessions import Found
from catalog.snapshots import Snapshot
from duckmesh.errors import Denied, ErrorCode, Invalid
from duckmesh.identifiers import KeyId, SessionId, TenantId, TransactionId, new_session_id
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from flight_server import messages
from flight_server.tickets import Purpose, Seal
from gateway.identity import Identity, Role
from ingest_bus.envelope import WritingSession

TOKEN_PREFIX: Final = "dms1."  # noqa: S105 - names the kind of token, not a secret
"""What tells a session token from an API key in a Bearer credential."""

_READ_MAX: Final = 10_000
"""So many opened tokens are remembered; a client shows the same one at each call."""

COOKIE: Final = "arrow_flight_session_id"
"""The name that Arrow's own servers give their session cookie."""


@dataclass(frozen=True, slots=True)
class Session:
    """One client's conversation: what its token carries, and what its record adds."""

    identity: Identity
    session_id: SessionId
    last_token: VisibilityToken
    issued_at: datetime
    options: Mapping[str, Any] = field(default_factory=dict)
    transaction_id: TransactionId | None = None
    newest: Snapshot | None = None
    """The tenant's newest snapshot, when the record was read with it."""

    @property
    def writing(self) -> WritingSession:
        """The session as the bus knows it."""
        return WritingSession(self.session_id, self.identity.principal)

    def having_written(self, token: VisibilityToken) -> Self:
        """This session after a write: its last token never moves back."""
        return self if token <= self.last_token else replace(self, last_token=token)


class Records(Protocol):
    """What is asked of gateway.sessions.ClientSessions."""

    def find(self, identity: Identity, session_id: SessionId) -> Found: ...

    def keep_alive(self, session_id: SessionId) -> None: ...


class Sessions:
    """Issues session tokens, opens them, and asks the records. Safe for threads."""

    def __init__(
        self, seal: Seal, records: Records, *, lifetime: timedelta = timedelta(hours=12)
    ) -> None:
        self._seal = seal
        self._records = records
        self._lifetime = lifetime
        self._read: dict[bytes, Session] = {}

    def begin(self, identity: Identity) -> Session:
        """A new session of `identity` that has written nothing."""
        return Session(identity, new_session_id(), BEFORE_ALL, self._seal.now)

    def recalled(self, session: Session) -> Session:
        """The session with what its record knows: one look-up in the catalog."""
        found = self._records.find(session.identity, session.session_id)
        record = found.record
        if record is None:
            return replace(session, newest=found.newest)
        return replace(
            session.having_written(record.last_token),
            options=record.options,
            transaction_id=record.transaction_id,
            newest=found.newest,
        )

    def renewed(self, session: Session) -> str:
        """A new token for a session in use, whose record is kept as long."""
        self._records.keep_alive(session.session_id)
        return self.token_of(session)

    def token_of(self, session: Session) -> str:
        """The session's bearer token, good for a whole lifetime from now.

        One that began with an identity provider's token ends with that token, however often it is
        renewed.
        """
        who = session.identity
        lifetime, ends = self._lifetime, who.expires_at
        if ends is not None:
            lifetime = min(lifetime, max(ends - self._seal.now, timedelta(0)))
        message = messages.sealed("Session")(
            subject=messages.sealed("Subject")(
                tenant_id=who.tenant_id,
                tenant=who.tenant,
                principal=who.principal,
                key_id=who.key_id,
                roles=sorted(who.roles),
                expires_at_ms=None if ends is None else int(ends.timestamp() * 1000),
            ),
            session_id=session.session_id.hex,
            last_token=session.last_token,
            issued_at_ms=int(self._seal.now.timestamp() * 1000),
        )
        sealed = self._seal.seal(Purpose.SESSION, message.SerializeToString(), lifetime=lifetime)
        return TOKEN_PREFIX + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")

    def open(self, token: str) -> Session:
        """The session that `token` names. Raises Denied (UNAUTHORIZED) when it is not valid."""
        try:
            sealed = _from_base64(token.removeprefix(TOKEN_PREFIX))
            # Each time: a token expires.
            content = self._seal.open(Purpose.SESSION, sealed)
            if (known := self._read.get(content)) is not None:
                return known
            session = _session_of(content)
        except (binascii.Error, ValueError):
            raise _unknown("the session token is damaged: connect again") from None
        except Invalid as refused:
            raise _unknown(refused.message) from None
        if len(self._read) >= _READ_MAX:
            self._read.clear()
        self._read[content] = session
        return session

    def of_cookies(self, values: Sequence[str], shown: str | None = None) -> Session | None:
        """The session whose cookie a call carries; None when it carries none that is valid.

        None, too, for the token that the call has `shown` already: many clients send it twice. A
        cookie is no credential that its sender chose: an old one is passed over, not refused.
        """
        if not values or (shown is not None and values[0].endswith(f"{COOKIE}={shown}")):
            return None
        token = _cookie(values)
        if token is None:
            return None
        try:
            return self.open(token)
        except Denied:
            return None

    def due_for_renewal(self, session: Session) -> bool:
        """Whether half of the token's lifetime has passed, so that a live client never expires."""
        return self._seal.now - session.issued_at > self._lifetime / 2


def _session_of(content: bytes) -> Session:
    """The session that a token's content says. Raises ValueError for what is none."""
    message = messages.sealed("Session")()
    message.ParseFromString(content)
    session_id = SessionId(UUID(hex=message.session_id))
    who = message.subject
    identity = Identity(
        tenant_id=TenantId(who.tenant_id),
        tenant=who.tenant,
        principal=who.principal,
        key_id=KeyId(who.key_id) if who.HasField("key_id") else None,
        roles=frozenset(Role(role) for role in who.roles),
        expires_at=_moment(who.expires_at_ms) if who.HasField("expires_at_ms") else None,
    )
    issued_at = _moment(message.issued_at_ms)
    return Session(identity, session_id, VisibilityToken(message.last_token), issued_at)


def token_headers(token: str) -> dict[str, str]:
    """The two response headers that carry a token, for the two kinds of client."""
    return {
        "authorization": f"Bearer {token}",
        "set-cookie": f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict",
    }


def _cookie(values: Sequence[str]) -> str | None:
    """The session cookie of a call's `cookie` headers."""
    for value in values:
        try:
            morsel = SimpleCookie(value).get(COOKIE)
        except CookieError:
            continue
        if morsel is not None and morsel.value.startswith(TOKEN_PREFIX):
            return morsel.value
    return None


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _from_base64(text: str) -> bytes:
    padded = text + "=" * (-len(text) % 4)
    return base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)


def _unknown(message: str) -> Denied:
    return Denied(ErrorCode.UNAUTHORIZED, message)
