"""What the fields of every group are made of: units, accepted forms, the group itself."""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
SEALING_SECRET_MIN_BYTES: Final = 32

_UNITS: Final = {
    "_ms": timedelta(milliseconds=1),
    "_seconds": timedelta(seconds=1),
    "_days": timedelta(days=1),
}
_STORE_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_KEYS_URL: Final = re.compile(
    r"https://[^\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?(/[^\s]*)?"
)
_ALGORITHMS: Final = re.compile(r"(RS|PS|ES)(256|384|512)|EdDSA")
_ROLE_PAIR: Final = re.compile(
    r"\s*[^\s,][^,]*=\s*(ingest_writer|query_reader|table_admin|ops_admin)\s*"
)
_TENANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Form:
    """The accepted form of a setting in words, where its type alone does not tell."""

    text: str


class Span:
    """A field such as `lease_seconds` as a timedelta, under the name without the unit."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._unit = next(unit for suffix, unit in _UNITS.items() if field.endswith(suffix))

    def __get__(self, group: object, kind: type | None = None) -> timedelta:
        amount: float = getattr(group, self._field)
        return amount * self._unit


def _dsn(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.startswith(("postgresql://", "postgres://")) or "=" in text):
        raise ValueError("not a Postgres address")
    return value


def _sealing_secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < SEALING_SECRET_MIN_BYTES:
        raise ValueError("too short")
    return value


def _store_url(value: str) -> str:
    if not _STORE_URL.fullmatch(value):
        raise ValueError("not a URL")
    return value


def _keys_url(value: str) -> str:
    if not _KEYS_URL.fullmatch(value):
        raise ValueError("not an address of a key set")
    return value


def _algorithms(value: str) -> str:
    if not all(_ALGORITHMS.fullmatch(name.strip()) for name in value.split(",")):
        raise ValueError("not algorithms")
    return value


def _role_map(value: str) -> str:
    if not all(_ROLE_PAIR.fullmatch(pair) for pair in value.split(",")):
        raise ValueError("not pairs of names")
    return value


def _tenant(value: str) -> str:
    if not _TENANT_NAME.fullmatch(value):
        raise ValueError("not a tenant's name")
    return value


Dsn = Annotated[
    SecretStr,
    AfterValidator(_dsn),
    Form("`postgresql://user:password@host:port/database`, or `key=value` pairs as libpq reads"),
]
SealingSecret = Annotated[
    SecretStr,
    AfterValidator(_sealing_secret),
    Form(f"random text of at least {SEALING_SECRET_MIN_BYTES} bytes"),
]
StoreUrl = Annotated[
    str,
    AfterValidator(_store_url),
    Form("a URL such as `s3://bucket/prefix` or `file:///directory`"),
]
TenantName = Annotated[
    str,
    AfterValidator(_tenant),
    Form("1 to 63 characters of a-z, 0-9, `-` and `_`, the first a letter or digit"),
]
KeysUrl = Annotated[
    str,
    AfterValidator(_keys_url),
    Form("a URL `https://...`; `http://` on this machine alone"),
]
SigningAlgorithms = Annotated[
    str,
    AfterValidator(_algorithms),
    Form("one or more of `RS256`, `PS256`, `ES256`, their 384 and 512, `EdDSA`; commas between"),
]
RoleMap = Annotated[
    str,
    AfterValidator(_role_map),
    Form(
        "pairs such as `analysts=query_reader, etl=ingest_writer`; the roles are `ingest_writer`, "
        "`query_reader`, `table_admin` and `ops_admin`"
    ),
]
UserPath = Annotated[Path, AfterValidator(Path.expanduser), Form("a path; `~` is the home")]
NonEmpty = Annotated[str, Field(min_length=1)]


class Group(BaseModel):
    """Frozen; an unknown key is refused; no error repeats the value it refuses."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        ignored_types=(Span,),
        allow_inf_nan=False,
    )
