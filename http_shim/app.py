"""The HTTP application: routes over the rooms of one serving process."""

from functools import cache

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from duckmesh.errors import ErrorCode, Invalid
from http_shim.boundary import error_response, known_error
from http_shim.calls import RequestsInFlight, call_of
from http_shim.openapi import API_VERSION, OPENAPI_PATH, ROUTERS, openapi_document
from http_shim.passage import Passage
from http_shim.rooms import Door, HttpLimits, HttpRooms


def new_app(rooms: HttpRooms, limits: HttpLimits) -> FastAPI:
    """The application. Its `state.door` holds what the routes reach."""
    door = Door(
        rooms=rooms,
        limits=limits,
        calls=RequestsInFlight(limits.requests_max),
    )
    app = FastAPI(
        version=API_VERSION,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.door = door
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = cache(openapi_document)  # type: ignore[method-assign]
    app.add_middleware(Passage, door=door)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(RequestValidationError, _refused_parameters)
    return app


async def _refused_by_framework(request: Request, error: Exception) -> Response:
    known, status, headers = known_error(error)
    return error_response(known, call_of(request).trace_id, status=status, **headers)


async def _refused_parameters(request: Request, error: Exception) -> Response:
    """A path or query parameter that does not fit."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    found = error.errors()
    reasons = [
        {"field": ".".join(str(part)[:80] for part in each["loc"][1:]), "reason": each["msg"]}
        for each in found[:20]
    ]
    first = reasons[0]
    refused = Invalid(
        ErrorCode.INVALID_COMMAND,
        f"the request is wrong: {first['field']}: {first['reason']}",
        fields=reasons,
    )
    return error_response(refused, call_of(request).trace_id)
