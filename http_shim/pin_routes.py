"""`/v1/snapshots/pin`, `unpin`, `pins` and `restore`: keeping old snapshots, and going back."""

from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from catalog.pins import Pin
from catalog.restores import RestorePlan
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import SnapshotId
from gateway.identity import Identity
from gateway.reads import ReadPoint
from http_shim.answers import json_response
from http_shim.bodies import read_json
from http_shim.calls import call_of
from http_shim.json_requests import StrictModel, parse
from http_shim.rooms import Door, door_of

router = APIRouter(tags=["snapshots"])
_BODY_MAX_BYTES: Final = 256 * 2**10
_INT64_MAX: Final = 2**63 - 1
_LASTING_MAX_MS: Final = 100 * 365 * 86_400_000
_TIMEOUT_MAX_MS: Final = 60_000
_TABLES_MAX: Final = 1000

_SnapshotNumber = Annotated[int, Field(ge=1, le=_INT64_MAX)]


class PinRequest(StrictModel):
    """A snapshot to keep, by its number."""

    snapshot_id: _SnapshotNumber
    tag: str | None = Field(
        default=None, description="A name to read it by; one that is set again moves."
    )
    lasting_ms: Annotated[int, Field(ge=1, le=_LASTING_MAX_MS)] | None = Field(
        default=None, description="How long; until it is unpinned when left out."
    )


class UnpinRequest(StrictModel):
    """A tag to take away, or the untagged pin of a snapshot."""

    snapshot_id: _SnapshotNumber | None = None
    tag: str | None = None


class RestoreRequest(StrictModel):
    """The snapshot to go back to, by its number or tag, and for which tables."""

    snapshot_id: _SnapshotNumber | None = None
    tag: str | None = None
    tables: Annotated[list[str], Field(min_length=1, max_length=_TABLES_MAX)] | None = Field(
        default=None, description="These alone; everything of the tenant when left out."
    )
    dry_run: bool = Field(default=False, description="Say what it would do; change nothing.")
    timeout_ms: Annotated[int, Field(ge=0, le=_TIMEOUT_MAX_MS)] = Field(
        default=10_000, description="How long to wait until what is accepted is visible."
    )


@router.get("/v1/snapshots/pins", summary="List the pins and tags")
async def list_pins(request: Request) -> Response:
    """The pins that hold, newest snapshot first."""
    call, door = call_of(request), door_of(request)
    found = await call.run(door.rooms.pins.all)
    return json_response({"pins": [_described(pin) for pin in found]})


@router.post("/v1/snapshots/pin", summary="Keep a snapshot")
async def pin_snapshot(request: Request) -> Response:
    """Hold a snapshot past retention, under a tag if one is given. Repeatable."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _pin(door, who, body))


@router.post("/v1/snapshots/unpin", summary="Keep a snapshot no more")
async def unpin_snapshot(request: Request) -> Response:
    """Take a tag or a pin away: retention may expire the snapshot from then on."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _unpin(door, who, body))


@router.post("/v1/snapshots/restore", summary="Go back to a snapshot")
async def restore_snapshot(request: Request) -> Response:
    """Publish a new snapshot that is equal to an old one, for some tables or for all."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _restore(door, who, body))


def _pin(door: Door, who: Identity, body: bytes) -> Response:
    asked = parse(PinRequest, body)
    lasting = None if asked.lasting_ms is None else timedelta(milliseconds=asked.lasting_ms)
    made = door.rooms.pins.pin(who, SnapshotId(asked.snapshot_id), tag=asked.tag, lasting=lasting)
    return json_response(_described(made))


def _unpin(door: Door, who: Identity, body: bytes) -> Response:
    asked = parse(UnpinRequest, body)
    wanted = None if asked.snapshot_id is None else SnapshotId(asked.snapshot_id)
    held = door.rooms.pins.unpin(who, snapshot_id=wanted, tag=asked.tag)
    return json_response({"snapshot_id": held, "tag": asked.tag, "unpinned": True})


def _restore(door: Door, who: Identity, body: bytes) -> Response:
    asked = parse(RestoreRequest, body)
    wanted = _wanted(door, who, asked)
    restores = door.rooms.restores
    if asked.dry_run:
        return json_response(_outcome(wanted, restores.plan(who, wanted, asked.tables), None))
    done = restores.restore(
        who, wanted, asked.tables, timeout=timedelta(milliseconds=asked.timeout_ms)
    )
    born = done.snapshot
    outcome = _outcome(wanted, done.plan, born.snapshot_id) | {
        "max_visibility_token": born.max_visibility_token,
        "files_added": done.files_added,
        "files_ended": done.files_ended,
    }
    return json_response(outcome)


def _wanted(door: Door, who: Identity, asked: RestoreRequest) -> SnapshotId:
    if (asked.snapshot_id is None) == (asked.tag is None):
        raise Invalid(
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
            "name the snapshot to go back to: by snapshot_id, or by tag",
        )
    if asked.snapshot_id is not None:
        return SnapshotId(asked.snapshot_id)
    return door.rooms.reads.pin(who, None, ReadPoint(tag=asked.tag)).snapshot_id


def _outcome(wanted: SnapshotId, plan: RestorePlan, born: SnapshotId | None) -> dict[str, Any]:
    return {
        "dry_run": born is None,
        "restored_snapshot_id": wanted,
        "snapshot_id": born,
        "rewound_tables": [table.name for table in plan.rewound],
        "recreated_tables": [table.name for table in plan.made_anew],
        "ended_tables": [table.name for table in plan.ended],
        "max_visibility_token": None,
        "files_added": None,
        "files_ended": None,
    }


def _described(pin: Pin) -> dict[str, Any]:
    return {
        "snapshot_id": pin.snapshot_id,
        "tag": pin.tag,
        "created_by": pin.created_by,
        "created_at": pin.created_at,
        "expires_at": pin.expires_at,
    }
