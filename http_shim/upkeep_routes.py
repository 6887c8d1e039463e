"""Compaction, retention and integrity of one's tenant, now: `/v1/compaction/run` and its like."""

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from catalog.tables import places, table_not_found
from catalog.tenants import Tenant
from coordinator.compact import Compacted, Compactor
from duckmesh.identifiers import TableId
from gateway.acts import administrative_act
from gateway.identity import Identity, Role
from http_shim.answers import json_response
from http_shim.bodies import read_json
from http_shim.calls import call_of
from http_shim.json_requests import StrictModel, parse
from http_shim.rooms import Door, door_of

router = APIRouter(tags=["upkeep"])
_BODY_MAX_BYTES: Final = 64 * 2**10
_MERGES_MAX: Final = 100

_Summary = dict[str, Any]


class CompactionRequest(StrictModel):
    """Which tables to merge the files of."""

    table: str | None = Field(default=None, description="This one alone; all when left out.")
    dry_run: bool = Field(default=False, description="Say what would be merged; merge nothing.")


class RetentionRequest(StrictModel):
    """What to give back."""

    orphans: bool = Field(default=True, description="Whether to look for orphans too.")
    dry_run: bool = Field(default=False, description="Say what would go; change nothing.")


class IntegrityRequest(StrictModel):
    """Nothing to choose: every file of the tenant's snapshots is looked at."""


@router.post("/v1/compaction/run", summary="Merge small files now")
async def run_compaction(request: Request) -> Response:
    """Merge files of the tenant's tables, at most a hundred merges. The rows stay what they are."""
    return await _run(request, _compact)


@router.post("/v1/retention/run", summary="Expire snapshots and give storage back now")
async def run_retention(request: Request) -> Response:
    """Expire old snapshots, and delete what nothing reads any more."""
    return await _run(request, _collect)


@router.post("/v1/integrity/run", summary="Check the files now")
async def run_integrity(request: Request) -> Response:
    """Whether every file of the tenant's snapshots is there, as large as it was written."""
    return await _run(request, _check)


async def _run(
    request: Request, work: Callable[[Door, Identity, bytes, threading.Event], _Summary]
) -> Response:
    """Upkeep on a thread; a drain ends it after its next step, with what is done so far."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    stop = threading.Event()
    with call.stoppable(stop.set):
        summary = await call.run(lambda who: work(door, who, body, stop))
    return json_response({"status": "done", "summary": summary})


def _collect(door: Door, who: Identity, body: bytes, stop: threading.Event) -> _Summary:
    catalog = door.rooms.catalog
    with administrative_act(catalog, who, "retention", who.tenant) as act:
        who.require(Role.OPS_ADMIN)
        asked = parse(RetentionRequest, body)
        done = door.rooms.maintenance.collector(stop).collect(
            _tenant_of(who), orphans=asked.orphans, dry_run=asked.dry_run
        )
        summary = {"dry_run": asked.dry_run, **asdict(done)}
        if not asked.dry_run:
            with catalog.connect() as connection:
                act.done(connection, **asdict(done))
    return summary


def _check(door: Door, who: Identity, body: bytes, stop: threading.Event) -> _Summary:
    with administrative_act(door.rooms.catalog, who, "integrity", who.tenant):
        who.require(Role.OPS_ADMIN)
        parse(IntegrityRequest, body)
        report = door.rooms.maintenance.integrity(stop).check(
            _tenant_of(who), principal=who.audited_as
        )
    summary = asdict(report)
    damaged = [{**each, "file_id": str(each["file_id"])} for each in summary["damaged"]]
    return {**summary, "damaged": damaged}


def _compact(door: Door, who: Identity, body: bytes, stop: threading.Event) -> _Summary:
    catalog = door.rooms.catalog
    with administrative_act(catalog, who, "compact", who.tenant) as act:
        who.require(Role.OPS_ADMIN)
        asked = parse(CompactionRequest, body)
        act.target = asked.table or who.tenant
        compactor = door.rooms.maintenance.compactor(stop)
        merges = _merges(compactor, who, _tables(door, who, compactor, asked), asked.dry_run)
        summary = {
            "dry_run": asked.dry_run,
            "merges": len(merges),
            "lost": sum(each.lost for each in merges),
            "files_in": sum(each.files_in for each in merges),
            "files_out": sum(each.files_out for each in merges),
            "bytes_in": sum(each.bytes_in for each in merges),
            "bytes_out": sum(each.bytes_out for each in merges),
        }
        if merges and not asked.dry_run:
            with catalog.connect() as connection:
                act.done(connection, **summary)
    return summary


def _tables(
    door: Door, who: Identity, compactor: Compactor, asked: CompactionRequest
) -> list[TableId]:
    """The tables that have files to merge, of those that are asked for."""
    crowded = [t.table_id for t in compactor.crowded() if t.tenant_id == who.tenant_id]
    if asked.table is None:
        return crowded
    target = door.rooms.writes.definitions.live_name(who, asked.table)
    if target is None:
        raise table_not_found(asked.table[:200])
    with door.rooms.catalog.connect() as connection:
        named = places(connection, who.tenant_id, crowded)
    return [table_id for table_id in crowded if named[table_id].name == target]


def _merges(
    compactor: Compactor, who: Identity, tables: list[TableId], dry_run: bool
) -> list[Compacted]:
    done: list[Compacted] = []
    for table_id in tables:
        while len(done) < _MERGES_MAX:
            merge = (
                compactor.plan(table_id, eager=True)
                if dry_run
                else compactor.compact(who.tenant_id, table_id, eager=True)
            )
            if merge is None:
                break
            done.append(merge)
            if dry_run or merge.lost:
                break
    return done


def _tenant_of(who: Identity) -> Tenant:
    return Tenant(who.tenant_id, who.tenant, disabled=False)
