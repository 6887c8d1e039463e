"""`/v1/dead-letters`: what was given up, and its new acceptance."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from duckmesh.tokens import VisibilityToken
from duckmesh.tracing import trace_of
from gateway.dead_letters import REPLAYED_AT_ONCE, NamedDeadLetter
from gateway.identity import Identity
from http_shim.answers import json_response
from http_shim.bodies import read_json
from http_shim.calls import call_of
from http_shim.json_requests import StrictModel, parse
from http_shim.rooms import Door, door_of

router = APIRouter(tags=["dead letters"])
_BODY_MAX_BYTES: Final = 64 * 2**10
_INT64_MAX: Final = 2**63 - 1
_PAGE_MAX: Final = 1000


class ReplayRequest(StrictModel):
    """Which dead letters to accept again."""

    visibility_tokens: Annotated[
        list[Annotated[int, Field(ge=1, le=_INT64_MAX)]],
        Field(min_length=1, max_length=REPLAYED_AT_ONCE),
    ] = Field(description="Their tokens; with one of a transaction all of it is replayed.")
    dry_run: bool = Field(default=False, description="Check and list them; accept nothing.")


@router.get("/v1/dead-letters", summary="List the dead letters")
async def list_dead_letters(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=_PAGE_MAX, description="At most so many.")] = 100,
    above: Annotated[
        int, Query(ge=0, le=_INT64_MAX, description="Only those with larger tokens.")
    ] = 0,
    replayed: Annotated[bool, Query(description="Those that were replayed, too.")] = False,
) -> Response:
    """Writes that were given up, in token order. `next_above` continues the list."""
    call, door = call_of(request), door_of(request)
    after = VisibilityToken(above)
    found = await call.run(
        lambda who: door.rooms.dead_letters.all(who, above=after, limit=limit, replayed=replayed)
    )
    return json_response(
        {
            "dead_letters": [_described(each) for each in found],
            "next_above": found[-1].dead.visibility_token if len(found) == limit else None,
        }
    )


@router.get("/v1/dead-letters/{visibility_token}", summary="Describe a dead letter")
async def describe_dead_letter(
    request: Request, visibility_token: Annotated[int, Path(ge=1, le=_INT64_MAX)]
) -> Response:
    """One write that was given up, whether it was replayed or not."""
    call, door = call_of(request), door_of(request)
    token = VisibilityToken(visibility_token)
    found = await call.run(lambda who: door.rooms.dead_letters.one(who, token))
    return json_response(_described(found))


@router.post("/v1/dead-letters/replay", summary="Accept dead letters again")
async def replay_dead_letters(request: Request) -> Response:
    """Each is accepted anew, with a new token, once: a repeat answers with the first replay."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _replay(door, who, body))


def _replay(door: Door, who: Identity, body: bytes) -> Response:
    asked = parse(ReplayRequest, body)
    tokens = [VisibilityToken(each) for each in asked.visibility_tokens]
    if asked.dry_run:
        waiting = door.rooms.dead_letters.to_replay(who, tokens)
        return json_response(
            {
                "dry_run": True,
                "replayed": [
                    {
                        "dead_token": each.dead.visibility_token,
                        "visibility_token": None,
                        "row_count": each.dead.row_count,
                        "duplicate": False,
                    }
                    for each in waiting
                ],
                "max_visibility_token": None,
            }
        )
    done = door.rooms.dead_letters.replay(who, tokens)
    return json_response(
        {
            "dry_run": False,
            "replayed": [
                {
                    "dead_token": each.dead_token,
                    "visibility_token": each.receipt.visibility_token,
                    "row_count": each.receipt.row_count,
                    "duplicate": not each.receipt.inserted,
                }
                for each in done
            ],
            "max_visibility_token": max(each.receipt.visibility_token for each in done),
        }
    )


def _described(each: NamedDeadLetter) -> dict[str, Any]:
    dead = each.dead
    return {
        "visibility_token": dead.visibility_token,
        "table": each.table,
        "operation": dead.operation.value,
        "schema_version": dead.schema_version,
        "idempotency_key": dead.idempotency_key,
        "row_count": dead.row_count,
        "byte_count": dead.byte_count,
        "accepted_at": dead.ingested_at,
        "attempts": dead.attempts,
        "reason": dead.failure_reason,
        "trace_id": None if dead.trace_id is None else trace_of(dead.trace_id),
        "group_last_token": dead.group_last_token,
        "replay_token": dead.replay_token,
    }
