"""Commands and actions from their bytes; what is malformed says why."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotSupported
from flight_server import answers, commands, messages
from flight_server.commands import parse_action, parse_command

INGEST = messages.sql("CommandStatementIngest")
DEFINITION = INGEST.TableDefinitionOptions


def wire(name, **fields):
    return messages.wrap(messages.sql(name)(**fields))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            wire("CommandStatementQuery", query="select 1"),
            commands.StatementQuery("select 1"),
        ),
        (
            wire("CommandStatementQuery", query="select 1", transaction_id=b""),
            commands.StatementQuery("select 1", b""),
        ),
        (
            wire("CommandStatementUpdate", query="x", transaction_id=b"t"),
            commands.StatementUpdate("x", b"t"),
        ),
        (wire("TicketStatementQuery", statement_handle=b"h"), commands.StatementTicket(b"h")),
        (
            wire("CommandPreparedStatementQuery", prepared_statement_handle=b"h"),
            commands.PreparedStatementQuery(b"h"),
        ),
        (
            wire("CommandPreparedStatementUpdate", prepared_statement_handle=b"h"),
            commands.PreparedStatementUpdate(b"h"),
        ),
        (
            wire(
                "CommandStatementIngest",
                table_definition_options=DEFINITION(if_not_exist=1, if_exists=2),
                table="flights",
                schema="main",
                transaction_id=b"t",
                options={"a": "b"},
            ),
            commands.StatementIngest(
                table="flights",
                if_missing=commands.IfTableMissing.CREATE,
                if_exists=commands.IfTableExists.APPEND,
                schema="main",
                transaction_id=b"t",
                options={"a": "b"},
            ),
        ),
        (wire("CommandGetSqlInfo", info=[8, 1]), commands.GetSqlInfo((8, 1))),
        (wire("CommandGetXdbcTypeInfo", data_type=0), commands.GetXdbcTypeInfo(0)),
        (wire("CommandGetXdbcTypeInfo"), commands.GetXdbcTypeInfo(None)),
        (wire("CommandGetCatalogs"), commands.GetCatalogs()),
        (
            wire("CommandGetDbSchemas", catalog="", db_schema_filter_pattern="%"),
            commands.GetDbSchemas("", "%"),
        ),
        (
            wire("CommandGetTables", table_types=["TABLE"], include_schema=True),
            commands.GetTables(table_types=("TABLE",), include_schema=True),
        ),
        (wire("CommandGetTableTypes"), commands.GetTableTypes()),
        (wire("CommandGetPrimaryKeys", table="t"), commands.GetPrimaryKeys("t")),
        (
            wire("CommandGetExportedKeys", table="t", catalog="c"),
            commands.GetExportedKeys("t", "c"),
        ),
        (
            wire("CommandGetImportedKeys", table="t", db_schema="s"),
            commands.GetImportedKeys("t", None, "s"),
        ),
        (
            wire("CommandGetCrossReference", pk_table="a", fk_table="b", fk_catalog="c"),
            commands.GetCrossReference("a", "b", fk_catalog="c"),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, commands.Command) else "",
)
def test_a_command_is_read_from_its_bytes(data, expected):
    assert parse_command(data) == expected


@pytest.mark.parametrize(
    ("action", "body", "expected"),
    [
        (
            "CreatePreparedStatement",
            wire("ActionCreatePreparedStatementRequest", query="q"),
            commands.CreatePreparedStatement("q"),
        ),
        (
            "ClosePreparedStatement",
            wire("ActionClosePreparedStatementRequest", prepared_statement_handle=b"h"),
            commands.ClosePreparedStatement(b"h"),
        ),
        (
            "BeginTransaction",
            wire("ActionBeginTransactionRequest"),
            commands.BeginTransaction(),
        ),
        (
            "EndTransaction",
            wire("ActionEndTransactionRequest", transaction_id=b"t", action=1),
            commands.EndTransaction(b"t", commands.EndOfTransaction.COMMIT),
        ),
    ],
)
def test_an_action_is_read_from_its_bytes(action, body, expected):
    assert parse_action(action, body) == expected


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\xff\xff", ErrorCode.INVALID_COMMAND, "no google.protobuf.Any"),
        (b"", ErrorCode.INVALID_COMMAND, "does not name a Flight SQL message"),
        (b"SELECT 1", ErrorCode.INVALID_COMMAND, "malformed"),
        (wire("CommandStatementQuery", query="  "), ErrorCode.SQL_REQUIRED, "empty"),
        (
            wire("CommandStatementQuery", query="x" * (commands.SQL_MAX_CHARS + 1)),
            ErrorCode.PAYLOAD_TOO_LARGE,
            "ingest the data as Arrow",
        ),
        (
            wire("CommandStatementIngest", table="t"),
            ErrorCode.INVALID_COMMAND,
            "if_not_exist is not set",
        ),
        (
            wire("CommandStatementIngest", table=" "),
            ErrorCode.TABLE_REQUIRED,
            "name the table",
        ),
        (
            wire("DoPutUpdateResult", record_count=1),
            ErrorCode.INVALID_COMMAND,
            "no command of Flight SQL",
        ),
    ],
)
def test_a_malformed_command_says_what_is_wrong(data, code, reason):
    with pytest.raises(Invalid, match=reason) as caught:
        parse_command(data)
    assert caught.value.code is code


def test_a_value_that_no_enum_knows_is_refused():
    body = wire(
        "CommandStatementIngest",
        table="t",
        table_definition_options=DEFINITION(if_not_exist=7, if_exists=1),
    )
    with pytest.raises(Invalid, match="7 is no IfTableMissing"):
        parse_command(body)


def test_an_action_with_another_requests_body_is_refused():
    with pytest.raises(Invalid, match="must be ActionEndTransactionRequest"):
        parse_action("EndTransaction", wire("ActionBeginTransactionRequest"))


@pytest.mark.parametrize("action", ["CreatePreparedSubstraitPlan", "BeginSavepoint", "CancelQuery"])
def test_what_is_not_supported_names_the_other_way(action):
    with pytest.raises(NotSupported, match=r": (send|end|cancel)"):
        parse_action(action, b"")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_command_or_a_typed_error(data):
    # Any other exception fails the test.
    with suppress(DuckMeshError):
        assert isinstance(parse_command(data), commands.Command)


@given(st.data())
def test_a_mutated_command_is_a_command_or_a_typed_error(data):
    original = wire(
        "CommandStatementIngest",
        table="flights",
        table_definition_options=DEFINITION(if_not_exist=1, if_exists=2),
        options={"key": "value"},
    )
    at = data.draw(st.integers(0, len(original) - 1))
    mutated = original[:at] + data.draw(st.binary(max_size=4)) + original[at + 1 :]
    with suppress(DuckMeshError):
        assert isinstance(parse_command(mutated), commands.Command)


# ---- Answers


def test_the_receipt_of_an_update_reads_back_and_is_an_unknown_field_to_others():
    data = answers.update_result(3, {"token": 7})
    assert answers.read_update_result(data) == (3, {"token": 7})
    assert data.startswith(b"\x08\x03"), "record_count is field 1"
    assert answers.read_update_result(answers.update_result(answers.UNKNOWN_COUNT)) == (-1, None)


@pytest.mark.parametrize("value", ["text", True, False, 5, -(2**63), 2.5, ("a", "b"), None])
def test_a_session_option_keeps_its_type(value):
    result = messages.session("GetSessionOptionsResult")()
    result.ParseFromString(answers.get_options_result({"name": value}))
    request = messages.session("SetSessionOptionsRequest")()
    request.session_options["name"].CopyFrom(result.session_options["name"])
    read = answers.read_set_options(request.SerializeToString())
    assert read == {"name": value}
    assert type(read["name"]) is type(value)


def test_a_malformed_session_request_is_refused():
    with pytest.raises(Invalid, match="no SetSessionOptionsRequest"):
        answers.read_set_options(b"\xff")
