"""`/v1/keys`: the API keys of the caller's tenant. A secret is shown once."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from catalog.tenants import ApiKey
from duckmesh.identifiers import KeyId
from duckmesh.quotas import Quota, Quotas
from gateway.identity import Identity, Role
from http_shim.answers import json_response
from http_shim.bodies import read_json
from http_shim.calls import call_of
from http_shim.json_requests import StrictModel, parse
from http_shim.rooms import Door, door_of

router = APIRouter(tags=["keys"])
_BODY_MAX_BYTES: Final = 64 * 2**10


class CreateKeyRequest(StrictModel):
    """A new API key."""

    name: str = Field(description="Who holds the key: logs and lists show it.")
    # Not strict: in Python a role is no text.
    roles: Annotated[list[Annotated[Role, Field(strict=False)]], Field(min_length=1)]
    quotas: dict[Annotated[Quota, Field(strict=False)], int] = Field(
        default={}, description="What the key may take, where that is less than its tenant may."
    )


@router.post("/v1/keys", summary="Create an API key", status_code=201)
async def create_key(request: Request) -> Response:
    """The answer shows the secret, and nothing shows it again."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _create(door, who, body))


@router.get("/v1/keys", summary="List the API keys")
async def list_keys(request: Request) -> Response:
    """The tenant's keys, revoked ones too, without their secrets."""
    call, door = call_of(request), door_of(request)
    found = await call.run(door.rooms.api_keys.all)
    return json_response({"keys": [_described(key) for key in found]})


@router.post("/v1/keys/{key_id}/rotate", summary="Replace an API key", status_code=201)
async def rotate_key(request: Request, key_id: str) -> Response:
    """A new key of the same name and roles; the old one is refused within a second."""
    call, door = call_of(request), door_of(request)
    new_id, secret = await call.run(lambda who: door.rooms.api_keys.rotate(who, KeyId(key_id)))
    return json_response({"key_id": new_id, "secret": secret, "replaces": key_id}, status=201)


@router.delete("/v1/keys/{key_id}", summary="Revoke an API key")
async def revoke_key(request: Request, key_id: str) -> Response:
    """End a key; serving processes refuse it within a second."""
    call, door = call_of(request), door_of(request)
    await call.run(lambda who: door.rooms.api_keys.revoke(who, KeyId(key_id)))
    return json_response({"key_id": key_id, "revoked": True})


def _create(door: Door, who: Identity, body: bytes) -> Response:
    asked = parse(CreateKeyRequest, body)
    own = Quotas.of({quota.value: value for quota, value in asked.quotas.items()})
    key_id, secret = door.rooms.api_keys.create(
        who, name=asked.name, roles=asked.roles, own_quotas=own
    )
    roles = sorted(role.value for role in asked.roles)
    answer = {"key_id": key_id, "secret": secret, "name": asked.name, "roles": roles}
    return json_response(answer, status=201)


def _described(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "roles": sorted(key.roles),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "quotas": key.quotas.by_name(),
    }
