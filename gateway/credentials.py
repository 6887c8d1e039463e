"""The credentials that both doors read: an API key as a header, a password or a bearer token.

Wherever an API key may stand, a token of the identity provider may: many programs have no other
place for one than the password.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from duckmesh.errors import Denied, ErrorCode
from gateway.identity import Identity
from gateway.web_tokens import looks_like_web_token


class Authenticator(Protocol):
    """What a door asks of the rooms below. Called on every call: answers come from a cache."""

    def authenticate_api_key(self, secret: str, source: str = "") -> Identity:
        """The identity of an API key. Raises Denied when it is unknown or revoked.

        Raises Overloaded (RATE_LIMITED) for a source that goes on showing wrong ones.
        """

    def authenticate_web_token(self, token: str) -> Identity:
        """The identity of a JSON Web Token. Raises Denied unless it is proved, Unavailable."""

    def open_identity(self, tenant: str | None = None) -> Identity | None:
        """The identity of a caller who shows no credential; None when one is required.

        In open mode a caller may name a tenant that exists. Raises NotFound (TENANT_NOT_FOUND).
        """

    def recall_api_key(self, secret: str) -> Identity | None:
        """The identity of an API key that memory knows; None when the key must be looked up."""

    def recall_open_identity(self, tenant: str | None = None) -> Identity | None:
        """What `open_identity` says, by memory; None when that must be asked."""

    def check_live(self, identity: Identity) -> None:
        """Raise Denied when what a session began with has been revoked or has expired since."""


@dataclass(frozen=True, slots=True)
class Basic:
    """User and password (RFC 7617). The password is the API key; the user is free text."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token (RFC 6750): an API key, a JSON Web Token, or a session token of the Flight door."""

    token: str


def parse_authorization(values: Sequence[str]) -> Basic | Bearer | None:
    """The credential of a call; None when it shows none.

    An empty Basic password or Bearer token counts as none: some clients always log in. Raises
    Denied (UNAUTHORIZED) for another scheme, a malformed value, or two different values.
    """
    distinct = {value.strip() for value in values if value.strip()}
    if not distinct:
        return None
    if len(distinct) > 1:
        raise _unknown("the call shows more than one credential: send one authorization header")
    scheme, _, rest = distinct.pop().partition(" ")
    match scheme.lower():
        case "bearer":
            return Bearer(rest.strip()) if rest.strip() else None
        case "basic":
            return _basic(rest.strip())
    raise _unknown("use 'authorization: Basic' (the password is the API key) or 'Bearer'")


def identify(
    authenticator: Authenticator, credential: Basic | Bearer | None, *, source: str = ""
) -> Identity:
    """Whom a credential speaks for. Raises Denied (UNAUTHORIZED), Overloaded, Unavailable.

    `source` is the caller's address, where the door knows it.
    """
    match credential:
        case Basic(password=secret) | Bearer(token=secret):
            if looks_like_web_token(secret):
                return authenticator.authenticate_web_token(secret)
            return authenticator.authenticate_api_key(secret, source)
        case None:
            if (identity := authenticator.open_identity()) is not None:
                return identity
            raise _unknown(
                "show an API key: as the password of user and password, or as a Bearer token"
            )


def recall(authenticator: Authenticator, credential: Basic | Bearer | None) -> Identity | None:
    """Whom a credential speaks for, by what memory knows. Never blocks.

    None when `identify` must be asked: it is not known, wrong, or an identity provider's.
    """
    match credential:
        case Basic(password=secret) | Bearer(token=secret):
            return None if looks_like_web_token(secret) else authenticator.recall_api_key(secret)
        case None:
            return authenticator.recall_open_identity()


def _basic(encoded: str) -> Basic | None:
    try:
        # Arrow's Go client leaves the padding out.
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        user, colon, password = decoded.decode().partition(":")
    except ValueError:
        raise _unknown("the Basic credential is not the base64 of user:password") from None
    if not colon:
        raise _unknown("the Basic credential is not the base64 of user:password")
    return Basic(user, password) if password else None


def _unknown(message: str) -> Denied:
    return Denied(ErrorCode.UNAUTHORIZED, message)
