"""Tickets are ended and renewed by their holder; each answer says what is true here."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server import messages
from flight_server.fetches import Fetches
from flight_server.ticket_actions import CancelStatus
from query_engine.engine import Interruption

ENDLESS = "SELECT range, repeat('x', 500) FROM range(100000000)"
REFUSALS = (pa.ArrowException, KeyError, NotImplementedError)


class Clock:
    def __init__(self):
        self.at = 1_800_000_000.0

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def connect():
    opened = []

    def to(door):
        client = flight.connect(f"grpc://127.0.0.1:{door.port}")
        opened.append(client)
        return client

    yield to
    for client in opened:
        client.close()


def info_of(client, sql="SELECT 42 AS answer"):
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    return client.get_flight_info(flight.FlightDescriptor.for_command(command))


def fetch(client, endpoint):
    return client.do_get(endpoint.ticket).read_all()


def act(client, name, body):
    (result,) = client.do_action(flight.Action(name, body.SerializeToString()))
    return result.body.to_pybytes()


def cancel(client, info):
    request = messages.session("CancelFlightInfoRequest")(info=info.serialize())
    answer = act(client, "CancelFlightInfo", request)
    return messages.session("CancelFlightInfoResult").FromString(answer).status


def renewed(client, endpoint):
    request = messages.session("RenewFlightEndpointRequest")(endpoint=endpoint.serialize())
    return flight.FlightEndpoint.deserialize(act(client, "RenewFlightEndpoint", request))


def refused(call, code):
    with pytest.raises(REFUSALS, match=rf"\[{code}\]"):
        call()


def test_an_endpoint_tells_until_when_its_ticket_is_good(open_door, connect, clock):
    client = connect(open_door(now=clock, ticket_lifetime=timedelta(minutes=5)))
    (endpoint,) = info_of(client).endpoints
    expected = datetime.fromtimestamp(clock.at, UTC) + timedelta(minutes=5)
    assert endpoint.expiration_time.as_py() == expected
    clock.at += 299
    assert fetch(client, endpoint).num_rows == 1
    assert fetch(client, endpoint).num_rows == 1, "and again, until it expires"
    clock.at += 1
    refused(lambda: fetch(client, endpoint), "TICKET_INVALID")


def test_a_renewed_ticket_outlives_the_first_and_asks_the_same(open_door, connect, clock):
    client = connect(open_door(now=clock, ticket_lifetime=timedelta(minutes=5)))
    (first,) = info_of(client).endpoints
    clock.at += 200
    second = renewed(client, first)
    assert second.expiration_time.as_py() - first.expiration_time.as_py() == timedelta(seconds=200)
    clock.at += 200
    refused(lambda: fetch(client, first), "TICKET_INVALID")
    refused(lambda: renewed(client, first), "TICKET_INVALID")
    assert fetch(client, second).to_pylist() == [{"answer": 42}]


def test_cancelling_stops_the_fetch_and_kills_the_ticket(open_door, connect, house):
    client = connect(open_door())
    info = info_of(client, ENDLESS)
    stream = client.do_get(info.endpoints[0].ticket)
    stream.read_chunk()
    alike = info_of(client, ENDLESS)
    assert cancel(client, info) == CancelStatus.CANCELLED
    refused(stream.read_all, "QUERY_CANCELLED")
    refused(lambda: client.do_get(info.endpoints[0].ticket).read_chunk(), "QUERY_CANCELLED")
    refused(lambda: renewed(client, info.endpoints[0]), "QUERY_CANCELLED")
    other = client.do_get(alike.endpoints[0].ticket)
    assert other.read_chunk().data.num_rows > 0, "the same question asked again is another ticket"
    other.cancel()


def test_a_ticket_that_nothing_fetches_here_is_dead_here_and_no_more_is_claimed(open_door, connect):
    here, there = connect(open_door()), connect(open_door())
    info = info_of(here)
    assert cancel(here, info) == CancelStatus.UNSPECIFIED
    refused(lambda: fetch(here, info.endpoints[0]), "QUERY_CANCELLED")
    assert fetch(there, info.endpoints[0]).num_rows == 1


def test_another_process_does_not_claim_to_have_stopped_a_fetch(open_door, connect):
    here, there = connect(open_door()), connect(open_door())
    info = info_of(here, ENDLESS)
    stream = here.do_get(info.endpoints[0].ticket)
    stream.read_chunk()
    assert cancel(there, info) == CancelStatus.UNSPECIFIED
    assert stream.read_chunk().data.num_rows > 0
    stream.cancel()


def test_metadata_and_the_outcome_of_a_write_cannot_be_cancelled(door, connect):
    client = connect(door)
    command = messages.wrap(messages.sql("CommandGetTables")())
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
    assert cancel(client, info) == CancelStatus.NOT_CANCELLABLE
    (endpoint,) = info.endpoints
    assert endpoint.expiration_time is None
    assert renewed(client, endpoint) == endpoint
    assert set(fetch(client, endpoint).column("table_type").to_pylist()) <= {"SYSTEM TABLE"}


@pytest.mark.parametrize("action", ["CancelFlightInfo", "RenewFlightEndpoint"])
@pytest.mark.parametrize("body", [b"", b"\xff", b"\x0a\x02\xff\xff", b"\x0a\x00"])
def test_a_body_that_is_none_is_refused(door, connect, action, body):
    try:
        (result,) = connect(door).do_action(flight.Action(action, body))
    except REFUSALS as error:
        text = str(error)
        assert "[INVALID_COMMAND]" in text
        assert "Traceback" not in text.split("gRPC client debug context", maxsplit=1)[0]
    else:
        # An empty FlightInfo is one without endpoints: there is nothing to cancel.
        answer = messages.session("CancelFlightInfoResult").FromString(result.body.to_pybytes())
        assert (action, answer.status) == ("CancelFlightInfo", CancelStatus.NOT_CANCELLABLE)


def test_another_tenants_ticket_is_not_ended(open_door, connect, ada):
    door = open_door(keys={"k": ada})
    mine, anybodys = connect(door), connect(door)
    options = flight.FlightCallOptions(headers=[(b"authorization", b"Bearer k")])
    command = messages.wrap(messages.sql("CommandStatementQuery")(query="SELECT 1"))
    info = mine.get_flight_info(flight.FlightDescriptor.for_command(command), options)
    refused(lambda: cancel(anybodys, info), "TICKET_INVALID")
    refused(lambda: renewed(anybodys, info.endpoints[0]), "TICKET_INVALID")
    assert mine.do_get(info.endpoints[0].ticket, options).read_all().num_rows == 1


def test_every_listed_action_has_a_description_and_is_answered(door, connect):
    client = connect(door)
    said = []
    for action in client.list_actions():
        assert action.description.endswith(".")
        try:
            list(client.do_action(flight.Action(action.type, b"")))
        except REFUSALS as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "is no action" in text]


def test_the_memory_of_dead_tickets_is_bounded_and_ended_fetches_are_forgotten():
    fetches = Fetches(dead_max=2)
    end = fetches.begin(b"live", Interruption())
    for ticket in (b"1", b"2", b"3"):
        assert not fetches.cancel(ticket)
    fetches.begin(b"1", Interruption())()
    assert fetches.count == 1
    end()
    assert fetches.count == 0
