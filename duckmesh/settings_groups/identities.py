"""Whom the doors believe."""

from pydantic import Field

from duckmesh.settings_groups.fields import (
    Group,
    KeysUrl,
    NonEmpty,
    RoleMap,
    SealingSecret,
    SigningAlgorithms,
    Span,
    TenantName,
    UserPath,
)


class AuthSettings(Group):
    """Who may do what."""

    open_mode: bool = Field(
        default=False,
        description="Whether callers without credentials may do everything. Not in `prod`.",
    )
    allow_open_beyond_loopback: bool = Field(
        default=False,
        description=(
            "Whether open mode may listen beyond this machine: in a container whose ports are "
            "published on loopback alone."
        ),
    )
    default_tenant: TenantName = Field(
        default="default", description="The tenant of callers without credentials, in open mode."
    )
    session_lifetime_seconds: float = Field(
        default=86400, gt=0, description="How long a session's bearer token is valid."
    )
    ticket_lifetime_seconds: float = Field(
        default=3600, gt=0, description="How long a query's ticket may be redeemed."
    )
    sealing_secret: SealingSecret | None = Field(
        default=None,
        description=(
            "Signs sessions and tickets; equal in all serving processes. When not set, the one "
            "that the catalog keeps for all of them."
        ),
    )
    jwt_issuer: NonEmpty | None = Field(
        default=None,
        description=(
            "The identity provider whose tokens are believed: their claim `iss`, to the letter. "
            "Turns JSON Web Tokens on."
        ),
    )
    jwt_audience: NonEmpty | None = Field(
        default=None, description="What a token's claim `aud` must hold."
    )
    jwks_url: KeysUrl | None = Field(
        default=None, description="Where the provider publishes its keys (JWKS)."
    )
    jwks_file: UserPath | None = Field(
        default=None,
        description="The same as a file, for networks without a way out; read anew when it ages.",
    )
    jwks_timeout_seconds: float = Field(
        default=3, gt=0, le=60, description="How long a fetch of the keys may hold a caller."
    )
    jwt_algorithms: SigningAlgorithms = Field(
        default="RS256,ES256,EdDSA", description="The signatures that are believed."
    )
    jwt_tenant_claim: NonEmpty = Field(
        default="tenant",
        description="The claim that names the tenant; `a.b` leads into an object.",
    )
    jwt_roles_claim: NonEmpty = Field(
        default="roles",
        description="The claim that lists roles, as an array or with spaces between.",
    )
    jwt_role_map: RoleMap | None = Field(
        default=None,
        description=(
            "Which role of the provider's is which of DuckMesh's; others give nothing. Without it "
            "the names are DuckMesh's own."
        ),
    )
    jwt_leeway_seconds: float = Field(
        default=30, ge=0, le=600, description="How far the provider's clock may be off."
    )
    session_lifetime = Span("session_lifetime_seconds")
    jwks_timeout = Span("jwks_timeout_seconds")
    jwt_leeway = Span("jwt_leeway_seconds")
    ticket_lifetime = Span("ticket_lifetime_seconds")
