"""Quotas as operators set them, and as a tenant's own people see them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from catalog import acts, quotas, tenants
from catalog.acts import OPERATOR
from catalog.connection import Catalog
from catalog.quotas import Held
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import TenantId
from duckmesh.quotas import LEAST, VALUE_MAX, Quota, Quotas
from gateway.identity import Identity, Role
from ingest_bus.port import IngestBus

_NOTHING_HELD: Final = Held(0, 0)


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """One quota of a tenant, and how much of it is used."""

    quota: Quota
    limit: int | None
    """None: there is none."""
    used: int | None
    """None where each serving process counts for itself, or each query."""
    is_own: bool
    """Whether it was set for the tenant; else it is the setting's default."""


class TenantQuotas:
    """The quotas of tenants, with what they use of them. Thread-safe."""

    def __init__(self, catalog: Catalog, bus: IngestBus, defaults: Quotas) -> None:
        self._catalog = catalog
        self._bus = bus
        self._defaults = defaults

    def of_caller(self, identity: Identity) -> list[QuotaUse]:
        """Those of the caller's tenant, as they are now. Raises Denied."""
        identity.require(Role.OPS_ADMIN)
        return self.of_tenant(identity.tenant_id)

    def of_tenant(self, tenant_id: TenantId) -> list[QuotaUse]:
        """Each quota, in the order of `Quota`; reads no file's row."""
        with self._catalog.connect() as connection:
            own = quotas.in_force(connection, tenant_id, None).tenant
            held = quotas.held(connection, [tenant_id]).get(tenant_id, _NOTHING_HELD)
        backlog = self._bus.backlog(tenant_id)
        used = {
            Quota.PENDING_EVENTS: backlog.events,
            Quota.PENDING_BYTES: backlog.bytes,
            Quota.STORAGE_BYTES: held.live_bytes,
            Quota.TABLES: held.tables,
        }
        limits = own.over(self._defaults)
        return [
            QuotaUse(quota, limits.value(quota), used.get(quota), own.value(quota) is not None)
            for quota in Quota
        ]


def check_values(values: Quotas, *, allowed: Collection[Quota] = tuple(Quota)) -> None:
    """Raise Invalid for a value out of its bounds, or a quota that cannot be set here."""
    for quota, value in values.own().items():
        if quota not in allowed:
            raise Invalid(
                ErrorCode.INVALID_COMMAND,
                f"an API key has no quota {quota.value}: set it for the tenant",
                quota=quota.value,
            )
        if not LEAST[quota] <= value <= VALUE_MAX:
            raise Invalid(
                ErrorCode.INVALID_COMMAND,
                f"{quota.value} is between {LEAST[quota]} and {VALUE_MAX}: give such a number",
                quota=quota.value,
            )


def set_quotas(
    catalog: Catalog, tenant_name: str, values: Quotas, *, principal: str = OPERATOR
) -> None:
    """Set some of a tenant's quotas. Serving processes heed them within a second. Atomic."""
    check_values(values)
    with catalog.connect() as connection, connection.transaction():
        tenant = tenants.find_tenant(connection, tenant_name)
        quotas.set_quotas(connection, tenant.tenant_id, values)
        acts.record(
            connection,
            "set_quotas",
            tenant_name,
            tenant_id=tenant.tenant_id,
            principal=principal,
            detail=values.by_name(),
        )


def reset_quotas(
    catalog: Catalog,
    tenant_name: str,
    names: Collection[Quota] | None,
    *,
    principal: str = OPERATOR,
) -> None:
    """Give some of a tenant's quotas, or all, the settings' defaults again. Atomic."""
    with catalog.connect() as connection, connection.transaction():
        tenant = tenants.find_tenant(connection, tenant_name)
        quotas.reset_quotas(connection, tenant.tenant_id, names)
        acts.record(
            connection,
            "reset_quotas",
            tenant_name,
            tenant_id=tenant.tenant_id,
            principal=principal,
            detail={"quotas": [quota.value for quota in names or Quota]},
        )


def held_by(catalog: Catalog, tenant_ids: Collection[TenantId]) -> Mapping[TenantId, Held]:
    """What each tenant has in its newest snapshot."""
    with catalog.connect() as connection:
        return quotas.held(connection, tenant_ids)
