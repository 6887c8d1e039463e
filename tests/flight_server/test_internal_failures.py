"""A fault of ours, in every RPC and at every step: a trace id, and nothing of the inside."""

import json
import re

import pyarrow as pa
import pytest
from pyarrow import flight
from structlog.testing import capture_logs

from duckmesh import errors
from duckmesh.errors import ErrorCode
from flight_server import messages
from flight_server.boundary import grpc_code
from ingest_bus.acceptance import Acceptance
from tests import wire

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = [("x-trace-id", TRACE)]
SECRET = "connection to postgresql://admin:hunter2@db.internal/x failed at /srv/secret/module.py"
INSIDE = re.compile(r"Traceback|File \"|\.py\b|hunter2|db\.internal|/srv|RuntimeError|secret")
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64())})


class Fault(RuntimeError):
    """What nobody foresaw; its text names a password, a host and a path."""

    def __init__(self):
        super().__init__(SECRET)


def fail(*_args, **_options):
    raise Fault


def failed(*_args, **_options):
    return Acceptance.failed(Fault())


class BreakingWrite:
    """A write whose step `at` fails."""

    def __init__(self, at):
        self.at = at
        self.rows = 0

    def append(self, batch):
        if self.at == "append":
            raise Fault
        self.rows += batch.num_rows

    def commit(self):
        raise Fault

    def abort(self):
        if self.at == "abort":
            raise Fault


class BreakingAnswer:
    """An answer that fails after its first rows."""

    def __init__(self, fault=None):
        self.fault = fault or Fault()
        self.schema = ROWS.schema
        self.batches = iter(ROWS.to_batches())

    def first_rows(self):
        return [self.next_batch()], False

    def next_batch(self):
        batch = next(self.batches, None)
        if batch is None:
            raise self.fault
        return batch

    def close(self):
        raise Fault

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def sql(name, **fields):
    return messages.wrap(messages.sql(name)(**fields))


QUERY = sql("CommandStatementQuery", query="SELECT 1")
DROP = sql("CommandStatementUpdate", query="DROP TABLE t")
INGEST = sql(
    "CommandStatementIngest",
    table="t",
    table_definition_options={"if_not_exist": 1, "if_exists": 2},
)
PREPARE = sql("ActionCreatePreparedStatementRequest", query="SELECT 1")


def put(descriptor):
    first, *rest = wire.ipc_messages(ROWS)
    return [wire.flight_data(first, descriptor=descriptor), *map(wire.flight_data, rest)]


@pytest.fixture
def raw(uri):
    client = wire.RawFlight(uri.removeprefix("grpc://"))
    yield client
    client.close()


@pytest.fixture
def ticket(raw):
    """What DoGet sends for `SELECT 1`."""
    reply = raw.call("GetFlightInfo", [wire.command_descriptor(QUERY)])
    info = flight.FlightInfo.deserialize(reply.messages[0])
    return wire.ticket(info.endpoints[0].ticket.ticket)


def assert_says_nothing(reply):
    assert (reply.status, reply.text[:10]) == ("INTERNAL", "[INTERNAL]")
    assert reply.trailers["x-trace-id"] == TRACE
    contract = json.loads(reply.trailers["x-duckmesh-error"])
    assert (contract["error_code"], contract["trace_id"]) == ("INTERNAL", TRACE)
    assert (contract["context"], contract["retryable"]) == ({}, False)
    assert reply.trailers["x-sqlstate"] == "XX000"
    said = [reply.text, *map(str, reply.trailers.values())]
    assert not [text for text in said if INSIDE.search(text)], said


STEPS = [
    ("GetFlightInfo", "is_query", fail, [wire.command_descriptor(QUERY)]),
    ("GetFlightInfo", "pin", fail, [wire.command_descriptor(QUERY)]),
    ("GetFlightInfo", "describe", fail, [wire.command_descriptor(QUERY)]),
    ("GetSchema", "is_query", fail, [wire.command_descriptor(QUERY)]),
    ("GetSchema", "describe", fail, [wire.command_descriptor(QUERY)]),
    ("DoGet", "tables", fail, [wire.ticket(sql("CommandGetTables"))]),
    ("DoPut", "begin", fail, put(wire.command_descriptor(INGEST))),
    (
        "DoPut",
        "begin",
        lambda *_, **__: BreakingWrite("append"),
        put(wire.command_descriptor(INGEST)),
    ),
    (
        "DoPut",
        "begin",
        lambda *_, **__: BreakingWrite("commit"),
        put(wire.command_descriptor(INGEST)),
    ),
    (
        "DoPut",
        "begin",
        lambda *_, **__: BreakingWrite("abort"),
        put(wire.command_descriptor(INGEST)),
    ),
    ("DoPut", "open_stream", fail, put(wire.path_descriptor(b"t"))),
    (
        "DoPut",
        "is_query",
        fail,
        [wire.field(1, wire.command_descriptor(DROP))],
    ),
    ("DoAction", "pin", fail, [wire.action(b"CreatePreparedStatement", PREPARE)]),
    ("DoAction", "describe", fail, [wire.action(b"CreatePreparedStatement", PREPARE)]),
]


