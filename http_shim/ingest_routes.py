"""`POST /v1/ingest/{table}`: records in JSON; or a file, which is one write."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from http_shim.bodies import read_json
from http_shim.calls import call_of
from http_shim.record_ingest import ingest_records
from http_shim.rooms import door_of

router = APIRouter(tags=["ingest"])


@router.post("/v1/ingest/{table}", summary="Write rows to a table")
async def ingest(
    request: Request,
    table: str,
    results: Annotated[
        Literal["records"] | None, Query(description="`records`: a result for each record.")
    ] = None,
) -> Response:
    """Accept rows durably, and answer with the token that a query may wait for."""
    call, door = call_of(request), door_of(request)
    # Before the body: nobody uploads what would be refused anyway.
    await call.run(lambda who: door.rooms.writes.target(who, table))
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=door.limits.json_max_bytes, idle_seconds=idle_seconds)
    each_result = results is not None
    return await call.run(
        lambda who: ingest_records(door, call, who, table, body, each_result=each_result)
    )
