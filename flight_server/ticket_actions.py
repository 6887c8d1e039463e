"""CancelFlightInfo and RenewFlightEndpoint: what a client does with a ticket it holds.

https://arrow.apache.org/docs/format/Flight.html#rpc-methods-and-request-patterns
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final, TypeVar

import pyarrow as pa
from pyarrow import flight

from duckmesh.errors import ErrorCode, Invalid
from flight_server import answers
from flight_server.authenticate import Call
from flight_server.commands import StatementTicket, parse_command
from flight_server.fetches import Fetches
from flight_server.tickets import Purpose, Seal, SealedStatement

CANCEL: Final = "CancelFlightInfo"
RENEW: Final = "RenewFlightEndpoint"

_T = TypeVar("_T")
_EXPIRES_AT: Final = pa.timestamp("ns", tz="UTC")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class CancelStatus(IntEnum):
    """What became of a cancellation."""

    UNSPECIFIED = 0
    CANCELLED = 1
    CANCELLING = 2
    NOT_CANCELLABLE = 3


class TicketDesk:
    """Ends and renews tickets. Safe for threads."""

    def __init__(self, seal: Seal, fetches: Fetches, *, lifetime: timedelta) -> None:
        self._seal = seal
        self._fetches = fetches
        self._lifetime = lifetime

    def cancel(self, call: Call, body: bytes) -> bytes:
        """Stop what fetches the tickets of a FlightInfo in this process; they are dead here.

        CANCELLED when something was stopped, NOT_CANCELLABLE when the tickets are answers
        already (metadata, the outcome of a write), and UNSPECIFIED when nothing runs here: another
        process may be answering. Raises Invalid for what is no FlightInfo with our tickets.
        """
        info = _read(flight.FlightInfo.deserialize, answers.read_cancel(body), CANCEL)
        # All are opened before any is ended: a forged one among them ends nothing.
        opened = [self._open(call, each) for each in info.endpoints]
        questions = [each for each in opened if each is not None and each.outcome is None]
        if not questions:
            return answers.cancel_result(CancelStatus.NOT_CANCELLABLE)
        stopped = [self._fetches.cancel(each.ticket_id) for each in questions]
        status = CancelStatus.CANCELLED if any(stopped) else CancelStatus.UNSPECIFIED
        return answers.cancel_result(status)

    def renew(self, call: Call, body: bytes) -> bytes:
        """The endpoint with a ticket for the same question that is good for a whole lifetime.

        The snapshot stays the same. Raises Invalid (TICKET_INVALID) for an expired ticket, and
        Cancelled for a dead one. The endpoint of a metadata command comes back as it is: it does
        not expire.
        """
        endpoint = _read(flight.FlightEndpoint.deserialize, answers.read_renew(body), RENEW)
        statement = self._open(call, endpoint)
        if statement is None:
            return bytes(endpoint.serialize())
        self._fetches.check_live(statement.ticket_id)
        return bytes(self.endpoint(statement).serialize())

    def endpoint(self, statement: SealedStatement) -> flight.FlightEndpoint:
        """A fresh ticket for the statement, and until when it may be redeemed."""
        issued = replace(statement, issued_at=self._seal.now)
        sealed = issued.sealed_by(self._seal, Purpose.TICKET, lifetime=self._lifetime)
        expires_at_us = (issued.issued_at + self._lifetime - _EPOCH) // _MICROSECOND
        # No location: the client asks whom it asked before, and does not open another connection.
        return flight.FlightEndpoint(
            answers.statement_ticket(sealed), [], pa.scalar(expires_at_us * 1000, _EXPIRES_AT)
        )

    def _open(self, call: Call, endpoint: flight.FlightEndpoint) -> SealedStatement | None:
        """The statement behind an endpoint; None for a metadata command."""
        command = parse_command(endpoint.ticket.ticket)
        if not isinstance(command, StatementTicket):
            return None
        return SealedStatement.opened_by(
            self._seal,
            Purpose.TICKET,
            command.statement_handle,
            tenant_id=call.identity.tenant_id,
        )


def _read(deserialize: Callable[[bytes], _T], data: Any, action: str) -> _T:
    try:
        return deserialize(data)
    except (pa.ArrowException, ValueError, OSError):
        raise Invalid(
            ErrorCode.INVALID_COMMAND,
            f"the body of {action} is malformed: send the message that the specification names",
            command=action,
        ) from None
