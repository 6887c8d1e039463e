"""Endpoints of the contract whose use case is not here yet: 501, naming the feature."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from duckmesh.errors import ErrorCode, NotSupported
from http_shim.calls import call_of

router = APIRouter(tags=["planned"])

WAITING: Final = (
    ("POST", "/v1/compaction/run", "running a compaction"),
    ("POST", "/v1/retention/run", "running retention"),
    ("POST", "/v1/integrity/run", "checking integrity"),
)
"""Method, path and feature of each."""


def _add(method: str, path: str, feature: str) -> None:
    async def wait(request: Request) -> Response:
        def refuse(_: object) -> Response:
            raise NotSupported(
                ErrorCode.NOT_IMPLEMENTED_YET,
                f"{feature} is not here yet: docs/http.md lists what is",
                feature=feature,
            )

        # Who may not call at all is told that first.
        return await call_of(request).run(refuse)

    router.add_api_route(
        path,
        wait,
        methods=[method],
        summary=f"Planned: {feature}",
        description="Answers 501 NOT_IMPLEMENTED_YET.",
        operation_id=f"planned_{method.lower()}_{path.removeprefix('/v1/').replace('/', '_')}",
        openapi_extra={"x-planned": True},
    )


for _method, _path, _feature in WAITING:
    _add(_method, _path, _feature)
