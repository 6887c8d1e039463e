"""Flight SQL commands and actions: bytes of the wire <-> frozen dataclasses.

Each dataclass bears its message's fields by their names in the specification, so that one rule
reads them all. Nothing here decides what a command does.
https://arrow.apache.org/docs/format/FlightSql.html
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar, Final, TypeVar

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotSupported
from duckmesh.identifiers import check_table_name
from flight_server import messages

_E = TypeVar("_E", bound=IntEnum)
SQL_MAX_CHARS: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the specification: the payload of a descriptor, a ticket or an action."""

    MESSAGE: ClassVar[str] = ""

    def check(self) -> None:
        """Raise Invalid when the fields contradict the specification."""


# ---- Statements


@dataclass(frozen=True, slots=True)
class _WithQuery(Command):
    query: str
    transaction_id: bytes | None = None

    def check(self) -> None:
        _check_sql(self.query)


@dataclass(frozen=True, slots=True)
class StatementQuery(_WithQuery):
    """Run a query; DoGet fetches its rows."""

    MESSAGE: ClassVar[str] = "CommandStatementQuery"


@dataclass(frozen=True, slots=True)
class StatementUpdate(_WithQuery):
    """Run a statement for its count of rows."""

    MESSAGE: ClassVar[str] = "CommandStatementUpdate"


@dataclass(frozen=True, slots=True)
class CreatePreparedStatement(_WithQuery):
    """Prepare a statement and describe it."""

    MESSAGE: ClassVar[str] = "ActionCreatePreparedStatementRequest"


@dataclass(frozen=True, slots=True)
class StatementTicket(Command):
    """The question that GetFlightInfo sealed."""

    MESSAGE: ClassVar[str] = "TicketStatementQuery"

    statement_handle: bytes


@dataclass(frozen=True, slots=True)
class _WithPreparedHandle(Command):
    prepared_statement_handle: bytes


@dataclass(frozen=True, slots=True)
class PreparedStatementQuery(_WithPreparedHandle):
    """Run a prepared query, or (in DoPut) bind its parameters."""

    MESSAGE: ClassVar[str] = "CommandPreparedStatementQuery"


@dataclass(frozen=True, slots=True)
class PreparedStatementUpdate(_WithPreparedHandle):
    """Run a prepared statement for its count of rows, once per bound row."""

    MESSAGE: ClassVar[str] = "CommandPreparedStatementUpdate"


@dataclass(frozen=True, slots=True)
class ClosePreparedStatement(_WithPreparedHandle):
    """Forget a prepared statement."""

    MESSAGE: ClassVar[str] = "ActionClosePreparedStatementRequest"


class IfTableMissing(IntEnum):
    """What an ingest does when its table does not exist."""

    UNSPECIFIED = 0
    CREATE = 1
    FAIL = 2


class IfTableExists(IntEnum):
    """What an ingest does when its table exists."""

    UNSPECIFIED = 0
    FAIL = 1
    APPEND = 2
    REPLACE = 3


@dataclass(frozen=True, slots=True)
class StatementIngest(Command):
    """Write the stream into a table (ADBC: create, append, replace, create_append)."""

    MESSAGE: ClassVar[str] = "CommandStatementIngest"

    table: str
    if_missing: IfTableMissing
    if_exists: IfTableExists
    schema: str | None = None
    catalog: str | None = None
    temporary: bool = False
    transaction_id: bytes | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        check_table_name(self.table)
        if self.if_missing is IfTableMissing.UNSPECIFIED:
            raise _malformed(self.MESSAGE, "table_definition_options.if_not_exist is not set")
        if self.if_exists is IfTableExists.UNSPECIFIED:
            raise _malformed(self.MESSAGE, "table_definition_options.if_exists is not set")


# ---- Metadata


@dataclass(frozen=True, slots=True)
class GetSqlInfo(Command):
    """Facts about the server by number; no number means all."""

    MESSAGE: ClassVar[str] = "CommandGetSqlInfo"

    info: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GetXdbcTypeInfo(Command):
    """The SQL types, or one of them by its XDBC number."""

    MESSAGE: ClassVar[str] = "CommandGetXdbcTypeInfo"

    data_type: int | None = None


