"""`POST /v1/ingest/{table}`: records in JSON; or a file, which is one write."""

import asyncio
from datetime import timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.identifiers import check_idempotency_key
from gateway.identity import Identity
from gateway.ingest_modes import IngestMode
from http_shim.bodies import encoding_of, media_type_of, open_body, read_json
from http_shim.boundary import refusal
from http_shim.calls import call_of
from http_shim.file_ingest import FileWrite, ingest_file
from http_shim.files import ALIASES, FILE_TYPES
from http_shim.formats import JSON
from http_shim.receipts import Wish
from http_shim.record_ingest import ingest_records
from http_shim.rooms import door_of

router = APIRouter(tags=["ingest"])
_TIMEOUT_MAX_MS: Final = 3_600_000
_SMALL_BYTES: Final = 64 * 2**10
_KEY_HEADERS: Final = ("idempotency-key", "x-duckmesh-idempotency-key")
LONG_WAY_HEADERS: Final = (*_KEY_HEADERS, "content-encoding", "transfer-encoding", "expect")
"""A request that has one of them is not a small one of records."""


@router.post("/v1/ingest/{table}", summary="Write rows to a table")
async def ingest(
    request: Request,
    table: str,
    *,
    wait_for_visibility: Annotated[
        bool, Query(description="Answer when the rows are visible to every query.")
    ] = False,
    visibility_timeout_ms: Annotated[
        int | None, Query(ge=0, le=_TIMEOUT_MAX_MS, description="How long to wait.")
    ] = None,
    mode: Annotated[
        IngestMode,
        Query(description="What becomes of the table; other than `append` for Arrow and Parquet."),
    ] = IngestMode.APPEND,
    op: Annotated[
        Literal["insert", "delete"],
        Query(
            description="What the rows of a file do; those of a `delete` have the columns of the "
            "table's primary key. Records in JSON have an `op` each."
        ),
    ] = "insert",
    results: Annotated[
        Literal["records"] | None, Query(description="`records`: a result for each record.")
    ] = None,
) -> Response:
    """Accept rows durably, and answer with the token that a query may wait for."""
    call, door = call_of(request), door_of(request)
    timeout = visibility_timeout_ms
    wish = Wish(
        wait=wait_for_visibility,
        timeout=None if timeout is None else timedelta(milliseconds=timeout),
        records=results is not None,
    )
    kind = media_type_of(request, default=JSON)
    kind = ALIASES.get(kind, kind)
    if kind == JSON:
        if op != "insert":
            raise Invalid(ErrorCode.INVALID_OP, "records in JSON have an op each: say it there")
        return await _ingest_records(request, table, mode=mode, wish=wish)
    if kind not in FILE_TYPES:
        raise refusal(415, f"rows are sent as {', '.join((JSON, *FILE_TYPES))}: name one of them")
    asked = FileWrite(
        table=table,
        media_type=kind,
        mode=mode,
        idempotency_key=_key_of(request),
        deletes=op == "delete",
    )
    # Before the body: who may not write need not send it.
    await call.run(lambda who: door.rooms.writes.check_may_write(who, table, mode=mode))
    body = open_body(
        request,
        asyncio.get_running_loop(),
        limit=door.limits.body_max_bytes,
        idle_seconds=door.limits.idle.total_seconds(),
    )
    return await call.run(
        lambda who: ingest_file(door, call, who, asked=asked, body=body, wish=wish)
    )


def route() -> BaseRoute:
    """The route of this room, for the metrics of who answers in its place."""
    return router.routes[0]


async def _ingest_records(
    request: Request, table: str, *, mode: IngestMode, wish: Wish
) -> Response:
    call, door = call_of(request), door_of(request)
    if mode is not IngestMode.APPEND:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED, "records have no column types: create the table first"
        )
    if _key_of(request) is not None:
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            "records carry their own idempotency_key: leave the header out",
        )
    writes = door.rooms.writes
    small = _is_small(request)
    if not small:
        # Before the body: who may not write need not send it.
        await call.run(lambda who: writes.check_may_write(who, table, slows=False))
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=door.limits.json_max_bytes, idle_seconds=idle_seconds)

    def accept(who: Identity) -> Response:
        if small:
            writes.check_may_write(who, table, slows=False)
        return ingest_records(door, call, who, table=table, body=body, wish=wish)

    return await call.run(accept)


def _is_small(request: Request) -> bool:
    """Whether the body is here sooner than a thread could say whether it is wanted."""
    announced = request.headers.get("content-length", "")
    if encoding_of(request) is not None:
        # Nobody unknown has a body unpacked.
        return False
    return announced.isdigit() and len(announced) < 9 and int(announced) <= _SMALL_BYTES


def _key_of(request: Request) -> str | None:
    """The key of a whole file; one header has it, quoted or not (a Structured Field's string)."""
    values = {
        value.strip().removeprefix('"').removesuffix('"')
        for name in _KEY_HEADERS
        for value in request.headers.getlist(name)
    }
    if len(values) > 1:
        raise Invalid(
            ErrorCode.IDEMPOTENCY_KEY_REQUIRED, "the request names two idempotency keys: send one"
        )
    return check_idempotency_key(values.pop()) if values else None
