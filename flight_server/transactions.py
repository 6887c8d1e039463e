"""Which transaction a call is part of, and the calls and statements that begin and end one.

A client names a transaction by the id that BeginTransaction gave it, or leaves it to the session:
SQL has no place for an id, and ADBC's ingest sends none. So a statement is part of the transaction
that it names while that is open, and else of the session's current one, if there is one.
"""

from uuid import UUID

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import TransactionId
from flight_server import answers
from flight_server.authenticate import Call
from flight_server.commands import EndOfTransaction, EndTransaction
from gateway.transactions import (
    ClientTransaction,
    Committed,
    Transactions,
    no_such_transaction,
    transaction_ended,
)
from query_engine.session_statements import TransactionVerb


class TransactionDesk:
    """Finds, begins and ends transactions for calls. Stateless and safe for threads."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def of(
        self, call: Call, transaction_id: bytes | None, *, may_be_over: bool = False
    ) -> ClientTransaction | None:
        """The open transaction that a statement is part of; None outside of any.

        `may_be_over` holds for the id in a prepared handle, which drivers keep across commits:
        one that is over is passed over. Raises Conflict (TRANSACTION_ENDED) for one that was rolled
        back for idleness, so that nothing of it is taken for autocommit; NotFound.
        """
        named = self._named(call, transaction_id)
        if transaction_id and named is None and not may_be_over:
            raise no_such_transaction()
        if named is not None and named.is_open:
            return named
        current = self._current(call)
        if current is not None and current.is_open:
            return current
        if any(each is not None and each.has_expired for each in (named, current)):
            raise transaction_ended()
        return None

    def check(self, call: Call, transaction_id: bytes | None) -> None:
        """Raise NotFound for an id that names no transaction of the caller's."""
        if transaction_id and self._named(call, transaction_id) is None:
            raise no_such_transaction()

    def _named(self, call: Call, transaction_id: bytes | None) -> ClientTransaction | None:
        if not transaction_id or (known := _read_id(transaction_id)) is None:
            return None
        return self._transactions.find(call.identity, known)

    def _current(self, call: Call) -> ClientTransaction | None:
        current = call.recalled().transaction_id
        return None if current is None else self._transactions.find(call.identity, current)

    # ---- Actions

    def begin(self, call: Call) -> bytes:
        """The result of BeginTransaction. In a session the new transaction is the current one."""
        session_id = call.session.session_id if call.in_session else None
        begun = self._transactions.begin(call.identity, session_id)
        return answers.transaction_result(begun.bytes)

    def end(self, call: Call, command: EndTransaction) -> Committed | None:
        """EndTransaction. To end what has ended is no error, unless it ended by itself."""
        known = _read_id(command.transaction_id)
        if known is None:
            raise no_such_transaction()
        if command.action is EndOfTransaction.COMMIT:
            return self._transactions.commit(call.identity, known)
        self._transactions.roll_back(call.identity, known)
        return None

    # ---- SQL

    def carry_out(self, call: Call, verb: TransactionVerb) -> Committed | None:
        """BEGIN, COMMIT or ROLLBACK of the session. What there is nothing to do for does nothing.

        Raises Conflict as `Transactions.commit` does, Invalid for BEGIN outside of a session.
        """
        current = call.recalled().transaction_id
        match verb:
            case TransactionVerb.BEGIN:
                self._begin_by_sql(call)
            case TransactionVerb.COMMIT:
                return (
                    None if current is None else self._transactions.commit(call.identity, current)
                )
            case TransactionVerb.ROLLBACK:
                if current is not None:
                    self._transactions.roll_back(call.identity, current)
        return None

    def _begin_by_sql(self, call: Call) -> None:
        if not call.in_session:
            raise Invalid(
                ErrorCode.SQL_NOT_ALLOWED,
                "BEGIN needs a session: send back the authorization header or the cookie of the "
                "first answer, or use the action BeginTransaction",
            )
        current = self._current(call)
        if current is not None and current.has_expired:
            raise transaction_ended()
        if current is None or not current.is_open:
            self._transactions.begin(call.identity, call.session.session_id)

    def leave(self, call: Call) -> None:
        """Roll back what the session leaves open."""
        current = call.recalled().transaction_id
        if current is not None:
            self._transactions.roll_back(call.identity, current)


def _read_id(transaction_id: bytes) -> TransactionId | None:
    """The id that a client sent; None for bytes that we never gave."""
    return TransactionId(UUID(bytes=transaction_id)) if len(transaction_id) == 16 else None