@dataclass(frozen=True, slots=True)
class GetCatalogs(Command):
    """The catalogs."""

    MESSAGE: ClassVar[str] = "CommandGetCatalogs"


@dataclass(frozen=True, slots=True)
class GetDbSchemas(Command):
    """The schemas; None does not filter."""

    MESSAGE: ClassVar[str] = "CommandGetDbSchemas"

    catalog: str | None = None
    db_schema_filter_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class GetTables(Command):
    """The tables; None does not filter, and no table type means every type."""

    MESSAGE: ClassVar[str] = "CommandGetTables"

    catalog: str | None = None
    db_schema_filter_pattern: str | None = None
    table_name_filter_pattern: str | None = None
    table_types: tuple[str, ...] = ()
    include_schema: bool = False


@dataclass(frozen=True, slots=True)
class GetTableTypes(Command):
    """The kinds of table."""

    MESSAGE: ClassVar[str] = "CommandGetTableTypes"


@dataclass(frozen=True, slots=True)
class _OfTable(Command):
    table: str
    catalog: str | None = None
    db_schema: str | None = None


@dataclass(frozen=True, slots=True)
class GetPrimaryKeys(_OfTable):
    """The primary key columns of a table."""

    MESSAGE: ClassVar[str] = "CommandGetPrimaryKeys"


@dataclass(frozen=True, slots=True)
class GetExportedKeys(_OfTable):
    """The foreign keys that point at a table."""

    MESSAGE: ClassVar[str] = "CommandGetExportedKeys"


@dataclass(frozen=True, slots=True)
class GetImportedKeys(_OfTable):
    """The foreign keys of a table."""

    MESSAGE: ClassVar[str] = "CommandGetImportedKeys"


@dataclass(frozen=True, slots=True)
class GetCrossReference(Command):
    """The foreign keys of one table that point at another."""

    MESSAGE: ClassVar[str] = "CommandGetCrossReference"

    pk_table: str
    fk_table: str
    pk_catalog: str | None = None
    pk_db_schema: str | None = None
    fk_catalog: str | None = None
    fk_db_schema: str | None = None


# ---- Transactions


@dataclass(frozen=True, slots=True)
class BeginTransaction(Command):
    """Open a transaction."""

    MESSAGE: ClassVar[str] = "ActionBeginTransactionRequest"


class EndOfTransaction(IntEnum):
    """How a transaction ends."""

    UNSPECIFIED = 0
    COMMIT = 1
    ROLLBACK = 2


@dataclass(frozen=True, slots=True)
class EndTransaction(Command):
    """Commit a transaction, or roll it back."""

    MESSAGE: ClassVar[str] = "ActionEndTransactionRequest"

    transaction_id: bytes
    action: EndOfTransaction

    def check(self) -> None:
        if self.action is EndOfTransaction.UNSPECIFIED:
            raise _malformed(self.MESSAGE, "action is neither COMMIT nor ROLLBACK")


# ---- From the wire

_QUESTIONS: Final[tuple[type[Command], ...]] = (
    StatementQuery,
    StatementUpdate,
    StatementTicket,
    PreparedStatementQuery,
    PreparedStatementUpdate,
    StatementIngest,
    GetSqlInfo,
    GetXdbcTypeInfo,
    GetCatalogs,
    GetDbSchemas,
    GetTables,
    GetTableTypes,
    GetPrimaryKeys,
    GetExportedKeys,
    GetImportedKeys,
    GetCrossReference,
)
_BY_MESSAGE: Final = {kind.MESSAGE: kind for kind in _QUESTIONS}
_ACTIONS: Final[dict[str, type[Command]]] = {
    "CreatePreparedStatement": CreatePreparedStatement,
    "ClosePreparedStatement": ClosePreparedStatement,
    "BeginTransaction": BeginTransaction,
    "EndTransaction": EndTransaction,
}
_NOT_SUPPORTED: Final = {
    "CommandStatementSubstraitPlan": "Substrait plans are not supported: send SQL text",
    "CreatePreparedSubstraitPlan": "Substrait plans are not supported: send SQL text",
    "BeginSavepoint": "savepoints are not supported: end the transaction and begin another",
    "EndSavepoint": "savepoints are not supported: end the transaction and begin another",
    "CancelQuery": "CancelQuery is deprecated: cancel the running call, or send CancelFlightInfo",
}
SQL_ACTIONS: Final = frozenset(_ACTIONS)


