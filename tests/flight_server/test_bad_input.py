"""Malformed and forged input over the wire: every answer is typed, and the server goes on."""

import random

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from pyarrow import flight

from duckmesh.errors import ErrorCode
from flight_server import messages

REFUSALS = (pa.ArrowException, KeyError, NotImplementedError)


def wire(name, **fields):
    return messages.wrap(messages.sql(name)(**fields))


@pytest.fixture
def client(uri):
    with flight.connect(uri) as client:
        yield client


def refusal(call):
    """The error code that `call` is refused with; None when it is not refused."""
    try:
        call()
    except REFUSALS as error:
        text = str(error)
        assert "Traceback" not in text.split("gRPC client debug context", maxsplit=1)[0]
        code = text[text.index("[") + 1 :].split("]", maxsplit=1)[0]
        assert code in set(ErrorCode), text
        assert code != ErrorCode.INTERNAL, text
        return code
    return None


def test_a_ticket_with_a_flipped_byte_is_refused(client):
    question = wire("CommandStatementQuery", query="SELECT 42 AS answer")
    info = client.get_flight_info(flight.FlightDescriptor.for_command(question))
    ticket = info.endpoints[0].ticket.ticket
    assert client.do_get(flight.Ticket(ticket)).read_all().to_pylist() == [{"answer": 42}]
    _, body = messages.any_of(ticket)
    handle = messages.sql("TicketStatementQuery").FromString(body).statement_handle
    for at in range(0, len(handle), 7):
        forged = handle[:at] + bytes([handle[at] ^ 1]) + handle[at + 1 :]
        answer = flight.Ticket(wire("TicketStatementQuery", statement_handle=forged))
        assert refusal(lambda answer=answer: client.do_get(answer).read_all()) == "TICKET_INVALID"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"SELECT 1", "INVALID_COMMAND"),
        (wire("CommandStatementQuery", query=""), "SQL_REQUIRED"),
        (wire("CommandStatementQuery", query="SELECT 1; SELECT 2"), "SQL_NOT_ALLOWED"),
        (wire("CommandStatementQuery", query="SELEC 1"), "QUERY_EXECUTION_FAILED"),
        (wire("CommandStatementQuery", query="FROM 'secret.csv'"), None),
        (wire("CommandStatementQuery", query="SELECT 1", transaction_id=b"t"), "NOT_FOUND"),
        (wire("CommandStatementSubstraitPlan"), "NOT_SUPPORTED"),
        (wire("CommandStatementIngest", table="t"), "INVALID_COMMAND"),
        (wire("CommandPreparedStatementQuery", prepared_statement_handle=b"x"), "TICKET_INVALID"),
    ],
)
def test_a_command_that_cannot_run_is_refused_by_name(client, command, code):
    descriptor = flight.FlightDescriptor.for_command(command)
    for call in (client.get_flight_info, client.get_schema):
        refused = refusal(lambda call=call: call(descriptor))
        assert refused is not None
        assert code in (None, refused)


def test_a_path_is_no_question(client):
    descriptor = flight.FlightDescriptor.for_path("t")
    assert refusal(lambda: client.get_flight_info(descriptor)) == "INVALID_COMMAND"


@pytest.mark.parametrize(
    ("action", "body", "code"),
    [
        ("Nonsense", b"", "INVALID_COMMAND"),
        ("CreatePreparedStatement", b"\xff", "INVALID_COMMAND"),
        ("BeginTransaction", b"\xff", "INVALID_COMMAND"),
        (
            "EndTransaction",
            wire("ActionEndTransactionRequest", transaction_id=b"t", action=1),
            "NOT_FOUND",
        ),
        ("BeginSavepoint", b"", "NOT_SUPPORTED"),
        ("SetSessionOptions", b"\xff", "INVALID_COMMAND"),
    ],
)
def test_an_action_that_cannot_run_is_refused_by_name(client, action, body, code):
    assert refusal(lambda: list(client.do_action(flight.Action(action, body)))) == code


def test_mutated_commands_never_break_the_server(client, door):
    drawn = random.Random(20261121)  # noqa: S311 - a reproducible fuzz, no secret
    seeds = [
        wire("CommandStatementQuery", query="SELECT 1"),
        wire("CommandGetTables", table_name_filter_pattern="%", include_schema=True),
        wire("CommandGetSqlInfo", info=[1, 8, 500]),
        wire("TicketStatementQuery", statement_handle=b"h" * 60),
        wire("CommandPreparedStatementQuery", prepared_statement_handle=b"h" * 60),
    ]
    for _ in range(500):
        data = bytearray(drawn.choice(seeds))
        for _ in range(drawn.randint(1, 4)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        del data[drawn.randrange(1, len(data) + 1) :]
        mutated = bytes(data)
        refusal(lambda m=mutated: client.get_flight_info(flight.FlightDescriptor.for_command(m)))
        refusal(lambda m=mutated: client.do_get(flight.Ticket(m)).read_all())
    question = wire("CommandStatementQuery", query="SELECT 1 AS still_here")
    assert client.get_flight_info(flight.FlightDescriptor.for_command(question)).endpoints


def test_an_ingest_of_no_batch_is_told_to_send_one(uri):
    nothing = pa.table({"id": pa.array([], pa.int64())})
    with (
        adbc_driver_flightsql.dbapi.connect(uri, autocommit=True) as connection,
        connection.cursor() as cursor,
        pytest.raises(adbc_driver_manager.Error, match="one, which may be empty"),
    ):
        cursor.adbc_ingest("t", nothing, mode="append")
