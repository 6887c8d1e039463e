"""The accepted form of a setting in words: the same in an error and in the documentation."""

from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from duckmesh.settings_groups import Form


def accepted_form(field: FieldInfo) -> str:
    """What may be given for `field`, such as "a whole number from 0 to 65535"."""
    kind, metadata = _core(field)
    for each in metadata:
        if isinstance(each, Form):
            return each.text
    if kind is bool:
        return "`true` or `false`"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(f"`{member.value}`" for member in kind)
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(metadata)
    if kind is Path:
        return "a path"
    return "text"


def is_secret(field: FieldInfo) -> bool:
    """Whether the value must never be shown."""
    return _core(field)[0] is SecretStr


def _core(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type without `| None` and `Annotated`, and all that was annotated."""
    kind, metadata = field.annotation, list(field.metadata)
    while True:
        origin = get_origin(kind)
        if origin is Annotated:
            kind, *more = get_args(kind)
            metadata += more
        elif origin in (Union, UnionType):
            (kind,) = (each for each in get_args(kind) if each is not NoneType)
        else:
            return kind, metadata


def _range(metadata: list[Any]) -> str:
    low = next((f" from {each.ge}" for each in metadata if isinstance(each, Ge)), "")
    above = next((f" above {each.gt}" for each in metadata if isinstance(each, Gt)), "")
    high = next((each.le for each in metadata if isinstance(each, Le)), None)
    if high is None:
        return low + above if above or not low else f"{low} on"
    return f"{low}{above}" + (f" to {high}" if low else f", at most {high}")
