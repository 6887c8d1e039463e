"""Call headers: appended values follow one rule each."""

from datetime import UTC, datetime, timedelta

import pytest

from duckmesh.errors import ErrorCode, Invalid
from flight_server import headers
from flight_server.headers import CallOptions, Consistency, read_options, trace_id_of


def test_a_call_without_headers_leaves_every_choice_open():
    assert read_options({}) == CallOptions()


@pytest.mark.parametrize(
    ("name", "values", "field", "expected"),
    [
        (headers.MIN_TOKEN, ["5", "9", "7"], "min_token", 9),
        (headers.MIN_TOKEN, ["100", "", "5"], "min_token", 5),
        (headers.MIN_TOKEN, ["5", ""], "min_token", None),
        (headers.SNAPSHOT_ID, ["4", "4"], "snapshot_id", 4),
        (headers.SNAPSHOT_ID, ["4", "", "6"], "snapshot_id", 6),
        (headers.SNAPSHOT_ID, [b"4"], "snapshot_id", 4),
        (
            headers.SNAPSHOT_TIME,
            ["2026-01-31T12:00:00Z"],
            "snapshot_time",
            datetime(2026, 1, 31, 12, tzinfo=UTC),
        ),
        (headers.TAG, ["old", "", "month-end"], "tag", "month-end"),
        (headers.CONSISTENCY, ["latest", "STRONG"], "consistency", Consistency.STRONG),
        (headers.CONSISTENCY_TIMEOUT, ["1", "2500"], "consistency_timeout", timedelta(seconds=2.5)),
        (headers.CONSISTENCY_TIMEOUT, ["0"], "consistency_timeout", timedelta(0)),
        (headers.CONSISTENCY_TIMEOUT, ["999999999"], "consistency_timeout", headers.TIMEOUT_MAX),
        (headers.IDEMPOTENCY_KEY, ["a", "b"], "idempotency_key", "b"),
        (headers.WAIT, ["true"], "wait", True),
        (headers.WAIT, ["true", "0"], "wait", False),
        (headers.WAIT, ["true", ""], "wait", False),
    ],
)
def test_several_values_become_one(name, values, field, expected):
    assert getattr(read_options({name: values}), field) == expected


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({headers.MIN_TOKEN: ["0"]}, ErrorCode.VISIBILITY_TOKEN_INVALID),
        ({headers.MIN_TOKEN: ["5", "x"]}, ErrorCode.VISIBILITY_TOKEN_INVALID),
        ({headers.SNAPSHOT_ID: ["4", "5"]}, ErrorCode.SNAPSHOT_SELECTOR_CONFLICT),
        ({headers.SNAPSHOT_ID: ["-4"]}, ErrorCode.INVALID_COMMAND),
        ({headers.SNAPSHOT_ID: ["9" * 30]}, ErrorCode.INVALID_COMMAND),
        ({headers.SNAPSHOT_TIME: ["2026-01-31T12:00:00"]}, ErrorCode.INVALID_COMMAND),
        ({headers.SNAPSHOT_TIME: ["yesterday"]}, ErrorCode.INVALID_COMMAND),
        ({headers.TAG: ["7up"]}, ErrorCode.INVALID_COMMAND),
        ({headers.TAG: ["one", "other"]}, ErrorCode.SNAPSHOT_SELECTOR_CONFLICT),
        ({headers.TAG: ["a"], headers.SNAPSHOT_ID: ["1"]}, ErrorCode.SNAPSHOT_SELECTOR_CONFLICT),
        (
            {headers.SNAPSHOT_TIME: ["2026-01-31T12:00:00Z"], headers.SNAPSHOT_ID: ["1"]},
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
        ),
        (
            {headers.MIN_TOKEN: ["3"], headers.SNAPSHOT_ID: ["1"]},
            ErrorCode.SNAPSHOT_SELECTOR_CONFLICT,
        ),
        ({headers.CONSISTENCY: ["eventual"]}, ErrorCode.INVALID_COMMAND),
        ({headers.CONSISTENCY_TIMEOUT: ["1.5"]}, ErrorCode.INVALID_COMMAND),
        ({headers.WAIT: ["perhaps"]}, ErrorCode.INVALID_COMMAND),
        ({headers.IDEMPOTENCY_KEY: ["k" * 600]}, ErrorCode.IDEMPOTENCY_KEY_REQUIRED),
    ],
)
def test_a_bad_value_is_refused_by_name(call, code):
    with pytest.raises(Invalid) as caught:
        read_options(call)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            {"traceparent": ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]},
            "4bf92f3577b34da6a3ce929d0e0e4736",
        ),
        ({"x-trace-id": ["run-7"]}, "run-7"),
        ({"x-trace-id": ["run-6", "good"]}, "good"),
    ],
)
def test_the_callers_trace_id_is_kept(call, expected):
    assert trace_id_of(call) == expected


@pytest.mark.parametrize("call", [{}, {"traceparent": ["x"]}, {"x-trace-id": ["\n" * 300]}])
def test_a_call_without_a_usable_trace_id_gets_one(call):
    assert len(trace_id_of(call)) == 32
    assert trace_id_of(call) != trace_id_of(call)
