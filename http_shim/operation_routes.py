"""Health, readiness and metrics: for load balancers and scrapers, without credentials."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from duckmesh.metrics import CONTENT_TYPE, page
from gateway.readiness import not_ready
from http_shim.answers import json_response
from http_shim.boundary import error_response
from http_shim.calls import call_of, shutting_down
from http_shim.rooms import door_of

router = APIRouter(tags=["operation"])


@router.get("/v1/health", summary="Whether this process lives")
async def health() -> Response:
    """Answers while the process can; says nothing of the catalog or the store."""
    return json_response({"status": "ok"})


@router.get("/v1/ready", summary="Whether this process can do its work")
async def ready(request: Request) -> Response:
    """Probes the catalog, its schema and the object store; 503 NOT_READY names what is away."""
    door, call = door_of(request), call_of(request)
    if door.calls.draining:
        return error_response(shutting_down(), call.trace_id)
    results = await call.run_for_anybody(door.rooms.readiness.check)
    failure = not_ready(results)
    if failure is not None:
        return error_response(failure, call.trace_id)
    return json_response(
        {"status": "ready", "probes": {each.name: each.detail for each in results}}
    )


@router.get("/v1/metrics", summary="Metrics for Prometheus")
async def metrics() -> Response:
    """What this process counts, as Prometheus text; docs/metrics.md has every metric."""
    return Response(await asyncio.to_thread(page), media_type=CONTENT_TYPE)
