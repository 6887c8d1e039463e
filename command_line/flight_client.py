"""A connection to a server over Flight SQL, by the ADBC driver that any client has.

ADBC's calls block in C, where Python sees no Ctrl-C. They run in a thread of their own, so that the
main thread is there to cancel them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

import pyarrow as pa
from adbc_driver_flightsql import dbapi
from adbc_driver_manager import Error as DriverError

from command_line.server_address import Server
from duckmesh.errors import (
    Cancelled,
    DuckMeshError,
    ErrorCode,
    Internal,
    Invalid,
    NotSupported,
    Unavailable,
)

MESSAGE_MAX_BYTES: Final = 64 * 2**20
"""What is sent and taken at once; the driver's own limit is 16 MiB."""

_HEADER: Final = "adbc.flight.sql.rpc.call_header."
_LAST_TOKEN: Final = "adbc.flight.sql.session.option.last_visibility_token"  # noqa: S105
_SNAPSHOT: Final = b"duckmesh.snapshot_id"
_OUTCOME: Final = ["Count", "visibility_token"]
_CODE: Final = re.compile(r"\[([A-Z]+(?:_[A-Z]+)*)\] (.*)", re.DOTALL)
_DRIVERS_WORDS: Final = re.compile(
    r"(?:\. Detail: Python exception: \w+)?(?: \(\w+; .*\))?(?:\. Vendor code: \d+)?\s*\Z",
    re.DOTALL,
)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a call says in its headers (docs/flight-sql.md)."""

    token: int | None = None
    snapshot_id: int | None = None
    consistency: str | None = None
    timeout_ms: int | None = None
    idempotency_key: str | None = None
    wait: bool = False

    def for_driver(self) -> dict[str, str]:
        """The statement options that carry them."""
        named = {
            "x-duckmesh-min-visibility-token": self.token,
            "x-duckmesh-snapshot-id": self.snapshot_id,
            "x-duckmesh-consistency": self.consistency,
            "x-duckmesh-consistency-timeout-ms": self.timeout_ms,
            "x-duckmesh-idempotency-key": self.idempotency_key,
            "x-duckmesh-wait": "true" if self.wait else None,
        }
        return {_HEADER + name: str(value) for name, value in named.items() if value is not None}


NO_OPTIONS: Final = CallOptions()


@dataclass(frozen=True, slots=True)
class Parameters:
    """Values for a statement's parameters, as texts; the server gives them their types."""

    positional: Sequence[str] = ()
    named: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.positional or self.named)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement did that is no query."""

    rows: int | None
    token: int | None


@dataclass(frozen=True, slots=True)
class Rows:
    """A query's answer: its columns are known, its rows still arrive. Read it to its end, once."""

    schema: pa.Schema
    snapshot_id: int | None
    batches: Iterator[pa.RecordBatch]


class FlightClient:
    """One session with a server. Use it in one thread; Ctrl-C cancels what it waits for."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="flight-client")

    @property
    def last_token(self) -> int:
        """The session's newest token; 0 when it has written nothing."""
        option = self._connection.adbc_connection.get_option_int
        return int(self._call(lambda: option(_LAST_TOKEN), self._connection.adbc_cancel))

    @contextmanager
    def execute(
        self,
        sql: str,
        *,
        parameters: Parameters | None = None,
        options: CallOptions = NO_OPTIONS,
    ) -> Iterator[Rows | Outcome]:
        """Run one statement; its rows are there for the length of the block.

        Raises what the server answers, Unavailable when it cannot be reached, and Cancelled after
        Ctrl-C. A write whose answer is lost may stand.
        """
        cursor = self._connection.cursor(adbc_stmt_kwargs=options.for_driver())
        try:
            self._call(lambda: _execute(cursor, sql, parameters), cursor.adbc_cancel)
            yield self._answer(cursor)
        except KeyboardInterrupt:
            # It came while the caller held rows, and not while a call ran.
            with suppress(DriverError):
                cursor.adbc_cancel()
            raise _cancelled() from None
        finally:
            with suppress(DriverError):
                cursor.close()

    def rows(self, sql: str, *, options: CallOptions = NO_OPTIONS) -> pa.Table:
        """The whole answer of a small query."""
        with self.execute(sql, options=options) as answer:
            if isinstance(answer, Outcome):
                raise Internal
            return pa.Table.from_batches(list(answer.batches), answer.schema)

    def table_schema(self, table: str) -> pa.Schema | None:
        """The columns of a table as of now; None when there is no such table."""
        get = self._connection.adbc_get_table_schema
        try:
            schema = self._call(lambda: get(table), self._connection.adbc_cancel)
        except DuckMeshError as error:
            if isinstance(error.__cause__, DriverError) and "No table found" in str(
                error.__cause__
            ):
                return None
            raise
        return pa.schema([each.remove_metadata() for each in schema])

    def ingest(
        self,
        table: str,
        batches: pa.RecordBatchReader,
        *,
        mode: str,
        options: CallOptions = NO_OPTIONS,
    ) -> int:
        """Write all rows as one write, accepted whole or not at all; return their count.

        Raises what `execute` raises, when `batches` raises too: the write is not accepted then.
        """
        cursor = self._connection.cursor(adbc_stmt_kwargs=options.for_driver())
        try:
            return int(
                self._call(
                    lambda: cursor.adbc_ingest(table, batches, mode=mode), cursor.adbc_cancel
                )
            )
        finally:
            with suppress(DriverError):
                cursor.close()

    def close(self) -> None:
        """End the session. Repeatable."""
        self._calls.shutdown()
        with suppress(DriverError, RuntimeError):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, cursor: Any) -> Rows | Outcome:
        reader = cursor.fetch_record_batch()
        schema: pa.Schema = reader.schema
        snapshot = (schema.metadata or {}).get(_SNAPSHOT)
        batches = self._batches(reader, cursor)
        if snapshot is None and schema.names == _OUTCOME:
            (row,) = (row for batch in batches for row in batch.to_pylist())
            return Outcome(row["Count"], row["visibility_token"])
        return Rows(schema, None if snapshot is None else int(snapshot), batches)

    def _batches(self, reader: Any, cursor: Any) -> Iterator[pa.RecordBatch]:
        def following() -> pa.RecordBatch | None:
            try:
                return reader.read_next_batch()
            except StopIteration:
                return None

        while (batch := self._call(following, cursor.adbc_cancel)) is not None:
            yield batch

    def _call(self, call: Callable[[], _Value], cancel: Callable[[], None]) -> _Value:
        """Run a blocking call of the driver, and cancel it when Ctrl-C comes meanwhile."""
        running = self._calls.submit(call)
        try:
            wait([running])
        except KeyboardInterrupt:
            with suppress(DriverError):
                cancel()
            wait([running])
            raise _cancelled() from None
        try:
            return running.result()
        except (DriverError, pa.ArrowException, OSError) as error:
            raise failure_of_driver(error) from error


