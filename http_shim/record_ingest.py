"""Records in JSON: each with a key is a write of its own, and all are accepted together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field
from starlette.responses import Response

from catalog.table_schema import TableSchema
from catalog.tables import Table
from data_files.parquet import event_time_column
from duckmesh.errors import Conflict, DuckMeshError, ErrorCode, Invalid
from gateway.groups import KeyedRows
from gateway.identity import Identity
from http_shim.calls import Call
from http_shim.json_requests import StrictModel, check
from http_shim.receipts import PlacedReceipt, Wish, answered
from http_shim.records import batch_by_columns, batch_of, loads, needs_exact_decimals
from http_shim.rooms import Door
from ingest_bus.envelope import Operation, Receipt

_TIMEOUT_MAX_MS: Final = 3_600_000
_OF_COLUMNS: Final = frozenset({ErrorCode.INVALID_PAYLOAD, ErrorCode.SCHEMA_INCOMPATIBLE})
"""What may be wrong for the table as it was, and right for the table as it is."""


class IngestRecord(StrictModel):
    """One row."""

    idempotency_key: str | None = Field(
        default=None,
        description="Names the write: a repeat with the same payload is a duplicate. Records "
        "without a key are one write together.",
    )
    op: Literal["insert", "upsert", "delete"] = Field(
        default="insert",
        description="`upsert` and `delete` need a table with a primary key. There `insert` and "
        "`upsert` both put the row in the place of its key's row, and `delete` removes that.",
    )
    payload: dict[str, Any] = Field(
        description="The row's values by column; of a delete the values of the primary key, and "
        "others are not looked at."
    )
    event_time: str | None = Field(
        default=None,
        description="The value of the table's first timestamp column, when the payload has none.",
    )


class IngestRequest(StrictModel):
    """Rows for one table."""

    codes: ClassVar[Mapping[str, ErrorCode]] = {
        "records": ErrorCode.RECORDS_REQUIRED,
        "op": ErrorCode.INVALID_OP,
        "payload": ErrorCode.PAYLOAD_REQUIRED,
        "idempotency_key": ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
    }

    records: Annotated[list[IngestRecord], Field(min_length=1)]
    wait_for_visibility: bool = Field(
        default=False, description="Answer when the rows are visible to every query."
    )
    visibility_timeout_ms: Annotated[int, Field(ge=0, le=_TIMEOUT_MAX_MS)] | None = Field(
        default=None, description="How long to wait; `query.consistency_timeout_ms` when left out."
    )

    def wish(self, said: Wish) -> Wish:
        """What the body asks for, beside what the query string does."""
        timeout = self.visibility_timeout_ms
        return Wish(
            wait=said.wait or self.wait_for_visibility,
            timeout=said.timeout if timeout is None else timedelta(milliseconds=timeout),
            records=said.records,
        )


def ingest_records(
    door: Door, call: Call, who: Identity, *, table: str, body: bytes, wish: Wish
) -> Response:
    """Accept the records of a JSON body, all or none, and answer. Blocks."""
    try:
        records, receipts = _accepted(door, call, who, table=table, body=body, now=False)
    except (Invalid, Conflict) as refused:
        if not may_be_out_of_date(refused):
            raise
        # The table in memory may be a second old. A key that is known by now finds its receipt.
        records, receipts = _accepted(door, call, who, table=table, body=body, now=True)
    return answered(door, call, who, records.asked.wish(wish), records.placed(receipts))


def _accepted(
    door: Door, call: Call, who: Identity, *, table: str, body: bytes, now: bool
) -> tuple["Records", list[Receipt]]:
    """Accept the records for the table as it is now, or as this process knew it last."""
    writes = door.rooms.writes
    target = writes.target(who, table, now=now)
    records = records_of(body, target.table, records_max=door.limits.records_max)
    return records, writes.append_group(who, target, records.parts, trace_id=call.trace_id)


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a request, as the writes that they are."""

    asked: IngestRequest
    parts: Sequence[KeyedRows]
    places: Sequence[Sequence[int]]
    """Which records each of the writes holds."""

    def placed(self, receipts: Sequence[Receipt]) -> list[PlacedReceipt]:
        return [
            PlacedReceipt(receipt, records)
            for receipt, records in zip(receipts, self.places, strict=True)
        ]


