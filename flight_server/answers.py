"""Results of Flight SQL commands and session actions: plain values -> bytes of the wire, and back.

What travels in an Any and what travels bare follows the specification: results of Flight SQL
actions are wrapped, answers to DoPut and the session messages are not.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final, TypeAlias

import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.tokens import VisibilityToken
from flight_server import messages

UNKNOWN_COUNT: Final = -1
"""The record count of a statement that changes no rows, such as DDL."""
NO_ROWS: Final = 0
"""The same, where a client would take -1 for a statement that is yet to run."""

OptionValue: TypeAlias = str | bool | int | float | tuple[str, ...] | None
"""A session option; None erases it."""


class OptionError(IntEnum):
    """Why a session option was not set."""

    INVALID_NAME = 1
    INVALID_VALUE = 2
    ERROR = 3


def update_result(record_count: int, receipt: Mapping[str, Any] | None = None) -> bytes:
    """The answer to a DoPut that wrote. The receipt rides in field 1000, which clients skip."""
    message = messages.sql("DoPutUpdateResult")(record_count=record_count)
    if receipt is not None:
        message.duckmesh_receipt = json.dumps(receipt, separators=(",", ":"))
    return bytes(message.SerializeToString())


def read_update_result(data: bytes) -> tuple[int, dict[str, Any] | None]:
    """Record count and receipt of an `update_result`: what a client of ours reads."""
    message = messages.sql("DoPutUpdateResult")()
    message.ParseFromString(data)
    receipt = json.loads(message.duckmesh_receipt) if message.HasField("duckmesh_receipt") else None
    return message.record_count, receipt


def bind_result(handle: bytes) -> bytes:
    """The answer to a DoPut that bound parameters: the handle to use from now on."""
    message = messages.sql("DoPutPreparedStatementResult")(prepared_statement_handle=handle)
    return bytes(message.SerializeToString())


def prepared_statement_result(
    handle: bytes,
    *,
    dataset_schema: pa.Schema | None,
    parameter_schema: pa.Schema | None,
    is_update: bool | None = None,
) -> bytes:
    """The description of a prepared statement. No dataset schema means it yields no rows."""
    message = messages.sql("ActionCreatePreparedStatementResult")(prepared_statement_handle=handle)
    if dataset_schema is not None:
        message.dataset_schema = dataset_schema.serialize().to_pybytes()
    if parameter_schema is not None:
        message.parameter_schema = _bindable(parameter_schema).serialize().to_pybytes()
    if is_update is not None:
        message.is_update = is_update
    return messages.wrap(message)


def _bindable(parameters: pa.Schema) -> pa.Schema:
    """The parameters in types that every driver fills rightly.

    JDBC counts milliseconds whatever unit a time or a timestamp has, so these are announced in
    milliseconds: a finer unit would take 12:30:00 for 00:00:45. A driver that binds its own types,
    as ADBC does, is not held to what is announced.
    """
    for index, each in enumerate(parameters):
        if pa.types.is_timestamp(each.type):
            kind = pa.timestamp("ms", each.type.tz)
        elif pa.types.is_time(each.type):
            kind = pa.time32("ms")
        else:
            continue
        parameters = parameters.set(index, each.with_type(kind))
    return parameters


def transaction_result(transaction_id: bytes) -> bytes:
    return messages.wrap(
        messages.sql("ActionBeginTransactionResult")(transaction_id=transaction_id)
    )


def committed_result(token: VisibilityToken | None, *, write_count: int, row_count: int) -> bytes:
    """What a COMMIT accepted, as JSON: for clients of ours, the specification has no result."""
    receipt = {"visibility_token": token, "write_count": write_count, "row_count": row_count}
    return json.dumps(receipt, separators=(",", ":")).encode()


def statement_ticket(handle: bytes) -> bytes:
    """The ticket of a statement: what DoGet presents."""
    return messages.wrap(messages.sql("TicketStatementQuery")(statement_handle=handle))


# ---- Sessions


def read_set_options(body: bytes) -> dict[str, OptionValue]:
    """The options that a SetSessionOptions request names. Raises Invalid when it does not parse."""
    message = _parsed("SetSessionOptionsRequest", body)
    return {name: _option_value(value) for name, value in message.session_options.items()}


def set_options_result(errors: Mapping[str, OptionError]) -> bytes:
    """The answer to SetSessionOptions: an option that is not named here was set."""
    message = messages.session("SetSessionOptionsResult")()
    for name, error in errors.items():
        message.errors[name].value = int(error)
    return bytes(message.SerializeToString())


def get_options_result(options: Mapping[str, OptionValue]) -> bytes:
    """The answer to GetSessionOptions."""
    message = messages.session("GetSessionOptionsResult")()
    for name, value in options.items():
        _put_option(message.session_options[name], value)
    return bytes(message.SerializeToString())


def close_session_result() -> bytes:
    """The answer to CloseSession: the session is closed."""
    return bytes(messages.session("CloseSessionResult")(status=1).SerializeToString())


# ---- Tickets


def read_cancel(body: bytes) -> bytes:
    """The FlightInfo that a CancelFlightInfo request names, serialized. Raises Invalid."""
    return bytes(_parsed("CancelFlightInfoRequest", body).info)


def cancel_result(status: int) -> bytes:
    """The answer to CancelFlightInfo."""
    return bytes(messages.session("CancelFlightInfoResult")(status=status).SerializeToString())


def read_renew(body: bytes) -> bytes:
    """The FlightEndpoint that a RenewFlightEndpoint request names, serialized. Raises Invalid."""
    return bytes(_parsed("RenewFlightEndpointRequest", body).endpoint)


def _parsed(name: str, body: bytes) -> Any:
    message = messages.session(name)()
    try:
        message.ParseFromString(body)
    except messages.DecodeError:
        raise Invalid(
            ErrorCode.INVALID_COMMAND, f"the body of the action is no {name}", command=name
        ) from None
    return message


def _option_value(message: Any) -> OptionValue:
    which = message.WhichOneof("option_value")
    if which is None:
        return None
    if which == "string_list_value":
        return tuple(message.string_list_value.values)
    value: OptionValue = getattr(message, which)
    return value


def _put_option(message: Any, value: OptionValue) -> None:
    match value:
        case None:
            message.SetInParent()
        case bool():
            message.bool_value = value
        case int():
            message.int64_value = value
        case float():
            message.double_value = value
        case str():
            message.string_value = value
        case _:
            message.string_list_value.values.extend(value)
