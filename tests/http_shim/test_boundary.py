"""Every error of the tree has its HTTP status, and says nothing of the inside."""

import json

import pytest

from command_line.errors_reference import REFERENCE
from duckmesh import errors
from duckmesh.errors import Corrupt, Denied, DuckMeshError, ErrorCode, Fenced, Internal, Invalid
from http_shim.boundary import (
    STATUS_OF_CLASS,
    error_body,
    error_response,
    http_status,
    known_error,
)

CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DuckMeshError) and kind is not DuckMeshError
]
CONTRACT = {
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.TABLE_NOT_FOUND: 404,
    ErrorCode.TABLE_EXISTS: 409,
    ErrorCode.IDEMPOTENCY_CONFLICT: 409,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUOTA_EXCEEDED: 429,
    ErrorCode.TOO_MANY_QUERIES: 429,
    ErrorCode.QUERY_TIMEOUT: 504,
    ErrorCode.CONSISTENCY_TIMEOUT: 504,
    ErrorCode.CATALOG_UNAVAILABLE: 503,
    ErrorCode.STORE_UNAVAILABLE: 503,
    ErrorCode.NOT_READY: 503,
    ErrorCode.INTERNAL: 500,
}


def test_every_class_of_the_tree_is_mapped() -> None:
    assert set(STATUS_OF_CLASS) == set(CLASSES)


@pytest.mark.parametrize(("code", "status"), CONTRACT.items())
def test_the_contracts_codes_have_the_contracts_status(code: ErrorCode, status: int) -> None:
    kinds = set(REFERENCE[code].kinds) - {Fenced, Corrupt}
    met = {http_status(kind() if kind is Internal else kind(code, "x")) for kind in kinds}
    assert status in met


def test_an_unforeseen_exception_is_internal_and_tells_nothing() -> None:
    error, status, _ = known_error(RuntimeError("/secret/path postgresql://u:p@h/d"))
    assert (error.code, status) == (ErrorCode.INTERNAL, 500)
    assert b"secret" not in error_body(error, "t1")


def test_our_own_faults_keep_their_context_to_the_log() -> None:
    said = json.loads(error_body(Corrupt("a file is gone", path="/x"), "t1"))
    assert (said["context"], said["error_code"]) == ({}, "CORRUPT")


def test_a_text_that_is_no_unicode_is_still_answered() -> None:
    said = json.loads(error_body(Invalid(ErrorCode.INVALID_JSON, "\ud800 \x00", a="\udfff"), "t1"))
    assert said["context"] == {"a": "\udfff"}


def test_an_answer_says_when_to_come_again_and_how_to_log_in() -> None:
    slow = errors.Overloaded(ErrorCode.RATE_LIMITED, "slow down", retry_after_seconds=7)
    assert error_response(slow, "t").headers["retry-after"] == "7"
    away = errors.Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "away")
    assert error_response(away, "t").headers["retry-after"] == "1"
    who = error_response(Denied(ErrorCode.UNAUTHORIZED, "who"), "t")
    assert who.headers["www-authenticate"] == "Bearer"