def connect(server: Server) -> FlightClient:
    """A session with `server`. Opens nothing yet: the first statement does.

    Raises Unavailable when the driver does not take the address.
    """
    return FlightClient(open_connection(server))


def open_connection(server: Server) -> Any:
    """The driver's own connection: for many of them, each in a thread that nobody interrupts.

    Raises Unavailable when the driver does not take the address.
    """
    options = {
        "adbc.flight.sql.client_option.with_max_msg_size": str(MESSAGE_MAX_BYTES),
    }
    if server.key is not None:
        options["adbc.flight.sql.authorization_header"] = f"Bearer {server.key}"
    if server.tls_root is not None:
        options["adbc.flight.sql.client_option.tls_root_certs"] = server.tls_root
    try:
        return dbapi.connect(server.uri, db_kwargs=options, autocommit=True)
    except DriverError as error:
        raise failure_of_driver(error) from error


def _execute(cursor: Any, sql: str, parameters: Parameters | None) -> None:
    if not parameters:
        cursor.execute(sql)
        return
    # The driver of this version binds by place: the server's names say which place is whose.
    taken = cursor.adbc_prepare(sql)
    names = [] if taken is None else taken.names
    values = _values_for(names, parameters)
    arrays = [pa.array([value], pa.string()) for value in values]
    cursor.execute(sql, pa.RecordBatch.from_arrays(arrays, names=names))


def _values_for(names: Sequence[str], parameters: Parameters) -> list[str]:
    if parameters.positional:
        if parameters.named or len(parameters.positional) != len(names):
            raise Invalid(
                ErrorCode.QUERY_EXECUTION_FAILED,
                f"the statement takes {len(names)} parameters: give as many, all with names or "
                "all without",
            )
        return list(parameters.positional)
    if set(names) != set(parameters.named):
        raise Invalid(
            ErrorCode.QUERY_EXECUTION_FAILED,
            f"the statement's parameters are named {', '.join(names) or 'nowhere'}: "
            "give exactly these",
        )
    return [parameters.named[name] for name in names]


# --- errors --------------------------------------------------------------------------------------


def failure_of_driver(error: Exception) -> DuckMeshError:
    """The error that the server meant, from what the driver made of it."""
    code, message = _contract(error)
    if code is None:
        return _unanswered(error, message)
    # Imported when something fails: it brings the whole door with it.
    from command_line.errors_reference import REFERENCE

    return REFERENCE[code].kinds[0](code, message)


def _contract(error: Exception) -> tuple[ErrorCode | None, str]:
    for name, value in getattr(error, "details", None) or ():
        if name in ("x-duckmesh-error", b"x-duckmesh-error"):
            told = json.loads(value)
            return _known_code(told["error_code"]), str(told["message"])
    text = str(error)
    # The driver's own marks, [FlightSQL] and [Flight SQL], are no codes.
    found = _CODE.search(text)
    if found is None:
        return None, text
    return _known_code(found[1]), _DRIVERS_WORDS.sub("", found[2])


def _known_code(text: str) -> ErrorCode | None:
    return ErrorCode(text) if text in ErrorCode.__members__ else None


def _cancelled() -> Cancelled:
    return Cancelled(ErrorCode.QUERY_CANCELLED, "cancelled")


def _unanswered(error: Exception, text: str) -> DuckMeshError:
    status = getattr(getattr(error, "status_code", None), "name", "")
    if "(Unavailable" in text or "connection error" in text or status == "IO":
        tls = "tls:" in text or "x509" in text or "certificate" in text
        return Unavailable(
            ErrorCode.NOT_READY,
            "the server's certificate or TLS is not accepted: correct --tls-root, or the URI's "
            "scheme"
            if tls
            else "the server does not answer: check that it runs, and its URI",
        )
    if status == "CANCELLED" or "(Canceled" in text:
        return _cancelled()
    if status == "NOT_IMPLEMENTED":
        return NotSupported(ErrorCode.NOT_SUPPORTED, _DRIVERS_WORDS.sub("", text))
    return Internal(f"the driver says: {_DRIVERS_WORDS.sub('', text)[:500]}")
