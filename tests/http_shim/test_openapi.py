"""The OpenAPI document is the code's, and random requests of it never meet a fault."""

import contextlib
import os
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, GenerationMode, checks

from http_shim.files import FILE_TYPES
from http_shim.openapi import openapi_document, openapi_text
from tests.http_shim.conftest import OpenHttp
from tests.rooms import Rooms, rows

CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
"""What an answer is held to: a status, a type and a shape that the document names."""
EXAMPLES = int(os.environ.get("DUCKMESH_TEST_HTTP_EXAMPLES", "4"))
"""Requests for each endpoint and way of making them; 450 make about 20,000 in all."""
ROOT = Path(__file__).parent.parent.parent


def test_the_document_in_the_tree_is_the_codes() -> None:
    assert (ROOT / "docs/openapi.json").read_text(encoding="utf-8") == openapi_text(), (
        "run `python -m http_shim.openapi` in the root of the tree"
    )


def test_the_door_serves_its_document(http) -> None:
    assert http.get("/v1/openapi.json").json() == openapi_document()


OPERATIONS = [
    (path, method) for path, methods in openapi_document()["paths"].items() for method in methods
]


@schemathesis.serializer("text/csv", *FILE_TYPES)
def _as_bytes(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@pytest.fixture
def fuzzed(open_http: OpenHttp, rooms: Rooms, coordinator: None) -> str:
    """A door over a tenant with rows; what is accepted becomes visible, so that no wait is long."""
    del coordinator
    rooms.write("t", rows(1, 2, word=["a", None]))
    return open_http().uri


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_of_the_document_meets_a_fault(fuzzed: str, mode: GenerationMode) -> None:
    """Every answer is of the contract: no 500, and each error in JSON with its code and trace."""
    schema = schemathesis.openapi.from_dict(openapi_document())
    asked = [_attack(schema[path][method.upper()], fuzzed, mode) for path, method in OPERATIONS]
    print(f"{sum(asked)} requests, {mode.value}")
    assert sum(asked) >= EXAMPLES


def _attack(operation: APIOperation, uri: str, mode: GenerationMode) -> int:
    asked = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def attack(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        answer = case.call(base_url=uri)
        check(answer)
        if not _is_plain_refusal(answer):
            case.validate_response(answer, checks=CONFORMANCE)

    with contextlib.suppress(Unsatisfiable):
        attack()
    return asked


def _is_plain_refusal(answer: schemathesis.Response) -> bool:
    """No HTTP at all: uvicorn answers before the door sees it."""
    kind = answer.headers.get("content-type", [""])
    return answer.status_code == 400 and kind == ["text/plain; charset=utf-8"]


def check(answer: schemathesis.Response) -> None:
    assert answer.status_code != 500, answer.text
    if _is_plain_refusal(answer):
        return
    assert "x-trace-id" in answer.headers
    if answer.status_code >= 400:
        said = answer.json()
        assert set(said) == {"error_code", "message", "retryable", "context", "trace_id"}
