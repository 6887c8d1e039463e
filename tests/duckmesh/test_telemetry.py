"""Records are one line, carry the trace, and never a secret."""

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from duckmesh.errors import ErrorCode, Unavailable
from duckmesh.settings import LogFormat, LoggingSettings, LogLevel, Profile, load_settings
from duckmesh.telemetry import (
    REDACTED,
    bind_trace,
    configure_logging,
    current_trace_id,
    get_logger,
    new_trace_id,
    parse_trace_id,
)

W3C = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What a process that logs JSON at level info has written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    configure_logging(LoggingSettings(), service="serve", profile=Profile.TEST, stream=written)
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def records(stream: io.StringIO) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(error: Exception) -> None:
    raise error


Records = Callable[[], list[dict[str, Any]]]


def test_a_record_says_when_what_and_where(records: Records) -> None:
    get_logger("coordinator").info("published", snapshot_id=7)
    (record,) = records()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", record.pop("timestamp"))
    assert record == {
        "event": "published",
        "level": "info",
        "logger": "coordinator",
        "service": "serve",
        "profile": "test",
        "snapshot_id": 7,
    }


def test_a_library_s_record_has_the_same_form(records: Records) -> None:
    with bind_trace(W3C):
        logging.getLogger("psycopg.pool").warning("lost %s", "a connection")
    (record,) = records()
    assert record["event"] == "lost a connection"
    assert (record["service"], record["trace_id"]) == ("serve", W3C)


def test_records_below_the_level_are_left_out(records: Records) -> None:
    get_logger("any").debug("unseen")
    logging.getLogger("any").debug("unseen")
    assert records() == []


def test_the_last_configuration_holds(stream: io.StringIO) -> None:
    later = io.StringIO()
    configure_logging(
        LoggingSettings(level=LogLevel.ERROR, format=LogFormat.CONSOLE),
        service="coordinate",
        profile=Profile.DEV,
        stream=later,
    )
    get_logger("any").error("broken", table="trips")
    get_logger("any").warning("unseen")
    assert stream.getvalue() == ""
    assert "broken" in later.getvalue()
    assert "table=trips" in later.getvalue()
    assert "unseen" not in later.getvalue()


def test_the_trace_and_tenant_are_in_the_block_s_records_only(records: Records) -> None:
    log = get_logger("any")
    with bind_trace(W3C, tenant_id=3, table=None) as bound:
        log.info("inside")
        with bind_trace("inner"):
            log.info("deeper")
        assert current_trace_id() == bound == W3C
    log.info("outside")
    assert [(r.get("trace_id"), r.get("tenant_id")) for r in records()] == [
        (W3C, 3),
        ("inner", 3),
        (None, None),
    ]
    assert "table" not in records()[0]
    assert current_trace_id() is None


def test_another_thread_has_no_trace() -> None:
    seen: list[str | None] = []
    with bind_trace():
        thread = threading.Thread(target=lambda: seen.append(current_trace_id()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_an_error_of_ours_is_logged_with_its_code(records: Records) -> None:
    try:
        fail(Unavailable(ErrorCode.STORE_UNAVAILABLE, "the object store does not answer"))
    except Unavailable as error:
        get_logger("any").warning("put failed", exc_info=error)
        get_logger("any").exception("put failed")
        logging.getLogger("any").exception("put failed")
    assert [record["error_code"] for record in records()] == ["STORE_UNAVAILABLE"] * 3
    assert all("does not answer" in record["exception"] for record in records())


def test_no_record_holds_a_secret(stream: io.StringIO, records: Records) -> None:
    dsn = "postgresql://duckmesh:hunter2@db/duckmesh"
    log = get_logger("any")
    log.info("connecting", dsn="host=db password=hunter2", options={"api_key": "hunter2"})
    log.info("headers", headers=[("authorization", "Bearer hunter2hunter2")])
    log.info(f"could not reach {dsn}", text='secret_access_key = "hunter2"')
    log.info("settings", settings=load_settings(environment={"DUCKMESH_CATALOG_DSN": dsn}))
    log.info("value", value=SecretStr("hunter2"), password=b"hunter2", odd=[{dsn}])
    logging.getLogger("lib").warning("connect %s", dsn)
    try:
        fail(ConnectionError(f"no route to {dsn}"))
    except ConnectionError:
        log.exception("failed")
    assert "hunter2" not in stream.getvalue()
    assert len(records()) == 7
    assert records()[0]["dsn"] == REDACTED
    assert records()[2]["event"] == f"could not reach postgresql://duckmesh:{REDACTED}@db/duckmesh"


def test_what_is_no_secret_stays_as_it_is(records: Records) -> None:
    get_logger("any").info("ack", visibility_token=41, key="k-1", ticket_count=2, ratio=0.5)
    (record,) = records()
    assert (record["visibility_token"], record["key"]) == (41, "k-1")
    assert (record["ticket_count"], record["ratio"]) == (2, 0.5)


def test_logs_go_to_standard_error(capsys: pytest.CaptureFixture[str], stream: object) -> None:
    configure_logging(LoggingSettings(), service="serve", profile=Profile.TEST)
    get_logger("any").info("here")
    assert capsys.readouterr().out == ""
    assert isinstance(logging.getLogger().handlers[-1], logging.StreamHandler)
    assert logging.getLogger().handlers[-1].stream is sys.stderr


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": f"00-{W3C}-b7ad6b7169203331-01"}, W3C),
        ({"traceparent": f"cc-{W3C}-b7ad6b7169203331-01-what-the-future-will-be"}, W3C),
        ({"x_trace_id": "order-17.3"}, "order-17.3"),
        ({"x_trace_id": "mine", "traceparent": f"00-{W3C}-b7ad6b7169203331-01"}, "mine"),
        ({"x_trace_id": "a\nb", "traceparent": f"00-{W3C}-b7ad6b7169203331-01"}, W3C),
    ],
)
def test_a_caller_s_trace_id_is_kept(headers: dict[str, str], expected: str) -> None:
    assert parse_trace_id(**headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"},
        {"traceparent": f"ff-{W3C}-b7ad6b7169203331-01"},
        {"traceparent": W3C.upper()},
        {"x_trace_id": "x" * 65},
        {"x_trace_id": "<script>"},
    ],
)
def test_a_malformed_trace_id_gives_a_new_one(headers: dict[str, str]) -> None:
    given = parse_trace_id(**headers)
    assert re.fullmatch(r"[0-9a-f]{32}", given)
    assert given not in headers.values()
    assert given != new_trace_id()
