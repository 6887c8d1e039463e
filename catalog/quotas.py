"""Quotas of tenants and API keys, and what tenants hold."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from catalog.connection import Connection
from catalog.notifications import QUOTAS_CHANNEL
from duckmesh.errors import Corrupt
from duckmesh.identifiers import KeyId, TenantId
from duckmesh.quotas import Quota, Quotas
from duckmesh.statements import Statements

_SQL = Statements("catalog", "quotas.sql")


@dataclass(frozen=True, slots=True)
class QuotasInForce:
    """What the catalog says of one caller at one moment; what is not set is None."""

    tenant: Quotas
    key: Quotas
    live_bytes: int
    """What the files of the tenant's newest snapshot take."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a tenant has in its newest snapshot."""

    live_bytes: int
    tables: int


def in_force(connection: Connection, tenant_id: TenantId, key_id: KeyId | None) -> QuotasInForce:
    """The quotas set for a tenant and for one of its keys, and what it holds. One statement."""
    values = {"tenant_id": tenant_id, "key_id": key_id}
    row = connection.execute(_SQL["quotas_in_force"], values).fetchone()
    if row is None:
        raise Corrupt("a tenant has no publication head", tenant_id=tenant_id)
    live_bytes, of_tenant, of_key = row
    return QuotasInForce(Quotas.of(of_tenant), Quotas.of(of_key), live_bytes)


def set_quotas(connection: Connection, tenant_id: TenantId, quotas: Quotas) -> None:
    """Set these; the others stay as they are. Tells the serving processes with the same commit."""
    with connection.transaction():
        connection.execute(_SQL["set_quotas"], {"tenant_id": tenant_id} | _columns(quotas))
        connection.execute(_SQL["announce_quotas"], (QUOTAS_CHANNEL,))


def reset_quotas(
    connection: Connection, tenant_id: TenantId, quotas: Collection[Quota] | None
) -> None:
    """Give these, or all, the setting's default again. Tells as `set_quotas` does. Repeatable."""
    names = None if quotas is None else [quota.value for quota in quotas]
    with connection.transaction():
        connection.execute(_SQL["reset_quotas"], {"tenant_id": tenant_id, "quotas": names})
        connection.execute(_SQL["announce_quotas"], (QUOTAS_CHANNEL,))


def set_key_quotas(connection: Connection, key_id: KeyId, quotas: Quotas) -> None:
    """The quotas of a key that is being made. Joins the caller's transaction."""
    if quotas.own():
        connection.execute(_SQL["set_key_quotas"], {"key_id": key_id} | _columns(quotas))


def copy_key_quotas(connection: Connection, *, source: KeyId, target: KeyId) -> None:
    """Give a key that is being made those of another one. Joins the caller's transaction."""
    connection.execute(_SQL["copy_key_quotas"], {"from": source, "to": target})


def key_quotas(connection: Connection, tenant_id: TenantId) -> Mapping[KeyId, Quotas]:
    """The quotas of the tenant's keys that have any."""
    rows = connection.execute(_SQL["key_quotas"], (tenant_id,))
    return {key_id: Quotas.of(values) for key_id, values in rows}


def held(connection: Connection, tenant_ids: Collection[TenantId]) -> Mapping[TenantId, Held]:
    """What each of the tenants holds; reads no file's row."""
    rows = connection.execute(_SQL["usages"], (list(tenant_ids),))
    return {tenant_id: Held(live_bytes, tables) for tenant_id, live_bytes, tables in rows}


def _columns(quotas: Quotas) -> dict[str, list[str] | list[int]]:
    own = quotas.own()
    return {"quotas": [quota.value for quota in own], "values": list(own.values())}
