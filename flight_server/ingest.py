"""Rows coming in: the bulk ingest of Flight SQL, and long-lived streams of plain Flight.

A sender who breaks off is told apart from one who has finished: the reader raises Gone.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
import pyarrow as pa

from duckmesh.errors import (
    Cancelled,
    DuckMeshError,
    ErrorCode,
    Invalid,
    NotSupported,
)
from duckmesh.identifiers import (
    IDEMPOTENCY_KEY_MAX_CHARS,
    SnapshotId,
    check_idempotency_key,
    check_table_name,
)
from flight_server import answers
from flight_server.authenticate import Call
from flight_server.boundary import ascii_json
from flight_server.commands import IfTableExists, IfTableMissing, StatementIngest
from flight_server.receipts import MetadataWriter, ReceiptWriter
from flight_server.rows_in import RowsIn
from flight_server.transactions import TransactionDesk
from gateway.identity import Identity
from gateway.ingest_modes import IngestMode
from gateway.pending_write import PendingWrite
from gateway.reads import Reads
from gateway.writes import Writes
from grpc_transport.calls import Gone
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt
from query_engine.relations import CATALOG, MAIN_SCHEMA

KEY_IN_SCHEMA: Final = b"idempotency_key"
"""Where a client without call options puts its key: the metadata of the rows' schema."""

OP_IN_SCHEMA: Final = b"duckmesh.op"
"""There it also says that the rows are keys to delete by."""


BOUND_MAX_BYTES: Final = 4 * 2**20
"""Of rows that are bound to a statement: they travel in its handle."""

SENT_MAX_BYTES: Final = 64 * 2**20
"""Of rows that come with the call that runs their statement: they travel in no handle."""


class IngestDesk:
    """Takes streams of rows. Stateless and safe for threads."""

    def __init__(
        self,
        writes: Writes,
        reads: Reads,
        transactions: TransactionDesk,
        *,
        stream_window: int,
        check_live: Callable[[Identity], None],
    ) -> None:
        self._check_live = check_live
        self._transactions = transactions
        self._writes = writes
        self._reads = reads
        self._window = stream_window

    def ingest(self, call: Call, command: StatementIngest, reader: RowsIn) -> Receipt:
        """Write a whole stream as one write: all its rows are accepted, or none.

        In a transaction, its own or the session's current one, the write is held until COMMIT.
        Raises Cancelled, with nothing accepted, when the sender left before its end. Died before
        the answer: the write stands, and its key finds the receipt.
        """
        options = call.options()
        _check_target(command)
        schema = _schema_of(reader)
        mode = _mode_of(command)
        write = self._writes.begin(
            call.identity,
            command.table,
            schema,
            mode=mode,
            idempotency_key=options.idempotency_key or key_of_schema(schema),
            deletes=_deletes(schema, mode),
            trace_id=call.trace_id,
            session=call.writing,
            transaction=self._transactions.of(call, command.transaction_id),
            stop=call.stop,
        )
        try:
            _take_all(write, reader)
            # The stream may have come for hours: the key may have been revoked meanwhile.
            self._check_live(call.identity)
        except BaseException:
            write.abort()
            raise
        return _committed(write)

    def stream(
        self,
        call: Call,
        path: list[bytes],
        reader: RowsIn,
        writer: MetadataWriter,
        *,
        begun: int = 0,
    ) -> None:
        """Write each batch of a stream as a write of its own, and answer each with its receipt.

        Receipts come in the order of the batches, from the second on while later ones are taken
        in. A batch that
        fails is answered by its error, and ends the stream with it; those before it stand. `begun`
        of its batches have their receipt already.
        """
        options = call.options()
        self._refuse_in_transaction(call)
        table = table_of_path(path)
        target = self._writes.open_stream(call.identity, table, _schema_of(reader))
        numbers = _Numbers(begun)

        def answer(number: int, receipts: Acceptance) -> bytes:
            accepted = self.awaited(call, receipts.result()[0])
            return orjson.dumps({"batch": number, **accepted.fields()})

        def failure(error: DuckMeshError) -> bytes:
            return failure_json(numbers.answered, error, call.trace_id)

        counted = _CountingWriter(writer, numbers)
        with ReceiptWriter(counted, window=self._window, on_failure=failure) as receipts:
            for batch, metadata in _chunks(reader):
                number = numbers.taken
                key = key_of_batch(metadata, options.idempotency_key, number)
                if batch is None:
                    continue
                numbers.taken += 1
                # A stream may last for days: its key is asked for again, from a cache.
                self._check_live(call.identity)
                try:
                    accepted = self._writes.append_batch(
                        call.identity,
                        target,
                        batch,
                        idempotency_key=key,
                        trace_id=call.trace_id,
                        session=call.writing,
                        at_once=number == 0,
                        stop=call.stop,
                    )
                except DuckMeshError as error:
                    # Answered in its turn, behind those before it; nothing after it is taken.
                    receipts.put(partial(_raise, error))
                    break
                give = receipts.answer_first if number == 0 else receipts.put
                give(partial(answer, number, accepted))
            receipts.finish()

    def _refuse_in_transaction(self, call: Call) -> None:
        if call.in_session and self._transactions.of(call, None) is not None:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "a stream is accepted batch by batch, and a transaction is open in this session: "
                "end it first, or send the rows as one ingest",
            )

    def awaited(self, call: Call, receipt: Receipt) -> "AcceptedWrite":
        """The accepted write, when the call asked for it after it is visible.

        Raises NotYetVisible with the token, and Cancelled when the caller goes: the write is
        accepted all the same.
        """
        options = call.options()
        if not options.wait or receipt.is_held:
            return AcceptedWrite(receipt, None)
        snapshot = self._reads.wait_until_visible(
            call.identity,
            receipt.visibility_token,
            timeout=options.consistency_timeout,
            stop=call.stop,
        )
        return AcceptedWrite(receipt, snapshot.snapshot_id)