def records_of(body: bytes, table: Table, *, records_max: int) -> Records:
    """The records of a JSON body as rows of a table. Raises Invalid."""
    schema = table.schema.arrow
    given = loads(body, exact_decimals=needs_exact_decimals(schema))
    asked = check(IngestRequest, given)
    _check_records(asked.records, records_max)
    if table.schema.primary_key:
        runs = list(_runs(asked.records))
        return Records(asked, [_part(asked.records, run, table.schema) for run in runs], runs)
    _check_all_insert(asked.records)
    batch = batch_of([_row(record, schema) for record in asked.records], schema)
    places = _places([record.idempotency_key for record in asked.records])
    parts = [KeyedRows(_taken(batch, records), key) for key, records in places]
    return Records(asked, parts, [records for _, records in places])


def may_be_out_of_date(refused: DuckMeshError) -> bool:
    """Whether the table that the records were made for may have been the reason."""
    return refused.code in _OF_COLUMNS


def _places(record_keys: Sequence[str | None]) -> list[tuple[str | None, list[int]]]:
    """The writes of a request: each key with its record, those without one together.

    The latter come where the first of them stands.
    """
    places: list[tuple[str | None, list[int]]] = []
    together: list[int] | None = None
    for index, key in enumerate(record_keys):
        if key is not None:
            places.append((key, [index]))
        elif together is None:
            together = [index]
            places.append((None, together))
        else:
            together.append(index)
    return places


def _taken(batch: pa.RecordBatch, records: Sequence[int]) -> pa.RecordBatch:
    first = records[0]
    if len(records) == batch.num_rows:
        return batch
    if len(records) == records[-1] - first + 1:
        return batch.slice(first, len(records))
    return batch.take(pa.array(records, pa.int32()))


def _check_records(records: Sequence[IngestRecord], limit: int) -> None:
    if len(records) > limit:
        raise Invalid(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"one request holds at most {limit} records: send several, or NDJSON, Arrow or Parquet",
            limit=limit,
        )


def _check_all_insert(records: Sequence[IngestRecord]) -> None:
    for index, record in enumerate(records):
        if record.op != "insert":
            raise Invalid(
                ErrorCode.INVALID_OP,
                f"record {index}: {record.op} needs a table with a primary key, and this one has "
                "none: insert, or write the table anew by SQL (CREATE OR REPLACE TABLE ... AS)",
                record=index,
                op=record.op,
            )


def _runs(records: Sequence[IngestRecord]) -> Iterator[list[int]]:
    """The writes of a request to a table with a primary key: the order of its records counts.

    Each record with a key is one, and so are neighbours without one that do the same.
    """
    run: list[int] = []
    for index, record in enumerate(records):
        before = records[run[-1]] if run else None
        if before is not None and (
            record.idempotency_key is not None
            or before.idempotency_key is not None
            or (record.op == "delete") != (before.op == "delete")
        ):
            yield run
            run = []
        run.append(index)
    yield run


def _part(records: Sequence[IngestRecord], run: Sequence[int], schema: TableSchema) -> KeyedRows:
    first = records[run[0]]
    if first.op == "delete":
        keys = [_key_of(records[index], schema) for index in run]
        rows = batch_by_columns(keys, schema.key, first_record=run[0])
        return KeyedRows(rows, first.idempotency_key, Operation.DELETE)
    payloads = [_row(records[index], schema.arrow) for index in run]
    return KeyedRows(batch_of(payloads, schema.arrow, first_record=run[0]), first.idempotency_key)


def _key_of(record: IngestRecord, schema: TableSchema) -> dict[str, Any]:
    """What a delete says of the key; the table's other columns are left out."""
    others = {name.lower() for name in schema.arrow.names}.difference(
        name.lower() for name in schema.primary_key
    )
    return {name: value for name, value in record.payload.items() if name.lower() not in others}


def _row(record: IngestRecord, schema: pa.Schema) -> dict[str, Any]:
    if record.event_time is None:
        return record.payload
    column = event_time_column(schema)
    if column is None:
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD,
            "the table has no timestamp column to take event_time: leave it out",
            column="event_time",
        )
    given = {name.lower() for name in record.payload}
    said = {} if column.lower() in given else {column: record.event_time}
    return {**record.payload, **said}
