"""The OpenAPI document, made from the routes and the request models.

`python -m http_shim.openapi` in the tree's root writes docs/openapi.json; a test keeps it current.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from http_shim import (
    dead_letter_routes,
    ingest_routes,
    key_routes,
    operation_routes,
    pin_routes,
    query_routes,
    quota_routes,
    snapshot_routes,
    table_routes,
    upkeep_routes,
)
from http_shim.answer_models import (
    CompactionAnswer,
    DeadLetterAnswer,
    DeadLetterList,
    ErrorAnswer,
    ExecutedAnswer,
    IngestAnswer,
    IntegrityAnswer,
    KeyAnswer,
    KeyList,
    LagAnswer,
    PinAnswer,
    PinList,
    QueryAnswer,
    QuotaList,
    ReplayAnswer,
    RestoreAnswer,
    RetentionAnswer,
    SnapshotAnswer,
    SnapshotList,
    TableAnswer,
    TableList,
    UnpinAnswer,
)
from http_shim.dead_letter_routes import ReplayRequest
from http_shim.files import FILE_TYPES
from http_shim.formats import ARROW, JSON, MEDIA_TYPES, PARQUET
from http_shim.key_routes import CreateKeyRequest
from http_shim.pin_routes import PinRequest, RestoreRequest, UnpinRequest
from http_shim.query_routes import QueryRequest
from http_shim.record_ingest import IngestRequest
from http_shim.table_routes import ChangeTableRequest, CreateTableRequest
from http_shim.upkeep_routes import CompactionRequest, IntegrityRequest, RetentionRequest

API_VERSION: Final = "1"
OPENAPI_PATH: Final = "/v1/openapi.json"
ROUTERS: Final[Sequence[APIRouter]] = (
    operation_routes.router,
    ingest_routes.router,
    query_routes.router,
    table_routes.router,
    # Before the snapshots by number: `pins` is none.
    pin_routes.router,
    snapshot_routes.router,
    dead_letter_routes.router,
    key_routes.router,
    quota_routes.router,
    upkeep_routes.router,
)
_TITLE: Final = "DuckMesh"
_DESCRIPTION: Final = (
    "Durable, idempotent ingest with visibility tokens, and SQL over snapshots. docs/http.md shows "
    "how it is used."
)
_BODIES: Final[Mapping[str, type[BaseModel]]] = {
    "/v1/query": QueryRequest,
    "/v1/tables": CreateTableRequest,
    "/v1/keys": CreateKeyRequest,
    "/v1/tables/{table}": ChangeTableRequest,
    "/v1/ingest/{table}": IngestRequest,
    "/v1/dead-letters/replay": ReplayRequest,
    "/v1/compaction/run": CompactionRequest,
    "/v1/retention/run": RetentionRequest,
    "/v1/integrity/run": IntegrityRequest,
    "/v1/snapshots/pin": PinRequest,
    "/v1/snapshots/unpin": UnpinRequest,
    "/v1/snapshots/restore": RestoreRequest,
}
_ANSWERS: Final[Mapping[tuple[str, str], type[BaseModel]]] = {
    ("post", "/v1/ingest/{table}"): IngestAnswer,
    ("post", "/v1/tables"): TableAnswer,
    ("get", "/v1/tables"): TableList,
    ("get", "/v1/tables/{table}"): TableAnswer,
    ("patch", "/v1/tables/{table}"): TableAnswer,
    ("get", "/v1/snapshots"): SnapshotList,
    ("get", "/v1/snapshots/{snapshot_id}"): SnapshotAnswer,
    ("get", "/v1/snapshots/pins"): PinList,
    ("post", "/v1/snapshots/pin"): PinAnswer,
    ("post", "/v1/snapshots/unpin"): UnpinAnswer,
    ("post", "/v1/snapshots/restore"): RestoreAnswer,
    ("post", "/v1/compaction/run"): CompactionAnswer,
    ("post", "/v1/retention/run"): RetentionAnswer,
    ("post", "/v1/integrity/run"): IntegrityAnswer,
    ("get", "/v1/dead-letters"): DeadLetterList,
    ("get", "/v1/dead-letters/{visibility_token}"): DeadLetterAnswer,
    ("post", "/v1/dead-letters/replay"): ReplayAnswer,
    ("get", "/v1/lag"): LagAnswer,
    ("get", "/v1/quotas"): QuotaList,
    ("get", "/v1/keys"): KeyList,
    ("post", "/v1/keys"): KeyAnswer,
    ("post", "/v1/keys/{key_id}/rotate"): KeyAnswer,
}
_MODELS: Final[Sequence[type[BaseModel]]] = (
    *_BODIES.values(),
    *dict.fromkeys(_ANSWERS.values()),
    QueryAnswer,
    ExecutedAnswer,
    ErrorAnswer,
)
_OPEN: Final = frozenset({"/v1/health", "/v1/ready", "/v1/metrics"})
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


def openapi_document() -> dict[str, Any]:
    """The document of every endpoint."""
    bare = FastAPI()
    for router in ROUTERS:
        bare.include_router(router)
    document = get_openapi(
        title=_TITLE, version=API_VERSION, description=_DESCRIPTION, routes=bare.routes
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    document["components"] = {
        "schemas": dict(sorted(definitions["$defs"].items())),
        "securitySchemes": {
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic"},
        },
    }
    for path, method, operation in _operations(document):
        _complete(path, method, operation)
    return document


def openapi_text() -> str:
    """The document as docs/openapi.json holds it."""
    return json.dumps(openapi_document(), indent=2, sort_keys=True) + "\n"


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """What FastAPI cannot know: bodies that the door reads itself, answers, credentials."""
    responses = operation["responses"]
    responses.pop("422", None)
    _name_path_parameters(path, operation)
    if path not in _OPEN:
        # The last one: no credential, which open mode allows.
        operation["security"] = [{"apiKey": []}, {"bearer": []}, {"basic": []}, {}]
    if method in ("post", "patch") and path in _BODIES:
        operation["requestBody"] = {"required": True, "content": _body_content(path)}
    _describe_answer(path, method, responses)
    responses["default"] = {
        "description": "The request failed: the error contract, with its trace id.",
        "content": _of_model(ErrorAnswer),
    }


def _describe_answer(path: str, method: str, responses: dict[str, Any]) -> None:
    if path == "/v1/query":
        responses["200"]["content"] = _query_content()
    elif path == "/v1/metrics":
        responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif (answer := _ANSWERS.get((method, path))) is not None:
        status = "201" if "201" in responses else "200"
        responses[status]["content"] = _of_model(answer)
    if path == "/v1/ingest/{table}":
        late = "Accepted and durable, and not visible within the time allowed."
        responses["202"] = {"description": late, "content": _of_model(IngestAnswer)}


def _name_path_parameters(path: str, operation: dict[str, Any]) -> None:
    named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
    for part in path.split("/"):
        name = part.strip("{}")
        if part.startswith("{") and name not in named:
            operation.setdefault("parameters", []).append(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            )


def _body_content(path: str) -> dict[str, Any]:
    content = _of_model(_BODIES[path])
    if path == "/v1/ingest/{table}":
        content |= dict.fromkeys(FILE_TYPES, _BINARY)
    return content


def _query_content() -> dict[str, Any]:
    either = {"anyOf": [_ref(QueryAnswer), _ref(ExecutedAnswer)]}
    text = {"schema": {"type": "string"}}
    return {
        kind: {"schema": either} if kind == JSON else _BINARY if kind in (ARROW, PARQUET) else text
        for kind in MEDIA_TYPES
    }


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    return {JSON: {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def main(root: Path) -> None:
    """Write docs/openapi.json below `root`."""
    (root / "docs" / "openapi.json").write_text(openapi_text(), encoding="utf-8")


if __name__ == "__main__":
    main(Path.cwd())
