"""One statement of the hot path, executed by libpq in a single call.

A cursor of psycopg costs a small statement more time than the statement takes: it plans, adapts and
waits in Python, and gives Python's lock away at every turn of its wait. Here the parameters come
adapted, and the lock is given away once, for the whole round trip.
"""

import re
import select
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, cast
from weakref import WeakSet

import psycopg
from psycopg import errors, pq

_PLACE: Final = re.compile(r"%\((\w+)\)([sb])")
_TEXT: Final = 0
_BINARY: Final = 1
_NO_SUCH_STATEMENT: Final = b"26000"
_DONE: Final = frozenset({int(pq.ExecStatus.TUPLES_OK), int(pq.ExecStatus.COMMAND_OK)})

INT8: Final = 20
BOOL: Final = 16
JSON: Final = 114
BYTEA: Final = 17
INT4: Final = 23
TEXT: Final = 25
UUID: Final = 2950
TIMESTAMPTZ: Final = 1184
INT8_ARRAY: Final = 1016
"""Object ids of the types, as Postgres's pg_type has them for ever."""

_IN_BINARY: Final = frozenset({BYTEA, UUID})

Connection = psycopg.Connection[tuple[Any, ...]]


class PreparedStatement:
    """A statement with its parameters' types. Safe for threads, each with its own connection."""

    def __init__(self, name: str, sql: str, types: Mapping[str, int]) -> None:
        """`sql` names its parameters as psycopg does; one of type BYTEA or UUID is given in binary.

        There are two of them or more.
        """
        self._name = name.encode()
        self._in_order: Callable[[Mapping[str, bytes | None]], tuple[bytes | None, ...]]
        self._in_order = itemgetter(*types)
        places = {parameter: f"${n}" for n, parameter in enumerate(types, 1)}
        self._sql = _PLACE.sub(lambda found: places[found[1]], sql).replace("%%", "%").encode()
        self._types = list(types.values())
        self._formats = [_BINARY if oid in _IN_BINARY else _TEXT for oid in self._types]
        self._prepared: WeakSet[Connection] = WeakSet()

    def first_value(
        self, connection: Connection, values: Mapping[str, bytes | None]
    ) -> bytes | None:
        """The first column of the first row, as text; None when there is no row. None is NULL.

        The connection is in autocommit and idle: the statement is a transaction of its own.
        Blocks. Raises what psycopg raises.
        """
        ordered = self._in_order(values)
        try:
            return self._execute(connection, ordered)
        except errors.InvalidSqlStatementName:
            # psycopg forgets all prepared statements of a connection when one changes a table.
            self._prepared.discard(connection)
            return self._execute(connection, ordered)

    def begin(self, connection: Connection, values: Mapping[str, bytes | None]) -> bool:
        """Send it, and do not wait: `outcome` has the answer when `has_come` says so.

        False, with nothing sent, when the connection has not prepared it yet.
        """
        if connection not in self._prepared:
            return False
        given = cast("Sequence[bytes]", self._in_order(values))
        connection.pgconn.send_query_prepared(self._name, given, self._formats, _TEXT)
        return True

    @staticmethod
    def is_sent(connection: Connection) -> bool:
        """Whether the socket has taken all of it. Never blocks. Raises what psycopg raises."""
        return connection.pgconn.flush() == 0

    @staticmethod
    def has_come(connection: Connection) -> bool:
        """Whether `outcome` would not wait. Never blocks. Raises what psycopg raises."""
        link = connection.pgconn
        link.consume_input()
        return not link.is_busy()

    @classmethod
    def wait(cls, connection: Connection) -> None:
        """Block until the answer has come, and let other threads run meanwhile."""
        waiting = select.poll()
        waiting.register(connection.pgconn.socket, select.POLLIN | select.POLLOUT)
        while not cls.is_sent(connection):
            waiting.poll()
            cls.has_come(connection)
        waiting.modify(connection.pgconn.socket, select.POLLIN)
        while not cls.has_come(connection):
            waiting.poll()

    def outcome(self, connection: Connection) -> bytes | None:
        """As `first_value`, of what `begin` sent. Blocks unless `has_come`.

        What commits itself may fail after its rows are there: the last word counts.
        """
        link = connection.pgconn
        # To the end, also behind an error: the connection is idle again after it.
        answers = []
        while (answer := link.get_result()) is not None:
            answers.append(answer)
        if not answers:
            raise psycopg.OperationalError("the connection ended before its answer")
        first: bytes | None = None
        for answer in answers:
            if answer.status not in _DONE:
                if answer.error_field(pq.DiagnosticField.SQLSTATE) == _NO_SUCH_STATEMENT:
                    self._prepared.discard(connection)
                raise _error_of(link, answer)
            if first is None and answer.ntuples:
                first = answer.get_value(0, 0)
        return first

    def _execute(self, connection: Connection, values: Sequence[bytes | None]) -> bytes | None:
        link = connection.pgconn
        if connection not in self._prepared:
            prepared = link.prepare(self._name, self._sql, self._types)
            if prepared.status not in _DONE:
                raise _error_of(link, prepared)
            self._prepared.add(connection)
        # It takes None for NULL, whatever its annotation says.
        given = cast("Sequence[bytes]", values)
        answer = link.exec_prepared(self._name, given, self._formats, _TEXT)
        if answer.status not in _DONE:
            raise _error_of(link, answer)
        return answer.get_value(0, 0) if answer.ntuples else None


def _error_of(link: Any, answer: Any) -> psycopg.Error:
    # An error without a state is libpq's own word.
    state = answer.error_field(pq.DiagnosticField.SQLSTATE)
    if link.status != pq.ConnStatus.OK or state is None:
        return psycopg.OperationalError("the connection was lost in the middle of a statement")
    return errors.error_from_result(answer)
