"""Object keys: built here, checked here, and nowhere else.

A key is one or more components joined by '/'. A component begins with a letter, a digit or '_',
and goes on with these, '.', '=' and '-'. So no key is absolute, climbs with '..', hides behind a
dot, or leaves the prefix of its tenant.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import FileId, check_tenant_name

KEY_MAX_CHARS: Final = 512
COMPONENT_MAX_CHARS: Final = 200
"""Below the 255 bytes that file systems allow a name, with room for a suffix."""

_SLUG_MAX_CHARS: Final = 40
_COMPONENT = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.=-]{{0,{COMPONENT_MAX_CHARS - 1}}}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_UNSAFE_VALUE = re.compile(r"[^A-Za-z0-9_.-]+")
_VALUE_MAX_CHARS: Final = 24
_HASH_CHARS: Final = 8


Folders = Sequence[tuple[str, str]]
"""The folders of a partition: names and values as they are, safe or not; at most four."""


def data_file_key(
    tenant_name: str,
    table_name: str,
    table_id: int,
    file_id: FileId,
    folders: Folders = (),
) -> str:
    """`{tenant}/{table}-{table id}/{name}={value}/part-{file id}.parquet`.

    Names and values are there for a human reading a listing, cut down to safe characters; the ids
    make the key unique, also when two names cut down to one, or a table is renamed.
    """
    table = f"{tenant_prefix(tenant_name)}{_slug(table_name)}-{table_id}"
    path = "".join(f"/{_folder(name, value)}" for name, value in folders)
    return check(f"{table}{path}/part-{file_id}.parquet")


def _folder(name: str, value: str) -> str:
    """One component. A value that is cut or changed has a hash, so that no two look alike."""
    safe = _UNSAFE_VALUE.sub("_", value)[:_VALUE_MAX_CHARS]
    if safe != value:
        safe = f"{safe}-{hashlib.sha256(value.encode()).hexdigest()[:_HASH_CHARS]}"
    return f"{_slug(name)}={safe}"


def tenant_prefix(tenant_name: str) -> str:
    """The folder that holds every object of the tenant, and of no other: it ends in '/'."""
    return f"{check_tenant_name(tenant_name)}/"


def check(key: str) -> str:
    """Return `key` when it is safe; raise Invalid when it is not."""
    if not is_key(key):
        raise _unsafe(key)
    return key


def is_key(key: str) -> bool:
    return len(key) <= KEY_MAX_CHARS and all(map(_COMPONENT.fullmatch, key.split("/")))


def check_prefix(prefix: str) -> str:
    """Return the folder `prefix` with its closing '/' ('' for everything); Invalid when unsafe."""
    return f"{check(prefix.removesuffix('/'))}/" if prefix else ""


def check_component(name: str) -> str:
    """Return `name` when it is a safe file name of one component; raise Invalid when it is not."""
    if not is_component(name):
        raise _unsafe(name)
    return name


def is_component(name: str) -> bool:
    return _COMPONENT.fullmatch(name) is not None


def _slug(table_name: str) -> str:
    return _UNSAFE.sub("_", table_name)[:_SLUG_MAX_CHARS].strip("_") or "table"


def _unsafe(key: str) -> Invalid:
    return Invalid(
        ErrorCode.INVALID_COMMAND,
        f"an object key has at most {KEY_MAX_CHARS} characters, in components of letters, digits, "
        "'_', '.', '=' and '-' that begin with a letter, a digit or '_'",
        key=key[:80],
    )
