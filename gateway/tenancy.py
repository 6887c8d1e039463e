"""Tenants and identities: who a credential speaks for, and the open mode of one machine."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from catalog import acts, tenants
from catalog.acts import OPERATOR
from catalog.connection import Catalog, Connection
from catalog.tenants import ApiKey, KeyHolder, Tenant
from duckmesh.errors import Denied, ErrorCode, Invalid, NotFound
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.quotas import KEY_QUOTAS, NO_QUOTAS, Quotas
from gateway.identity import EVERY_ROLE, Identity, Role
from gateway.known_keys import KnownKeys
from gateway.tenant_quotas import check_values
from gateway.web_tokens import WebTokens, refused

_CACHE_SECONDS: Final = 1.0
"""How long a tenant is known to be let in."""
_CACHE_LIMIT: Final = 10_000
_SUBJECT_PREFIX: Final = "jwt:"
"""Keeps the provider's names apart from those of API keys."""


class Tenancy:
    """Turns credentials into identities. Thread-safe.

    With `open_tenant` set, a caller without credentials is that tenant with every role: the open
    mode of one machine. A wrong credential is refused in either mode.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        open_tenant: str | None = None,
        web_tokens: WebTokens | None = None,
    ) -> None:
        self._catalog = catalog
        self._open_tenant = open_tenant
        self._web_tokens = web_tokens
        self._open_identities: dict[str, Identity] = {}
        self._keys = KnownKeys(catalog)
        self._tenants: dict[str, tuple[float, TenantId]] = {}

    def authenticate_api_key(self, secret: str, source: str = "") -> Identity:
        """The identity of a live API key.

        Raises Denied (UNAUTHORIZED), and Overloaded (RATE_LIMITED) for one who goes on guessing;
        `source` tells guessers apart.
        """
        holder = self._keys.holder_of(secret, source=source)
        if holder is None:
            raise unauthorized()
        return _identity_of(holder)

    def recall_api_key(self, secret: str) -> Identity | None:
        """The same from memory; None when only `authenticate_api_key` can tell. Never blocks."""
        holder = self._keys.recall(secret)
        return None if holder is None else _identity_of(holder)

    def authenticate_web_token(self, token: str) -> Identity:
        """The identity that a token of the provider proves. Its tenant must exist already.

        Raises Denied (UNAUTHORIZED), the same for a tenant that does not exist; Unavailable when
        the provider's keys cannot be had. Blocks for the provider at most as `KeySet.find` says.
        """
        if self._web_tokens is None:
            raise unauthorized()
        claims = self._web_tokens.verify(token)
        return Identity(
            tenant_id=self._live_tenant(claims.tenant),
            tenant=claims.tenant,
            principal=f"{_SUBJECT_PREFIX}{claims.subject}",
            key_id=None,
            roles=claims.roles,
            expires_at=claims.expires_at,
        )

    def _live_tenant(self, name: str) -> TenantId:
        """The id of an enabled tenant, known for a second. Raises Denied."""
        until, tenant_id = self._tenants.get(name, (0.0, None))
        if tenant_id is not None and time.monotonic() < until:
            return tenant_id
        asked_at = time.monotonic()
        try:
            with self._catalog.connect() as connection:
                tenant = tenants.find_tenant(connection, name)
        except NotFound:
            raise refused() from None
        if tenant.disabled:
            raise refused()
        if len(self._tenants) >= _CACHE_LIMIT:
            self._tenants.clear()
        self._tenants[name] = (asked_at + _CACHE_SECONDS, tenant.tenant_id)
        return tenant.tenant_id

    def check_live(self, identity: Identity) -> None:
        """Raise Denied when the key behind a session was revoked since, or its token has ended."""
        if identity.expires_at is not None:
            if self._web_tokens is None or datetime.now(UTC) >= identity.expires_at:
                raise refused("the token that this session began with has expired: connect anew")
            self._live_tenant(identity.tenant)
            return
        if identity.key_id is None:
            if self._open_tenant is None:
                raise unauthorized()
            self._live_tenant(identity.tenant)
            return
        if self._keys.live(identity.key_id) is None:
            raise unauthorized()

    def open_identity(self, tenant: str | None = None) -> Identity | None:
        """Who a caller without credentials is: None unless open mode is on.

        The caller may name another tenant that exists. Raises NotFound (TENANT_NOT_FOUND), Denied
        when the tenant is disabled.
        """
        if self._open_tenant is None:
            return None
        name = tenant or self._open_tenant
        known = self._open_identities.get(name)
        if known is None:
            known = self._open_identity_of(name)
            if len(self._open_identities) < _CACHE_LIMIT:
                self._open_identities[name] = known
        self._live_tenant(name)
        return known

    def recall_open_identity(self, tenant: str | None = None) -> Identity | None:
        """The same from memory; None when only `open_identity` can tell. Never blocks."""
        name = tenant or self._open_tenant
        if self._open_tenant is None or name is None:
            return None
        until, _ = self._tenants.get(name, (0.0, None))
        return self._open_identities.get(name) if time.monotonic() < until else None

    def _open_identity_of(self, name: str) -> Identity:
        with self._catalog.connect() as connection:
            if name == self._open_tenant:
                tenant = tenants.ensure_tenant(connection, name, created_by="open mode")
            else:
                tenant = tenants.find_tenant(connection, name)
        return Identity(tenant.tenant_id, tenant.name, "open", None, EVERY_ROLE)


def _identity_of(holder: KeyHolder) -> Identity:
    return Identity(
        tenant_id=holder.tenant.tenant_id,
        tenant=holder.tenant.name,
        principal=holder.key_name,
        key_id=holder.key_id,
        roles=frozenset(Role(role) for role in holder.roles),
    )


def unauthorized() -> Denied:
    return Denied(
        ErrorCode.UNAUTHORIZED,
        "show a live API key: as the password, or as `authorization: Bearer <key>`",
    )


def ensure_tenant(catalog: Catalog, name: str, *, principal: str) -> Tenant:
    """The tenant of that name, created if it is new."""
    with catalog.connect() as connection:
        return tenants.ensure_tenant(connection, name, created_by=principal)


def switch_tenant(
    catalog: Catalog, name: str, *, disabled: bool, principal: str = OPERATOR
) -> None:
    """Disable or enable a tenant; serving processes heed it within a second. Data is kept."""
    act = "disable_tenant" if disabled else "enable_tenant"
    with catalog.connect() as connection, connection.transaction():
        tenants.switch_tenant(connection, name, disabled=disabled)
        _done(connection, tenants.find_tenant(connection, name), act, name, principal)


def _done(
    connection: Connection, tenant: Tenant, act: str, target: str, principal: str, **detail: Any
) -> None:
    """Write down an operator's act, in the transaction that it is done in."""
    acts.record(
        connection,
        act,
        target,
        tenant_id=tenant.tenant_id,
        principal=principal,
        detail=detail,
    )


