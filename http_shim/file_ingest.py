"""A file as a request's body: its rows are one write, accepted whole or not at all."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.responses import Response

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from gateway.identity import Identity
from gateway.ingest_modes import IngestMode
from gateway.key_conform import key_of
from gateway.pending_write import PendingWrite
from http_shim.bodies import Body
from http_shim.calls import Call
from http_shim.files import SELF_DESCRIBING, FileLimits, RowFile, open_rows
from http_shim.receipts import PlacedReceipt, Wish, answered
from http_shim.rooms import Door
from query_engine.engine import Interruption


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWrite:
    """What the request says of its file."""

    table: str
    media_type: str
    mode: IngestMode
    idempotency_key: str | None
    deletes: bool = False
    """Whether its rows are keys, and the rows of these keys are deleted."""


def ingest_file(
    door: Door, call: Call, who: Identity, *, asked: FileWrite, body: Body, wish: Wish
) -> Response:
    """Write the body's rows, and answer. Blocks while the body arrives."""
    writes = door.rooms.writes
    if asked.deletes and asked.mode is not IngestMode.APPEND:
        raise Invalid(ErrorCode.INVALID_OP, "a delete leaves the table as it is: leave mode out")
    columns = None
    if asked.media_type not in SELF_DESCRIBING:
        if asked.mode is not IngestMode.APPEND:
            raise NotSupported(
                ErrorCode.NOT_SUPPORTED,
                "text has no column types: create the table first, then append",
            )
        table = writes.target(who, asked.table).table
        columns = key_of(table) if asked.deletes else table.schema.arrow
    stop = Interruption()
    limits = FileLimits(line_max_bytes=door.limits.json_max_bytes, spool=door.limits.spool)
    with (
        call.stoppable(stop.interrupt),
        open_rows(asked.media_type, body, columns, limits) as file,
    ):
        write = writes.begin(
            who,
            asked.table,
            file.schema,
            mode=asked.mode,
            idempotency_key=asked.idempotency_key,
            deletes=asked.deletes,
            trace_id=call.trace_id,
            stop=stop,
        )
        with _aborted_on_error(write):
            rows = _append_all(write, file)
            if not rows and columns is not None:
                raise Invalid(
                    ErrorCode.RECORDS_REQUIRED, "the file holds no row: send one at least"
                )
            # The body may have come for hours: the key may have been revoked meanwhile.
            call.check_live()
            receipt = write.commit()
    return answered(door, call, who, wish, [PlacedReceipt(receipt, None)])


@contextlib.contextmanager
def _aborted_on_error(write: PendingWrite) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # A write that may stand all the same keeps its staged files: `abort` knows.
        write.abort()
        raise


def _append_all(write: PendingWrite, file: RowFile) -> int:
    """Every row of the file; a bad value is named by its record in the file."""
    rows = 0
    for batch in file.batches:
        try:
            write.append(batch)
        except Invalid as error:
            if isinstance(within := error.context.get("record"), int):
                record = rows + within
                column, reason = error.context.get("column"), error.context.get("reason")
                raise Invalid(
                    error.code,
                    f"record {record} has a bad value in column {column!r}: {reason}",
                    **{**error.context, "record": record},
                ) from error
            raise
        rows += batch.num_rows
    return rows
