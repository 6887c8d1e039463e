"""Sessions without a store: a signed bearer token that says who, which session, and its last write.

Clients that keep the `authorization` response header (ADBC) or a cookie send it back by
themselves. The token carries the session's last visibility token, so that any serving process
reads the session's own writes. It replaces the credential: its holder is the identity it names.
"""

import base64
import binascii
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Self
from uuid import uuid4

from duckmesh.errors import Denied, ErrorCode, Invalid
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.tokens import BEFORE_ALL, VisibilityToken
from flight_server import messages
from flight_server.tickets import Purpose, Seal
from gateway.identity import Identity, Role

TOKEN_PREFIX: Final = "dms1."  # noqa: S105 - names the kind of token, not a secret
"""What tells a session token from an API key in a Bearer credential."""


@dataclass(frozen=True, slots=True)
class Session:
    """One client's conversation, as its token carries it."""

    identity: Identity
    session_id: str
    last_token: VisibilityToken
    issued_at: datetime
    options: Mapping[str, str] = field(default_factory=dict)

    def having_written(self, token: VisibilityToken) -> Self:
        """This session after a write: its last token never moves back."""
        return self if token <= self.last_token else replace(self, last_token=token)


class LastWrites:
    """What each session wrote last through this process. Bounded; thread-safe.

    The token in the bearer is not enough. Arrow's Go client, and ADBC with it, sometimes drops the
    headers of a streaming call that has ended (its watcher of the call's context may come first),
    and with them the token that tells of an ingest. A client's connection stays at one process,
    which remembers here; the next unary answer tells the client again.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, VisibilityToken] = OrderedDict()

    def note(self, session: Session) -> None:
        """Remember the session's last token, unless a later one is known."""
        with self._lock:
            known = self._tokens.pop(session.session_id, BEFORE_ALL)
            self._tokens[session.session_id] = max(known, session.last_token)
            if len(self._tokens) > self._limit:
                self._tokens.popitem(last=False)

    def brought_up(self, session: Session) -> Session:
        """The session with the last write that is known of it."""
        with self._lock:
            known = self._tokens.get(session.session_id, BEFORE_ALL)
        return session.having_written(known)


class Sessions:
    """Issues session tokens and opens them. Safe for threads."""

    def __init__(self, seal: Seal, *, lifetime: timedelta = timedelta(hours=12)) -> None:
        self._seal = seal
        self._lifetime = lifetime
        self.last_writes = LastWrites()

    def begin(self, identity: Identity) -> Session:
        """A new session of `identity` that has written nothing."""
        return Session(identity, uuid4().hex, BEFORE_ALL, self._seal.now)

    def token_of(self, session: Session) -> str:
        """The session's bearer token, good for a whole lifetime from now."""
        who = session.identity
        message = messages.sealed("Session")(
            subject=messages.sealed("Subject")(
                tenant_id=who.tenant_id,
                tenant=who.tenant,
                principal=who.principal,
                key_id=who.key_id,
                roles=sorted(who.roles),
            ),
            session_id=session.session_id,
            last_token=session.last_token,
            issued_at_ms=int(self._seal.now.timestamp() * 1000),
            options=dict(session.options),
        )
        sealed = self._seal.seal(
            Purpose.SESSION, message.SerializeToString(), lifetime=self._lifetime
        )
        return TOKEN_PREFIX + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")

    def open(self, token: str) -> Session:
        """The session that `token` names. Raises Denied (UNAUTHORIZED) when it is not valid."""
        try:
            sealed = _from_base64(token.removeprefix(TOKEN_PREFIX))
            message = messages.sealed("Session")()
            message.ParseFromString(self._seal.open(Purpose.SESSION, sealed))
        except (binascii.Error, ValueError):
            raise _unknown("the session token is damaged: connect again") from None
        except Invalid as refused:
            raise _unknown(refused.message) from None
        who = message.subject
        identity = Identity(
            tenant_id=TenantId(who.tenant_id),
            tenant=who.tenant,
            principal=who.principal,
            key_id=KeyId(who.key_id) if who.HasField("key_id") else None,
            roles=frozenset(Role(role) for role in who.roles),
        )
        issued_at = datetime.fromtimestamp(message.issued_at_ms / 1000, UTC)
        last_token = VisibilityToken(message.last_token)
        return Session(identity, message.session_id, last_token, issued_at, dict(message.options))

    def due_for_renewal(self, session: Session) -> bool:
        """Whether half of the token's lifetime has passed, so that a live client never expires."""
        return self._seal.now - session.issued_at > self._lifetime / 2


def _from_base64(text: str) -> bytes:
    padded = text + "=" * (-len(text) % 4)
    return base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)


def _unknown(message: str) -> Denied:
    return Denied(ErrorCode.UNAUTHORIZED, message)
