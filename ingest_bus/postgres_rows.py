"""Envelopes as parameters of statements, and rows as what the bus answers."""

from collections.abc import Sequence
from typing import Any

import orjson

from duckmesh.errors import Conflict, ErrorCode
from duckmesh.identifiers import TenantId
from ingest_bus.conflicts import key_conflict
from ingest_bus.envelope import (
    AcceptedEvent,
    DeadLetter,
    Envelope,
    EventRecord,
    EventState,
    InlinePayload,
    Operation,
    Receipt,
    StagedPayload,
)


def envelope_values(
    tenant_id: TenantId, envelopes: Sequence[Envelope], *, as_one: bool = False
) -> dict[str, Any]:
    """The envelopes as two parameters, however many they are: JSON, and the payloads end to end.

    JSON, because orjson and Postgres read and write it in C: fifteen arrays cost ten times as much.
    """
    payloads = []
    rows = []
    start = 1
    for position, e in enumerate(envelopes, 1):
        payload = _payload_bytes(e)
        payloads.append(payload)
        row: dict[str, Any] = {
            "position": position,
            "event_id": e.event_id,
            "table_id": e.table_id,
            "schema_version": e.schema_version,
            "operation": e.operation,
            "payload_kind": "inline" if isinstance(e.payload, InlinePayload) else "staged",
            "payload_start": start,
            "payload_bytes": len(payload),
            "row_count": e.row_count,
            "byte_count": e.byte_count,
            "min_event_time": e.min_event_time,
            "max_event_time": e.max_event_time,
            "trace_id": e.trace_id,
        }
        # What a row leaves out is NULL, and what most leave out is neither written nor read.
        if e.idempotency_key is not None:
            row["key"] = e.idempotency_key
        if e.payload_hash is not None:
            row["payload_hash"] = e.payload_hash.hex()
        if e.raises_fence:
            row["raises_fence"] = True
        if e.session is not None:
            row["session_id"] = e.session.session_id
            row["principal"] = e.session.principal
        rows.append(row)
        start += len(payload)
    return {
        "tenant_id": tenant_id,
        "count": len(envelopes),
        "as_one": as_one,
        "envelopes": orjson.dumps(rows).decode(),
        "payloads": b"".join(payloads),
    }


def _payload_bytes(envelope: Envelope) -> bytes:
    payload = envelope.payload
    return payload.content if isinstance(payload, InlinePayload) else payload.to_bytes()


def receipt_of(envelope: Envelope, row: tuple[Any, ...]) -> Receipt:
    """Read one row of `receipts`; raise what makes the whole call fail, which rolls it back."""
    inserted, event_id, token, row_count, version, same_write, min_schema_version = row
    if envelope.idempotency_key is not None and not same_write:
        raise key_conflict(envelope, token)
    if inserted and min_schema_version and envelope.schema_version < min_schema_version:
        raise Conflict(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            "the table was given other columns meanwhile: check the rows against them again",
            min_schema_version=min_schema_version,
        )
    return Receipt(event_id, token, row_count, inserted, version)


def event_of(tenant_id: TenantId, row: tuple[Any, ...]) -> AcceptedEvent:
    (
        token,
        event_id,
        table_id,
        schema_version,
        operation,
        key,
        kind,
        payload,
        row_count,
        byte_count,
        min_event_time,
        max_event_time,
        trace_id,
        ingested_at,
        attempts,
        group_last_token,
    ) = row
    content = bytes(payload)
    envelope = Envelope(
        event_id=event_id,
        tenant_id=tenant_id,
        table_id=table_id,
        schema_version=schema_version,
        payload=InlinePayload(content) if kind == "inline" else StagedPayload.from_bytes(content),
        row_count=row_count,
        byte_count=byte_count,
        operation=Operation(operation),
        idempotency_key=key,
        min_event_time=min_event_time,
        max_event_time=max_event_time,
        trace_id=trace_id,
    )
    return AcceptedEvent(token, envelope, ingested_at, attempts, group_last_token)


def record_of(row: tuple[Any, ...]) -> EventRecord:
    event_id, token, table_id, key, row_count, state, ingested_at, reason = row
    return EventRecord(
        event_id, token, table_id, key, row_count, EventState(state), ingested_at, reason
    )


def dead_letter_of(row: tuple[Any, ...]) -> DeadLetter:
    event_id, token, table_id, version, operation, *rest = row
    return DeadLetter(event_id, token, table_id, version, Operation(operation), *rest)