@dataclass(frozen=True, slots=True)
class AcceptedWrite:
    """A receipt, and the snapshot that shows the write when that was waited for."""

    receipt: Receipt
    visible_snapshot_id: SnapshotId | None

    def fields(self) -> dict[str, Any]:
        """The receipt as clients read it, in both kinds of stream."""
        return accepted_fields(self.receipt, self.visible_snapshot_id)

    def put_result(self) -> bytes:
        """The one PutResult of a bulk ingest."""
        return answers.update_result(self.receipt.row_count, self.fields())


def accepted_fields(receipt: Receipt, visible: SnapshotId | None) -> dict[str, Any]:
    """What the answer to an accepted write says; `visible` is the snapshot that shows it."""
    return {
        # None while a transaction holds the write: COMMIT tells it.
        "visibility_token": None if receipt.is_held else receipt.visibility_token,
        "row_count": receipt.row_count,
        "duplicate": not receipt.inserted,
        "visible_snapshot_id": visible,
    }


def failure_json(number: int, error: DuckMeshError, trace_id: str) -> bytes:
    """What a stream answers to the batch of this number, in the place of its receipt."""
    return ascii_json({"batch": number, "error": error.as_contract(trace_id)}).encode()


class _Numbers:
    """How far a stream has come. `taken` belongs to the reader, `answered` to the answers."""

    def __init__(self, begun: int) -> None:
        self.taken = begun
        self.answered = begun


def _raise(error: DuckMeshError) -> bytes:
    raise error


class _CountingWriter:
    def __init__(self, writer: MetadataWriter, numbers: _Numbers) -> None:
        self._writer = writer
        self._numbers = numbers

    def write(self, app_metadata: bytes) -> None:
        self._writer.write(app_metadata)
        self._numbers.answered += 1


def bound_rows(reader: RowsIn, *, max_bytes: int = BOUND_MAX_BYTES) -> pa.Table:
    """The rows of a DoPut that binds them to a statement.

    Raises Invalid when they are no Arrow or too many, and Cancelled when their sender left.
    """
    schema = _schema_of(reader)
    batches: list[pa.RecordBatch] = []
    taken = 0
    for batch, _ in _chunks(reader):
        if batch is None:
            continue
        _check_buffers(batch)
        batches.append(batch)
        # A row of nulls alone has no bytes, and the statement runs for it all the same.
        taken += max(batch.nbytes, batch.num_rows)
        if taken > max_bytes:
            raise Invalid(
                ErrorCode.PAYLOAD_TOO_LARGE,
                f"the bound rows take more than {max_bytes} bytes: "
                "ingest them into a table (adbc_ingest)",
                bytes=taken,
            )
    return pa.Table.from_batches(batches, schema)


def _check_buffers(batch: pa.RecordBatch) -> None:
    """Raise Invalid for what no writer makes, before anything follows an offset out of bounds."""
    try:
        batch.validate(full=True)
    except pa.ArrowException as cause:
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD, "the bound rows are not valid Arrow: bind them again"
        ) from cause


def _committed(write: PendingWrite) -> Receipt:
    try:
        return write.commit()
    except BaseException:
        # A write that may stand all the same keeps its staged files: `abort` knows.
        write.abort()
        raise


def _take_all(write: PendingWrite, reader: RowsIn) -> None:
    for batch, _ in _chunks(reader):
        if batch is not None:
            write.append(batch)