def create_key(
    catalog: Catalog,
    tenant_name: str,
    *,
    name: str,
    roles: Sequence[str],
    quotas: Quotas = NO_QUOTAS,
    principal: str = OPERATOR,
) -> tuple[KeyId, str]:
    """Create an API key; return its id and its secret, which cannot be shown again."""
    check_values(quotas, allowed=KEY_QUOTAS)
    wrong = sorted(set(roles) - {role.value for role in Role})
    if wrong or not roles:
        raise Invalid(
            ErrorCode.FORBIDDEN,
            f"roles are one or more of {', '.join(role.value for role in Role)}",
            roles=wrong,
        )
    with catalog.connect() as connection, connection.transaction():
        tenant = tenants.find_tenant(connection, tenant_name)
        made = tenants.create_key(
            connection, tenant.tenant_id, name=name, roles=roles, own_quotas=quotas
        )
        _done(
            connection,
            tenant,
            "create_key",
            made[0],
            principal,
            name=name,
            roles=sorted(roles),
            quotas=quotas.by_name(),
        )
    return made


def rotate_key(
    catalog: Catalog, tenant_name: str, key_id: KeyId, *, principal: str = OPERATOR
) -> tuple[KeyId, str]:
    """A new key of the same name and roles in the place of a live one, which ends. Atomic."""
    with catalog.connect() as connection, connection.transaction():
        tenant = tenants.find_tenant(connection, tenant_name)
        made = tenants.rotate_key(connection, tenant.tenant_id, key_id)
        _done(connection, tenant, "rotate_key", key_id, principal, new_key=made[0])
    return made


def list_keys(catalog: Catalog, tenant_name: str) -> list[ApiKey]:
    with catalog.connect() as connection:
        tenant = tenants.find_tenant(connection, tenant_name)
        return tenants.list_keys(connection, tenant.tenant_id)


def revoke_key(
    catalog: Catalog, tenant_name: str, key_id: KeyId, *, principal: str = OPERATOR
) -> None:
    """End a key. Serving processes refuse it within a second."""
    with catalog.connect() as connection, connection.transaction():
        tenant = tenants.find_tenant(connection, tenant_name)
        tenants.revoke_key(connection, tenant.tenant_id, key_id)
        _done(connection, tenant, "revoke_key", key_id, principal)
