"""Who is let in, as the settings say it."""

from catalog.connection import Catalog
from duckmesh.settings import AuthSettings, Settings
from gateway.key_sets import KeyFile, KeySet, KeySource, KeyUrl
from gateway.tenancy import Tenancy
from gateway.web_tokens import TokenRules, WebTokens, parse_role_map


def open_tenancy(settings: Settings, catalog: Catalog) -> Tenancy:
    """What tells the callers of a serving process apart. Reads no key before the first token."""
    auth = settings.auth
    return Tenancy(
        catalog,
        open_tenant=auth.default_tenant if auth.open_mode else None,
        web_tokens=_web_tokens(auth),
    )


def _web_tokens(auth: AuthSettings) -> WebTokens | None:
    source = _key_source(auth)
    if auth.jwt_issuer is None or auth.jwt_audience is None or source is None:
        return None
    rules = TokenRules(
        issuer=auth.jwt_issuer,
        audience=auth.jwt_audience,
        algorithms=frozenset(name.strip() for name in auth.jwt_algorithms.split(",")),
        tenant_claim=auth.jwt_tenant_claim,
        roles_claim=auth.jwt_roles_claim,
        role_of=parse_role_map(auth.jwt_role_map or ""),
        leeway=auth.jwt_leeway,
    )
    return WebTokens(rules, KeySet(source, timeout=auth.jwks_timeout))


def _key_source(auth: AuthSettings) -> KeySource | None:
    if auth.jwks_url is not None:
        return KeyUrl(auth.jwks_url)
    return None if auth.jwks_file is None else KeyFile(auth.jwks_file)