def _chunks(reader: RowsIn) -> Iterator[tuple[pa.RecordBatch | None, bytes | None]]:
    """The messages of a stream. Raises Cancelled when it breaks off, Invalid for no Arrow."""
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        except Gone:
            raise _sender_left() from None
        except (pa.ArrowException, OSError, KeyError, ValueError) as cause:
            raise Invalid(
                ErrorCode.INVALID_PAYLOAD, "the stream is not valid Arrow IPC: nothing was taken"
            ) from cause
        yield chunk.data, chunk.app_metadata


def _schema_of(reader: RowsIn) -> pa.Schema:
    try:
        return reader.schema
    except Gone:
        raise _sender_left() from None
    except (pa.ArrowException, OSError, ValueError) as cause:
        raise Invalid(
            ErrorCode.SCHEMA_REQUIRED, "the stream has no Arrow schema: send it first"
        ) from cause


def _sender_left() -> Cancelled:
    return Cancelled(
        ErrorCode.INGEST_CANCELLED, "the stream was cut short: nothing of it was accepted"
    )


_MODES: Final = {
    (IfTableMissing.CREATE, IfTableExists.FAIL): IngestMode.CREATE,
    (IfTableMissing.FAIL, IfTableExists.APPEND): IngestMode.APPEND,
    (IfTableMissing.CREATE, IfTableExists.APPEND): IngestMode.CREATE_APPEND,
    (IfTableMissing.CREATE, IfTableExists.REPLACE): IngestMode.REPLACE,
}


def _mode_of(command: StatementIngest) -> IngestMode:
    mode = _MODES.get((command.if_missing, command.if_exists))
    if mode is None:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED,
            "an ingest creates, appends, replaces, or creates and appends: choose one of these",
            if_not_exist=command.if_missing.name,
            if_exists=command.if_exists.name,
        )
    return mode


def _check_target(command: StatementIngest) -> None:
    _check_namespace(command.catalog, command.schema)
    if command.temporary:
        raise NotSupported(
            ErrorCode.NOT_SUPPORTED, "temporary tables are not supported: name a table"
        )


def _check_namespace(catalog: str | None, schema: str | None) -> None:
    if catalog not in (None, "", CATALOG) or schema not in (None, "", MAIN_SCHEMA):
        raise Invalid(
            ErrorCode.TABLE_REQUIRED,
            f"tables lie in catalog {CATALOG!r} and schema {MAIN_SCHEMA!r}: leave both out",
            catalog=catalog,
            schema=schema,
        )


def table_of_path(path: list[bytes]) -> str:
    try:
        names = [part.decode() for part in path]
    except UnicodeDecodeError:
        names = []
    if not 1 <= len(names) <= 3:
        raise Invalid(
            ErrorCode.TABLE_REQUIRED, "the descriptor's path is [table], and may say more before it"
        )
    _check_namespace(names[-3] if len(names) > 2 else None, names[-2] if len(names) > 1 else None)
    return check_table_name(names[-1])


def key_of_schema(schema: pa.Schema) -> str | None:
    """The idempotency key in the metadata of the rows' schema."""
    value = (schema.metadata or {}).get(KEY_IN_SCHEMA)
    return None if value is None else check_idempotency_key(value.decode("utf-8", "replace"))


def _deletes(schema: pa.Schema, mode: IngestMode) -> bool:
    """Whether the metadata of the rows' schema says that they are keys to delete by."""
    said = (schema.metadata or {}).get(OP_IN_SCHEMA, b"insert").decode("utf-8", "replace")
    if said not in ("insert", "delete"):
        raise Invalid(
            ErrorCode.INVALID_OP,
            "duckmesh.op in the metadata of the schema is insert or delete",
            op=said[:80],
        )
    if said == "delete" and mode is not IngestMode.APPEND:
        raise Invalid(ErrorCode.INVALID_OP, "rows are deleted from a table that is there: append")
    return bool(said == "delete")


def _key_named(metadata: bytes) -> str | None:
    """The key that a JSON object brings. Raises ValueError for what is no such object."""
    try:
        said = json.loads(metadata)
        if isinstance(said, dict):
            return None if (key := said.get("idempotency_key")) is None else str(key)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply to be read") from cause
    raise ValueError("it is no object")


def key_of_batch(metadata: bytes | None, stream_key: str | None, number: int) -> str | None:
    """The key that the batch brings, else the stream's key and the batch's number."""
    if metadata:
        try:
            key = _key_named(metadata)
        except ValueError:
            raise Invalid(
                ErrorCode.INVALID_JSON,
                'the metadata of a batch is a JSON object such as {"idempotency_key": "k1"}',
                batch=number,
            ) from None
        if key is not None:
            return check_idempotency_key(key)
    if stream_key is None:
        return None
    key = f"{stream_key}/{number}"
    if len(key) > IDEMPOTENCY_KEY_MAX_CHARS:
        raise Invalid(
            ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
            "the stream's idempotency key is too long: shorten it",
        )
    return key