@pytest.mark.parametrize("case", STEPS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_fault_says_nothing_of_the_inside(house, raw, monkeypatch, case):
    rpc, step, broken, requests = case
    monkeypatch.setattr(house, step, broken)
    with capture_logs() as logs:
        reply = raw.call(rpc, requests, HEADERS)
    assert_says_nothing(reply)
    assert [each["trace_id"] for each in logs if each["event"] == "rpc_failed"] == [TRACE]


@pytest.mark.parametrize("how", ["at the start", "midway"])
def test_a_fault_of_a_query_says_nothing_of_the_inside(house, raw, ticket, monkeypatch, how):
    broken = fail if how == "at the start" else lambda *_, **__: BreakingAnswer()
    monkeypatch.setattr(house, "run", broken)
    reply = raw.call("DoGet", [ticket], HEADERS)
    assert_says_nothing(reply)
    assert bool(reply.messages) == (how == "midway")


@pytest.mark.parametrize(
    "error",
    [
        errors.Exceeded(ErrorCode.QUERY_TIMEOUT, "too slow"),
        errors.Cancelled(ErrorCode.QUERY_CANCELLED, "cancelled"),
        errors.Overloaded(ErrorCode.TOO_MANY_QUERIES, "too many", retry_after_seconds=1),
        errors.Unavailable(ErrorCode.STORE_UNAVAILABLE, "retry"),
        errors.NotFound(ErrorCode.SNAPSHOT_NOT_FOUND, "gone"),
        errors.Invalid(ErrorCode.QUERY_EXECUTION_FAILED, "no number"),
    ],
    ids=lambda error: error.code,
)
def test_an_error_midway_keeps_its_status_its_code_and_its_trailers(
    house, raw, ticket, monkeypatch, error
):
    monkeypatch.setattr(house, "run", lambda *_, **__: BreakingAnswer(error))
    reply = raw.call("DoGet", [ticket], HEADERS)
    assert reply.messages
    cancelled = isinstance(error, errors.Cancelled)
    # A cancellation among rows would be a KeyboardInterrupt for pyarrow's reader.
    assert reply.status == ("ABORTED" if cancelled else grpc_code(error).name)
    assert reply.text.startswith(f"[{error.code}] {error.message}")
    assert json.loads(reply.trailers["x-duckmesh-error"]) == error.as_contract(TRACE)
    assert reply.trailers.get("retry-after") == (
        str(error.context["retry_after_seconds"]) if error.context else None
    )
    said = [reply.text, *map(str, reply.trailers.values())]
    assert not [text for text in said if INSIDE.search(text)], said


@pytest.mark.parametrize("broken", [fail, failed])
def test_a_fault_of_a_stream_says_nothing_of_the_inside(house, raw, monkeypatch, broken):
    assert raw.call("DoPut", put(wire.command_descriptor(INGEST))).status == "OK"
    monkeypatch.setattr(house, "append_batch", broken)
    reply = raw.call("DoPut", put(wire.path_descriptor(b"t")), HEADERS)
    assert_says_nothing(reply)
    assert not [message for message in reply.messages if INSIDE.search(str(message))]


@pytest.mark.parametrize("rpc", [*wire.UNARY, *wire.ANSWERED_BY_A_STREAM, *wire.STREAMS])
def test_a_fault_of_authentication_says_nothing_of_the_inside(open_door, monkeypatch, rpc):
    door = open_door()
    monkeypatch.setattr("tests.flight_server.conftest.KnownKeys.open_identity", fail)
    raw = wire.RawFlight(f"127.0.0.1:{door.port}")
    reply = raw.call(rpc, [wire.command_descriptor(QUERY)], HEADERS)
    raw.close()
    assert (reply.status, reply.text[:10]) == ("INTERNAL", "[INTERNAL]")
    said = [reply.text, *map(str, reply.trailers.values())]
    assert not [text for text in said if INSIDE.search(text)], said
