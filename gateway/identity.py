"""Who calls: the tenant whose data a call reaches, and what it may do there."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from duckmesh.errors import Denied, ErrorCode
from duckmesh.identifiers import KeyId, TenantId


class Role(StrEnum):
    """What an identity may do. Nothing is allowed that no role allows."""

    INGEST_WRITER = "ingest_writer"
    QUERY_READER = "query_reader"
    TABLE_ADMIN = "table_admin"
    OPS_ADMIN = "ops_admin"


EVERY_ROLE: Final = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller. Its tenant wins over anything that a request says."""

    tenant_id: TenantId
    tenant: str
    principal: str
    key_id: KeyId | None
    roles: frozenset[Role]
    expires_at: datetime | None = None
    """Set for the bearer of an identity provider's token: when that token ends."""

    @property
    def audited_as(self) -> str:
        """Who this is in the audit: a key by its id, the bearer of a token by its subject."""
        return self.key_id or self.principal

    def require(self, role: Role) -> None:
        """Raise Denied (FORBIDDEN) when the role is missing."""
        if role not in self.roles:
            raise Denied(
                ErrorCode.FORBIDDEN,
                f"this needs the role {role.value}: use a key that has it",
                required_role=role.value,
            )
