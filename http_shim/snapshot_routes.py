"""`/v1/snapshots` and `/v1/lag`: what was published, and what is not yet."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from duckmesh.identifiers import SnapshotId
from gateway.history import PublishedSnapshot, TableLag
from http_shim.answers import json_response
from http_shim.calls import call_of
from http_shim.rooms import door_of

router = APIRouter(tags=["snapshots"])
_INT64_MAX: Final = 2**63 - 1
_PAGE_MAX: Final = 1000


@router.get("/v1/snapshots", summary="List the snapshots")
async def list_snapshots(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=_PAGE_MAX, description="At most so many.")] = 100,
    through: Annotated[
        int | None, Query(ge=1, le=_INT64_MAX, description="This one and older ones.")
    ] = None,
) -> Response:
    """The newest snapshots, newest first. `next_through` continues the list."""
    call, door = call_of(request), door_of(request)
    upper = None if through is None else SnapshotId(through)
    found = await call.run(lambda who: door.rooms.history.recent(who, through=upper, limit=limit))
    last = found[-1].snapshot.snapshot_id if len(found) == limit else None
    return json_response(
        {
            "snapshots": [_described(each) for each in found],
            "next_through": None if last is None or last <= 1 else last - 1,
        }
    )


@router.get("/v1/snapshots/{snapshot_id}", summary="Describe a snapshot")
async def describe_snapshot(
    request: Request, snapshot_id: Annotated[int, Path(ge=1, le=_INT64_MAX)]
) -> Response:
    """One snapshot of the caller's tenant."""
    call, door = call_of(request), door_of(request)
    wanted = SnapshotId(snapshot_id)
    found = await call.run(lambda who: door.rooms.history.named(who, wanted))
    return json_response(_described(found))


@router.get("/v1/lag", summary="How far visible is behind accepted")
async def lag(request: Request) -> Response:
    """The caller's tenant: its newest token, its newest snapshot, and what waits between them.

    `tables` says the same of each table of that snapshot.
    """
    call, door = call_of(request), door_of(request)
    found = await call.run(door.rooms.history.lag)
    return json_response(
        {
            "latest_token": found.latest_token,
            "visible_token": found.newest.max_visibility_token,
            "token_lag": found.token_lag,
            "pending_events": found.pending_events,
            "pending_bytes": found.pending_bytes,
            "oldest_pending_lag_ms": _milliseconds(found.oldest_pending_seconds),
            "snapshot_id": found.newest.snapshot_id,
            "snapshot_time": found.newest.created_at,
            "tables": [_lag_of_table(each) for each in found.tables],
        }
    )


def _lag_of_table(each: TableLag) -> dict[str, Any]:
    return {
        "table": each.name,
        "latest_token": each.latest_token,
        "visible_token": each.visible_token,
        "token_lag": each.token_lag,
        "pending_events": each.pending_events,
        "pending_bytes": each.pending_bytes,
        "oldest_pending_lag_ms": _milliseconds(each.oldest_pending_seconds),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _described(each: PublishedSnapshot) -> dict[str, Any]:
    return {
        "snapshot_id": each.snapshot.snapshot_id,
        "created_at": each.snapshot.created_at,
        "max_visibility_token": each.snapshot.max_visibility_token,
        "operation": each.operation,
        "created_by": each.created_by,
    }