def parse_command(data: bytes) -> Command:
    """Read the command of a descriptor or ticket.

    Raises Invalid (INVALID_COMMAND, or the code of the field at fault) when the bytes are no
    command or contradict the specification, NotSupported for a command DuckMesh does not run.
    """
    name, body = _unwrap(data)
    kind = _BY_MESSAGE.get(name)
    if kind is None:
        raise _unknown(name, "command")
    return _read(kind, body)


def parse_action(action: str, body: bytes) -> Command:
    """Read the request of a Flight SQL action. Raises as `parse_command` does."""
    kind = _ACTIONS.get(action)
    if kind is None:
        raise _unknown(action, "action")
    name, request = _unwrap(body)
    if name != kind.MESSAGE:
        raise _malformed(action, f"its body must be {kind.MESSAGE}, not {name[:80]}")
    return _read(kind, request)


def _unwrap(data: bytes) -> tuple[str, bytes]:
    try:
        url, value = messages.any_of(data)
    except messages.DecodeError:
        raise _malformed("the command", "the bytes are no google.protobuf.Any") from None
    if not url.startswith(messages.TYPE_URL_PREFIX):
        raise _malformed(
            "the command", f"its type URL {url[:120]!r} does not name a Flight SQL message"
        )
    return url.removeprefix(messages.TYPE_URL_PREFIX), value


def _read(kind: type[Command], body: bytes) -> Command:
    message = messages.sql(kind.MESSAGE)()
    try:
        message.ParseFromString(body)
    except messages.DecodeError:
        raise _malformed(kind.MESSAGE, "its bytes do not parse") from None
    command = kind(
        **(_ingest_values(message) if kind is StatementIngest else _values(kind, message))
    )
    command.check()
    return command


def _values(kind: type[Command], message: Any) -> dict[str, Any]:
    """The fields of a message by name: None where an optional field is unset."""
    values: dict[str, Any] = {}
    for name in (each.name for each in fields(kind)):
        described = message.DESCRIPTOR.fields_by_name[name]
        if described.is_repeated:
            values[name] = tuple(getattr(message, name))
        elif described.has_presence and not message.HasField(name):
            values[name] = None
        else:
            values[name] = getattr(message, name)
    if "action" in values:
        values["action"] = _enum(EndOfTransaction, values["action"], kind.MESSAGE)
    return values


def _ingest_values(message: Any) -> dict[str, Any]:
    options = message.table_definition_options
    name = StatementIngest.MESSAGE
    return {
        "table": message.table,
        "if_missing": _enum(IfTableMissing, options.if_not_exist, name),
        "if_exists": _enum(IfTableExists, options.if_exists, name),
        "schema": message.schema if message.HasField("schema") else None,
        "catalog": message.catalog if message.HasField("catalog") else None,
        "temporary": message.temporary,
        "transaction_id": message.transaction_id if message.HasField("transaction_id") else None,
        "options": dict(message.options),
    }


def _enum(kind: type[_E], value: int, message: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise _malformed(message, f"{value} is no {kind.__name__} of the specification") from None


def _check_sql(query: str) -> None:
    if not query.strip():
        raise Invalid(ErrorCode.SQL_REQUIRED, "the statement is empty: send SQL text")
    if len(query) > SQL_MAX_CHARS:
        raise Invalid(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"the statement has more than {SQL_MAX_CHARS} characters: "
            "ingest the data as Arrow and name the table",
            characters=len(query),
        )


def _malformed(what: str, reason: str) -> Invalid:
    return Invalid(ErrorCode.INVALID_COMMAND, f"{what} is malformed: {reason}", command=what[:80])


def _unknown(name: str, kind: str) -> DuckMeshError:
    if name in _NOT_SUPPORTED:
        return NotSupported(ErrorCode.NOT_SUPPORTED, _NOT_SUPPORTED[name], command=name)
    return Invalid(
        ErrorCode.INVALID_COMMAND,
        f"{name[:80]!r} is no {kind} of Flight SQL that this server knows",
        command=name[:80],
    )
