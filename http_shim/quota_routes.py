"""`/v1/quotas`: what the caller's tenant may take, and what it uses."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from http_shim.answers import json_response
from http_shim.calls import call_of
from http_shim.rooms import door_of

router = APIRouter(tags=["operation"])


@router.get("/v1/quotas", summary="What the tenant may take")
async def list_quotas(request: Request) -> Response:
    """Every quota of the caller's tenant; `used` is null where each process counts for itself."""
    call, door = call_of(request), door_of(request)
    found = await call.run(door.rooms.quotas.of_caller)
    return json_response(
        {
            "quotas": [
                {
                    "quota": each.quota.value,
                    "limit": each.limit,
                    "used": each.used,
                    "is_own": each.is_own,
                }
                for each in found
            ]
        }
    )
