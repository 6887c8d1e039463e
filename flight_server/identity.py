"""Who is calling."""

from dataclasses import dataclass

from duckmesh.identifiers import KeyId, TenantId


@dataclass(frozen=True, slots=True)
class Identity:
    """The authenticated caller: everything a use case may know of him."""

    tenant_id: TenantId
    tenant: str
    principal: str
    key_id: KeyId | None
    roles: frozenset[str]
