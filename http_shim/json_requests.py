"""JSON requests: strict models, and errors that name the field and what is wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from duckmesh.errors import ErrorCode, Invalid

_SHOWN: Final = 20


class StrictModel(BaseModel):
    """A request. Unknown fields are refused, and no value is taken for one of another type.

    `codes` maps a field to the code of the contract that speaks of it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    codes: ClassVar[Mapping[str, ErrorCode]] = {}


_M = TypeVar("_M", bound=StrictModel)


def parse(model: type[_M], body: bytes) -> _M:
    """A JSON body as the model. Raises Invalid with the code of the first wrong field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise refused(model, error) from None


def check(model: type[_M], value: Any) -> _M:
    """A value that was parsed already, as the model."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refused(model, error) from None


def refused(model: type[StrictModel], error: ValidationError) -> Invalid:
    """What a failed validation is for the client."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return Invalid(ErrorCode.INVALID_JSON, f"the body is not valid JSON: {first['msg']}")
    place = first["loc"]
    reasons = [{"field": _path(each["loc"]), "reason": each["msg"]} for each in found[:_SHOWN]]
    context: dict[str, Any] = {"fields": reasons}
    if len(place) > 1 and isinstance(place[1], int):
        context["record"] = place[1]
    where = _path(place)
    reason = f"{where}: {first['msg']}" if where else str(first["msg"])
    # A field too many is nobody's value.
    code = ErrorCode.INVALID_JSON if first["type"] == "extra_forbidden" else _code(model, place)
    return Invalid(code, f"the request is wrong: {reason}", **context)


def _code(model: type[StrictModel], place: Sequence[int | str]) -> ErrorCode:
    named = [part for part in place if isinstance(part, str) and part in model.codes]
    return model.codes[named[-1]] if named else ErrorCode.INVALID_JSON


def _path(place: Sequence[int | str]) -> str:
    return ".".join(str(part)[:80] for part in place)
