"""JSON Web Tokens (RFC 7519) of an identity provider: what one says of its bearer, once proved."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from duckmesh.errors import Denied, ErrorCode
from gateway.identity import Role
from gateway.key_sets import KeySet, WebKey

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""What may be allowed: signatures of a private key. `none` and HMAC are not among them."""

_TOKEN_MAX_CHARS: Final = 16 * 1024
_SUBJECT_MAX_CHARS: Final = 200
_BASE64URL: Final = frozenset(string.ascii_letters + string.digits + "-_")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say to be believed, and where it says who its bearer is."""

    issuer: str
    audience: str
    algorithms: frozenset[str] = frozenset({"RS256", "ES256", "EdDSA"})
    tenant_claim: str = "tenant"
    roles_claim: str = "roles"
    role_of: Mapping[str, Role] = field(default_factory=lambda: {role.value: role for role in Role})
    """Which of the provider's role names is which of ours; any other name means nothing."""
    leeway: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token proved."""

    tenant: str
    subject: str
    roles: frozenset[Role]
    expires_at: datetime


class WebTokens:
    """Checks tokens of one issuer. Thread-safe."""

    def __init__(self, rules: TokenRules, keys: KeySet) -> None:
        if not rules.algorithms or not rules.algorithms <= ALGORITHMS:
            raise ValueError(f"algorithms are one or more of {', '.join(sorted(ALGORITHMS))}")
        self._rules = rules
        self._keys = keys

    def verify(self, token: str) -> Claims:
        """The claims of a token whose signature, issuer, audience and times hold.

        Raises Denied (UNAUTHORIZED) for any other: what an attacker could learn from is not said.
        Raises Unavailable when the issuer's keys cannot be had. Blocks as `KeySet.find`.
        """
        try:
            claims = self._proved(token)
            return Claims(
                tenant=_text(claim(claims, self._rules.tenant_claim)),
                subject=_text(claims["sub"])[:_SUBJECT_MAX_CHARS],
                roles=self._roles(claim(claims, self._rules.roles_claim)),
                expires_at=datetime.fromtimestamp(float(claims["exp"]), UTC),
            )
        except jwt.ExpiredSignatureError:
            raise refused(
                "the token has expired: fetch a new one from the identity provider"
            ) from None
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, OSError):
            raise refused() from None

    def _proved(self, token: str) -> dict[str, Any]:
        if len(token) > _TOKEN_MAX_CHARS:
            raise ValueError("too long")
        header = jwt.get_unverified_header(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        # Before any key is looked up: a forger's algorithm costs no fetch.
        if algorithm not in self._rules.algorithms:
            raise ValueError("an algorithm that is not allowed")
        if key_id is not None and not isinstance(key_id, str):
            raise ValueError("a key id is text")
        key = self._keys.find(key_id)
        if key is None:
            raise ValueError("an unknown key")
        claims: dict[str, Any] = jwt.decode(
            token,
            _public_key(key, algorithm),
            algorithms=[algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=self._rules.leeway,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims

    def _roles(self, said: object) -> frozenset[Role]:
        """A list of names, or names with spaces between as in `scope`; none is no role."""
        names: Sequence[object] = said.split() if isinstance(said, str) else _list(said)
        known = self._rules.role_of
        return frozenset(known[name] for name in names if isinstance(name, str) and name in known)


def looks_like_web_token(credential: str) -> bool:
    """Whether a bearer credential has the form of a signed JWT: three parts, the first JSON."""
    head, *rest = credential.split(".")
    return len(rest) == 2 and head.startswith("eyJ") and _BASE64URL.issuperset(head)


def claim(claims: Mapping[str, Any], name: str) -> object:
    """The claim of that very name, else the one that the name leads to through objects.

    `https://example.org/tenant` is one name; `realm_access.roles` is a way.
    """
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _public_key(key: WebKey, algorithm: str) -> jwt.PyJWK:
    """The key for this algorithm and no other, also when the set names none."""
    if key.get("alg", algorithm) != algorithm:
        raise ValueError("the key is for another algorithm")
    return jwt.PyJWK(dict(key), algorithm=algorithm)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def refused(message: str = "the token is not one that this service believes") -> Denied:
    return Denied(ErrorCode.UNAUTHORIZED, message)


def parse_role_map(text: str) -> dict[str, Role]:
    """`name=role, name=role` as a mapping; empty text maps each role's own name to it.

    Raises ValueError for a pair that is none, and for a role that does not exist.
    """
    pairs = [pair.strip() for pair in text.split(",") if pair.strip()]
    if not pairs:
        return {role.value: role for role in Role}
    mapped: dict[str, Role] = {}
    for pair in pairs:
        name, equals, role = pair.rpartition("=")
        if not equals or not name.strip():
            raise ValueError(f"not `name=role`: {json.dumps(pair)}")
        mapped[name.strip()] = Role(role.strip())
    return mapped
