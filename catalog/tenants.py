"""Tenants, their API keys, and the sealing secret that serving processes share."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from catalog import acts, quotas
from catalog.connection import Connection
from catalog.notifications import CREDENTIALS_CHANNEL
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import KeyId, TenantId, check_tenant_name
from duckmesh.quotas import NO_QUOTAS, Quotas
from duckmesh.statements import Statements

_SQL = Statements("catalog", "tenants.sql")
_KEY_PREFIX: Final = "dm_"
_SECRET: Final = re.compile(r"dm_([0-9a-f]{12})_[A-Za-z0-9_-]{20,100}")
_LIST_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Tenant:
    """An owner of tables. Nothing of one tenant is reachable by another."""

    tenant_id: TenantId
    name: str
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it may be shown: without its secret."""

    key_id: KeyId
    name: str
    roles: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None = None
    """To within minutes."""
    quotas: Quotas = NO_QUOTAS


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whom a secret speaks for."""

    key_id: KeyId
    key_name: str
    roles: frozenset[str]
    secret_hash: bytes
    tenant: Tenant


def hash_secret(secret: str) -> bytes:
    """SHA-256 of the secret. It carries 256 random bits, so no slow or salted hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def ensure_tenant(connection: Connection, name: str, *, created_by: str) -> Tenant:
    """Return the tenant of that name, created with its first, empty snapshot if it is new.

    One transaction: of two concurrent callers one creates, both get the same tenant. The creation
    is an administrative act of `created_by`.
    """
    check_tenant_name(name)
    with connection.transaction():
        row = connection.execute(_SQL["create_tenant"], (name,)).fetchone()
        if row is not None:
            connection.execute(
                _SQL["first_snapshot"], {"tenant_id": row[0], "created_by": created_by}
            )
            acts.record(connection, "create_tenant", name, tenant_id=row[0], principal=created_by)
    return find_tenant(connection, name)


def find_tenant(connection: Connection, name: str) -> Tenant:
    """The tenant of that name. Raises NotFound (TENANT_NOT_FOUND)."""
    row = connection.execute(_SQL["find_tenant"], (name,)).fetchone()
    if row is None:
        raise NotFound(ErrorCode.TENANT_NOT_FOUND, "no tenant has this name", tenant=name[:80])
    return Tenant(*row)


def switch_tenant(connection: Connection, name: str, *, disabled: bool) -> None:
    """Shut a tenant out or let it in again, and tell the serving processes with the same commit.

    Its data and keys stay. Repeatable. Raises NotFound (TENANT_NOT_FOUND).
    """
    switch = _SQL["disable_tenant"] if disabled else _SQL["enable_tenant"]
    with connection.transaction():
        find_tenant(connection, name)
        connection.execute(switch, (name,))
        connection.execute(_SQL["announce_credentials"], (CREDENTIALS_CHANNEL,))


def list_tenants(connection: Connection) -> list[Tenant]:
    return [Tenant(*row) for row in connection.execute(_SQL["list_tenants"], (_LIST_LIMIT,))]


def create_key(
    connection: Connection,
    tenant_id: TenantId,
    *,
    name: str,
    roles: Sequence[str],
    own_quotas: Quotas = NO_QUOTAS,
) -> tuple[KeyId, str]:
    """Create an API key; return its id and its secret, which is stored nowhere and shown once."""
    key_id = KeyId(secrets.token_hex(6))
    secret = f"{_KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    with connection.transaction():
        connection.execute(
            _SQL["create_key"], (key_id, tenant_id, name, hash_secret(secret), sorted(set(roles)))
        )
        quotas.set_key_quotas(connection, key_id, own_quotas)
    return key_id, secret


def key_id_of(secret: str) -> KeyId | None:
    """The key that a secret says it is of; None when it has not the form of a secret."""
    found = _SECRET.fullmatch(secret)
    return None if found is None else KeyId(found[1])


def find_holder(connection: Connection, key_id: KeyId) -> KeyHolder | None:
    """Who holds a key; None unless it, and its tenant, are allowed in.

    It proves nothing of a caller: compare the hash of what he shows, in constant time.
    """
    row = connection.execute(_SQL["find_holder"], (key_id,)).fetchone()
    if row is None:
        return None
    key_id, key_name, roles, digest, tenant_id, tenant_name = row
    tenant = Tenant(tenant_id, tenant_name)
    return KeyHolder(key_id, key_name, frozenset(roles), bytes(digest), tenant)


def note_use(connection: Connection, key_id: KeyId) -> None:
    """Write down that a key is in use now."""
    connection.execute(_SQL["note_use"], (key_id,))


def list_keys(connection: Connection, tenant_id: TenantId) -> list[ApiKey]:
    rows = connection.execute(_SQL["list_keys"], (tenant_id, _LIST_LIMIT)).fetchall()
    own = quotas.key_quotas(connection, tenant_id)
    return [
        ApiKey(key, name, tuple(roles), created_at, revoked_at, used_at, own.get(key, NO_QUOTAS))
        for key, name, roles, created_at, revoked_at, used_at in rows
    ]


def revoke_key(connection: Connection, tenant_id: TenantId, key_id: KeyId) -> None:
    """End a key, and tell the serving processes with the same commit.

    Raises NotFound when the tenant has no live key of that id.
    """
    with connection.transaction():
        if connection.execute(_SQL["revoke_key"], (tenant_id, key_id)).rowcount == 0:
            raise NotFound(ErrorCode.NOT_FOUND, "no live key has this id", key_id=key_id)
        connection.execute(_SQL["announce_credentials"], (CREDENTIALS_CHANNEL,))


def rotate_key(connection: Connection, tenant_id: TenantId, key_id: KeyId) -> tuple[KeyId, str]:
    """A new key of the same name, roles and quotas in the place of a live one, which ends. Atomic.

    Raises NotFound when the tenant has no live key of that id.
    """
    with connection.transaction():
        holder = find_holder(connection, key_id)
        # Only one of two concurrent callers ends the key; the other finds none.
        revoke_key(connection, tenant_id, key_id)
        if holder is None:
            raise NotFound(ErrorCode.NOT_FOUND, "the key's tenant is disabled: enable it first")
        roles = sorted(holder.roles)
        made, secret = create_key(connection, tenant_id, name=holder.key_name, roles=roles)
        quotas.copy_key_quotas(connection, source=key_id, target=made)
        return made, secret


def sealing_secret(connection: Connection, purpose: str) -> bytes:
    """The catalog's secret for a purpose, drawn at first use. Every process gets the same one."""
    connection.execute(_SQL["propose_secret"], (purpose, secrets.token_bytes(32)))
    row = connection.execute(_SQL["sealing_secret"], (purpose,)).fetchone()
    assert row is not None  # noqa: S101 - just inserted, or inserted before
    return bytes(row[0])
