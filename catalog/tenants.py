"""Tenants, their API keys, and the sealing secret that serving processes share."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from catalog.connection import Connection
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import KeyId, TenantId, check_tenant_name
from duckmesh.statements import Statements

_SQL = Statements("catalog", "tenants.sql")
_KEY_PREFIX: Final = "dm_"
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


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whom a secret speaks for."""

    key_id: KeyId
    key_name: str
    roles: frozenset[str]
    tenant: Tenant


def hash_secret(secret: str) -> bytes:
    """SHA-256 of the secret. It carries 256 random bits, so no slow or salted hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def ensure_tenant(connection: Connection, name: str, *, created_by: str) -> Tenant:
    """Return the tenant of that name, created with its first, empty snapshot if it is new.

    One transaction: of two concurrent callers one creates, both get the same tenant.
    """
    check_tenant_name(name)
    with connection.transaction():
        row = connection.execute(_SQL["create_tenant"], (name,)).fetchone()
        if row is not None:
            connection.execute(
                _SQL["first_snapshot"], {"tenant_id": row[0], "created_by": created_by}
            )
    return find_tenant(connection, name)


def find_tenant(connection: Connection, name: str) -> Tenant:
    """The tenant of that name. Raises NotFound (TENANT_NOT_FOUND)."""
    row = connection.execute(_SQL["find_tenant"], (name,)).fetchone()
    if row is None:
        raise NotFound(ErrorCode.TENANT_NOT_FOUND, "no tenant has this name", tenant=name[:80])
    return Tenant(*row)


def list_tenants(connection: Connection) -> list[Tenant]:
    return [Tenant(*row) for row in connection.execute(_SQL["list_tenants"], (_LIST_LIMIT,))]


def create_key(
    connection: Connection, tenant_id: TenantId, *, name: str, roles: Sequence[str]
) -> tuple[KeyId, str]:
    """Create an API key; return its id and its secret, which is stored nowhere and shown once."""
    key_id = KeyId(secrets.token_hex(6))
    secret = f"{_KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        _SQL["create_key"], (key_id, tenant_id, name, hash_secret(secret), sorted(set(roles)))
    )
    return key_id, secret


def find_key(connection: Connection, secret: str) -> KeyHolder | None:
    """Whom a live secret speaks for, or None. The look-up is by hash: its timing tells nothing."""
    row = connection.execute(_SQL["find_key"], (hash_secret(secret),)).fetchone()
    if row is None:
        return None
    key_id, key_name, roles, tenant_id, tenant_name = row
    return KeyHolder(key_id, key_name, frozenset(roles), Tenant(tenant_id, tenant_name))


def key_is_live(connection: Connection, key_id: KeyId) -> bool:
    """Whether the key, and its tenant, are still allowed in."""
    row = connection.execute(_SQL["key_is_live"], (key_id,)).fetchone()
    return bool(row and row[0])


def list_keys(connection: Connection, tenant_id: TenantId) -> list[ApiKey]:
    rows = connection.execute(_SQL["list_keys"], (tenant_id, _LIST_LIMIT))
    return [ApiKey(key, name, tuple(roles), *times) for key, name, roles, *times in rows]


def revoke_key(connection: Connection, tenant_id: TenantId, key_id: KeyId) -> None:
    """End a key. Raises NotFound when the tenant has no live key of that id."""
    if connection.execute(_SQL["revoke_key"], (tenant_id, key_id)).rowcount == 0:
        raise NotFound(ErrorCode.NOT_FOUND, "no live key has this id", key_id=key_id)


def sealing_secret(connection: Connection, purpose: str) -> bytes:
    """The catalog's secret for a purpose, drawn at first use. Every process gets the same one."""
    connection.execute(_SQL["propose_secret"], (purpose, secrets.token_bytes(32)))
    row = connection.execute(_SQL["sealing_secret"], (purpose,)).fetchone()
    assert row is not None  # noqa: S101 - just inserted, or inserted before
    return bytes(row[0])
