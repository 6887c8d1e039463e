"""Settings that are right one by one, and together let in whom they should not.

Each function gives the key that is to be changed, and what to change it to.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from duckmesh.settings_groups import (
    AuthSettings,
    CatalogSettings,
    FlightSettings,
    HttpSettings,
    StoreSettings,
)


def open_to_others(groups: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Open mode is for this machine alone, at either door."""
    match groups:
        case {"auth": AuthSettings(open_mode=True, allow_open_beyond_loopback=False)}:
            pass
        case _:
            return
    for name in ("flight", "http"):
        match groups.get(name):
            case HttpSettings(enabled=False):
                continue
            case (FlightSettings() | HttpSettings()) as door if not door.loopback_only:
                yield f"{name}.host", _OPEN


_OPEN: Final = (
    "callers need no credentials in open mode, so it is for this machine alone: give 127.0.0.1, or "
    "set auth.open_mode to false"
)


def half_of_web_tokens(auth: AuthSettings) -> Iterator[tuple[str, str]]:
    """Tokens are believed by issuer, audience and keys together, and by nothing less."""
    sources = [auth.jwks_url, auth.jwks_file]
    if auth.jwt_issuer is None:
        if auth.jwt_audience is not None or sources != [None, None]:
            yield "auth.jwt_issuer", "set it, or none of the settings of web tokens"
        return
    if auth.jwt_audience is None:
        yield "auth.jwt_audience", "auth.jwt_issuer needs it; set what its tokens are for"
    if sources.count(None) != 1:
        yield "auth.jwks_url", "auth.jwt_issuer needs either auth.jwks_url or auth.jwks_file"


def unsafe_in_production(groups: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the profile `prod` does not start with."""
    match groups:
        case {"auth": AuthSettings(open_mode=True)}:
            yield "auth.open_mode", "callers must show credentials; set it to false"
    match groups:
        case {"catalog": CatalogSettings(dsn=None)}:
            yield "catalog.dsn", "it is required; set DUCKMESH_CATALOG_DSN"
    match groups:
        case {"store": StoreSettings(url=None)}:
            yield "store.url", "it is required; set DUCKMESH_STORE_URL"
    match groups:
        case {"flight": FlightSettings() as flight} if _is_bare(flight):
            yield "flight.host", _BARE.format(name="flight")
    match groups:
        case {"http": HttpSettings(enabled=True) as http} if _is_bare(http):
            yield "http.host", _BARE.format(name="http")


_BARE: Final = (
    "listening beyond this machine needs TLS: set {name}.tls_certificate and "
    "{name}.tls_key, or {name}.allow_plaintext when a proxy in front has TLS"
)


def _is_bare(door: FlightSettings | HttpSettings) -> bool:
    """Whether other machines reach the door without TLS, and nobody said that this is right."""
    return door.tls_certificate is None and not (door.loopback_only or door.allow_plaintext)
